"""The explorer's SQL console: one statement that reads, under a limit of time and rows, with the protocol at hand."""

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_urlsafe
from threading import Event, Lock, Thread
from typing import Any, NamedTuple

import duckdb
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response

from saelake import queries
from saelake.analysis.explorer.charts import Chart, chart_of
from saelake.analysis.explorer.study import ShownStudy
from saelake.analysis.served.server import form_of
from saelake.queries import QueryError
from saelake.queries.fetched import rows_of
from saelake.queries.output import cell, is_numeric, show
from saelake.queries.statements import check_reads
from saelake.warehouse.errors import UserError, view_errors
from saelake.warehouse.schema import TABLES

SECONDS = 30.0
"""A statement that takes longer is stopped."""
MAX_ROWS = 500
"""Rows that a page shows."""
MAX_DOWNLOADED = 1_000_000
"""Rows of a file."""
LOOK_ROUND = 0.05
"""Seconds between two looks at the clock: to stop is said again and again, since between two steps it goes unheard."""
MEDIA = {"csv": "text/csv; charset=utf-8", "parquet": "application/vnd.apache.parquet"}
FIRST = "select layer, count(*) as n_features, round(avg(auroc), 3) as auroc\nfrom separations\ngroup by layer\norder by layer"
"""What the console shows before anything is asked."""


class Answer(NamedTuple):
    """What a statement gives, as far as a page shows it."""

    names: Sequence[str]
    numeric: Sequence[bool]
    cells: Sequence[Sequence[str | None]]
    has_more: bool
    seconds: float
    chart: Chart | None


@dataclass
class Running:
    """The statements that run now, by the tickets of the pages that asked for them."""

    _stops: dict[str, Event] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)

    def cancel(self, ticket: str) -> bool:
        """Stops a page's statement; whether there was one."""
        with self._lock:
            stop = self._stops.get(ticket)
        if stop is not None:
            stop.set()
        return stop is not None

    @contextmanager
    def limited(self, con: duckdb.DuckDBPyConnection, ticket: str) -> Iterator[None]:
        """Stops what the connection does when that is asked for, and when its time is up; raises QueryError then."""
        stop, done = Event(), Event()
        reason: list[str] = []

        def watch() -> None:
            deadline = time.monotonic() + SECONDS
            while not done.wait(LOOK_ROUND):
                if stop.is_set() or time.monotonic() > deadline:
                    reason[:] = ["it was cancelled" if stop.is_set() else f"it took longer than {SECONDS:.0f} seconds"]
                    con.interrupt()

        with self._lock:
            self._stops[ticket] = stop
        watching = Thread(target=watch, daemon=True)
        watching.start()
        try:
            yield
        except duckdb.Error as error:
            if reason:
                raise QueryError(f"the statement was stopped: {reason[0]}") from error
            raise
        finally:
            done.set()
            watching.join()
            with self._lock:
                self._stops.pop(ticket, None)


def add_console(app: FastAPI, shown: ShownStudy) -> None:
    """Adds the console."""
    running = Running()
    with shown.cursor() as con:
        tables = _tables(con)
    questions = [(name, queries.load(name).summary) for name in queries.names()]

    def page(statement: str, status: int = 200, **values: Any) -> Response:
        told = {"answer": None, "problem": "", "asked": {}, "ticket": token_urlsafe(12)} | values
        limits = {"seconds": SECONDS, "max_rows": MAX_ROWS, "max_downloaded": MAX_DOWNLOADED}
        return shown.page(
            "console.html", "sql", status, statement=statement, tables=tables, questions=questions, **limits, **told
        )

    @app.get("/b/{token}/sql")
    def console(token: str, question: str = "", statement: str = "") -> Response:
        shown.check(token)
        if not question:
            return page(statement or FIRST)
        try:
            with shown.cursor() as con:
                return page(queries.load(question).statement(con, {}))
        except QueryError as error:
            doc = queries.load(question).help if question in queries.names() else ""
            return page("\n".join(f"-- {line}".rstrip() for line in doc.splitlines()), 422, problem=str(error))

    @app.post("/b/{token}/sql/cancel")
    async def cancel(token: str, request: Request) -> Response:
        shown.check(token)
        (ticket,) = (await form_of(request)).get("ticket", [""])[:1]
        return Response(status_code=204 if running.cancel(ticket) else 404)

    @app.post("/b/{token}/sql")
    async def ask(token: str, request: Request) -> Response:
        shown.check(token)
        form = {name: values[0] for name, values in (await form_of(request)).items()}
        return await run_in_threadpool(answered, form)

    def answered(form: Mapping[str, str]) -> Response:
        statement, ticket = form.get("statement", ""), form.get("ticket") or token_urlsafe(12)
        kind = form.get("as", "table")
        try:
            with shown.cursor() as con, running.limited(con, ticket), view_errors(con):
                check_reads(statement)
                if kind in MEDIA:
                    return _file(con, statement, kind)
                told = _answer(con, statement, form)
        except (UserError, duckdb.Error) as error:  # of DuckDB's all lines are told: they point at the place
            return page(statement, 422, problem=str(error), asked=form, ticket=ticket)
        return page(statement, answer=told, asked=form, ticket=ticket)


def _answer(con: duckdb.DuckDBPyConnection, statement: str, form: Mapping[str, str]) -> Answer:
    start = time.monotonic()
    read = rows_of(con.sql(statement))
    values: list[Sequence[Any]] = []
    for row in read.rows:
        values.append(row)
        if len(values) > MAX_ROWS:
            break
    numeric = [is_numeric(kind) for kind in read.types]
    shown = values[:MAX_ROWS]
    chart = chart_of(read.names, numeric, shown, form.get("x", ""), form.get("y", ""), form.get("kind", ""))
    cells = [[_text(value) for value in row] for row in shown]
    return Answer(read.names, numeric, cells, len(values) > MAX_ROWS, time.monotonic() - start, chart)


def _text(value: Any) -> str | None:
    """A value as a cell of a page, whose lines stay lines."""
    if isinstance(value, str):
        return "\n".join(cell(line) or "" for line in value.split("\n"))
    return cell(value)


def _file(con: duckdb.DuckDBPyConnection, statement: str, kind: str) -> Response:
    """The rows as a file, as `saelake sql --output` writes it."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"rows.{kind}"
        show(con.sql(statement).limit(MAX_DOWNLOADED), kind, file)
        content = file.read_bytes()
    headers = {"Content-Disposition": f'attachment; filename="rows.{kind}"'}
    return Response(content, media_type=MEDIA[kind], headers=headers)


def _tables(con: duckdb.DuckDBPyConnection) -> list[dict[str, Any]]:
    """The protocol: every table with what a row of it is, and its columns."""
    asked = "select table_name, column_name, data_type from duckdb_columns() where schema_name = 'main' order by column_index"
    held: dict[str, list[tuple[str, str]]] = {}
    for table, column, kind in con.execute(asked).fetchall():
        held.setdefault(table, []).append((column, kind))
    found = []
    for name, table in sorted(TABLES.items()):
        meanings = {column.name: column.meaning for column in table.columns}
        columns = [(column, kind.lower(), meanings.get(column, "")) for column, kind in held.get(name, ())]
        found.append({"name": name, "row": table.row, "columns": columns})
    return found
