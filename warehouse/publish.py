"""From landed shards to published files: rows are sorted out of core, pyarrow writes, ids get their final numbers on the way.

DuckDB sorts every table but the activations, which can be counted into order (activation_sort.py).
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from saelake.warehouse.activation_sort import by_feature, by_prompt, find_parts
from saelake.warehouse.content import ContentHash
from saelake.warehouse.files import DataFile, file_layer, file_name
from saelake.warehouse.landing import Plan, Summary
from saelake.warehouse.layout import BATCH_ROWS, rechunk, write_table
from saelake.warehouse.literals import literal, parquet, paths
from saelake.warehouse.order import RowOrder
from saelake.warehouse.progress import Quiet
from saelake.warehouse.records import RunSpec, TableContent
from saelake.warehouse.schema import ACTIVATIONS, ACTIVATIONS_BY_PROMPT, TABLES, Table

MEMORY_LIMIT = "1GB"
"""What DuckDB may use before it spills to disk, beside the landed shards."""


class Landed:
    """The landed shards of one run as sorted rows, with the columns of the protocol and final ids."""

    def __init__(self, landing: Path, spec: RunSpec, tables: Sequence[str]) -> None:
        self._landing = landing
        self._spec = spec
        spill = landing / ".spill"
        shutil.rmtree(spill, ignore_errors=True)  # of a killed process
        spill.mkdir(mode=0o700, parents=True)  # completions may be in it
        self._con = duckdb.connect(
            config={"temp_directory": str(spill), "memory_limit": MEMORY_LIMIT, "preserve_insertion_order": False}
        )
        self._numbered: set[str] = set()
        for table in (TABLES[name] for name in tables):
            if table.owns and self._files(table, None):
                self._number(table, table.owns)

    def close(self) -> None:
        self._con.close()

    def layers(self, table: Table) -> Sequence[int | None]:
        """The layers that a table's files are split by; [None] for one file, [] for no rows at all."""
        if table.copies:
            return [None] if self.layers(TABLES[table.copies]) else []
        if not table.by_layer:
            return [None] if self._files(table, None) else []
        return sorted({file_layer(p.as_posix()) for p in self._landing.glob(f"[!.]*/{table.name}/layer-*.parquet")})

    def stream(self, table: Table, layer: int | None = None) -> Iterator[pa.RecordBatch]:
        """Sorted rows in batches of BATCH_ROWS; columns that a summary adds may be absent, repeated text is dictionary-coded.

        Raises AssertionError if a row comes twice, or before one that it should come after: DuckDB 2 once gave them so.
        """
        counted = self._counted(table, layer)
        if counted is not None:
            yield from counted
            return
        files = self._files(table, layer)
        constants, base = self._constants(table, layer, files), self._base(table, files)
        sorted_by = [c for c in table.unique if c not in constants]
        order = RowOrder(sorted_by)
        reader = self._con.sql(self._select(table, files, constants, base, sorted_by)).to_arrow_reader(BATCH_ROWS)
        for batch in rechunk(reader):
            order.update(batch)
            assert not order.n_repeated, f"{table.name}: a row comes twice in ({', '.join(sorted_by)})"
            assert not order.n_misplaced, f"{table.name}: DuckDB gives rows in another order than ({', '.join(sorted_by)})"
            columns = {name: batch[name] for name in batch.schema.names}
            columns |= {name: pc.add(columns[name].cast(pa.int64()), first) for name, first in base.items()}
            yield _with_constants(table, columns, constants, len(batch))

    def _counted(self, table: Table, layer: int | None) -> Iterator[pa.RecordBatch] | None:
        """The rows of `stream` if they are activations that can be counted into order."""
        if table not in (ACTIVATIONS, ACTIVATIONS_BY_PROMPT):
            return None
        layers = [layer] if layer is not None else [n for n in self.layers(ACTIVATIONS) if n is not None]
        parts = find_parts({n: [Path(file) for file in self._files(ACTIVATIONS, n)] for n in layers})
        assert parts is not None or not table.copies, f"{table.name}: an SAE is too wide, or prompts are of several runs"
        if parts is None:
            return None
        if not parts:  # nothing fired
            return iter(())
        constants: dict[str, Any] = {"run_id": self._spec.run_id}
        if table == ACTIVATIONS_BY_PROMPT:
            rows = by_prompt(parts)
        else:
            constants |= {"layer": layer} | ({"sae_id": parts[0].sae_id} if len({p.sae_id for p in parts}) == 1 else {})
            rows = by_feature(parts)
        return (
            _with_constants(table, dict(zip(b.schema.names, b.columns, strict=True)), constants, len(b)) for b in rechunk(rows)
        )

    def read(self, table: Table, layer: int | None = None) -> pa.Table:
        """The rows of `stream` at once."""
        batches = list(self.stream(table, layer))
        return pa.Table.from_batches(batches) if batches else table.schema.empty_table()

    def _files(self, table: Table, layer: int | None) -> list[str]:
        return sorted(str(p) for p in self._landing.glob(f"[!.]*/{file_name(table.name, layer)}"))

    def _constants(self, table: Table, layer: int | None, files: list[str]) -> dict[str, Any]:
        """Columns with one value in all these rows: they need no sorting."""
        constants: dict[str, Any] = {"run_id": self._spec.run_id}
        if layer is not None:
            constants["layer"] = layer
            sae_ids = self._con.execute(f"select distinct sae_id from {parquet(paths(files))} limit 2").fetchall()
            if len(sae_ids) == 1:
                constants["sae_id"] = sae_ids[0][0]
        return constants

    def _base(self, table: Table, files: list[str]) -> dict[str, int]:
        """Ids that DuckDB may sort by their 32-bit index, which is quicker, with the number that is to be added to it again."""
        if table.name != "activations":
            return {}
        tags = self._con.execute(f"select distinct prompt_id >> 32 from {parquet(paths(files))} limit 2").fetchall()
        return {"prompt_id": tags[0][0] << 32} if len(tags) == 1 else {}

    def _number(self, table: Table, owned: str) -> None:
        """Dense ids for the content hashes that a table was landed with, in the order of its rows."""
        rank = f"min({owned})" if owned in table.order else f"min(({', '.join(table.order)}))"
        self._con.execute(
            f"create temp table number_{owned} as select {owned} as landed_id, "
            f"{self._spec.tag << 32}::bigint + row_number() over (order by {rank}, {owned}) - 1 as id "
            f"from {parquet(paths(self._files(table, None)))} group by {owned}"
        )
        self._numbered.add(owned)

    def _select(
        self, table: Table, files: list[str], constants: Mapping[str, Any], base: Mapping[str, int], sorted_by: list[str]
    ) -> str:
        columns, joins = [], []
        landed = set(pq.read_schema(files[0]).names)
        for column in table.columns:
            name, number = column.name, f"number_{column.name}"
            if name not in landed or name in constants:
                continue
            if name in base:
                columns.append(f"(landed.{name} - {base[name]})::uinteger as {name}")
                continue
            if column.identity not in self._numbered:
                columns.append(f"landed.{name}")
                continue
            unknown = f"error({literal(f'{table.name}.{name}: no shard landed what it points to')})"
            columns.append(f"case when landed.{name} is not null then coalesce({number}.id, {unknown}) end as {name}")
            joins.append(f"left join number_{column.identity} as {number} on {number}.landed_id = landed.{name}")
        # Shards know nothing of each other: two may land the same feature set.
        select = "select distinct" if table.owns == "set_id" else "select"
        first = [table.owns] if table.owns in self._numbered else []  # numbered in the table's order, ties broken
        order = ", ".join(str(name) for name in dict.fromkeys(first + sorted_by))
        rows = parquet(paths(files))
        return f"{select} {', '.join(columns)} from {rows} as landed {' '.join(joins)} order by {order}"


def _with_constants(table: Table, columns: dict[str, pa.Array], constants: Mapping[str, Any], n_rows: int) -> pa.RecordBatch:
    columns |= {name: _constant(value, table.schema.field(name).type, n_rows) for name, value in constants.items()}
    return pa.RecordBatch.from_pydict({name: columns[name] for name in table.schema.names if name in columns})


@lru_cache(maxsize=16)  # batches are nearly all of one length
def _constant(value: Any, kind: pa.DataType, n_rows: int) -> pa.Array:
    if pa.types.is_string(kind):
        return pa.DictionaryArray.from_arrays(np.zeros(n_rows, dtype=np.int32), pa.array([value], kind))
    return pa.repeat(pa.scalar(value, kind), n_rows)


def publish_files(
    landing: Path, spec: RunSpec, plan: Plan, folder: Path, progress: Quiet
) -> tuple[list[TableContent], list[DataFile]]:
    """Writes all tables of a run below `folder`; the paths of the files are relative to it."""
    landed = Landed(landing, spec, plan.tables)
    try:
        return _write_tables(landed, spec, plan, folder, progress)
    finally:
        landed.close()


def _write_tables(
    landed: Landed, spec: RunSpec, plan: Plan, folder: Path, progress: Quiet
) -> tuple[list[TableContent], list[DataFile]]:
    summary = plan.summary(lambda name: landed.read(TABLES[name])) if plan.summary else None
    completed = summary.tables if summary else frozenset()
    contents: dict[str, TableContent] = {}
    files: list[DataFile] = []
    # What sums up the activations is written after them.
    order = sorted(plan.tables, key=lambda name: (name in completed, list(TABLES).index(name)))
    parts = {name: landed.layers(TABLES[name]) for name in order}
    progress.start(f"{spec.recipe} · {spec.stage} · publishing", sum(map(len, parts.values())), "files")
    for name, layers in parts.items():
        content = ContentHash(TABLES[name].schema)
        for layer in layers:
            rows = _finished_rows(landed, TABLES[name], layer, summary)
            path = folder / file_name(name, layer)
            n_rows, n_bytes, sha256 = write_table(path, name, rows, content)
            files.append(DataFile(name, path.relative_to(folder).as_posix(), n_rows, n_bytes, sha256))
            progress.advance(1, n_rows)
        contents[name] = TableContent(name, content.n_rows, content.hexdigest())
    return [contents[name] for name in TABLES if name in contents], files


def _finished_rows(landed: Landed, table: Table, layer: int | None, summary: Summary | None) -> Iterator[pa.RecordBatch]:
    if summary and table.name in summary.tables:
        yield from rechunk(summary.complete(table.name, landed.read(table, layer)).to_batches())
        return
    for batch in landed.stream(table, layer):
        if summary and table.name == "activations" and layer is not None:
            summary.observe(layer, batch)
        yield batch
