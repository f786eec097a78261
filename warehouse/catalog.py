"""Views that let any DuckDB client see a lake's tables by name.

Plain names (`activations`) show the current run of each recipe and stage, `all_runs.activations` every published run. A view
lists its files one by one, below the session variable `lake`, so that the folder can move and nothing unlisted is ever read:

    duckdb -readonly -cmd "set variable lake = '/path/to/lake'" /path/to/lake/catalog.duckdb
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import duckdb

from .errors import UserError
from .records import Lake, RunRecord
from .schema import RUNS_COLUMNS, TABLES, Table
from .store import aside

ROOT = "coalesce(getvariable('lake') || '/', '')"


def literal(text: str) -> str:
    """A safe SQL string literal."""
    return "'" + text.replace("'", "''") + "'"


def views(records: Sequence[RunRecord], schema: str = "main") -> list[str]:
    """Statements that create one view a table over the files of `records`."""
    statements = [_runs_view(records, schema)]
    for table in TABLES.values():
        paths = [f.path for r in records for f in r.files if f.table == table.name]
        statements.append(_table_view(table, paths, schema))
    return statements


def _table_view(table: Table, paths: Iterable[str], schema: str) -> str:
    names = ", ".join(f'"{c.name}"' for c in table.columns)
    source = _files(paths)
    if source:
        # No glob and no hive keys: the list is the truth, and every column is in the file.
        return f"create view {schema}.{table.name} as select {names} from read_parquet({source}, hive_partitioning = false)"
    typed = ", ".join(f'null::{_sql_type(table, c.name)} as "{c.name}"' for c in table.columns)
    return f"create view {schema}.{table.name} as select {typed} where false"


def _runs_view(records: Sequence[RunRecord], schema: str) -> str:
    names = ", ".join(f'"{name}"' for name in RUNS_COLUMNS)
    source = _files(f"runs/{r.run_id}.json" for r in records)
    if source:
        columns = ", ".join(f'"{name}": {literal(kind)}' for name, kind in RUNS_COLUMNS.items())
        return f"create view {schema}.runs as select {names} from read_json({source}, columns = {{{columns}}})"
    typed = ", ".join(f'null::{kind} as "{name}"' for name, kind in RUNS_COLUMNS.items())
    return f"create view {schema}.runs as select {typed} where false"


def _files(paths: Iterable[str]) -> str:
    listed = ", ".join(f"{ROOT} || {literal(p)}" for p in paths)
    return f"[{listed}]" if listed else ""


def _sql_type(table: Table, column: str) -> str:
    arrow = str(table.column(column).type)
    names = {"string": "varchar", "int64": "bigint", "int32": "integer", "int16": "smallint", "float": "float"}
    return {"bool": "boolean", "list<item: float>": "float[]", "list<element: float>": "float[]"}.get(arrow) or names[
        arrow
    ]


def current_records(lake: Lake, recipe: str | None = None) -> list[RunRecord]:
    """The published runs that a plain table name shows, of one recipe or of all; raises UserError for an unknown recipe."""
    pointers = lake.current()
    recipes = sorted({name for name, _ in pointers})
    if recipe is not None and recipe not in recipes:
        raise UserError(
            f"the lake {lake.root} has no study named {recipe!r}; it has {', '.join(recipes) or 'none yet'}"
        )
    wanted = {run_id for (name, _), run_id in pointers.items() if recipe in (None, name)}
    return [r for r in lake.records() if r.run_id in wanted]


def create_views(con: duckdb.DuckDBPyConnection, lake: Lake, current: Sequence[RunRecord]) -> None:
    """Creates the views of both schemas on a connection, whose session variable `lake` is set first."""
    con.execute("set variable lake = $1", [str(lake.root.resolve())])
    for statement in views(current):
        con.execute(statement)
    con.execute("create schema all_runs")
    for statement in views(lake.records(), "all_runs"):
        con.execute(statement)


def connect(
    lake: Lake, recipe: str | None = None, runs: Sequence[str] | None = None, threads: int | None = None
) -> duckdb.DuckDBPyConnection:
    """An in-memory connection on which the plain table names show one study, given runs, or all that is current."""
    con = duckdb.connect(config={"threads": threads} if threads else {})
    records = current_records(lake, recipe)
    if runs is not None:
        by_id = {r.run_id: r for r in lake.records()}
        records = [by_id[run_id] for run_id in runs]
    create_views(con, lake, records)
    return con


def refresh_catalog(lake: Lake) -> None:
    """Rebuilds catalog.duckdb aside and renames it, so that an open shell keeps the old one whole. Hold the catalog lock."""
    draft = aside(lake.catalog)
    try:
        with duckdb.connect(draft) as con:
            create_views(con, lake, current_records(lake))
        draft.replace(lake.catalog)
    finally:
        for leftover in (draft, Path(f"{draft}.wal")):
            leftover.unlink(missing_ok=True)
