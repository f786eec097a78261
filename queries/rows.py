"""Rows as dictionaries by column name, for pages."""

from typing import TYPE_CHECKING, Any

from saelake.queries.loader import run

if TYPE_CHECKING:
    import duckdb

Row = dict[str, Any]


def rows(con: "duckdb.DuckDBPyConnection", name: str, **values: Any) -> list[Row]:
    """The rows of a question; raises QueryError."""
    relation = run(con, name, **values)
    return [dict(zip(relation.columns, row, strict=True)) for row in relation.fetchall()]


def selected(con: "duckdb.DuckDBPyConnection", statement: str, *values: Any) -> list[Row]:
    """The rows of a statement with prepared values."""
    names = [column[0] for column in con.execute(statement, values).description or ()]
    return [dict(zip(names, row, strict=True)) for row in con.fetchall()]
