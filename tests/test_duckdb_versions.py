"""Rows are fetched as every DuckDB allows it: 2 ended fetchone() of relations, and what a statement has left blocks it."""

import ast

import pytest

from tests.test_imports import modules

IN_PART = {"fetchone", "fetchmany"}
AS_ARROW = {"to_arrow_reader", "to_arrow_table", "fetch_arrow_table", "fetch_record_batch"}


def wrongly_fetched(source: str) -> list[str]:
    """Rows that are fetched in part, and Arrow from `execute`: in 2 a copy with a warning, and in no order."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    return [ast.unparse(call) for call in calls if isinstance(call.func, ast.Attribute) and _is_wrong(call.func)]


def _is_wrong(called: ast.Attribute) -> bool:
    of = called.value.func if isinstance(called.value, ast.Call) else None
    is_statement = isinstance(of, ast.Attribute) and of.attr == "execute"
    return called.attr in IN_PART or (called.attr in AS_ARROW and is_statement)


def test_rows_are_fetched_as_every_duckdb_allows() -> None:
    assert {name: found for name, file in modules().items() if (found := wrongly_fetched(file.read_text()))} == {}


@pytest.mark.parametrize("line", ["con.sql(x).fetchone()", "con.execute(x, y).to_arrow_reader(5)", "found.fetchmany(2)"])
def test_a_wrong_line_is_found(line: str) -> None:
    assert wrongly_fetched(line) == [line]
