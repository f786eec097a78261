"""How time and memory grow with the lake: one size, in a process of its own.

    python -m benchmarks.lake.growth ROWS FOLDER

Prints one JSON object: seconds of processor time, bytes and the peak of resident memory.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from benchmarks.harness import Report, seconds_of
from benchmarks.lake.captured import Asked, asked
from saelake import queries
from saelake.warehouse.catalog import connect
from saelake.warehouse.lake import Lake
from saelake.warehouse.landing import land
from saelake.warehouse.records import RunSpec
from saelake.warehouse.runs import ensure_run
from saelake.warehouse.synth import Shape, plan

QUESTION_MEMORY = "1GB"


def measured(n_rows: int, folder: Path) -> dict[str, float]:
    """Runs this module for one size and returns what it printed."""
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "benchmarks.lake.growth", str(n_rows), str(folder)]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    shutil.rmtree(folder)
    found: dict[str, float] = json.loads(out.splitlines()[-1])
    return found


def measure(report: Report, sizes: Sequence[int], folder: Path) -> None:
    """A line a size, and how each figure grows from one to the next."""
    report.line("\nGrowth, one copy, questions within " + QUESTION_MEMORY + " of DuckDB memory; seconds of processor time")
    found = [measured(n, folder / "growth") for n in sizes]
    for name in found[0]:
        report.line(f"  {name:<20}" + "".join(f"{one[name]:18,.3f}" for one in found))
    for before, after in pairwise(found):
        growth = after["rows"] / before["rows"]
        sizes_named = f"{before['rows'] / 1e6:.0f}M_to_{after['rows'] / 1e6:.0f}M"
        for name in ("publish", "features", "top_samples", "cofiring", "prompt"):
            report.ratio(f"growth_{name}_{sizes_named}_rows_x{growth:.0f}", after[name] / before[name], "none")
    if found[-1]["rows"] > 9e8:
        report.ratio("prompt_question_seconds_at_1B", found[-1]["prompt"], "<= 1.0")
        report.ratio("peak_memory_gb_at_1B", found[-1]["peak_gb"], "<= 1.5")


def main() -> None:
    n_rows, root = int(sys.argv[1]), Path(sys.argv[2])
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    shape = Shape.of_rows(n_rows)
    spec = RunSpec("ingest", "growth", {"device": "cpu", "n_rows": n_rows})
    planned, lake, found = plan(shape, spec), Lake.create(root), {"land": 0.0}
    for name, rows in planned.compute(planned.shards):
        found["land"] += seconds_of(lambda n=name, r=rows: land(lake.landing(spec.run_id) / n, r))  # type: ignore[misc]
    found["publish"] = seconds_of(lambda: ensure_run(lake, spec, planned))
    found["peak_publishing_gb"] = _peak_gb()
    record = lake.record(spec.run_id)
    assert record is not None
    found["rows"] = record.n_rows("activations")
    found["bytes"] = sum(f.n_bytes for f in record.files if f.table == "activations")
    with connect(lake, threads=1) as con:
        con.execute(f"set memory_limit = '{QUESTION_MEMORY}'")
        wanted = asked(con, shape)
        questions: dict[str, dict[str, object]] = {
            "features": {},
            "top_samples": {"features": Asked.listed(wanted.few)},
            "cofiring": {"features": Asked.listed(wanted.many), "pairs": "same_layer"},
            "prompt": {"prompt_id": (spec.tag << 32) + wanted.prompt},
        }
        for name, parameters in questions.items():
            found[name] = min(seconds_of(lambda n=name, p=parameters: queries.run(con, n, **p).fetchall()) for _ in range(3))  # type: ignore[misc]
    print(json.dumps(found | {"peak_gb": _peak_gb()}))


def _peak_gb() -> float:
    """The kernel's own mark for this program; that of getrusage would begin with the parent's."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 2**20


if __name__ == "__main__":
    main()
