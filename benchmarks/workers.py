"""Two Ray workers beside one process, one torch thread each, on a stage whose shards are independent.

    python -m benchmarks.workers

The stage is `candidates` of the embedded study (K = 1 to the recipe's cap), in shards of 16 prompts. Workers have loaded the
subject before the clock starts, as they have after a study's first shards; the clock is the wall's, so other work on the machine
shows. The content must be the same.

What two processes can gain is the machine's: its cores may share caches, memory or a clock. So the same shards are computed twice
more without Ray, a lake or each other, by one process and by two with half of them each.

Last, the same in shards of two prompts, while a worker is killed after every tenth shard: that content must be the same, too.
"""

import argparse
import multiprocessing
import os
import signal
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.synchronize import Barrier
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

from benchmarks.harness import Report, alternated
from saelake.analysis.search import alignments, baseline, candidates, directions
from saelake.analysis.stages import ensure_stage, open_analysis, specs, stage_rows
from saelake.analysis.study_context import StudyContext
from saelake.analysis.workers import RayWorkers
from saelake.ingest.job import ingest_study
from saelake.ingest.recipe import load_recipe
from saelake.ingest.study import Study
from saelake.warehouse.housekeeping import drop, gc
from saelake.warehouse.lake import Lake
from saelake.warehouse.records import RunSpec
from saelake.warehouse.runs import Rows
from tests.ray_processes import worker_pids

SHARD_PROMPTS, SMALL_SHARD_PROMPTS = 16, 2
KILLS, SHARDS_A_KILL = 10, 10
BEFORE = (directions.STAGE, alignments.STAGE, baseline.STAGE)
STAGE = candidates.STAGE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dry", action="store_true", help="do not write docs/benchmarks.md")
    options = parser.parse_args()
    study = _study(SHARD_PROMPTS)
    known = specs(study)
    report = Report("workers", "Workers", ("ray", "torch"))
    with tempfile.TemporaryDirectory() as folder:
        lake = Lake.create(Path(folder, "lake"))
        context = StudyContext(study, lake)
        ingest_study(study, lake)
        for stage in BEFORE:
            ensure_stage(stage, known, context)
        contents = set()

        def run(workers: RayWorkers | None) -> None:
            contents.add(ensure_stage(STAGE, known, context, workers=workers).content_hash)
            drop(lake, known[STAGE.name].run_id)
            gc(lake, older_than_seconds=0)

        with RayWorkers(study, lake, n_workers=2) as workers, _apart(lake, 1) as one, _apart(lake, 2) as two:
            times = alternated(
                {
                    "one process": lambda: run(None),
                    "two workers": lambda: run(workers),
                    "one, bare": one.compute,
                    "two apart, bare": two.compute,
                },
                options.rounds,
            )
        small = _study(SMALL_SHARD_PROMPTS)
        with Mortal(small, lake, n_workers=2) as mortal:
            contents.add(ensure_stage(STAGE, specs(small), StudyContext(small, lake), workers=mortal).content_hash)
    assert len(mortal.killed) == KILLS
    assert len(contents) == 1, "all runs have the same content"
    report.line(f"stage candidates of the embedded study in {len(STAGE.shards(study))} shards, one torch thread a process")
    report.line(times.table())
    gained, possible = times.ratio("one process", "two workers"), times.ratio("one, bare", "two apart, bare")
    report.ratio("two_workers_speedup", gained, ">= 1.8")
    report.ratio("two_processes_apart_speedup", possible, "none")
    report.ratio("two_workers_over_apart", gained / possible, ">= 0.95")
    report.line(f"two workers, {len(STAGE.shards(small))} shards, killed {KILLS} times: the same content")
    if not options.dry:
        report.keep()


def _study(shard_prompts: int) -> Study:
    recipe = load_recipe("organism")
    capture = recipe.capture.model_copy(update={"shard_prompts": shard_prompts})
    compute = recipe.compute.model_copy(update={"threads": 1})
    return open_analysis(recipe.model_copy(update={"capture": capture, "compute": compute}))


class Mortal(RayWorkers):
    """Workers one of which is killed after every few shards."""

    killed: set[int]

    def compute(self, spec: RunSpec, missing: Sequence[str]) -> Iterator[tuple[str, list[Rows]]]:
        self.killed = set()
        for n_done, rows in enumerate(super().compute(spec, missing), 1):
            alive = worker_pids() - self.killed
            if alive and len(self.killed) < KILLS and n_done >= SHARDS_A_KILL * (len(self.killed) + 1):
                os.kill(min(alive), signal.SIGKILL)
                self.killed.add(min(alive))
            yield rows


class Apart:
    """Processes that wait to compute the stage's shards, each its share."""

    def __init__(self, begin: Barrier, end: Barrier) -> None:
        self._begin, self._end = begin, end

    def compute(self) -> None:
        """Once, all of them together."""
        self._begin.wait()
        self._end.wait()


@contextmanager
def _apart(lake: Lake, n: int) -> Iterator[Apart]:
    """`n` processes of their own, with the subject loaded; they end with the block."""
    spawn = multiprocessing.get_context("spawn")
    begin, end = spawn.Barrier(n + 1), spawn.Barrier(n + 1)
    processes = [spawn.Process(target=_computes, args=(lake.root, part, n, begin, end), daemon=True) for part in range(n)]
    for process in processes:
        process.start()
    try:
        yield Apart(begin, end)
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _computes(root: Path, part: int, n: int, begin: Barrier, end: Barrier) -> None:
    study = _study(SHARD_PROMPTS)
    known, context = specs(study), StudyContext(study, Lake.existing(root))
    shards = STAGE.shards(study)[part::n]
    while True:
        begin.wait()
        deque(stage_rows(STAGE, context, known, shards), maxlen=0)
        end.wait()


if __name__ == "__main__":
    main()
