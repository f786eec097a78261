"""How long `make analyze` takes: the whole study of the embedded model, from nothing to its table, by the wall clock.

    python -m benchmarks.analyze

A run says when it began and ended. The stages that were added to the analysis since its goal was set are shown apart: the goal is
for the work of that day.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from datetime import datetime
from pathlib import Path

from benchmarks.harness import Report
from saelake.analysis.interactions import backups, comparisons, readouts
from saelake.analysis.meaning import logits, separation
from saelake.warehouse.lake import Lake
from saelake.warehouse.records import RunRecord

ADDED = {stage.name for stage in (readouts.STAGE, backups.STAGE, separation.STAGE, logits.STAGE, comparisons.stage([]))}
"""Stages that the analysis did not have on 2026-11-21."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="organism")
    parser.add_argument("--dry", action="store_true", help="do not write docs/benchmarks.md")
    options = parser.parse_args()
    report = Report("analyze", "A whole study", ("torch", "duckdb"))
    with tempfile.TemporaryDirectory() as folder:
        lake = Path(folder, "lake")
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-m", "saelake.cli", "analyze", options.recipe, "--lake", str(lake)], check=True)
        whole = time.perf_counter() - begin
        stages = by_stage(Lake.existing(lake).records())
    report.line(f"saelake analyze {options.recipe}, {len(os.sched_getaffinity(0))} processors; seconds of the clock")
    for name, seconds in stages.most_common():
        report.line(f"  {name:<20} {seconds:8.2f}  {seconds / whole:4.0%}{'  added since' * (name in ADDED)}")
    added = sum(stages[name] for name in ADDED)
    report.ratio("analyze_seconds", whole - added, "<= 60")
    report.ratio("analyze_seconds_added", added, "none")
    report.ratio("analyze_controls_share", stages["controls"] / whole, "none")
    if not options.dry:
        report.keep()


def by_stage(records: list[RunRecord]) -> Counter[str]:
    """Seconds between the beginnings and the ends of the runs of each stage."""
    found = Counter[str]()
    for one in records:
        found[one.stage] += (datetime.fromisoformat(one.finished) - datetime.fromisoformat(one.started)).total_seconds()  # type: ignore[assignment]
    return found


if __name__ == "__main__":
    main()
