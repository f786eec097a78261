"""Views that let any DuckDB client see a lake's tables by name.

Plain names (`activations`) show the current run of each recipe and stage, `all_runs.activations` every published run. A view
lists its files one by one, below the session variable `lake`, so that the folder can move and nothing unlisted is ever read:

    duckdb -readonly -cmd "set variable lake = '/path/to/lake'" /path/to/lake/catalog.duckdb
"""

import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import duckdb
import pyarrow as pa

from saelake.warehouse.errors import UserError, first_line
from saelake.warehouse.files import file_layer
from saelake.warehouse.literals import ESCAPED_LAKE, literal, literals, parquet
from saelake.warehouse.records import Lake, RunRecord, record_key
from saelake.warehouse.schema import RUNS_STRUCTURE, TABLES, Table
from saelake.warehouse.store import aside, locked, sync_file, try_locked

ROOT = f"coalesce({ESCAPED_LAKE} || '/', '')"

STORAGE_VERSION = "v1.2.0"
"""What catalog.duckdb is written as: every DuckDB from this one on opens it, whichever wrote it."""
LARGEST_JOIN_FILTER = 500
"""Values on one side of a join up to which DuckDB looks for row groups without them on the other side; its own default is 50.
A join with 200 features over 60M rows takes half the time, and larger ones no more than before."""


def create_views(con: duckdb.DuckDBPyConnection, lake: Lake, current: Iterable[str]) -> None:
    """Creates `all_runs` over every published run, and plain names over the runs whose ids are `current`.

    Sets the connection's session variable `lake`, which the views are built on.
    """
    _point_at(con, lake)
    records = lake.records()
    wanted = set(current)
    shown = [r for r in records if r.run_id in wanted]
    con.begin()
    try:
        for statement in _statements(records, shown):
            con.execute(statement)
    except duckdb.Error:  # a view is refused if its first file is damaged, which must not hide the other tables
        con.rollback()
        for statement in _statements(records, shown):
            _create_if_readable(con, statement)
    else:
        con.commit()


def _statements(records: Sequence[RunRecord], shown: Sequence[RunRecord]) -> Iterator[str]:
    yield "create schema all_runs"
    yield _runs_table(records)
    listed = literals(r.run_id for r in shown)
    yield f"create view main.runs as select * from all_runs.runs where list_contains({listed}, run_id)"
    for table in TABLES.values():
        for schema, runs in (("all_runs", records), ("main", shown)):
            yield f"create view {schema}.{table.name} as {_rows_of_all(table, _by_columns(table, runs))}"
        if table.by_layer:
            yield _layer_macro(table, shown)


def _by_columns(table: Table, runs: Sequence[RunRecord]) -> dict[frozenset[str], list[str]]:
    """The files of a table, by the columns that they hold: one entry unless runs of different versions differ in this table."""
    files: dict[frozenset[str], list[str]] = {}
    for run in runs:
        held = frozenset(c.name for c in table.stored(run.schema_version))
        files.setdefault(held, []).extend(f.path for f in run.files if f.table == table.name)
    return {held: paths for held, paths in files.items() if paths}


def _rows_of_all(table: Table, files: Mapping[frozenset[str], Sequence[str]]) -> str:
    return " union all ".join(_rows(table, _file_list(paths), held) for held, paths in files.items()) or _no_rows(table)


def _layer_macro(table: Table, runs: Sequence[RunRecord]) -> str:
    """`activations_of(layer)`: the rows of one layer, which opens only that layer's files; `layer` must be a literal."""
    parts = [_rows_of_layer(table, held, paths) for held, paths in _by_columns(table, runs).items()]
    return f"create macro main.{table.name}_of(layer_read) as table {' union all '.join(parts) or _no_rows(table)}"


def _rows_of_layer(table: Table, held: frozenset[str], paths: Sequence[str]) -> str:
    by_layer: dict[int, list[str]] = {}
    for path in paths:
        by_layer.setdefault(file_layer(path), []).append(path)
    branches = " ".join(f"when {layer} then {_file_list(found)}" for layer, found in sorted(by_layer.items()))
    first = _file_list(next(iter(by_layer.values())))  # something must be there for a layer that has no files
    listed = ", ".join(map(str, sorted(by_layer)))
    return f"{_rows(table, f'case layer_read {branches} else {first} end', held)} where layer_read in ({listed})"


def _file_list(paths: Sequence[str]) -> str:
    return "[" + ", ".join(f"{ROOT} || {literal(path)}" for path in paths) + "]"


def _rows(table: Table, files: str, held: frozenset[str]) -> str:
    return f"select {', '.join(_columns(table, held))} from {parquet(files)}"


def _columns(table: Table, held: frozenset[str]) -> list[str]:
    """All columns of a table, selected from files that hold some of them."""
    return [
        f'"{c.name}"' if c.name in held else f'({c.elsewhere or "null"})::{_sql_type(c.type)} as "{c.name}"'
        for c in table.columns
    ]


def _no_rows(table: Table) -> str:
    typed = ", ".join(f'null::{_sql_type(c.type)} as "{c.name}"' for c in table.columns)
    return f"select {typed} where false"


def _create_if_readable(con: duckdb.DuckDBPyConnection, statement: str) -> None:
    """Creates a view, or one in its place that says why it cannot be read."""
    try:
        con.execute(statement)
    except duckdb.Error as error:
        kind, name = statement.split("(")[0].split()[1:3]
        if kind == "macro":
            return
        message = f"{name} cannot be read ({first_line(error)}): `saelake check` says what to do"
        con.execute(f"create view {name} as select error({literal(message)}) as damaged")


def _runs_table(records: Sequence[RunRecord]) -> str:
    """The run records as a table: a run that is dropped later cannot break it."""
    rows = literal(json.dumps([asdict(r) for r in records], ensure_ascii=False))
    structure = literal(json.dumps([RUNS_STRUCTURE]))
    return f"create table all_runs.runs as select unnest(from_json({rows}, {structure}), max_depth := 2)"


def _sql_type(arrow: pa.DataType) -> str:
    if pa.types.is_list(arrow):
        return _sql_type(arrow.value_type) + "[]"
    names = {"string": "varchar", "int64": "bigint", "int32": "integer", "int16": "smallint", "bool": "boolean"}
    return names.get(str(arrow), str(arrow))


def current_records(lake: Lake, recipe: str | None = None) -> list[RunRecord]:
    """The published runs that a plain table name shows, of one recipe or of all; raises UserError for an unknown recipe."""
    pointers = lake.current()
    recipes = sorted({name for name, _ in pointers})
    if recipe is not None and recipe not in recipes:
        raise _unknown_study(lake, recipe, recipes)
    wanted = {run_id for (name, _), run_id in pointers.items() if recipe in (None, name)}
    return [r for r in lake.records() if r.run_id in wanted]


def one_study(lake: Lake, recipe: str | None = None) -> str:
    """The study of that name, else the only one of the lake; raises UserError where there is none, or are several."""
    studies = sorted({name for name, _ in lake.current()})
    if recipe is not None and recipe not in studies:
        raise _unknown_study(lake, recipe, studies)
    if not studies:
        raise UserError(f"the lake {lake} holds no study yet: `saelake analyze RECIPE --lake {lake}` makes one")
    if recipe is None and len(studies) > 1:
        raise several_studies(lake, studies)
    return recipe or studies[0]


def several_studies(lake: Lake, studies: Sequence[str]) -> UserError:
    """What to say where one study is meant and none is named."""
    return UserError(f"the lake {lake} holds several studies ({', '.join(studies)}): choose one with --recipe NAME")


def _unknown_study(lake: Lake, recipe: str, studies: Sequence[str]) -> UserError:
    return UserError(f"the lake {lake} has no study named {recipe!r}; it has {', '.join(studies) or 'none yet'}")


class Files(NamedTuple):
    """Parquet files of one table that hold the same columns."""

    paths: list[str]
    columns: list[str]
    """What to select from them, in DuckDB's SQL: all columns of the table, in the same order for all its files."""


def current_files(lake: Lake, recipe: str | None = None) -> dict[str, list[Files]]:
    """The Parquet files behind each plain table name, for readers other than DuckDB; raises UserError for an unknown recipe."""
    records = current_records(lake, recipe)
    found = {}
    for table in TABLES.values():
        parts = _by_columns(table, records).items()
        found[table.name] = [Files([f"{lake.published.url}/{path}" for path in paths], _columns(table, h)) for h, paths in parts]
    return {name: files for name, files in found.items() if files}


def connect(
    lake: Lake, recipe: str | None = None, runs: Sequence[str] | None = None, threads: int | None = None
) -> duckdb.DuckDBPyConnection:
    """An in-memory connection on which the plain table names show one study, given runs, or all that is current.

    Raises UserError for an unknown recipe or run.
    """
    unknown = [run_id for run_id in runs or () if not lake.published.exists(record_key(run_id))]
    if unknown:
        raise UserError(f"the lake {lake} has no run {', '.join(unknown)}: `saelake runs` lists them")
    con = duckdb.connect(config={"threads": threads} if threads else {})
    _configure(con)
    create_views(con, lake, [r.run_id for r in current_records(lake, recipe)] if runs is None else runs)
    return con


def cursor_of(con: duckdb.DuckDBPyConnection, lake: Lake) -> duckdb.DuckDBPyConnection:
    """A connection beside `con`, which `connect` made, for another thread: it shares the views, but no session."""
    cursor = con.cursor()
    _configure(cursor)
    _point_at(cursor, lake)
    return cursor


def _configure(con: duckdb.DuckDBPyConnection) -> None:
    con.execute("set parquet_metadata_cache = true")  # published files never change
    con.execute(f"set dynamic_or_filter_threshold = {LARGEST_JOIN_FILTER}")


def _point_at(con: duckdb.DuckDBPyConnection, lake: Lake) -> None:
    lake.published.prepare(con)
    con.execute(f"set variable lake = {literal(lake.published.url)}")  # a prepared value would import pandas


@contextmanager
def changing_catalog(lake: Lake) -> Iterator[None]:
    """Lets one process at a time change run records and pointers, and brings the catalog up to date with them."""
    with locked(lake.lock("catalog")):
        was_stale = lake.stale.exists()
        lake.stale.touch()
        try:
            yield
        except UserError:  # said before anything is changed
            if not was_stale:
                lake.stale.unlink()
            raise
        _build_catalog(lake)
        lake.stale.unlink()


LEFT_BEHIND = "a killed process left it older than the runs"
"""What is said of a catalog that `recover_catalog` builds again."""


def recover_catalog(lake: Lake) -> bool:
    """Builds the catalog again if a killed process left it older than the runs; whether it did."""
    if not lake.stale.exists():
        return False
    with try_locked(lake.lock("catalog")) as is_free:
        if not is_free or not lake.stale.exists():  # a living process changes it, and brings it up to date
            return False
        _build_catalog(lake)
        lake.stale.unlink()
    return True


def is_catalog_current(lake: Lake) -> bool:
    return lake.catalog.exists() and not lake.stale.exists()


def _build_catalog(lake: Lake) -> None:
    """Builds catalog.duckdb aside and renames it, so that an open shell keeps the old one whole."""
    draft = aside(lake.catalog)
    try:
        # In a folder of a plain name: DuckDB takes a ? in a database's path for options, and a backslash for a slash.
        with tempfile.TemporaryDirectory(prefix="saelake-catalog-") as folder:
            built = Path(folder) / lake.catalog.name
            with duckdb.connect(built, config={"storage_compatibility_version": STORAGE_VERSION}) as con:
                create_views(con, lake, [r.run_id for r in current_records(lake)])
            shutil.copyfile(built, draft)
        sync_file(draft)
        draft.replace(lake.catalog)
    finally:
        draft.unlink(missing_ok=True)
