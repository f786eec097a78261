"""The life of a run: planned as shards, landed shard by shard, published once, current until another takes its place.

Publishing sorts the landed rows, writes the data files, and last of all the run record: before it nothing of the run exists
for a reader. Whatever moment a process is killed at, the same request finds what is finished and does the rest.
"""

import platform
import shutil
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from importlib import metadata
from pathlib import Path

from saelake.warehouse.catalog import changing_catalog, is_catalog_current
from saelake.warehouse.errors import UserError, storage_errors
from saelake.warehouse.files import DataFile
from saelake.warehouse.landing import Completion, Compute, Plan, Rows, land
from saelake.warehouse.parents import require_sound
from saelake.warehouse.progress import Quiet
from saelake.warehouse.publish import publish_files
from saelake.warehouse.records import Lake, RunRecord, RunSpec, TableContent, data_key, pointer_key, record_key, run_tag
from saelake.warehouse.schema import SCHEMA_VERSION
from saelake.warehouse.store import locked, sha256_text, utc_now

__all__ = ["Completion", "Compute", "Plan", "Rows", "ensure_run", "land", "make_current", "whole_run"]

RECORDED_PACKAGES = ("saelake", "torch", "transformers", "sae-lens", "duckdb", "pyarrow", "numpy", "scipy")


def ensure_run(lake: Lake, spec: RunSpec, plan: Plan, *, force: bool = False, progress: Quiet | None = None) -> RunRecord:
    """The published run of `spec`: found, waited for, resumed or computed; it becomes the current one of its stage.

    A run that was added from a shared set which left something out is computed again, whole.

    Raises UserError if `force` recomputes it and the content differs from what is published, and for what the disk refuses.
    """
    progress = progress or Quiet()
    published = whole_run(lake, spec.run_id)
    if published is None or force:
        with ExitStack() as stack:
            with storage_errors(lake):
                lock = locked(lake.lock(spec.run_id), lambda: progress.say(f"waiting: another process computes {spec.run_id}"))
                stack.enter_context(lock)
            published = whole_run(lake, spec.run_id)
            if published is None:
                published = _compute(lake, spec, plan, progress)
            elif force:
                _compute_again(lake, spec, plan, published, progress)
    make_current(lake, spec.recipe, published)
    return published


def known(lake: Lake) -> Callable[[RunSpec], RunSpec]:
    """A function that finds what older versions of the schema have published: a spec comes back as the run that has its content.

    Parents are to be found before their children, whose identity holds the ids that their parents really have.
    """
    older: dict[str, str] = {}
    for run_id in lake.run_ids():
        with suppress(UserError):  # a damaged record is told where it is used
            record = lake.record(run_id)
            if record and record.schema_version < SCHEMA_VERSION:
                older[record.identity] = run_id

    def find(spec: RunSpec) -> RunSpec:
        same = [replace(spec, config=spec.config | other).identity for other in ({}, *spec.older)]
        found = next((older[identity] for identity in same if identity in older), None)
        return spec if found is None or lake.published.exists(record_key(spec.identity)) else replace(spec, known_as=found)

    return find


def whole_run(lake: Lake, run_id: str) -> RunRecord | None:
    """A published run with all that it computed; None if it came from a shared set that left something out."""
    record = lake.record(run_id)
    return None if record is None or record.withheld else record


def make_current(lake: Lake, recipe: str, record: RunRecord) -> None:
    """Points the recipe's stage at a published run and brings the catalog up to date."""
    key = (recipe, record.stage)
    if lake.current().get(key) == record.run_id and is_catalog_current(lake):
        return
    with storage_errors(lake), changing_catalog(lake):
        if not lake.published.exists(record_key(record.run_id)):
            raise UserError(f"run {record.run_id} was dropped by another process: run the same command again")
        lake.published.write(pointer_key(*key), record.run_id + "\n")


def _compute(lake: Lake, spec: RunSpec, plan: Plan, progress: Quiet) -> RunRecord:
    started = utc_now()
    refuse_tag_collision(lake, spec.run_id)
    landing = lake.landing(spec.run_id)
    _land_missing(lake, spec, plan, landing, progress)
    with storage_errors(lake):
        for draft in (lake.root / "data").glob(f".{spec.run_id}*"):
            shutil.rmtree(draft)  # of a killed process
        # A dropped run's folder stays for those who still read it, until `gc` takes it away.
        folder = lake.published.unused(data_key(spec.run_id))
        with lake.published.new_folder(folder) as draft:
            contents, files = publish_files(landing, spec, plan, draft, progress)
        record = _record(spec, {**spec.about, **plan.about()}, started, contents, [_below(folder, f) for f in files])
        published = _commit(lake, spec, record)
        if published.files != record.files:
            lake.published.delete(folder)
        shutil.rmtree(landing)
    return published


def _compute_again(lake: Lake, spec: RunSpec, plan: Plan, published: RunRecord, progress: Quiet) -> None:
    """Computes a published run from nothing, beside it, and compares the content."""
    plan = replace(plan, tables=[t.name for t in published.tables])  # a copy of rows may be asked for now, or not any more
    landing = lake.landing(f"{spec.run_id}.again")
    shutil.rmtree(landing, ignore_errors=True)
    try:
        _land_missing(lake, spec, plan, landing, progress)
        with storage_errors(lake):
            contents, _ = publish_files(landing, spec, plan, landing / ".published", progress)
    finally:
        shutil.rmtree(landing, ignore_errors=True)
    if tuple(contents) != published.tables:
        differing = ", ".join(sorted({c.name for c in set(contents) ^ set(published.tables)}))
        raise UserError(
            f"recomputing {spec.run_id} gave other content in {differing}; the published run is kept: "
            f"`saelake drop {spec.run_id}` first, if the new one is right"
        )


def _land_missing(lake: Lake, spec: RunSpec, plan: Plan, landing: Path, progress: Quiet) -> None:
    missing = [name for name in plan.shards if not (landing / name).is_dir()]
    progress.start(f"{spec.recipe} · {spec.stage}", len(plan.shards), plan.unit, len(plan.shards) - len(missing))
    if not missing:
        return
    require_sound(lake, spec.parents)
    for name, rows in plan.compute(missing):
        with storage_errors(lake):
            land(landing / name, rows)
        progress.advance(1, sum(r.rows.num_rows for r in rows))
    unlanded = [name for name in plan.shards if not (landing / name).is_dir()]
    assert not unlanded, f"{spec.stage}: shards were not computed: {', '.join(unlanded)}"


def _record(
    spec: RunSpec, about: dict[str, object], started: str, contents: list[TableContent], files: list[DataFile]
) -> RunRecord:
    return RunRecord(
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
        versions=_versions() | {"python": platform.python_version()},
        started=started,
        finished=utc_now(),
        tables=tuple(contents),
        files=tuple(files),
        content_hash=content_hash(contents),
        about=about,
    )


def content_hash(contents: list[TableContent]) -> str:
    """The hash of a run's whole content, from those of its tables."""
    return sha256_text("".join(f"{c.name}:{c.content_hash};" for c in contents))


def _commit(lake: Lake, spec: RunSpec, record: RunRecord) -> RunRecord:
    """Makes a run visible, in one step: its record is there or not. Returns the record that counts.

    That is another one if another machine, whose locks are not seen here, has published the run meanwhile.
    """
    with changing_catalog(lake):
        refuse_tag_collision(lake, spec.run_id)
        for parent in spec.parents:
            if not lake.published.exists(record_key(parent)):
                raise UserError(
                    f"run {parent}, which {spec.run_id} is computed from, is not in the lake (any more): "
                    f"run the same command again"
                )
        other = None
        if not lake.publish_new(record):
            other = whole_run(lake, spec.run_id)
            if other is None:  # what is there came from a shared set that left something out
                lake.publish(record)
        lake.published.write(pointer_key(spec.recipe, spec.stage), record.run_id + "\n")
    return other or record


def _below(folder: str, file: DataFile) -> DataFile:
    return replace(file, path=f"{folder}/{file.path}")


def refuse_tag_collision(lake: Lake, run_id: str) -> None:
    """Raises UserError if another run of the lake numbers its rows with the same 31 bits."""
    for other in lake.run_ids():
        if other != run_id and run_tag(other) == run_tag(run_id):
            raise UserError(
                f"the ids of run {run_id} would collide with those of {other}: change the recipe's seed, or drop the other run"
            )


def _versions() -> dict[str, str]:
    found = {}
    for name in RECORDED_PACKAGES:
        with suppress(metadata.PackageNotFoundError):  # SQL and storage work without the GPU packages
            found[name] = metadata.version(name)
    return found
