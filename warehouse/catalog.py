"""Views that let any DuckDB client see a lake's tables by name.

Plain names (`activations`) show the current runs of each recipe and stage, `all_runs.activations` every published run. A view
lists its files one by one, below the session variable `lake`, so that the folder can move and nothing unlisted is ever read:

    duckdb -readonly -cmd "set variable lake = '/path/to/lake'" /path/to/lake/catalog.duckdb
"""

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import duckdb
import pyarrow as pa

from saelake.warehouse.damage import HINT, file_damage, pointer_damage, pointer_sentence, withheld_sentence
from saelake.warehouse.durable import aside, locked, sync_file, try_locked
from saelake.warehouse.errors import UserError, first_line
from saelake.warehouse.files import DataFile, file_layer
from saelake.warehouse.literals import ESCAPED_LAKE, exactly, literal, literals, parquet
from saelake.warehouse.records import Lake, RunRecord
from saelake.warehouse.schema import RUNS_STRUCTURE, TABLES, Table

ROOT = f"coalesce({ESCAPED_LAKE} || '/', '')"

STORAGE_VERSION = "v1.2.0"
"""What catalog.duckdb is written as: every DuckDB from this one on opens it, whichever wrote it.

Its views say `case`, not `if`: DuckDB 2 saves that as a function, which DuckDB 1 does not have."""
MAKING = "saelake_is_making_views"
"""A session variable that is set while views are made: binding one that is to fail would fail already."""
MOST_READINGS = 3
"""Times that pointers are read again which seem damaged, but have changed since."""
NO_EXTENSIONS: dict[str, str | bool | int | float | list[str]] = {
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "allow_community_extensions": False,
}
"""Nothing is fetched or loaded because a statement mentions it; what a lake on S3 needs comes from its wheel."""
LARGEST_JOIN_FILTER = 500
"""Values on one side of a join up to which DuckDB looks for row groups without them on the other side; its own default is 50.
A join with 200 features over 60M rows takes half the time, and larger ones no more than before."""


class Shown(NamedTuple):
    """What plain table names are to show."""

    records: Sequence[RunRecord]
    published: Sequence[RunRecord]
    """Every run of the lake, which `all_runs` shows."""
    lake: Lake
    """The lake as it was then."""
    studies: tuple[str, ...] = ()
    """All that pointers name."""
    damage: str | None = None
    """Why they can show nothing."""


def create_views(
    con: duckdb.DuckDBPyConnection, shown: Shown, is_saved: bool = False, there: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Creates `all_runs` over every published run, and plain names over those that are `shown`.

    Sets the connection's session variable `lake`, which the views are built on. What is damaged or was left out becomes a view
    that fails, with the reason, when a statement is bound to it: whatever that selects.

    Args:
        is_saved: for later readers: views of local files look, whenever they are asked, whether these have kept their size.
        there: what an earlier call has created in this database and returned: of it only what differs now is replaced.
    Returns what is created -> the statement that did; nothing if one of them failed.
    """
    _point_at(con, shown.lake)
    damage = file_damage(shown.lake, (f for r in shown.published for f in r.files))
    made = {_head(one): one for one in _statements(shown, damage, is_saved and shown.lake.remote is None, is_saved)}
    statements = [one for head, one in made.items() if (there or {}).get(head) != one]
    con.execute(f"set variable {MAKING} = true")
    con.begin()
    try:
        for statement in statements:
            con.execute(statement)
    except duckdb.Error:  # a view is refused if its first file is damaged, which must not hide the other tables
        con.rollback()
        for statement in statements:
            _create_if_readable(con, statement)
        made = {}
    else:
        con.commit()
    con.execute(f"reset variable {MAKING}")
    return made


def _head(statement: str) -> str:
    """What a statement of `_statements` creates: its kind and name."""
    return statement.partition(" as ")[0]


def view_statements(shown: Shown) -> list[str]:
    """What makes the views in a database of somebody's own, in which the variables `lake` and MAKING are set."""
    damage = file_damage(shown.lake, (f for r in shown.published for f in r.files))
    return list(_statements(shown, damage, guarded=False, is_saved=True))


def _statements(shown: Shown, damage: Mapping[str, str], guarded: bool, is_saved: bool) -> Iterator[str]:
    is_far = shown.lake.remote is not None
    yield "create schema if not exists all_runs"
    yield _runs(shown.published, as_table=is_saved)
    listed = literals(r.run_id for r in shown.records)
    failing = f", {_failing(shown.damage)} as never" if shown.damage else ""
    yield f"create or replace view main.runs as select runs.* from all_runs.runs{failing} where list_contains({listed}, run_id)"
    published, records = _files_by_table(shown.published), _files_by_table(shown.records)
    for table in TABLES.values():
        of_all, of_shown = published.get(table.name, ()), records.get(table.name, ())
        yield _table_view(table, shown.published, of_all, damage, "all_runs", guarded, is_far)
        if shown.damage:
            yield f"create or replace view main.{table.name} as {_unreadable(table, shown.damage)}"
        else:
            yield _table_view(table, shown.records, of_shown, damage, "main", guarded, is_far)
        if table.by_layer:
            yield _layer_macro(table, shown, of_shown, damage)


Versioned = Sequence[tuple[int, DataFile]]
"""Files of one table, each with the version of the schema that its run was written with."""


def _files_by_table(runs: Sequence[RunRecord]) -> dict[str, list[tuple[int, DataFile]]]:
    """table -> its files, run by run"""
    found: dict[str, list[tuple[int, DataFile]]] = {}
    for run in runs:
        for file in run.files:
            found.setdefault(file.table, []).append((run.schema_version, file))
    return found


def _by_columns(table: Table, files: Versioned) -> dict[frozenset[str], list[str]]:
    """The files of a table, by the columns that they hold: one entry unless runs of different versions differ in this table."""
    versions = {version: frozenset(c.name for c in table.stored(version)) for version in {version for version, _ in files}}
    found: dict[frozenset[str], list[str]] = {}
    for version, file in files:
        found.setdefault(versions[version], []).append(file.path)
    return found


def _table_view(
    table: Table, runs: Sequence[RunRecord], held: Versioned, damage: Mapping[str, str], schema: str, guarded: bool, is_far: bool
) -> str:
    files = [file for _, file in held]
    is_one_study = schema == "main" and len({r.recipe for r in runs}) == 1
    wrong = next((f"{f.path} {damage[f.path]}" for f in files if f.path in damage), None)
    withheld = withheld_sentence(table.name, runs) if not files or is_one_study else None
    if wrong or withheld:
        rows = _unreadable(table, _sentence(table.name, str(wrong)) if wrong else str(withheld))
    elif not files:
        rows = _no_rows(table)
    else:
        rows = " union all ".join(_rows(table, _file_list(paths), names) for names, paths in _by_columns(table, held).items())
        rows = _over_runs(table, rows) if schema == "main" and _is_of_several_runs(table, files) else rows
        rows = f"select * from ({rows}){_guard(table, files)}" if guarded else rows
        rows = _when_asked(_no_rows(table), rows) if is_far else rows
    return f"create or replace view {schema}.{table.name} as {rows}"


def _sentence(table: str, what: str) -> str:
    return f"{table} cannot be read ({what}): {HINT}"


def _failing(sentence: str) -> str:
    """A table that fails with the sentence when a statement is bound to it, once the views are made: nothing can prune that."""
    return f"range(case when getvariable('{MAKING}') then 0 else error({literal(sentence)}) end)"


def _unreadable(table: Table, sentence: str) -> str:
    return _no_rows(table).replace(" where false", f" from {_failing(sentence)}")


def _when_asked(no_rows: str, rows: str) -> str:
    """Rows that are not read while views are made, which takes time: files far away are a request or two each."""
    return f"from query(case when getvariable('{MAKING}') then {literal(no_rows)} else {literal(rows)} end)"


def _guard(table: Table, files: Sequence[DataFile]) -> str:
    """A condition that fails if files have not kept their size; only sizes are read for it."""
    sizes = f"select sum(size) from read_blob({_file_list([f.path for f in files])})"
    changed = literal(_sentence(table.name, "its files have not the size that was published"))
    return f" where case when ({sizes}) = {sum(f.n_bytes for f in files)} then true else error({changed}) end"


def _layer_macro(table: Table, shown: Shown, held: Versioned, damage: Mapping[str, str]) -> str:
    """`activations_of(layer)`: the rows of one layer, which opens only that layer's files; `layer` must be a literal."""
    parts = [_rows_of_layer(table, names, paths, damage) for names, paths in _by_columns(table, held).items()]
    failing = shown.damage or (None if parts else withheld_sentence(table.name, shown.records))
    files = [file for _, file in held]
    rows = " union all ".join(parts) or _no_rows(table)
    rows = _over_runs(table, rows) if _is_of_several_runs(table, files) else rows
    rows = _unreadable(table, failing) if failing else rows
    return f"create or replace macro main.{table.name}_of(layer_read) as table {rows}"


def _rows_of_layer(table: Table, held: frozenset[str], paths: Sequence[str], damage: Mapping[str, str]) -> str:
    by_layer: dict[int, list[str]] = {}
    for path in paths:
        by_layer.setdefault(file_layer(path), []).append(path)
    lists = {layer: _sound_list(table, found, damage) for layer, found in sorted(by_layer.items())}
    branches = " ".join(f"when {layer} then {listed}" for layer, listed in lists.items())
    first = next(iter(lists.values()))  # something must be there for a layer that has no files
    listed = ", ".join(map(str, lists))
    return f"{_rows(table, f'case layer_read {branches} else {first} end', held)} where layer_read in ({listed})"


def _sound_list(table: Table, paths: Sequence[str], damage: Mapping[str, str]) -> str:
    wrong = next((f"{path} {damage[path]}" for path in paths if path in damage), None)
    return f"error({literal(_sentence(table.name, wrong))})::varchar[]" if wrong else _file_list(paths)


def _file_list(paths: Sequence[str]) -> str:
    return f"list_transform({literals(paths)}, lambda path: {ROOT} || path)"


def _rows(table: Table, files: str, held: frozenset[str]) -> str:
    return f"select {', '.join(_columns(table, held))} from {parquet(files)}"


def _columns(table: Table, held: frozenset[str]) -> list[str]:
    """All columns of a table, selected from files that hold some of them."""
    return [
        f'"{c.name}"' if c.name in held else f'({c.elsewhere or "null"})::{_sql_type(c.type)} as "{c.name}"'
        for c in table.columns
    ]


def _is_of_several_runs(table: Table, files: Sequence[DataFile]) -> bool:
    """Whether several runs may have a row of one thing, of which there is to be one."""
    if not table.summed:
        return False
    parts = [file_layer(f.path) if table.by_layer else None for f in files]
    return len(set(parts)) < len(parts)


def _over_runs(table: Table, rows: str) -> str:
    """One row for those that several runs have of one thing."""
    columns = [
        c.name if c.name in table.summed else f'({c.over_runs or f"min({c.name})"})::{_sql_type(c.type)} as "{c.name}"'
        for c in table.columns
    ]
    return f"select {', '.join(columns)} from ({rows}) group by {', '.join(table.summed)}"


def _no_rows(table: Table) -> str:
    typed = ", ".join(f'null::{_sql_type(c.type)} as "{c.name}"' for c in table.columns)
    return f"select {typed} where false"


def _create_if_readable(con: duckdb.DuckDBPyConnection, statement: str) -> None:
    """Creates a view, or one in its place that says why it cannot be read."""
    try:
        con.execute(statement)
    except duckdb.Error as error:
        *_, kind, name = _head(statement).partition("(")[0].split()
        table = name.partition(".")[2]
        if kind == "view" and table in TABLES:
            con.execute(f"create or replace view {name} as {_unreadable(TABLES[table], _sentence(table, first_line(error)))}")
        elif kind != "macro":
            raise


def _runs(records: Sequence[RunRecord], as_table: bool) -> str:
    """The run records, all of whose text is there: a run that is dropped later cannot break it. A view reads it when asked."""
    rows = literal(json.dumps([vars(r) for r in records], default=vars, ensure_ascii=False))
    structure = literal(json.dumps([RUNS_STRUCTURE]))
    read = f"select unnest(from_json({rows}, {structure}), max_depth := 2)"
    if as_table:
        return f"create or replace table all_runs.runs as {read}"
    none = f"select unnest(from_json('[]', {structure}), max_depth := 2)"
    return f"create or replace view all_runs.runs as {_when_asked(none, read)}"


def _sql_type(arrow: pa.DataType) -> str:
    if pa.types.is_list(arrow):
        return _sql_type(arrow.value_type) + "[]"
    names = {"string": "varchar", "int64": "bigint", "int32": "integer", "int16": "smallint", "bool": "boolean"}
    return names.get(str(arrow), str(arrow))


def current_records(lake: Lake, recipe: str | None = None) -> list[RunRecord]:
    """The published runs that a plain table name shows, of one recipe or of all; raises UserError for an unknown recipe.

    It is also raised for a pointer that is damaged.
    """
    shown = current_runs(lake, recipe)
    if shown.damage:
        raise UserError(f"{lake}: {shown.damage}")
    return list(shown.records)


def current_runs(lake: Lake, recipe: str | None = None) -> Shown:
    """What plain table names show, of one recipe or of all; raises UserError for an unknown recipe."""
    for _ in range(MOST_READINGS):
        now = lake.listed()
        pointers = now.current()
        recipes = sorted({name for name, _ in pointers})
        if recipe is not None and recipe not in recipes:
            raise _unknown_study(lake, recipe, recipes)
        asked = {key: run_ids for key, run_ids in pointers.items() if recipe in (None, key[0])}
        records = now.records()
        damage = pointer_damage(asked, {r.run_id: r.stage for r in records})
        if not damage or lake.listed().current() == pointers:  # else another process drops or publishes
            break
    sentence = next((pointer_sentence(key, what) for key, what in damage.items()), None)
    wanted = {run_id for run_ids in asked.values() for run_id in run_ids}
    return Shown([r for r in records if r.run_id in wanted], records, now, tuple(recipes), sentence)


def _given_runs(lake: Lake, run_ids: Sequence[str]) -> Shown:
    now = lake.listed()
    published = {r.run_id: r for r in now.records()}
    unknown = [run_id for run_id in run_ids if run_id not in published]
    if unknown:
        raise UserError(f"the lake {lake} has no run {', '.join(unknown)}: `saelake runs` lists them")
    given = [published[run_id] for run_id in run_ids]
    return Shown(given, given, now)  # every stage asks, and binding views of all other runs takes longer than its question


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
    """The Parquet files behind each plain table name, for readers other than DuckDB; not of tables that are summed over runs.

    Raises UserError for an unknown recipe, and for what is damaged.
    """
    records = current_records(lake, recipe)
    files = [f for r in records for f in r.files]
    damage = file_damage(lake, files)
    for file in files:
        if file.path in damage:
            raise UserError(_sentence(file.table, f"{file.path} {damage[file.path]}"))
    found, by_table = {}, _files_by_table(records)
    for table in (TABLES[name] for name in TABLES if name in by_table):
        if _is_of_several_runs(table, [file for _, file in by_table[table.name]]):
            continue
        held = _by_columns(table, by_table[table.name]).items()
        found[table.name] = [Files([f"{lake.published.url}/{path}" for path in paths], _columns(table, h)) for h, paths in held]
    return found


def connect(
    lake: Lake,
    recipe: str | None = None,
    runs: Sequence[str] | None = None,
    threads: int | None = None,
    alone: bool = False,
    shown: Shown | None = None,
) -> duckdb.DuckDBPyConnection:
    """An in-memory connection on which the plain table names show one study, given runs, or all that is current.

    On one of given runs `all_runs` shows these alone, too.

    Args:
        alone: it can read nothing but this lake (see `lock`).
        shown: what `current_runs` gave, if it is at hand.
    Raises UserError for an unknown recipe or run.
    """
    if shown is None:
        shown = current_runs(lake, recipe) if runs is None else _given_runs(lake, runs)
    con = duckdb.connect(config=NO_EXTENSIONS | ({"threads": threads} if threads else {}))
    _configure(con)
    create_views(con, shown)
    if alone:
        lock(con, lake)
    return con


def lock(con: duckdb.DuckDBPyConnection, lake: Lake, files: Sequence[Path] = ()) -> None:
    """Leaves a connection that `connect` made nothing but the lake's data and the named local files and folders to read.

    Nothing else of the machine, no network, no extensions; and no way to change that. DuckDB holds a path against these as it is
    written, so that they stand there as patterns too.
    """
    folders = [f"{lake.published.url}/data/", *(f"{path.resolve()}/" for path in files if path.is_dir())]
    single = [name for file in files if not file.is_dir() for name in (str(file), str(file.resolve()))]
    for setting, names in (("allowed_directories", folders), ("allowed_paths", single)):
        con.execute(f"set {setting} = {literals(dict.fromkeys([*names, *map(exactly, names)]))}")
    con.execute("set enable_external_access = false")
    con.execute("set python_enable_replacements = false")
    con.execute("set lock_configuration = true")


def cursor_of(con: duckdb.DuckDBPyConnection, lake: Lake) -> duckdb.DuckDBPyConnection:
    """A connection beside `con`, which `connect` made, for another thread: it shares views and settings, but no session."""
    cursor = con.cursor()
    _set_lake(cursor, lake)
    return cursor


def _configure(con: duckdb.DuckDBPyConnection) -> None:
    con.execute("set global parquet_metadata_cache = true")  # published files never change
    con.execute(f"set global dynamic_or_filter_threshold = {LARGEST_JOIN_FILTER}")


def _point_at(con: duckdb.DuckDBPyConnection, lake: Lake) -> None:
    lake.published.prepare(con)
    _set_lake(con, lake)


def _set_lake(con: duckdb.DuckDBPyConnection, lake: Lake) -> None:
    con.execute(f"set variable lake = {literal(lake.published.url)}")  # a prepared value would import pandas


@contextmanager
def changing_catalog(lake: Lake, more_follows: bool = False) -> Iterator[None]:
    """Lets one process at a time change run records and pointers, and brings the catalog up to date with them.

    Args:
        more_follows: whoever asks changes more at once, and the catalog then.
    """
    with locked(lake.lock("catalog")):
        was_stale = lake.stale.exists()
        lake.stale.touch()
        try:
            yield
        except UserError:  # said before anything is changed
            if not was_stale:
                lake.stale.unlink()
            raise
        if not more_follows:
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
    """Builds catalog.duckdb aside and renames it, so that an open shell keeps the old one whole.

    Binding all views takes as long as publishing a small run: of a catalog that this process built, and nobody since, a copy is
    changed.
    """
    draft = aside(lake.catalog)
    there = {} if lake.built.pop(FILE, None) != _which(lake.catalog) else dict(lake.built)
    try:
        # In a folder of a plain name: DuckDB takes a ? in a database's path for options, and a backslash for a slash.
        with tempfile.TemporaryDirectory(prefix="saelake-catalog-") as folder:
            built = Path(folder) / lake.catalog.name
            if there:
                shutil.copyfile(lake.catalog, built)
            with duckdb.connect(built, config={"storage_compatibility_version": STORAGE_VERSION}) as con:
                made = create_views(con, current_runs(lake), is_saved=True, there=there)
            shutil.copyfile(built, draft)
        sync_file(draft)
        draft.replace(lake.catalog)
    finally:
        draft.unlink(missing_ok=True)
    lake.built.clear()
    lake.built.update(made and made | {FILE: _which(lake.catalog)})


FILE = "the file"
"""In `Lake.built`, beside what it was built of."""


def _which(file: Path) -> str:
    """Tells a file from any that takes its place."""
    with suppress(FileNotFoundError):
        found = file.stat()
        return f"{found.st_ino} {found.st_mtime_ns} {found.st_size}"
    return "none"
