"""The life of a run: planned as shards, landed shard by shard, published once, current until another takes its place.

A shard is a folder that appears whole or not at all, so a killed job resumes with the missing ones. Publishing sorts the
landed rows, writes the data files, and last of all the run record: before it nothing of the run exists for a reader.
"""

import platform
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Protocol

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from .catalog import refresh_catalog
from .errors import UserError
from .layout import ContentHash, DataFile, write_table
from .progress import Quiet
from .records import Lake, RunRecord, RunSpec, TableContent, run_tag
from .schema import SCHEMA_VERSION, TABLES, Table
from .store import folder_atomic, locked, sha256_text, write_atomic

RECORDED_PACKAGES = ("saelake", "torch", "transformers", "sae-lens", "duckdb", "pyarrow", "numpy", "scipy")
BATCH_ROWS = 131_072


@dataclass(frozen=True)
class Rows:
    """Rows that a shard lands: columns of the protocol, `run_id` left out; one layer's only, if the table lies by layer."""

    table: str
    rows: pa.Table
    layer: int | None = None


class Completion(Protocol):
    """Sees the sorted activations while they are published and completes tables that summarise them."""

    tables: frozenset[str]

    def observe(self, layer: int, rows: pa.RecordBatch) -> None: ...

    def complete(self, table: str, landed: pa.Table) -> pa.Table: ...


@dataclass(frozen=True)
class Plan:
    """How a run is computed: its shards by name, and the function that computes the missing ones, in any order."""

    shards: Sequence[str]
    compute: Callable[[Sequence[str]], Iterator[tuple[str, list[Rows]]]]
    tables: Sequence[str]
    unit: str = "shards"
    completion: Callable[[Callable[[str], pa.Table]], Completion] | None = None
    """Makes the completion from a function that reads a landed table."""


def ensure_run(
    lake: Lake, spec: RunSpec, plan: Plan, *, force: bool = False, progress: Quiet | None = None
) -> RunRecord:
    """The published run of `spec`: found, waited for, resumed or computed; it becomes the current one of its stage.

    Raises UserError if `force` recomputes it and the content differs from what is published.
    """
    progress = progress or Quiet()
    published = lake.record(spec.run_id)
    if published is None or force:
        with locked(lake.lock(spec.run_id), lambda: progress.say(f"waiting: another process computes {spec.run_id}")):
            published = lake.record(spec.run_id)
            if published is None or force:
                published = _compute(lake, spec, plan, published, progress)
    make_current(lake, spec.recipe, published)
    return published


def make_current(lake: Lake, recipe: str, record: RunRecord) -> None:
    """Points the recipe's stage at a published run and brings the catalog up to date."""
    pointer = lake.pointer(recipe, record.stage)
    with locked(lake.lock("catalog")):
        if (
            not pointer.is_file()
            or pointer.read_text(encoding="utf-8").strip() != record.run_id
            or not lake.catalog.exists()
        ):
            write_atomic(pointer, record.run_id + "\n")
            refresh_catalog(lake)


def _compute(lake: Lake, spec: RunSpec, plan: Plan, published: RunRecord | None, progress: Quiet) -> RunRecord:
    started = _now()
    landing = lake.landing(spec.run_id if published is None else f"{spec.run_id}.again")
    if published is not None:
        shutil.rmtree(landing, ignore_errors=True)
    missing = [name for name in plan.shards if not (landing / name).is_dir()]
    progress.start(f"{spec.recipe} · {spec.stage}", len(plan.shards), plan.unit, len(plan.shards) - len(missing))
    if missing:
        for name, rows in plan.compute(missing):
            land(landing / name, rows)
            progress.advance(1, sum(r.rows.num_rows for r in rows))
    record = _publish(lake, spec, plan, landing, started, published)
    shutil.rmtree(landing, ignore_errors=True)
    return record


def land(folder: Path, shard: Iterable[Rows]) -> None:
    """Writes one shard, durable and atomically. The files are plain: they live until the run is published."""
    with folder_atomic(folder) as draft:
        for part in shard:
            name = f"{part.table}.parquet" if part.layer is None else f"{part.table}/layer-{part.layer:02d}.parquet"
            file = draft / name
            file.parent.mkdir(exist_ok=True)
            pq.write_table(part.rows, file, compression="none", use_dictionary=False, write_statistics=False)


class _Landed:
    """The landed shards of one run, seen by DuckDB as tables with the protocol's columns and final ids."""

    def __init__(self, landing: Path, spec: RunSpec, tables: Sequence[str]) -> None:
        self._landing = landing
        self._spec = spec
        self._con = duckdb.connect(config={"temp_directory": str(landing / "spill"), "preserve_insertion_order": False})
        self._con.execute("set variable run_id = $1", [spec.run_id])
        self._numbered: set[str] = set()
        for name in tables:
            owned = TABLES[name].owns
            if owned and self.files(TABLES[name], None):
                self._number(TABLES[name], owned)

    def files(self, table: Table, layer: int | None) -> list[str]:
        name = f"{table.name}.parquet" if layer is None else f"{table.name}/layer-{layer:02d}.parquet"
        return sorted(str(p) for p in self._landing.glob(f"*/{name}") if not p.parent.name.startswith("."))

    def layers(self, table: Table) -> list[int | None]:
        if not table.by_layer:
            return [None] if self.files(table, None) else []
        return sorted(
            {int(p.stem.removeprefix("layer-")) for p in self._landing.glob(f"*/{table.name}/layer-*.parquet")}
        )

    def _number(self, table: Table, owned: str) -> None:
        """Dense ids for the content hashes that a table was landed with, in the order of its rows."""
        rank = f"min({owned})" if owned in table.order else f"min(({', '.join(table.order)}))"
        self._con.execute(
            f"create temp table number_{owned} as select {owned} as landed_id, "
            f"{self._spec.tag << 32}::bigint + row_number() over (order by {rank}, {owned}) - 1 as id "
            f"from read_parquet({self.files(table, None)}) group by {owned}"
        )
        self._numbered.add(owned)

    def select(self, table: Table, layer: int | None = None) -> str:
        """A statement over one table's landed rows, sorted; columns that a completion adds may be absent."""
        files = self.files(table, layer)
        present = {r[0] for r in self._con.execute(f"describe select * from read_parquet({files})").fetchall()}
        columns, joins = [], []
        for column in table.columns:
            if column.name == "run_id":
                columns.append("getvariable('run_id') as run_id")
            elif column.name in present and column.name in self._numbered:
                columns.append(f"coalesce(number_{column.name}.id, landed.{column.name}) as {column.name}")
                joins.append(f"left join number_{column.name} on number_{column.name}.landed_id = landed.{column.name}")
            elif column.name in present:
                columns.append(f"landed.{column.name}")
        first = [table.owns] if table.owns in self._numbered else []  # numbered in the table's order, ties broken
        order = ", ".join(dict.fromkeys(first + [c for c in table.order + table.key if c in present]))
        # Shards know nothing of each other: two may land the same feature set.
        select = "select distinct" if table.owns == "set_id" else "select"
        return f"{select} {', '.join(columns)} from read_parquet({files}) as landed {' '.join(joins)} order by {order}"

    def stream(self, table: Table, layer: int | None) -> Iterator[pa.RecordBatch]:
        reader = self._con.execute(self.select(table, layer)).to_arrow_reader(BATCH_ROWS)
        for batch in reader:
            yield batch.cast(table.schema)

    def read(self, table: Table, layer: int | None) -> pa.Table:
        return self._con.execute(self.select(table, layer)).to_arrow_table()

    def close(self) -> None:
        self._con.close()


def _publish(
    lake: Lake, spec: RunSpec, plan: Plan, landing: Path, started: str, published: RunRecord | None
) -> RunRecord:
    """Writes the data files and, last, the record; with `published` given, only compares with it."""
    folder = lake.data / (spec.run_id if published is None else f"{spec.run_id}.again")
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier attempt that was killed: no record lists it
    landed = _Landed(landing, spec, plan.tables)
    try:
        contents, files = _write_tables(lake, folder, landed, plan)
    finally:
        landed.close()
    content_hash = sha256_text("".join(f"{c.name}:{c.content_hash};" for c in contents))
    if published is not None:
        shutil.rmtree(folder)
        differing = [
            c.name for c, p in zip(contents, published.tables, strict=False) if c.content_hash != p.content_hash
        ]
        if differing or content_hash != published.content_hash:
            raise UserError(
                f"recomputing {spec.run_id} gave other content in {', '.join(differing) or 'its tables'}; the published run "
                f"is kept: `saelake drop {spec.run_id}` first, if the new one is right"
            )
        return published
    record = RunRecord(
        run_id=spec.run_id,
        stage=spec.stage,
        recipe=spec.recipe,
        parents=spec.parents,
        config=spec.config,
        code_version=metadata.version("saelake"),
        schema_version=SCHEMA_VERSION,
        seed=spec.seed,
        hardware={
            "machine": platform.machine(),
            "system": platform.system(),
            "device": spec.config.get("device", "cpu"),
        },
        versions={name: metadata.version(name) for name in RECORDED_PACKAGES} | {"python": platform.python_version()},
        started=started,
        finished=_now(),
        tables=tuple(contents),
        files=tuple(files),
        content_hash=content_hash,
    )
    with locked(lake.lock("catalog")):
        _refuse_tag_collision(lake, spec)
        write_atomic(lake.record_path(spec.run_id), record.to_json())
    return record


def _write_tables(lake: Lake, folder: Path, landed: _Landed, plan: Plan) -> tuple[list[TableContent], list[DataFile]]:
    completion = plan.completion(lambda name: landed.read(TABLES[name], None)) if plan.completion else None
    completed = completion.tables if completion else frozenset()
    contents: dict[str, TableContent] = {}
    files: list[DataFile] = []
    # What sums up the activations is written after them.
    for name in sorted(plan.tables, key=lambda n: (n in completed, list(TABLES).index(n))):
        table = TABLES[name]
        content = ContentHash(table.schema)
        for layer in landed.layers(table):
            if completion and name in completed:
                rows: Iterable[pa.RecordBatch] = completion.complete(name, landed.read(table, layer)).to_batches()
            else:
                rows = landed.stream(table, layer)
                if completion and layer is not None:
                    rows = _observed(rows, completion, layer)
            path = folder / name / (f"layer-{layer:02d}.parquet" if layer is not None else f"{name}.parquet")
            n_rows, n_bytes, sha256 = write_table(path, name, rows, content)
            files.append(DataFile(name, path.relative_to(lake.root).as_posix(), n_rows, n_bytes, sha256))
        contents[name] = TableContent(name, content.n_rows, content.hexdigest())
    return [contents[name] for name in TABLES if name in contents], files


def _observed(rows: Iterator[pa.RecordBatch], completion: Completion, layer: int) -> Iterator[pa.RecordBatch]:
    for batch in rows:
        completion.observe(layer, batch)
        yield batch


def _refuse_tag_collision(lake: Lake, spec: RunSpec) -> None:
    for other in lake.records():
        if other.run_id != spec.run_id and run_tag(other.run_id) == spec.tag:
            raise UserError(
                f"the ids of run {spec.run_id} would collide with those of {other.run_id}: change the recipe's seed, or drop "
                f"the other run"
            )


def _now() -> str:
    return datetime.now(UTC).replace(tzinfo=None).isoformat(timespec="milliseconds")
