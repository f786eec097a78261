"""Rows that come from Python, stored as a run: checked as all others, with where they come from in its record."""

import hashlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from saelake.warehouse import arguments
from saelake.warehouse.catalog import connect
from saelake.warehouse.check import may_point_to
from saelake.warehouse.durable import sha256_text
from saelake.warehouse.errors import UserError, view_errors
from saelake.warehouse.keys import check_study_name
from saelake.warehouse.lake import Lake
from saelake.warehouse.records import INDEX_MASK, RunRecord, RunSpec, run_tag, with_ancestors
from saelake.warehouse.rules import References, broken_rules
from saelake.warehouse.runs import Plan, Rows, ensure_run
from saelake.warehouse.schema import PROMPTS, TABLES, Table
from saelake.warehouse.schema.columns import SAE_ID

STAGE_PREFIX = "written_"
MOST_NAMED = 12
"""SAEs of a lake that a sentence names."""


def write_rows(lake: Lake, study: str, table: str, rows: Any, about: Mapping[str, Any]) -> RunRecord:
    """Publishes rows of a table as the run of the study's stage written_TABLE; the same rows are the same run.

    Args:
        rows: an Arrow table or whatever Arrow makes one of: a data frame, a list of dicts, a dict of columns. The id that the
            table numbers may be absent where each row has its own.
        about: where the rows come from, as JSON values.
    Raises UserError for a table that is none, for no rows, and for columns, types and ids that do not fit the protocol.
    """
    check_study_name(study)
    if arguments.text("the table", table) == PROMPTS.name:
        raise UserError("prompts come into a lake by `saelake ingest` or `saelake import`")
    open_to_all = sorted(name for name, one in TABLES.items() if one.copies is None and name != PROMPTS.name)
    if table not in open_to_all:
        raise UserError(f"there is no table {table} to write to: there are {', '.join(open_to_all)}")
    spec = TABLES[table]
    given = _typed(spec, _as_table(rows))
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, given.schema) as stream:
        stream.write_table(given.combine_chunks())
    config = {"table": table, "rows": hashlib.sha256(sink.getvalue()).hexdigest(), "n_rows": given.num_rows}
    parents = _parents(lake, spec, given)
    _check_rules(spec, given, may_point_to(lake, parents))
    run = RunSpec(f"{STAGE_PREFIX}{table}", study, config, parents, about=dict(about))
    if spec.owns is not None and spec.owns not in given.column_names:
        ids = [int(sha256_text(f"{config['rows']}|{i}")[:15], 16) for i in range(given.num_rows)]
        given = given.append_column(spec.owns, pa.array(ids, pa.int64()))
    try:
        return ensure_run(lake, run, Plan(["rows"], lambda missing: iter([("rows", _parts(spec, given))]), (table,)))
    except AssertionError as error:  # what is a mistake of ours elsewhere is one of the rows here
        raise UserError(f"rows of {table} do not fit the protocol: {error}") from error


def _as_table(rows: Any) -> pa.Table:
    try:
        if isinstance(rows, pa.Table):
            return rows
        if isinstance(rows, Mapping):
            return pa.table(dict(rows))
        if isinstance(rows, Sequence):
            return pa.Table.from_pylist(list(rows))
        if hasattr(rows, "to_arrow_table"):  # a relation of DuckDB
            return rows.to_arrow_table()
        if hasattr(rows, "iloc"):  # of pandas, whose index is no column
            return pa.Table.from_pandas(rows, preserve_index=False)
        return pa.table(rows)
    except (pa.ArrowException, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"rows cannot be read as a table ({error})") from error


def _typed(table: Table, rows: pa.Table) -> pa.Table:
    """The rows in the protocol's types and order."""
    if not rows.num_rows:
        raise UserError(f"there are no rows to write to {table.name}")
    known = [c for c in table.stored() if c.name != "run_id"]
    names = [c.name for c in known]
    if twice := {n for n in rows.column_names if rows.column_names.count(n) > 1}:
        raise UserError(f"rows of {table.name} have the column {sorted(twice)[0]} twice")
    if "run_id" in rows.column_names:
        raise UserError(f"rows of {table.name} have the column run_id: leave it out, the run that stores them gives it")
    if unknown := [n for n in rows.column_names if n not in names]:
        raise UserError(f"{table.name} has no column {unknown[0]}: its columns are {', '.join(names)}")
    if table.owns and table.owns not in rows.column_names and table.key != (table.owns,):
        raise UserError(f"rows of {table.name} lack {table.owns}: give those that belong together one number, whichever")
    needed = [c.name for c in known if c.null is None and c.name != table.owns]
    if absent := [n for n in needed if n not in rows.column_names]:
        raise UserError(f"rows of {table.name} lack the column {absent[0]}")
    columns = {}
    for column in known:
        if column.name in rows.column_names:
            try:
                values = rows[column.name]
                plain = values.cast(values.type.value_type) if pa.types.is_dictionary(values.type) else values
                if (
                    pa.types.is_floating(plain.type)
                    and column.type == pa.int64()
                    and (column.refers or column.name == table.owns)
                ):
                    raise ValueError("ids pass 2^53, which a float rounds: give whole numbers")
                columns[column.name] = plain.cast(column.type)
            except (pa.ArrowException, ValueError) as error:
                raise UserError(f"{table.name}.{column.name} cannot be {column.type} ({error})") from error
            if column.null is None and columns[column.name].null_count:
                raise UserError(f"{table.name}.{column.name} has missing values, which it may not have")
    return pa.table(columns)


def _parents(lake: Lake, table: Table, rows: pa.Table) -> tuple[str, ...]:
    """The runs whose prompts, ablations, sets and SAEs the rows are about; raises UserError for ids of none."""
    runs = {run_tag(run_id): run_id for run_id in lake.run_ids()}
    found: dict[str, None] = {}
    pointing = [c for c in table.columns if c.refers is not None and c.name in rows.column_names and c.table != table.name]
    for column in (c for c in pointing if c.type == pa.int64()):  # such ids carry the tag of their run
        ids = pc.drop_null(rows[column.name].combine_chunks())
        for tag in {value.as_py() >> 32 for value in pc.unique(pc.bit_wise_and(ids, pa.scalar(~INDEX_MASK, pa.int64())))}:
            if tag not in runs:
                raise UserError(f"{table.name}.{column.name} has ids of no run in this lake")
            found[runs[tag]] = None
    named = {c.name: pc.unique(pc.drop_null(rows[c.name])).to_pylist() for c in pointing if c.refers == SAE_ID.refers}
    holders = _runs_with_saes(lake) if any(named.values()) else {}
    for name, sae_id in ((name, sae_id) for name, sae_ids in named.items() for sae_id in sae_ids):
        if sae_id not in holders:
            theirs = f"; it has {', '.join(sorted(holders))}" if 0 < len(holders) <= MOST_NAMED else ""
            raise UserError(f"{table.name}.{name} names {sae_id!r}, an SAE of no run in this lake{theirs}")
        if not with_ancestors(found, lake.record).keys() & set(holders[sae_id]):
            found[holders[sae_id][0]] = None
    return tuple(sorted(found))


def _runs_with_saes(lake: Lake) -> dict[str, list[str]]:
    """sae_id -> the runs that hold the SAE, the oldest first: later ones are not to change what is written again."""
    with connect(lake) as con, view_errors(con):
        found = con.execute(
            "select sae_id, list(run_id order by finished, run_id) from all_runs.saes join all_runs.runs using (run_id) "
            "group by sae_id"
        )
        return dict(found.fetchall())


def _check_rules(table: Table, rows: pa.Table, known: References) -> None:
    numbered = [table.owns] if table.owns in rows.column_names else []
    for batch in rows.drop_columns(numbered).combine_chunks().to_batches():
        for what, n in broken_rules(table, batch, "", known):
            if n:
                raise UserError(f"{table.name}.{what} in {n} of {rows.num_rows} rows")


def _parts(table: Table, rows: pa.Table) -> list[Rows]:
    if not table.by_layer:
        return [Rows(table.name, rows)]
    layers = pc.unique(rows["layer"]).to_pylist()
    return [Rows(table.name, rows.filter(pc.equal(rows["layer"], layer)), layer) for layer in layers]
