"""What a study costs in bytes, time and memory, by the formula of docs/scale.md, beside what three synthetic studies took.

    python -m benchmarks.cost

Each study lands in one process and is published in another, whose processor time and peak memory count. Landing and publishing
are the lake's part of a study; what the model's passes take is `saelake plan`'s to say.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.harness import Report
from saelake.warehouse.lake import Lake
from saelake.warehouse.landing import land
from saelake.warehouse.records import RunSpec
from saelake.warehouse.runs import ensure_run
from saelake.warehouse.synth import CODE_VERSION, Shape, plan

BYTES_A_ROW = {"bfloat16": 2.4, "float32": 4.5}
BYTES_A_FEATURE = 11
ROWS_A_SECOND, FEATURES_A_SECOND, SECONDS_A_RUN = 7e6, 2e6, 0.5
"""Of one processor: rows that are published, features whose statistics are written, and what the smallest run takes."""
MEMORY_BYTES, MEMORY_A_ROW, MOST_ROWS = 250e6, 45, 1 << 24
"""Of the process that publishes: to begin with, and for each row of the largest layer; only so many are sorted at once."""
STUDIES = (
    Shape(n_prompts=200, n_layers=4, width=16_384),
    Shape(n_prompts=1_200, n_layers=2, width=16_384, round="float32"),
    Shape(n_prompts=200, n_layers=14, width=65_536),
)


@dataclass(frozen=True)
class Cost:
    """What the lake's part of a study takes."""

    rows: float
    bytes: float
    """Of all its tables."""
    seconds: float
    """Of one processor, to publish."""
    memory: float
    """Bytes, at the peak of publishing."""

    @classmethod
    def of(cls, shape: Shape) -> "Cost":
        """By the formula: N prompts of T tokens, L layers of W features of which l0 fire on a token."""
        layer = shape.n_prompts * shape.tokens_per_prompt * shape.l0
        rows, features = layer * shape.n_layers, shape.n_layers * shape.width
        return cls(
            rows,
            rows * BYTES_A_ROW[shape.round] + features * BYTES_A_FEATURE,
            rows / ROWS_A_SECOND + features / FEATURES_A_SECOND + SECONDS_A_RUN,
            MEMORY_BYTES + MEMORY_A_ROW * min(layer, MOST_ROWS),
        )


def land_all(root: Path, shape: Shape) -> None:
    """Computes and lands all shards."""
    lake, spec = Lake.create(root), _spec(shape)
    shards = plan(shape, spec)
    for name, rows in shards.compute(shards.shards):
        land(lake.landing(spec.run_id) / name, rows)


def publish(root: Path, shape: Shape) -> Cost:
    """Publishes what has landed."""
    spec, begin = _spec(shape), time.process_time()
    record = ensure_run(Lake.existing(root), spec, plan(shape, spec))
    seconds = time.process_time() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Cost(record.n_rows("activations"), sum(f.n_bytes for f in record.files), seconds, peak)


def _spec(shape: Shape) -> RunSpec:
    return RunSpec("ingest", "cost", {"code": CODE_VERSION, "device": "cpu", "synth": asdict(shape)})


def measured(number: int) -> Cost:
    """One of the studies, in processes of its own."""
    with tempfile.TemporaryDirectory() as folder:
        for step in ("land", "publish"):
            command = [
                sys.executable,
                "-m",
                "benchmarks.cost",
                "--step",
                step,
                "--study",
                str(number),
                "--lake",
                f"{folder}/lake",
            ]
            printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return Cost(**json.loads(printed))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--step", choices=["land", "publish"], help=argparse.SUPPRESS)
    parser.add_argument("--study", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--lake", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--dry", action="store_true", help="do not write docs/benchmarks.md")
    options = parser.parse_args()
    if options.step == "land":
        land_all(options.lake, STUDIES[options.study])
        return
    if options.step == "publish":
        print(json.dumps(asdict(publish(options.lake, STUDIES[options.study]))))
        return
    report = Report("cost", "What a study costs", ("duckdb", "pyarrow", "numpy", "scipy"))
    report.line("measured beside the formula of docs/scale.md; seconds are processor time of publishing")
    for number, shape in enumerate(STUDIES):
        told, took = Cost.of(shape), measured(number)
        size = f"{shape.n_prompts:,} prompts x {shape.tokens_per_prompt} tokens x {shape.n_layers} layers x {shape.width:,}"
        report.line(f"\n{size}, {shape.round}: {took.rows:,.0f} rows")
        report.line(f"  bytes   {took.bytes / 1e6:9.1f} MB  formula {told.bytes / 1e6:9.1f} MB")
        report.line(f"  time    {took.seconds:9.2f} s   formula {told.seconds:9.2f} s")
        report.line(f"  memory  {took.memory / 1e6:9.1f} MB  formula {told.memory / 1e6:9.1f} MB")
        report.ratio(f"cost_{number + 1}_bytes_over_formula", took.bytes / told.bytes, "<= 1.15")
        report.ratio(f"cost_{number + 1}_seconds_over_formula", took.seconds / told.seconds, "<= 1.50")
        report.ratio(f"cost_{number + 1}_memory_over_formula", took.memory / told.memory, "<= 1.20")
    if not options.dry:
        report.keep()


if __name__ == "__main__":
    main()
