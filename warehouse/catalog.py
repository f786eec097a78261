"""A lake's tables by name, for any DuckDB client: which runs are shown, connections that show them, and the catalog's file.

Plain names (`activations`) show the current runs of each recipe and stage, `all_runs.activations` every published run. A view
lists its files one by one, below the session variable `lake`, so that the folder can move and nothing unlisted is ever read:

    duckdb -readonly -cmd "set variable lake = '/path/to/lake'" /path/to/lake/catalog.duckdb
"""

import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import duckdb

from saelake.warehouse.blank import STORAGE_VERSION, blank, copy_blank
from saelake.warehouse.damage import file_damage, pointer_damage, pointer_sentence
from saelake.warehouse.durable import aside, locked, sync_file, try_locked
from saelake.warehouse.errors import UserError
from saelake.warehouse.lake import Lake
from saelake.warehouse.literals import exactly, literals
from saelake.warehouse.records import RunRecord
from saelake.warehouse.schema import TABLES
from saelake.warehouse.views import (
    ShownRuns,
    by_columns,
    create_views,
    is_of_several_runs,
    set_lake,
    shown_columns,
    shown_files,
    view_sentence,
)

MOST_READINGS = 3
"""How often pointers that seem damaged are read, as long as they change meanwhile."""
NO_EXTENSIONS: dict[str, str | bool | int | float | list[str]] = {
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "allow_community_extensions": False,
}
"""Nothing is fetched or loaded because a statement mentions it; what a lake on S3 needs comes from its wheel."""
LARGEST_JOIN_FILTER = 500
"""Values on one side of a join up to which DuckDB looks for row groups without them on the other side; its own default is 50.
A join with 200 features over 60M rows takes half the time, and larger ones no more than before."""
SOON = 1.0
"""Seconds within which what follows a change brings the catalog up to date with both."""
LEFT_BEHIND = "a killed process left it older than the runs"
"""What is said of a catalog that `recover_catalog` builds again."""
FILE = "the file"
"""Key in `Lake.built` of the catalog's file, beside those of what it was built from."""


def current_records(lake: Lake, recipe: str | None = None) -> list[RunRecord]:
    """The published runs that a plain table name shows, of one recipe or of all.

    Raises UserError for an unknown recipe, and for a damaged pointer.
    """
    return _undamaged(current_runs(lake, recipe))


def _undamaged(shown: ShownRuns) -> list[RunRecord]:
    if shown.damage:
        raise UserError(f"{shown.lake}: {shown.damage}")
    return list(shown.records)


def current_runs(lake: Lake, recipe: str | None = None) -> ShownRuns:
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
    shown = [r for r in records if r.run_id in wanted]
    return ShownRuns(shown, records, now, tuple(recipes), sentence, is_one_study=recipe is not None or len(recipes) == 1)


def _given_runs(lake: Lake, run_ids: Sequence[str]) -> ShownRuns:
    now = lake.listed()
    published = {r.run_id: r for r in now.records()}
    unknown = [run_id for run_id in run_ids if run_id not in published]
    if unknown:
        raise UserError(f"the lake {lake} has no run {', '.join(unknown)}: `saelake runs` lists them")
    given = [published[run_id] for run_id in run_ids]
    return ShownRuns(given, given, now)  # every stage asks, and binding views of all other runs takes longer than its question


def one_study(lake: Lake, recipe: str | None = None) -> str:
    """The study of that name, else the only one of the lake; raises UserError where there is none, or are several."""
    studies = sorted({name for name, _ in lake.current()})
    if recipe is None:
        return only_study(lake, studies)
    if recipe not in studies:
        raise _unknown_study(lake, recipe, studies)
    return recipe


def only_study(lake: Lake, studies: Sequence[str]) -> str:
    """The study, of those that are shown; raises UserError where there is none, or are several."""
    if not studies:
        raise UserError(f"the lake {lake} holds no study yet: `saelake analyze RECIPE --lake {lake}` makes one")
    if len(studies) > 1:
        raise several_studies(lake, studies)
    return studies[0]


def several_studies(lake: Lake, studies: Sequence[str]) -> UserError:
    """What to say where one study is meant and none is named."""
    return UserError(
        f"the lake {lake} holds several studies ({', '.join(studies)}): choose one with --recipe NAME, or in Python with "
        "saelake.open(LAKE, recipe=NAME)"
    )


def _unknown_study(lake: Lake, recipe: str, studies: Sequence[str]) -> UserError:
    return UserError(f"the lake {lake} has no study named {recipe!r}; it has {', '.join(studies) or 'none yet'}")


class Files(NamedTuple):
    """Parquet files of one table that hold the same columns."""

    paths: list[str]
    columns: list[str]
    """What to select from them, in DuckDB's SQL: all columns of the table, in the same order for all its files."""


def files_behind(lake: Lake, shown: ShownRuns) -> dict[str, list[Files]]:
    """The Parquet files behind each plain table name that shows these runs, for readers other than DuckDB.

    Tables whose rows have to be summed over several runs are left out.

    Raises UserError for what is damaged.
    """
    records = _undamaged(shown)
    files = [f for r in records for f in r.files]
    damage = file_damage(lake, files)
    for file in files:
        if file.path in damage:
            raise UserError(view_sentence(file.table, f"{file.path} {damage[file.path]}"))
    found, by_table = {}, shown_files(records)
    for table in (TABLES[name] for name in TABLES if name in by_table):
        if is_of_several_runs(table, [file for _, file in by_table[table.name]]):
            continue
        held = by_columns(table, by_table[table.name]).items()
        found[table.name] = [
            Files([f"{lake.published.url}/{path}" for path in paths], shown_columns(table, h)) for h, paths in held
        ]
    return found


def connect(
    lake: Lake,
    recipe: str | None = None,
    runs: Sequence[str] | None = None,
    threads: int | None = None,
    alone: bool = False,
    shown: ShownRuns | None = None,
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
    create_views(con, shown, there=copy_blank(con))
    if alone:
        lock(con, lake)
    return con


def lock(con: duckdb.DuckDBPyConnection, lake: Lake, files: Sequence[Path] = ()) -> None:
    """Leaves a connection that `connect` made nothing but the lake's data and the named local files and folders to read.

    Nothing else of the machine, no network, no extensions; and no way to change that. DuckDB compares a path with these as the
    statement spells it, and views spell theirs as patterns (`exactly`): so each stands there in both spellings. It does not
    keep a statement from writing there (`copy ... to`): what a person types passes `check_reads` first.
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
    set_lake(cursor, lake)
    return cursor


def _configure(con: duckdb.DuckDBPyConnection) -> None:
    con.execute("set global parquet_metadata_cache = true")  # published files never change
    con.execute(f"set global dynamic_or_filter_threshold = {LARGEST_JOIN_FILTER}")


@contextmanager
def changing_catalog(lake: Lake, more_follows: bool = False) -> Iterator[None]:
    """Lets one process at a time change run records and pointers, and brings the catalog up to date with them.

    Args:
        more_follows: the caller will change more right away; the catalog is brought up to date after that (see `catch_up`).
    """
    with locked(lake.lock("catalog")):
        was_stale = lake.stale.exists()
        lake.stale.touch()
        try:
            yield
        except UserError:  # raised before anything was changed, unless a bucket refused a later one of several changes
            if not was_stale and lake.remote is None:
                lake.stale.unlink()
            raise
        if not more_follows:
            _build_catalog(lake)
            lake.stale.unlink()


def catch_up(lake: Lake) -> None:
    """Builds the catalog again if it does not show the last change yet, and nothing has followed that."""
    try:
        changed = lake.stale.stat().st_mtime
    except FileNotFoundError:  # not stale
        return
    if time.time() - changed > SOON:
        recover_catalog(lake)


def recover_catalog(lake: Lake) -> bool:
    """Builds the catalog again if it is older than the runs, as a killed process leaves it; whether it did."""
    if not lake.stale.exists():
        return False
    with try_locked(lake.lock("catalog")) as is_free:
        if not is_free or not lake.stale.exists():  # a living process changes it, and brings it up to date
            return False
        _build_catalog(lake)
        lake.stale.unlink()
    return True


@contextmanager
def up_to_date_at_the_end(lake: Lake) -> Iterator[None]:
    """Within it, runs that follow one another may leave the catalog behind; it is brought up to date at the end."""
    try:
        yield
    finally:
        recover_catalog(lake)


def is_catalog_current(lake: Lake) -> bool:
    return lake.catalog.exists() and not lake.stale.exists()


def _build_catalog(lake: Lake) -> None:
    """Builds catalog.duckdb aside and renames it, so that an open shell keeps the old one whole.

    Binding all views takes as long as publishing a small run, so where the catalog is still the one that this process built, a
    copy of it is changed.
    """
    draft = aside(lake.catalog)
    is_ours = lake.built.pop(FILE, None) == _which(lake.catalog)
    there = dict(lake.built) if is_ours else blank().made
    try:
        # In a folder of a plain name: DuckDB takes a ? in a database's path for options, and a backslash for a slash.
        with tempfile.TemporaryDirectory(prefix="saelake-catalog-") as folder:
            built = Path(folder) / lake.catalog.name
            if is_ours:
                shutil.copyfile(lake.catalog, built)
            else:
                built.write_bytes(blank().content)
            with duckdb.connect(built, config={"storage_compatibility_version": STORAGE_VERSION, "threads": 1}) as con:
                made = create_views(con, current_runs(lake), is_saved=True, there=there)
            shutil.copyfile(built, draft)
        sync_file(draft)
        draft.replace(lake.catalog)
    finally:
        draft.unlink(missing_ok=True)
    lake.built.clear()
    lake.built.update(made and made | {FILE: _which(lake.catalog)})


def _which(file: Path) -> str:
    """Tells a file from any that takes its place."""
    with suppress(FileNotFoundError):
        found = file.stat()
        return f"{found.st_ino} {found.st_mtime_ns} {found.st_size}"
    return "none"
