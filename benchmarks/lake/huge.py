"""make bench-huge: what a lake of a billion rows costs to write and to ask, beside a tenth of it in the same minutes.

    python -m benchmarks.lake.huge --work ~/.cache/saelake-bench/huge-work
    python -m benchmarks.lake.huge --rows 1000000 10000000 --dry ...      a quick look

Each size is written and asked in a process of its own, on one core; times are processor time. The section "huge" of
docs/benchmarks.md is replaced.
"""

import argparse
import shutil
import sys
from pathlib import Path

from benchmarks.harness import Report
from benchmarks.lake import growth

SIZES = (100_000_000, 1_000_000_000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for data, emptied before and after (30 GB)")
    parser.add_argument("--rows", type=int, nargs="+", default=SIZES, help="sizes, one after the other")
    parser.add_argument("--dry", action="store_true", help="do not write docs/benchmarks.md")
    options = parser.parse_args()
    report = Report("huge", "A billion rows", ("duckdb", "pyarrow", "numpy"))
    try:
        growth.measure(report, options.rows, options.work)
    finally:
        shutil.rmtree(options.work, ignore_errors=True)
    if not options.dry:
        report.keep()


if __name__ == "__main__":
    sys.exit(main())
