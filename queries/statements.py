"""Statements that people type: which of them only read, and how a long one is stopped."""

import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from threading import Event

import duckdb

from saelake.queries.parameters import QueryError

# PIVOT arrives as a temporary type (with no text of its own) and a select; from DuckDB 2 on as one statement that is several.
_OF_PIVOT = (duckdb.StatementType.CREATE, "")
_READS = {"SELECT", "MULTI"}
LOOK_ROUND = 0.05
"""Seconds after which Ctrl-C is heard at the latest."""


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
    elif last.type.name not in _READS:
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
    """Does work on a connection so that Ctrl-C stops it at once: DuckDB itself may not look for a long time. Main thread only.

    While the work goes on Ctrl-C sets a flag: there is no moment at which it could be lost. Then KeyboardInterrupt is raised.
    """
    is_stopped = Event()
    before = signal.signal(signal.SIGINT, lambda *_: is_stopped.set())
    try:
        with ThreadPoolExecutor(1) as worker:
            running = worker.submit(work)
            while not wait([running], timeout=LOOK_ROUND).done:
                if is_stopped.is_set():  # said again and again: between two statements it would go unheard
                    con.interrupt()
    finally:
        signal.signal(signal.SIGINT, before)
    if is_stopped.is_set() and running.exception() is not None:
        raise KeyboardInterrupt
    running.result()
