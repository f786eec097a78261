"""Statements that people type: which of them only read, and how a long one is stopped."""

import json
import re
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from itertools import pairwise
from threading import Event
from typing import Any

import duckdb

from saelake.queries.parameters import QueryError
from saelake.warehouse.literals import is_unicode, literal

# PIVOT arrives as a temporary type (with no text of its own) and a select; from DuckDB 2 on as one statement that is several.
_OF_PIVOT = (duckdb.StatementType.CREATE, "")
_READS = {"SELECT", "MULTI"}
_ACTS = re.compile(
    r"(en|dis)able_\w+|truncate_\w+|write_log|(force_)?checkpoint|(import|copy)_database|\w*_external_resource\w*|"
    r"\w+_grammar_extension|add_parquet_key|query(_table)?|json_execute_serialized_sql|(arrow|pandas|seq|python)_\w+",
    re.IGNORECASE,
)
"""Functions that a select may call and that do more than read: they log to files, run text as SQL, follow addresses in memory."""
_OWN_FUNCTIONS = re.compile(r"range|generate_series|unnest|repeat|\w+_of", re.IGNORECASE)
"""Functions in a from clause that read nothing but a lake's tables."""
LOOK_ROUND = 0.05
"""Seconds after which Ctrl-C is heard at the latest."""


def check_reads(sql: str) -> None:
    """Raises QueryError unless `sql` is one statement that reads: select, from, with, explain, describe, show, summarize, pivot.

    Syntax errors are raised as duckdb.Error.
    """
    if not is_unicode(sql):
        raise QueryError("the statement is not text in UTF-8")
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
    acts = next((name for name in _called(sql) if _ACTS.fullmatch(name)), None)
    if acts:
        raise QueryError(f"{acts}() does more than read: it is not allowed here")


def check_reads_tables(con: duckdb.DuckDBPyConnection, sql: str) -> None:
    """Raises QueryError unless a select, which passes `check_reads`, reads tables alone: no files, and nothing from a network."""
    tree = json.loads(con.execute(f"select json_serialize_sql({literal(sql)})").fetchall()[0][0])
    if tree["error"]:
        raise QueryError("a select is needed here")
    for node in _nodes(tree):
        name = str(node.get("table_name") or node.get("function", {}).get("function_name"))
        if node.get("type") == "TABLE_FUNCTION" and not _OWN_FUNCTIONS.fullmatch(name):
            raise QueryError(f"{name}() is not allowed here: only the lake's tables are read")
        if node.get("type") == "BASE_TABLE" and not re.fullmatch(r"\w+", name):
            raise QueryError(f"{name!r} is not a table: only the lake's tables are read here")


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    if isinstance(tree, dict):
        yield tree
    if isinstance(tree, dict | list):
        for part in tree.values() if isinstance(tree, dict) else tree:
            yield from _nodes(part)


def _called(sql: str) -> Iterator[str]:
    """The names that stand before an opening bracket, unquoted."""
    text, tokens = sql.encode(), [token for token in duckdb.tokenize(sql) if token[1] != duckdb.token_type.comment]
    for (offset, _), (following, _) in pairwise(tokens):
        name = re.match(rb'"?(\w+)"?', text[offset:following])
        if name and text[following : following + 1] == b"(":
            yield name[1].decode()


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
