"""Activations as SciPy and torch matrices: rows a second of one core, and bytes a non-zero at the peak, a process each.

    python -m benchmarks.sparse --cache ~/.cache/saelake-bench [--rows 12000000]

Beside it stands the question `sparse` by SQL, whose coordinates SciPy sorts into a matrix: how it was done before. Seconds are
those of the processor, the first use of each library left out.
"""

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import saelake
from benchmarks.harness import Report
from saelake.lake import OpenLake
from saelake.warehouse.lake import Lake
from saelake.warehouse.synth import Shape, synthesize

ROWS = 12_000_000
MOST_BYTES, LEAST_ROWS = 16, 10
"""Bytes a non-zero, and millions of rows a second."""
PAGE = 4096


def by_sql(opened: OpenLake, layer: int | None) -> Any:
    """The question's rows, sorted by DuckDB and once more by SciPy."""
    import scipy.sparse

    found = opened.query("sparse", rows="token", layer=layer).fetchnumpy()
    places = tuple(found[name].astype(np.int64) for name in ("row_index", "column_index"))
    return scipy.sparse.csr_array((np.asarray(found["activation"], dtype=np.float32), places))


CONTENDERS: dict[str, Callable[[OpenLake, int | None], Any]] = {
    "scipy, token": lambda opened, layer: opened.sparse(rows="token", layer=layer).matrix,
    "scipy, prompt": lambda opened, layer: opened.sparse(rows="prompt", layer=layer).matrix,
    "torch, token": lambda opened, layer: opened.sparse(rows="token", library="torch", layer=layer).matrix,
    "by SQL, token": by_sql,
}


def measure(contender: str, folder: Path) -> dict[str, float]:
    """Rows a second and bytes a row of one contender, in this process, after one layer has been read."""
    with saelake.open(folder) as opened:
        opened.connection.execute("set threads = 1")
        n_rows = opened.sql("select count(*) from activations").fetchall()[0][0]
        CONTENDERS[contender](opened, 0)
        before, most, done = _resident(), [_resident()], threading.Event()

        def watch() -> None:
            while not done.wait(0.001):
                most[0] = max(most[0], _resident())

        watching = threading.Thread(target=watch)
        watching.start()
        began = time.process_time()
        made = CONTENDERS[contender](opened, None)
        seconds = time.process_time() - began
        done.set()
        watching.join()
        assert made is not None
    return {"millions": n_rows / seconds / 1e6, "bytes": (most[0] - before) / n_rows}


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def main(cache: Path, rows: int) -> None:
    """Prints the figures of every contender, and keeps them."""
    folder = cache / f"sparse-{rows}"
    if not folder.exists():
        synthesize(Lake.create(folder), Shape.of_rows(rows, n_layers=8, width=16_384))
    report = Report("sparse", "Activations as matrices", ("duckdb", "scipy", "torch"))
    report.line(f"{rows:,} activations of 8 SAEs of 16,384 features, one thread; matrices of all of them")
    for contender in CONTENDERS:
        command = [sys.executable, "-m", "benchmarks.sparse", "--lake", str(folder), "--one", contender]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        report.line(
            f"  {contender:<15} {found['millions']:6.1f} million rows a second, {found['bytes']:6.1f} bytes a row at the peak"
        )
        name, is_ours = contender.replace(", ", "_").replace(" ", "_"), not contender.startswith("by SQL")
        report.ratio(f"sparse_{name}_million_rows", found["millions"], f">= {LEAST_ROWS}" if is_ours else "none")
        report.ratio(f"sparse_{name}_bytes", found["bytes"], f"<= {MOST_BYTES}" if is_ours else "none")
    report.keep()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--lake", type=Path)
    parser.add_argument("--one", choices=list(CONTENDERS))
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.one, given.lake)))
    else:
        main(given.cache, given.rows)
