"""make bench-lake: what activations cost on disk and what answers cost, beside delphi, SciPy, Polars, DuckDB and naive Parquet.

    python -m benchmarks.lake --work ~/.cache/saelake-bench/lake-work --cache ~/.cache/saelake-bench
    python -m benchmarks.lake --rows 2000000 --dry ...      a quick look

All contenders hold the same synthetic rows and are asked in one process on one core, in turn. Their answers are compared
first. Times are processor time: on a shared machine the wall clock says more about the others; all files are in the page
cache, so nobody waits for a disk. The section "lake" of docs/benchmarks.md is replaced.
"""

import argparse
import os
import shutil
import sys
from pathlib import Path

# One thread for everyone, before any of them is imported.
os.environ |= {"POLARS_MAX_THREADS": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

from benchmarks.harness import Report
from benchmarks.lake import asking, growth, real, writing
from benchmarks.lake.captured import synthetic

PACKAGES = ("duckdb", "pyarrow", "numpy", "scipy", "torch", "eai-delphi", "polars")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for data, emptied before and after (tens of bytes a row)"
    )
    parser.add_argument("--cache", type=Path, required=True, help="folder for the unpacked SmolLM2 and its SAEs")
    parser.add_argument("--rows", type=int, default=60_000_000)
    parser.add_argument("--rounds", type=int, default=3, help="of each question")
    parser.add_argument("--prompts", type=int, default=96, help="that SmolLM2 reads")
    parser.add_argument("--dry", action="store_true", help="do not write docs/benchmarks.md")
    options = parser.parse_args()

    import torch

    torch.set_num_threads(1)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    shutil.rmtree(options.work, ignore_errors=True)
    options.work.mkdir(parents=True)
    report = Report("lake", "The lake", PACKAGES)
    report.line("one core; seconds are processor time, medians of rounds in turn")
    try:
        real.measure(report, options.work, options.cache, options.prompts)
        writing.size(report, synthetic(options.rows, "float32"), options.work / "float32", "<= 4.5")
        captured = synthetic(options.rows, "bfloat16")
        report.line(f"\n{captured.n_rows:,} synthetic non-zeros, bfloat16 values: {captured.shape}")
        stores = writing.measure(report, captured, options.work)
        asking.measure(report, captured, stores, options.rounds)
        del captured, stores
        for folder in options.work.iterdir():
            shutil.rmtree(folder) if folder.is_dir() else folder.unlink()
        growth.measure(report, [min(n, 10 * options.rows) for n in (10_000_000, 100_000_000)], options.work)
    finally:
        shutil.rmtree(options.work, ignore_errors=True)
    if not options.dry:
        report.keep()


if __name__ == "__main__":
    sys.exit(main())
