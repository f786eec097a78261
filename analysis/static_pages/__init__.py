"""A lake without a server: static pages in a shared set, which read its Parquet by HTTP range requests."""
