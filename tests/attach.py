"""How other tools read a lake and a shared set: a line each, shown in docs/formats.md and executed by tests/test_attach.py."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Attached:
    """One tool."""

    tool: str
    package: str | None
    """What must be installed for the line to be executed; None: no package has the tool itself."""
    line: str
    """An expression, over the lake in `lake`, what `saelake share set` and `saelake export catalog out` have written."""
    count: str = "len(_)"
    """The rows of `_`, what the line gives."""


LINES = (
    Attached(
        "DuckDB", "duckdb", 'duckdb.execute(open("out/catalog.sql").read()) and duckdb.table("prompts")', "len(_.fetchall())"
    ),
    Attached("Polars", "polars", 'saelake.open("lake").sql("from prompts").pl()'),
    Attached(
        "Polars, a set",
        "polars",
        'polars.scan_parquet("set/data/prompts/*.parquet", hive_partitioning=False)',
        "len(_.collect())",
    ),
    Attached("pandas", "pandas", 'saelake.open("lake").sql("from prompts").df()'),
    Attached("pandas, a set", "pandas", 'pandas.read_parquet("set/data/prompts", partitioning=None)'),
    Attached("PyArrow", "pyarrow", 'saelake.open("lake").sql("from prompts").to_arrow_table()'),
    Attached("datasets, a set", "datasets", 'datasets.load_dataset("./set", "prompts", split="train")'),
    Attached(
        "ibis", "ibis", 'ibis.duckdb.from_connection(saelake.open("lake").connection).table("prompts")', "_.count().execute()"
    ),
    Attached("ibis, a set", "ibis", 'ibis.duckdb.connect().read_parquet("set/data/prompts/*.parquet")', "_.count().execute()"),
    Attached(
        "Spark, a set",
        "pyspark",
        'pyspark.sql.SparkSession.builder.master("local[1]").getOrCreate().read.parquet("set/data/prompts")',
        "_.count()",
    ),
    Attached(
        "Croissant, a set", "mlcroissant", 'mlcroissant.Dataset(jsonld="set/croissant.json").records("prompts")', "len(list(_))"
    ),
    Attached("PyTorch", "torch", 'saelake.open("lake").dataset(layer=0, rows="prompt")', "_.n_rows"),
    Attached(
        "Trino, a set in a bucket",
        None,
        "create table hive.lake.prompts (prompt_id bigint, label varchar, text varchar) "
        "with (external_location = 's3://BUCKET/set/data/prompts/', format = 'PARQUET')",
    ),
)
