"""Two Ray workers beside one process, one torch thread each, on a stage whose shards know nothing of each other.

    python -m benchmarks.workers

The stage is `candidates` of the embedded study (K = 1 to the recipe's cap), in shards of 16 prompts. Workers have loaded the
subject before the clock starts, as they have after a study's first shards; the clock is the wall's, so other work on the machine
shows. The content must be the same.
"""

import argparse
import os
import tempfile
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

from benchmarks.harness import Report, alternated
from saelake.analysis.search import alignments, baseline, candidates, directions
from saelake.analysis.stages import ensure_stage, open_analysis, specs
from saelake.analysis.study_context import StudyContext
from saelake.analysis.workers import RayWorkers
from saelake.ingest.job import ingest_study
from saelake.ingest.recipe import load_recipe
from saelake.warehouse.housekeeping import drop, gc
from saelake.warehouse.lake import Lake

SHARD_PROMPTS = 16
BEFORE = (directions.STAGE, alignments.STAGE, baseline.STAGE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dry", action="store_true", help="do not write docs/benchmarks.md")
    options = parser.parse_args()
    recipe = load_recipe("organism")
    capture = recipe.capture.model_copy(update={"shard_prompts": SHARD_PROMPTS})
    compute = recipe.compute.model_copy(update={"threads": 1})
    study = open_analysis(recipe.model_copy(update={"capture": capture, "compute": compute}))
    known = specs(study)
    run_id = known[candidates.STAGE.name].run_id
    report = Report("workers", "Workers", ("ray", "torch"))
    with tempfile.TemporaryDirectory() as folder:
        lake = Lake.create(Path(folder, "lake"))
        context = StudyContext(study, lake)
        ingest_study(study, lake)
        for stage in BEFORE:
            ensure_stage(stage, known, context)
        contents = set()

        def run(workers: RayWorkers | None) -> None:
            contents.add(ensure_stage(candidates.STAGE, known, context, workers=workers).content_hash)
            drop(lake, run_id)
            gc(lake, older_than_seconds=0)

        with RayWorkers(study, lake, n_workers=2) as workers:
            times = alternated({"one process": lambda: run(None), "two workers": lambda: run(workers)}, options.rounds)
    assert len(contents) == 1, "all runs have the same content"
    n_shards = len(candidates.STAGE.shards(study))
    report.line(f"stage candidates of the embedded study in {n_shards} shards, one torch thread a process")
    report.line(times.table())
    report.ratio("two_workers_speedup", times.ratio("one process", "two workers"), ">= 1.6")
    if not options.dry:
        report.keep()


if __name__ == "__main__":
    main()
