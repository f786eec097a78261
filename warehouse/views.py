"""The views by which tables are seen, as SQL: which files a name shows, and what it says of damaged or left out ones."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import duckdb
import pyarrow as pa

from saelake.warehouse.damage import HINT, file_damage, withheld_sentence
from saelake.warehouse.errors import one_line
from saelake.warehouse.files import DataFile, file_layer
from saelake.warehouse.lake import Lake
from saelake.warehouse.literals import ESCAPED_LAKE, literal, literals, parquet
from saelake.warehouse.records import RunRecord
from saelake.warehouse.schema import RUNS_STRUCTURE, TABLES, Table

ROOT = f"coalesce({ESCAPED_LAKE} || '/', '')"
SCHEMA = "create schema if not exists all_runs"
MAKING = "saelake_is_making_views"
"""A session variable that is set while views are made: binding one that is to fail would fail already."""


class ShownRuns(NamedTuple):
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
    is_one_study: bool = True
    """Whether all is of one study, which a table is not shown a part of."""


def create_views(
    con: duckdb.DuckDBPyConnection, shown: ShownRuns, is_saved: bool = False, there: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Creates `all_runs` over every published run, and plain names over those that are `shown`.

    Sets the connection's session variable `lake`, which the views are built on. What is damaged or was left out becomes a view
    that fails, with the reason, when a statement is bound to it: whatever that selects.

    Args:
        is_saved: for later readers: views of local files look, whenever they are asked, whether these have kept their size.
        there: what an earlier call has created in this database and returned: of it only what differs now is replaced.
    Returns what is created -> the statement that did; nothing if one of them failed.
    """
    shown.lake.published.prepare(con)
    set_lake(con, shown.lake)
    damage = file_damage(shown.lake, (f for r in shown.published for f in r.files))
    made = {head(one): one for one in _statements(shown, damage, is_saved and shown.lake.remote is None, is_saved)}
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


def set_lake(con: duckdb.DuckDBPyConnection, lake: Lake) -> None:
    """Says where the views find their files."""
    con.execute(f"set variable lake = {literal(lake.published.url)}")  # a prepared value would import pandas


def head(statement: str) -> str:
    """What a statement of `_statements` creates: its kind and name."""
    return statement.partition(" as ")[0]


def statements_without_runs() -> Iterator[str]:
    """What makes the views of a lake without runs, but those of the runs themselves, which no lake is without for long."""
    yield SCHEMA
    for table in TABLES.values():
        for schema in ("all_runs", "main"):
            yield _table_view(table, (), {}, schema, guarded=False, is_far=False, left_out=None)
        if table.by_layer:
            yield _layer_macro(table, (), {}, failing=None)


def view_statements(shown: ShownRuns) -> list[str]:
    """What makes the views in a database of somebody's own, in which the variables `lake` and MAKING are set."""
    damage = file_damage(shown.lake, (f for r in shown.published for f in r.files))
    return list(_statements(shown, damage, guarded=False, is_saved=True))


def _statements(shown: ShownRuns, damage: Mapping[str, str], guarded: bool, is_saved: bool) -> Iterator[str]:
    is_far = shown.lake.remote is not None
    yield SCHEMA
    yield _runs(shown.published, as_table=is_saved)
    listed = literals(r.run_id for r in shown.records)
    failing = f", {_failing(shown.damage)} as never" if shown.damage else ""
    yield f"create or replace view main.runs as select runs.* from all_runs.runs{failing} where list_contains({listed}, run_id)"
    published, records = files_by_table(shown.published), shown_files(shown.records)
    for table in TABLES.values():
        of_all, of_shown = published.get(table.name, ()), records.get(table.name, ())
        everywhere = None if of_all else withheld_sentence(table.name, shown.published)
        left_out = withheld_sentence(table.name, shown.records) if shown.is_one_study or not of_shown else None
        yield _table_view(table, of_all, damage, "all_runs", guarded, is_far, everywhere)
        if shown.damage:
            yield f"create or replace view main.{table.name} as {_unreadable(table, shown.damage)}"
        else:
            yield _table_view(table, of_shown, damage, "main", guarded, is_far, left_out)
        if table.by_layer:
            yield _layer_macro(table, of_shown, damage, shown.damage or left_out)


Versioned = Sequence[tuple[int, DataFile]]
"""Files of one table, each with the version of the schema that its run was written with."""


def files_by_table(runs: Sequence[RunRecord]) -> dict[str, list[tuple[int, DataFile]]]:
    """table -> its files, run by run"""
    found: dict[str, list[tuple[int, DataFile]]] = {}
    for run in runs:
        for file in run.files:
            found.setdefault(file.table, []).append((run.schema_version, file))
    return found


def shown_files(runs: Sequence[RunRecord]) -> dict[str, list[tuple[int, DataFile]]]:
    """`files_by_table` as plain names show them: without a copy that lacks some of the rows, which would pass for all of them."""
    found = files_by_table(runs)
    for table in (one for one in TABLES.values() if one.copies is not None):
        if sum(run.n_rows(table.name) for run in runs) < sum(run.n_rows(str(table.copies)) for run in runs):
            found.pop(table.name, None)
    return found


def by_columns(table: Table, files: Versioned) -> dict[frozenset[str], list[str]]:
    """The files of a table, by the columns that they hold: one entry unless runs of different versions differ in this table."""
    versions = {version: frozenset(c.name for c in table.stored(version)) for version in {version for version, _ in files}}
    found: dict[frozenset[str], list[str]] = {}
    for version, file in files:
        found.setdefault(versions[version], []).append(file.path)
    return found


def _table_view(
    table: Table, held: Versioned, damage: Mapping[str, str], schema: str, guarded: bool, is_far: bool, left_out: str | None
) -> str:
    files = [file for _, file in held]
    wrong = next((f"{f.path} {damage[f.path]}" for f in files if f.path in damage), None)
    failing = view_sentence(table.name, wrong) if wrong else left_out
    if failing:
        rows = _unreadable(table, failing)
    elif not files:
        rows = _no_rows(table)
    else:
        rows = " union all ".join(_rows(table, _file_list(paths), names) for names, paths in by_columns(table, held).items())
        rows = _over_runs(table, rows) if schema == "main" and is_of_several_runs(table, files) else rows
        rows = f"select * from ({rows}){_guard(table, files)}" if guarded else rows
        rows = _when_asked(_no_rows(table), rows) if is_far else rows
    return f"create or replace view {schema}.{table.name} as {rows}"


def view_sentence(table: str, what: str) -> str:
    """What is said of a table that cannot be read."""
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
    changed = literal(view_sentence(table.name, "its files have not the size that was published"))
    return f" where case when ({sizes}) = {sum(f.n_bytes for f in files)} then true else error({changed}) end"


def _layer_macro(table: Table, held: Versioned, damage: Mapping[str, str], failing: str | None) -> str:
    """`activations_of(layer)`: the rows of one layer, which opens only that layer's files; `layer` must be a literal."""
    parts = [_rows_of_layer(table, names, paths, damage) for names, paths in by_columns(table, held).items()]
    files = [file for _, file in held]
    rows = " union all ".join(parts) or _no_rows(table)
    rows = _over_runs(table, rows) if is_of_several_runs(table, files) else rows
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
    return f"error({literal(view_sentence(table.name, wrong))})::varchar[]" if wrong else _file_list(paths)


def _file_list(paths: Sequence[str]) -> str:
    return f"list_transform({literals(paths)}, lambda path: {ROOT} || path)"


def _rows(table: Table, files: str, held: frozenset[str]) -> str:
    return f"select {', '.join(shown_columns(table, held))} from {parquet(files)}"


def shown_columns(table: Table, held: frozenset[str]) -> list[str]:
    """All columns of a table, selected from files that hold some of them."""
    return [
        f'"{c.name}"' if c.name in held else f'({c.elsewhere or "null"})::{_sql_type(c.type)} as "{c.name}"'
        for c in table.columns
    ]


def is_of_several_runs(table: Table, files: Sequence[DataFile]) -> bool:
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
        *_, kind, name = head(statement).partition("(")[0].split()
        table = name.partition(".")[2]
        if kind == "view" and table in TABLES:
            con.execute(f"create or replace view {name} as {_unreadable(TABLES[table], view_sentence(table, one_line(error)))}")
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
