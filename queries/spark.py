"""The shipped questions on Spark 4: the same statements, translated, over the same files, with the same rows.

    saelake query top_samples --features 4:256 --engine spark

Spark runs where its own configuration says (SPARK_REMOTE, spark-defaults.conf), by default in this process. It needs Java.
"""

import atexit
import logging
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from functools import cache, reduce
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa

from saelake.extras import require
from saelake.queries.loader import load
from saelake.queries.parameters import QueryError

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession
    from sqlglot import exp

SETTINGS = {
    "spark.sql.ansi.enabled": "false",  # as in DuckDB, a division by zero is null
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.execution.arrow.pyspark.enabled": "true",
}

PARTITIONS, FOR_A_CLUSTER = "spark.sql.shuffle.partitions", "200"
"""After a join or a sum, and Spark's own default of their number."""
MEMORY = "4g"
"""What a Spark in this process may hold; with Spark's own default, 1g, Java may end in the middle of several joins."""

ENDED = (
    "the Spark of this process has ended, as it does when it is out of memory: start Python again, with a larger "
    "SPARK_DRIVER_MEMORY or by asking DuckDB"
)


def session() -> "SparkSession":
    """The Spark of this process; raises QueryError if it cannot be had, UserError if it is not installed."""
    require("spark", "Spark")
    is_local = "SPARK_REMOTE" not in os.environ
    if is_local and not shutil.which("java") and "JAVA_HOME" not in os.environ:
        raise QueryError("Spark needs Java 17 or newer: install it, or set JAVA_HOME or SPARK_REMOTE")
    warnings.filterwarnings("ignore", "PySpark does not yet fully support pandas", FutureWarning)
    from py4j.protocol import Py4JError
    from pyspark.errors import PySparkException
    from pyspark.sql import SparkSession

    logging.getLogger("SQLQueryContextLogger").disabled = True  # what it logs is raised as well, and reported in one sentence
    builder = SparkSession.builder.appName("saelake")
    if is_local:
        quiet = {"spark.ui.enabled": "false", "spark.log.level": "ERROR", "spark.sql.warehouse.dir": _warehouse()}
        builder = builder.config(map=quiet | {"spark.ui.showConsoleProgress": str(sys.stderr.isatty()).lower()})
        os.environ.setdefault("SPARK_DRIVER_MEMORY", MEMORY)  # of all places where Spark looks for it, the last
    try:
        spark = builder.getOrCreate()
    except PySparkException as error:
        raise QueryError(f"Spark does not start: {_reason(error)}; see JAVA_HOME and SPARK_REMOTE") from error
    except (Py4JError, ConnectionError) as error:
        raise QueryError(ENDED) from error
    for name, value in SETTINGS.items():
        spark.conf.set(name, value)
    if str(spark.conf.get("spark.master", "")).startswith("local") and spark.conf.get(PARTITIONS) == FOR_A_CLUSTER:
        spark.conf.set(PARTITIONS, str(2 * (os.cpu_count() or 1)))
    return spark


@cache
def _warehouse() -> str:
    """A folder that goes with this process: else Spark makes one wherever it is started, for tables that nothing here makes."""
    folder = tempfile.mkdtemp(prefix="saelake-spark-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def run(
    con: duckdb.DuckDBPyConnection,
    spark: "SparkSession",
    name: str,
    files: Mapping[str, Sequence[tuple[Sequence[str], Sequence[str]]]],
    **parameters: Any,
) -> duckdb.DuckDBPyRelation:
    """Asks a question on Spark; its rows as a relation of `con`, in the order and with the types that DuckDB would give.

    Args:
        con: a connection that shows the lake's tables; lists of features are looked up on it.
        files: the Parquet files of each table of the lake, those with the same columns together, and what to select from them;
            all other tables that a question reads are taken from `con`.
    Raises QueryError for a wrong name or parameter, and for a question that Spark cannot answer.
    """
    from py4j.protocol import Py4JError, Py4JJavaError
    from pyspark.errors import PySparkException

    statement = load(name).statement(con, parameters, by_layer=False)  # Spark skips files by their statistics
    translated, tables = translate(statement)
    try:
        for table in tables:
            parts = [_frame(spark, *part, con.table(table)) for part in files.get(table, ())]
            parts = parts or [spark.createDataFrame(_in_memory(con, table))]
            reduce(lambda one, other: one.union(other), parts).createOrReplaceTempView(table.replace(".", "_"))
        rows = spark.sql(translated).toArrow()
    except (PySparkException, Py4JJavaError) as error:
        raise QueryError(f"Spark cannot answer {name}: {_reason(error)}; ask DuckDB") from error
    except (Py4JError, ConnectionError) as error:
        raise QueryError(ENDED) from error
    expected = con.sql(statement)
    typed = ", ".join(f'"{column}"::{kind} as "{column}"' for column, kind in zip(expected.columns, expected.types, strict=True))
    return con.from_arrow(rows).project(typed)


def _reason(error: Exception) -> str:
    return next((line.rstrip(".") for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _frame(spark: "SparkSession", paths: Sequence[str], columns: Sequence[str], table: duckdb.DuckDBPyRelation) -> "DataFrame":
    """Files with the same columns, and what is selected from them in DuckDB's words.

    Their types are those of the table: Spark would run a job to read them from a file, as long as a small question takes.
    """
    import sqlglot
    from pyspark.sql.pandas.types import from_arrow_schema

    select = f"select {', '.join(columns)}"
    expressions = sqlglot.parse_one(select, read="duckdb").expressions
    types = from_arrow_schema(table.limit(0).to_arrow_table().schema)
    return spark.read.schema(types).parquet(*paths).selectExpr(*(one.sql(dialect="spark", identify=True) for one in expressions))


def _in_memory(con: duckdb.DuckDBPyConnection, table: str) -> pa.Table:
    """A table that is not read from files: the run records, one without rows, or one that is summed over several runs."""
    rows = con.sql(f"from {table}").to_arrow_table()  # con.table knows one schema alone
    return rows if len(rows) else rows.schema.empty_table()  # Spark cannot take columns without any chunk


def translate(statement: str) -> tuple[str, list[str]]:
    """A DuckDB statement in Spark's words, and the tables that it reads, one of another schema as SCHEMA.NAME."""
    import sqlglot
    from sqlglot import exp

    tree = sqlglot.parse_one(statement, read="duckdb")
    ctes = {cte.alias for cte in tree.find_all(exp.CTE)}
    read = [table for table in tree.find_all(exp.Table) if table.name]
    tables = sorted({f"{table.db}.{table.name}".lstrip(".") for table in read if table.db or table.name not in ctes})
    return tree.transform(_in_words_of_spark).sql(dialect="spark", identify=True), tables


def _in_words_of_spark(node: "exp.Expr") -> "exp.Expr":
    """What sqlglot translates otherwise than DuckDB means it."""
    import sqlglot
    from sqlglot import exp

    match node:
        case exp.IgnoreNulls(this=exp.AnyValue(this=exp.Order() as chosen)) | exp.AnyValue(this=exp.Order() as chosen):
            return exp.ArgMin(this=chosen.this, expression=chosen.expressions[0].this)
        case exp.Filter(this=exp.ArrayAgg(this=exp.Order() as listed), expression=kept):
            pairs = f"struct({listed.expressions[0].this.sql('spark')} as place, {listed.this.sql('spark')} as value)"
            listing = f"array_sort(collect_list({pairs}) filter ({kept.sql('spark')}))"
            return sqlglot.parse_one(f"transform({listing}, pair -> pair.value)", read="spark")
        case exp.Table(this=exp.GenerateSeries() as series):
            node.set("this", exp.func("range", series.args["start"], series.args["end"]))
        case exp.Table() if node.db:  # a view of Spark has a name alone
            node.set("this", exp.to_identifier(f"{node.db}_{node.name}"))
            node.set("db", None)
        case exp.TimeToUnix():
            return exp.Div(this=exp.func("unix_micros", node.this), expression=exp.Literal.number("1e6"))
        case exp.Limit(expression=exp.Cast(this=number)):
            node.set("expression", number)
        case exp.Anonymous(this=str(called), expressions=[one, other]) if called.lower() == "list_dot_product":
            return _dot_product(one, other)
        case exp.Anonymous(this=str(called), expressions=[one, other]) if called.lower() == "list_cosine_similarity":
            norms = exp.Sqrt(this=exp.Mul(this=_dot_product(one, one), expression=_dot_product(other, other)))
            return exp.Div(this=_dot_product(one, other), expression=norms)
    return node


def _dot_product(one: "exp.Expr", other: "exp.Expr") -> "exp.Expr":
    import sqlglot

    products = f"zip_with({one.sql('spark')}, {other.sql('spark')}, (x, y) -> x * y)"
    return sqlglot.parse_one(f"aggregate({products}, 0d, (total, x) -> total + x)", read="spark")
