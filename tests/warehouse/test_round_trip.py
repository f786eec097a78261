"""Any rows that fit a table of the protocol come back unchanged, from every reader, in the table's order."""

import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saelake.warehouse.catalog import connect
from saelake.warehouse.lake import Lake
from saelake.warehouse.order import RowOrder
from saelake.warehouse.records import RunRecord, RunSpec
from saelake.warehouse.runs import Plan, Rows, ensure_run
from saelake.warehouse.schema import TABLES, Column, Table

SPEC = RunSpec("stage", "recipe", {"device": "cpu"})
OWNERS = [[name] for name, table in TABLES.items() if table.owns]
"""Each alone: what other tables of a run say of its ids is renumbered with them."""
OTHERS = [name for name, table in TABLES.items() if not table.owns and not table.copies]
GROUPS = OWNERS + [OTHERS[i : i + 6] for i in range(0, len(OTHERS), 6)]
"""Tables that are published together: a run of six takes hardly longer than a run of one."""
BITS = {"int16": 15, "int32": 31, "int64": 63}


def _values(column: Column, table: Table) -> st.SearchStrategy[Any]:
    kind = str(column.type)
    if column.name == "layer" and table.by_layer:
        values: st.SearchStrategy[Any] = st.sampled_from([0, 1, 7, 123])
    elif kind in BITS:
        values = st.integers(0, 3) | st.integers(-(2 ** BITS[kind]), 2 ** BITS[kind] - 1)
    elif kind in ("float", "double"):
        values = st.floats(width=32 if kind == "float" else 64, allow_nan=False, allow_infinity=False)
        if column.name in table.unique:
            values = values.map(lambda value: value + 0.0)  # -0.0 and 0.0 are one key: sorting makes them 0.0
    elif kind == "bool":
        values = st.booleans()
    elif pa.types.is_list(column.type):
        values = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=4)
    else:
        values = st.sampled_from(["", "a", "ü\u202e\x00\n'", "b" * 300]) | st.text(max_size=8)
    return values if column.null is None else st.none() | values


def _rows(table: Table) -> st.SearchStrategy[list[dict[str, Any]]]:
    columns = {c.name: _values(c, table) for c in table.stored() if c.name != "run_id"}
    unique = ["ablation_id"] if table.owns == "ablation_id" else [c for c in table.unique if c != "run_id"]
    return st.lists(st.fixed_dictionaries(columns), max_size=8, unique_by=lambda row: tuple(row[c] for c in unique))


def _publish(lake: Lake, shards: Sequence[Mapping[str, Sequence[dict[str, Any]]]], more_follows: bool = False) -> RunRecord:
    """One run of tables, whose rows each shard holds some of; the catalog knows of it unless more follows."""
    tables = [TABLES[name] for name in shards[0]]

    def compute(missing: Sequence[str]) -> Iterator[tuple[str, list[Rows]]]:
        for shard in missing:
            yield shard, [rows for table in tables for rows in _landed(table, shards[int(shard)][table.name])]

    plan = Plan([str(i) for i in range(len(shards))], compute, [table.name for table in tables])
    return ensure_run(lake, SPEC, plan, more_follows=more_follows)


def _landed(table: Table, given: Sequence[dict[str, Any]]) -> list[Rows]:
    by_layer: dict[int | None, list[dict[str, Any]]] = defaultdict(list)
    for row in given:
        by_layer[row["layer"] if table.by_layer else None].append(row)
    if not by_layer and not table.by_layer:
        by_layer[None] = []
    names = [c.name for c in table.stored() if c.name != "run_id"]
    return [Rows.of(table, {n: [r[n] for r in rows] for n in names}, layer) for layer, rows in by_layer.items()]


def _repr(rows: list[dict[str, Any]], leave_out: str | None) -> list[str]:
    """Rows to compare; repr tells -0.0 from 0.0."""
    return sorted(repr(sorted((k, v) for k, v in row.items() if k not in ("run_id", leave_out))) for row in rows)


@pytest.mark.parametrize("names", GROUPS, ids=lambda names: names[0])
@settings(max_examples=4)
@given(data=st.data())
def test_rows_come_back_unchanged(names: list[str], data: st.DataObject) -> None:
    rows = {name: data.draw(_rows(TABLES[name]), name) for name in names}
    shards: list[dict[str, list[dict[str, Any]]]] = [{name: [] for name in names} for _ in range(3)]
    for name in names:
        owner = data.draw(st.lists(st.integers(0, 2), min_size=len(rows[name]), max_size=len(rows[name])), f"shards of {name}")
        for row, shard in zip(rows[name], owner, strict=True):
            shards[shard][name].append(row)
    with tempfile.TemporaryDirectory() as folder:
        lake = Lake.create(Path(folder) / "lake")
        record = _publish(lake, shards)
        with connect(lake) as here, duckdb.connect(lake.catalog, read_only=True) as shell:
            shell.execute("set variable lake = $1", [str(lake.root)])
            for name in names:
                _assert_back(lake, record, TABLES[name], rows[name], here, shell)
        again = Lake.create(Path(folder) / "again")
        backwards = {name: found[::-1] for name, found in rows.items()}
        assert _publish(again, [backwards], more_follows=True).tables == record.tables, "shards show in the content"


def _assert_back(
    lake: Lake,
    record: RunRecord,
    table: Table,
    rows: list[dict[str, Any]],
    here: duckdb.DuckDBPyConnection,
    shell: duckdb.DuckDBPyConnection,
) -> None:
    assert record.n_rows(table.name) == len(rows)
    files = [f for f in record.files if f.table == table.name]
    by_pyarrow = [row for f in files for row in pq.read_table(lake.root / f.path).to_pylist()]
    assert _repr(by_pyarrow, table.owns) == _repr(rows, table.owns)
    columns = ", ".join(f'"{c.name}"' for c in table.stored())
    found = here.sql(f"select {columns} from {table.name}").to_arrow_table()
    assert _repr(found.to_pylist(), table.owns) == _repr(rows, table.owns)
    found = shell.sql(f"select {columns} from all_runs.{table.name}").to_arrow_table()
    assert _repr(found.to_pylist(), table.owns) == _repr(rows, table.owns)
    for file in files:
        order = RowOrder(table.unique)
        with pq.ParquetFile(lake.root / file.path, page_checksum_verification=True) as parquet:
            assert parquet.schema_arrow.equals(table.schema)
            for batch in parquet.iter_batches(3):
                order.update(batch)
        assert (order.n_repeated, order.n_misplaced) == (0, 0)


def test_files_have_page_checksums_and_page_indexes(tmp_path: Path) -> None:
    rows = [{"prompt_id": 1, "pos": pos, "token_id": 7, "token": "a", "piece": "a", "role": "user"} for pos in range(10)]
    lake = Lake.create(tmp_path)
    path = lake.root / _publish(lake, [{"tokens": rows}]).files[0].path
    group = pq.read_metadata(path).row_group(0)
    columns = [group.column(i) for i in range(group.num_columns)]
    assert all(c.has_offset_index and c.has_column_index for c in columns)
    pages = columns[2].dictionary_page_offset  # of pos
    content = bytearray(path.read_bytes())
    content[pages + columns[2].total_compressed_size - 3] ^= 1
    path.write_bytes(content)
    with pytest.raises(OSError, match="CRC"):
        pq.read_table(path, columns=["pos"], page_checksum_verification=True)


def test_any_engine_reads_the_types_of_activations(tmp_path: Path) -> None:
    """No dictionary types, no extension types: what pyarrow and DuckDB see is what the protocol says."""
    lake = Lake.create(tmp_path)
    row = {"sae_id": "s", "layer": 3, "feature_id": 5, "prompt_id": 2**40, "pos": 1, "activation": 0.5}
    file = lake.root / _publish(lake, [{"activations": [row]}]).files[0].path
    assert pq.read_schema(file).metadata is None
    described = duckdb.sql(f"describe select * from '{file}'").fetchall()
    assert [kind for _, kind, *_ in described] == ["VARCHAR", "VARCHAR", "SMALLINT", "INTEGER", "BIGINT", "SMALLINT", "FLOAT"]


def test_a_row_that_comes_twice_is_refused(tmp_path: Path) -> None:
    lake = Lake.create(tmp_path)
    row = {"sae_id": "s", "layer": 3, "feature_id": 5, "prompt_id": 2**40, "pos": 1, "activation": 0.5}
    with pytest.raises(AssertionError, match="comes twice"):
        _publish(lake, [{"activations": [row]}] * 2)
    assert lake.records() == []
