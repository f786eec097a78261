"""The life of a run: planned as shards, landed shard by shard, published once, current until another takes its place.

Publishing sorts the landed rows, writes the data files, and last of all the run record: until then readers see nothing of
the run. Whenever a process is killed, the same request finds what is finished and does the rest.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from saelake.warehouse.catalog import catch_up, changing_catalog, is_catalog_current
from saelake.warehouse.commit import commit, record_of, refuse_tag_collision, whole_run
from saelake.warehouse.durable import locked, utc_now
from saelake.warehouse.errors import UserError, storage_errors
from saelake.warehouse.files import DataFile
from saelake.warehouse.keys import check_study_name, data_key, record_key
from saelake.warehouse.lake import Lake
from saelake.warehouse.landing import Plan, Rows, land
from saelake.warehouse.machine import host_bytes
from saelake.warehouse.parents import require_sound
from saelake.warehouse.progress import Quiet
from saelake.warehouse.publish import publish_files
from saelake.warehouse.records import RunRecord, RunSpec, TableContent
from saelake.warehouse.schema import SCHEMA_VERSION
from saelake.warehouse.threads import at_once

CORES_A_RUN, BYTES_A_RUN, MOST_AT_ONCE = 2, 4 << 30, 8
"""Cores and main memory that each run needs while several are published at once, and the most that are. Each may hold a
gigabyte, beside the model and SAEs of this process."""


Planned = tuple[RunSpec, Plan]
JointCompute = Callable[[Mapping[str, Sequence[str]]], Iterator[tuple[str, str, list[Rows]]]]
"""Makes the rows of some shards of several runs, in any order: from run_id -> shards, (run_id, shard, rows) one by one."""


def ensure_run(
    lake: Lake, spec: RunSpec, plan: Plan, *, force: bool = False, progress: Quiet | None = None, more_follows: bool = False
) -> RunRecord:
    """The published run of `spec`: found, waited for, resumed or computed; it becomes the current one of its stage.

    A run that was added from a shared set which left something out is computed again, whole.

    Args:
        more_follows: other runs come right after. The catalog is brought up to date while a longer one of them is computed, or
            at the end of `up_to_date_at_the_end`: building it takes longer than a short stage does.
    Raises UserError if `force` recomputes it and the content differs from what is published, and for what the disk refuses.
    """

    def alone(missing: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, str, list[Rows]]]:
        for shard, rows in plan.compute(missing[spec.run_id]):
            yield spec.run_id, shard, rows

    (record,) = _ensure(lake, [(spec, plan)], alone, spec.stage, force, progress or Quiet(), True, more_follows)
    make_current(lake, spec.recipe, {record.stage: [record]}, more_follows)
    return record


def ensure_runs(
    lake: Lake,
    planned: Sequence[Planned],
    compute: JointCompute,
    *,
    what: str,
    force: bool = False,
    progress: Quiet | None = None,
) -> list[RunRecord]:
    """The published runs of several specs, parents before children, whose missing shards are computed together.

    Nothing is published before all is landed; each run is then published by itself, and what a killed process published
    stands. None becomes current: that is left to `make_current`. Raises as `ensure_run`.
    """
    return _ensure(lake, planned, compute, what, force, progress or Quiet(), is_alone=False, more_follows=True)


def _ensure(
    lake: Lake,
    planned: Sequence[Planned],
    compute: JointCompute,
    what: str,
    force: bool,
    progress: Quiet,
    is_alone: bool,
    more_follows: bool,
) -> list[RunRecord]:
    for spec, _ in planned:
        check_study_name(spec.recipe)
    asked = [one for one in planned if force or whole_run(lake, one[0].run_id) is None]
    with ExitStack() as stack:
        with storage_errors(lake):
            for run_id in sorted(spec.run_id for spec, _ in asked):
                waiting = partial(progress.say, f"waiting: another process computes {run_id}")
                stack.enter_context(locked(lake.lock(run_id), waiting))
        missing = [one for one in asked if whole_run(lake, one[0].run_id) is None]
        if missing:
            _compute(lake, missing, compute, what, progress, is_alone, more_follows)
        if force and (again := [one for one in asked if one not in missing]):
            _compute_again(lake, again, compute, what, progress)
    return [published(lake, spec.run_id) for spec, _ in planned]


def known(lake: Lake) -> Callable[[RunSpec], RunSpec]:
    """A function that finds what older versions of the schema have published: a spec comes back as the run that has its content.

    Parents are to be found before their children, whose identity holds the ids that their parents really have.
    """
    older: dict[str, str] = {}
    for run_id in lake.run_ids():
        with suppress(UserError):  # a damaged record is reported where it is used
            record = lake.record(run_id)
            if record and record.schema_version < SCHEMA_VERSION:
                older[record.identity] = run_id

    def find(spec: RunSpec) -> RunSpec:
        found = older.get(spec.identity)
        return spec if found is None or lake.published.exists(record_key(spec.identity)) else replace(spec, known_as=found)

    return find


def published(lake: Lake, run_id: str) -> RunRecord:
    """A published run that is needed; raises UserError if another process has dropped it."""
    record = whole_run(lake, run_id)
    if record is None:
        raise _dropped(run_id)
    return record


def _dropped(run_id: str) -> UserError:
    return UserError(f"run {run_id} was dropped by another process: run the same command again")


def make_current(lake: Lake, recipe: str, runs: Mapping[str, Sequence[RunRecord]], more_follows: bool = False) -> None:
    """Points stages of a recipe at published runs, under one lock, and brings the catalog up to date unless more follows.

    The pointer of a stage without runs is removed.
    """
    wanted = {(recipe, stage): tuple(r.run_id for r in records) for stage, records in runs.items()}
    current = lake.current()
    is_current = all(current.get(key, ()) == run_ids for key, run_ids in wanted.items())
    if is_current and (more_follows or is_catalog_current(lake)):
        return
    with storage_errors(lake), changing_catalog(lake, more_follows):
        current = lake.current()  # again: another process may have changed it while this one waited
        for run_id in (run_id for run_ids in wanted.values() for run_id in run_ids):
            if not lake.published.exists(record_key(run_id)):
                raise _dropped(run_id)
        for (_, stage), run_ids in wanted.items():
            if current.get((recipe, stage), ()) != run_ids:
                lake.point(recipe, stage, run_ids)


def _compute(
    lake: Lake,
    planned: Sequence[Planned],
    compute: JointCompute,
    what: str,
    progress: Quiet,
    is_alone: bool,
    more_follows: bool,
) -> None:
    started = utc_now()
    for spec, _ in planned:
        refuse_tag_collision(lake, spec.run_id)
    _land_missing(lake, planned, {spec.run_id: lake.landing(spec.run_id) for spec, _ in planned}, compute, what, progress)
    for wave in _waves(planned):
        n = min(len(wave), _most_at_once())
        if n > 1:
            progress.start(f"{planned[0][0].recipe} · {what} · publishing", len(wave), "runs")
        began = utc_now()
        with closing(at_once(n, partial(_write, lake, progress if n == 1 else Quiet()), wave)) as writing:
            for (spec, plan), written in zip(wave, writing, strict=True):
                # Of runs that are computed together the last one gives the time that their shards took, the others that of
                # publishing.
                _record_written(lake, spec, plan, started if spec is planned[-1][0] else began, written, is_alone, more_follows)
                began = utc_now()
                if n > 1:
                    progress.advance(1, sum(file.n_rows for file in written.files))


def _most_at_once() -> int:
    """Runs that this machine publishes at once; on two cores one, as DuckDB and pyarrow use the second themselves."""
    return max(min(MOST_AT_ONCE, (os.cpu_count() or 1) // CORES_A_RUN, host_bytes() // BYTES_A_RUN), 1)


def _waves(planned: Sequence[Planned]) -> Iterator[list[Planned]]:
    """Runs in order, as many together as have their parents before them."""
    wave: list[Planned] = []
    for spec, plan in planned:
        if set(spec.parents) & {one.run_id for one, _ in wave}:
            yield wave
            wave = []
        wave.append((spec, plan))
    yield wave


class _Written(NamedTuple):
    """The files of a run, in a folder that no record names yet."""

    folder: str
    contents: list[TableContent]
    files: list[DataFile]


def _write(lake: Lake, progress: Quiet, one: Planned) -> _Written:
    """Sorts and writes what a run has landed."""
    spec, plan = one
    with storage_errors(lake):
        for draft in (lake.root / "data").glob(f".{spec.run_id}*"):
            shutil.rmtree(draft)  # of a killed process
        # A dropped run's folder stays for those who still read it, until `gc` takes it away.
        folder = lake.published.unused(data_key(spec.run_id))
        with lake.published.new_folder(folder) as draft:
            contents, files = publish_files(lake.landing(spec.run_id), spec, plan, draft, progress)
    return _Written(folder, contents, [file.below(folder) for file in files])


def _record_written(
    lake: Lake, spec: RunSpec, plan: Plan, began: str, written: _Written, is_alone: bool, more_follows: bool
) -> None:
    """The last step: what is written is a run from here on."""
    record = record_of(spec, {**spec.about, **plan.about()}, began, written.contents, written.files)
    with storage_errors(lake):
        committed = commit(lake, spec, record, is_alone, more_follows)
        if committed.files != record.files:  # another machine has published the run meanwhile
            lake.published.delete(written.folder)
        shutil.rmtree(lake.landing(spec.run_id))


def _compute_again(lake: Lake, planned: Sequence[Planned], compute: JointCompute, what: str, progress: Quiet) -> None:
    """Computes published runs from nothing, beside them, and compares the content."""
    landings = {spec.run_id: lake.landing(f"{spec.run_id}.again") for spec, _ in planned}
    for landing in landings.values():
        shutil.rmtree(landing, ignore_errors=True)
    try:
        _land_missing(lake, planned, landings, compute, what, progress)
        for spec, plan in planned:
            _compare(lake, spec, plan, landings[spec.run_id], progress)
    finally:
        for landing in landings.values():
            shutil.rmtree(landing, ignore_errors=True)


def _compare(lake: Lake, spec: RunSpec, plan: Plan, landing: Path, progress: Quiet) -> None:
    record = published(lake, spec.run_id)
    plan = replace(plan, tables=[t.name for t in record.tables])  # a copy of rows may be asked for now, or not any more
    with storage_errors(lake):
        contents, _ = publish_files(landing, spec, plan, landing / ".published", progress)
    if tuple(contents) != record.tables:
        differing = ", ".join(sorted({c.name for c in set(contents) ^ set(record.tables)}))
        raise UserError(
            f"recomputing {spec.run_id} gave other content in {differing}; the published run is kept: "
            f"`saelake drop {spec.run_id}` first, if the new one is right"
        )


def _land_missing(
    lake: Lake, planned: Sequence[Planned], landings: Mapping[str, Path], compute: JointCompute, what: str, progress: Quiet
) -> None:
    for spec, plan in planned:
        for shard in landings[spec.run_id].glob("[!.]*"):
            if shard.name not in plan.shards:  # of another size: its rows would come twice
                shutil.rmtree(shard)
    shards = {
        spec.run_id: [name for name in plan.shards if not (landings[spec.run_id] / name).is_dir()] for spec, plan in planned
    }
    missing = {run_id: names for run_id, names in shards.items() if names}
    n_shards, n_missing = sum(len(plan.shards) for _, plan in planned), sum(map(len, missing.values()))
    progress.start(f"{planned[0][0].recipe} · {what}", n_shards, planned[0][1].unit, n_shards - n_missing)
    if not missing:
        return
    require_sound(lake, [parent for spec, _ in planned for parent in spec.parents])
    for run_id, name, rows in compute(missing):
        with storage_errors(lake):
            land(landings[run_id] / name, rows)
            catch_up(lake)
        progress.advance(1, sum(r.rows.num_rows for r in rows))
    unlanded = [name for run_id, names in missing.items() for name in names if not (landings[run_id] / name).is_dir()]
    assert not unlanded, f"{what}: shards were not computed: {', '.join(unlanded)}"
