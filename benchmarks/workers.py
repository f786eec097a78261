"""Two Ray workers beside one process, one torch thread each, on a stage whose shards know nothing of each other.

    python -m benchmarks.workers

The stage is `candidates` of the embedded study (K = 1 to the recipe's cap), in shards of 16 prompts. Workers have loaded the
subject before the clock starts, as they have after a study's first shards; the clock is the wall's, so other work on the machine
shows. The content must be the same.

What two processes can gain is the machine's: its cores may share caches, memory or a clock, and others may use them. So the same
shards are computed twice more without Ray or a lake that is written to, by one process and by two with half of them each.

Last, the stage in more than a hundred shards of two prompts, while one of two workers is killed after every tenth: the content
must be that of one process, once more.
"""

import argparse
import multiprocessing
import os
import signal
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

from benchmarks.harness import Report, alternated
from saelake.analysis.search import alignments, baseline, candidates, directions
from saelake.analysis.stage_list import specs
from saelake.analysis.study_context import StudyContext
from saelake.analysis.verbs import ensure_stage, open_analysis, stage_rows
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
    report = Report("workers", "Workers", ("ray", "torch"))
    with tempfile.TemporaryDirectory() as folder:
        lake = Lake.create(Path(folder, "lake"))
        speed(report, lake, options.rounds)
        killed(report, lake)
    if not options.dry:
        report.keep()


def speed(report: Report, lake: Lake, rounds: int) -> None:
    """What two workers gain, and what two processes gain that have nothing to do with each other."""
    study = opened(SHARD_PROMPTS)
    known, context, contents = specs(study), StudyContext(study, lake), set[str]()
    ingest_study(study, lake)
    for stage in BEFORE:
        ensure_stage(stage, known, context)

    def run(workers: RayWorkers | None) -> None:
        contents.add(content(study, lake, context, workers))

    spawn = multiprocessing.get_context("spawn")
    with RayWorkers(study, lake, n_workers=2) as workers, ProcessPoolExecutor(2, spawn) as processes:

        def apart(n: int) -> None:
            list(processes.map(compute_part, [lake.root] * n, range(n), [n] * n))

        times = alternated(
            {
                "one process": lambda: run(None),
                "two workers": lambda: run(workers),
                "one process, bare": lambda: apart(1),
                "two processes, bare": lambda: apart(2),
            },
            rounds,
        )
    assert len(contents) == 1, "all runs have the same content"
    report.line(f"stage candidates of the embedded study in {len(STAGE.shards(study))} shards, one torch thread a process")
    report.line(times.table())
    gained, possible = times.ratio("one process", "two workers"), times.ratio("one process, bare", "two processes, bare")
    report.ratio("two_workers_speedup", gained, ">= 1.8")
    report.ratio("two_bare_processes_speedup", possible, "none")
    report.ratio("two_workers_over_bare_processes", gained / possible, "none")


def killed(report: Report, lake: Lake) -> None:
    """Raises AssertionError if workers that are killed again and again publish anything else than one process."""
    study = opened(SMALL_SHARD_PROMPTS)
    known, context = specs(study), StudyContext(study, lake)
    for stage in BEFORE:
        ensure_stage(stage, known, context)
    alone = content(study, lake, context, None)  # in the same shards: the last bits depend on what shares a batch
    with MortalWorkers(study, lake, n_workers=2) as workers:
        together = content(study, lake, context, workers)
    report.line(f"two workers, {len(STAGE.shards(study))} shards of {SMALL_SHARD_PROMPTS} prompts, one killed after every tenth")
    report.ratio("two_workers_killed", len(workers.killed), f">= {KILLS}")
    assert together == alone, "two workers that are killed publish what one process does"
    report.line(f"  content of one process:    {alone}\n  content of killed workers: {together}")


def opened(shard_prompts: int) -> Study:
    """The embedded study in shards of so many prompts, one torch thread a process."""
    recipe = load_recipe("organism")
    capture = recipe.capture.model_copy(update={"shard_prompts": shard_prompts})
    compute = recipe.compute.model_copy(update={"threads": 1})
    return open_analysis(recipe.model_copy(update={"capture": capture, "compute": compute}))


def content(study: Study, lake: Lake, context: StudyContext, workers: RayWorkers | None) -> str:
    """The hash of what the stage gives, computed anew and taken out of the lake again."""
    known = specs(study)
    found = ensure_stage(STAGE, known, context, workers=workers).content_hash
    drop(lake, known[STAGE.name].run_id)
    gc(lake, older_than_seconds=0)
    return found


def compute_part(root: Path, part: int, n: int) -> None:
    """Every n-th shard, in this process, for nobody."""
    context = bare_context(root)
    deque(stage_rows(STAGE, context, specs(context.study), STAGE.shards(context.study)[part::n]), maxlen=0)


@cache
def bare_context(root: Path) -> StudyContext:
    """Loaded once a process, in the round that is not counted."""
    return StudyContext(opened(SHARD_PROMPTS), Lake.existing(root))


class MortalWorkers(RayWorkers):
    """Workers one of which is killed after every few shards."""

    def __init__(self, study: Study, lake: Lake, n_workers: int) -> None:
        super().__init__(study, lake, n_workers)
        self.killed = set[int]()

    def compute(self, spec: RunSpec, missing: Sequence[str]) -> Iterator[tuple[str, list[Rows]]]:
        for n_done, rows in enumerate(super().compute(spec, missing), 1):
            alive = worker_pids() - self.killed
            if alive and len(self.killed) < KILLS and n_done >= SHARDS_A_KILL * (len(self.killed) + 1):
                os.kill(min(alive), signal.SIGKILL)
                self.killed.add(min(alive))
            yield rows


if __name__ == "__main__":
    main()
