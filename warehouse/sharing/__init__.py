"""Lakes that travel: `share` writes chosen runs as a Parquet data set, `add` verifies one and publishes it in another lake."""
