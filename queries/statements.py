"""Statements that people type: which of them only read, and how a long one is stopped."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait

import duckdb

from .parameters import QueryError

# PIVOT arrives as a temporary type (with no text of its own) and a select.
_OF_PIVOT = (duckdb.StatementType.CREATE, "")


def check_reads(sql: str) -> None:
    """Raises QueryError unless `sql` is one statement that reads: select, from, with, explain, describe, show, summarize, pivot.

    Syntax errors are raised as duckdb.Error.
    """
    statements = duckdb.extract_statements(sql)
    if not statements:
        raise QueryError("there is no statement: give a select")
    *before, last = statements
    if any((s.type, s.query) != _OF_PIVOT for s in before):
        raise QueryError("one statement at a time: give a single select")
    if last.type == duckdb.StatementType.EXPLAIN:
        check_reads(_explained(last.query))
    elif last.type != duckdb.StatementType.SELECT:
        raise QueryError(
            f"only statements that read are allowed here (select, explain, describe, show, summarize), "
            f"not {last.type.name.lower().replace('_', ' ')}"
        )


def _explained(sql: str) -> str:
    """The statement that an explain is about: `explain analyze` would run it, whatever it is."""
    for offset, _ in duckdb.tokenize(sql)[1:]:
        rest = sql.encode()[offset:].decode()
        try:
            duckdb.extract_statements(rest)
        except duckdb.ParserException:  # still inside `analyze` or `(format json)`
            continue
        return rest
    return ""


def interruptible(con: duckdb.DuckDBPyConnection, work: Callable[[], None]) -> None:
    """Does work on a connection so that an interrupt (Ctrl-C) stops it at once: DuckDB itself may not look for a long time."""
    with ThreadPoolExecutor(1) as worker:
        running = worker.submit(work)
        try:
            running.result()
        except KeyboardInterrupt:
            while not running.done():  # an interrupt between two statements is lost, so it is said again
                con.interrupt()
                wait([running], timeout=0.05)
            raise
