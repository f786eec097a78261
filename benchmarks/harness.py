"""What every benchmark shares: contenders in alternation, medians, ratio lines, and a section of docs/benchmarks.md.

    report = Report("search", "The ablation engine")
    times = alternated({"bare": bare, "ablated": ablated}, rounds=5)
    report.line(times.table())
    report.ratio("ablated_forward", times.ratio("ablated", "bare"), "<= 1.10")
    report.keep()

A contender is a function without arguments. Ratios are medians of the rounds' own ratios, since on a shared machine two
measurements that stand side by side are slowed alike.
"""

import gc
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from saelake.warehouse.machine import host_bytes

DOCS = Path(__file__).parent.parent / "docs" / "benchmarks.md"
Clock = Callable[[], float]
HEAD = "# Benchmarks\n\nEach section is written by the command that it names; later runs replace it.\n"


def clock_of(threads: int) -> tuple[Clock, str]:
    """What times a benchmark with so many torch threads, and what it counts."""
    if threads == 1:
        return time.process_time, "CPU seconds of this process, since others share the machine"
    return time.perf_counter, "wall clock"


@dataclass(frozen=True)
class Times:
    """Seconds of every contender in every round."""

    seconds: Mapping[str, Sequence[float]]

    def median(self, contender: str) -> float:
        """Its median seconds."""
        return statistics.median(self.seconds[contender])

    def ratio(self, contender: str, base: str) -> float:
        """How many times as long as `base` it takes: the median over the rounds."""
        return statistics.median(a / b for a, b in zip(self.seconds[contender], self.seconds[base], strict=True))

    def table(self) -> str:
        """A line a contender: median, fastest and slowest, in milliseconds."""
        width = max(map(len, self.seconds))
        return "\n".join(
            f"  {name:<{width}} {1e3 * self.median(name):10.2f} ms  ({1e3 * min(t):.2f} .. {1e3 * max(t):.2f}, {len(t)} rounds)"
            for name, t in self.seconds.items()
        )


def alternated(
    contenders: Mapping[str, Callable[[], object]], rounds: int, warmups: int = 1, clock: Clock = time.perf_counter
) -> Times:
    """Runs the contenders in turn, round after round, each round in the opposite order of the one before.

    Args:
        clock: `time.process_time` leaves out what other programs take of a shared machine; only for work on one thread.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(-warmups, rounds):
        for name in list(contenders)[:: -1 if number % 2 else 1]:
            gc.collect()
            start = clock()
            contenders[name]()
            if number >= 0:
                seconds[name].append(clock() - start)
    return Times(seconds)


def seconds_of(work: Callable[[], object]) -> float:
    """Processor time of one call."""
    gc.collect()
    start = time.process_time()
    work()
    return time.process_time() - start


class Report:
    """Prints a benchmark's lines as they come, and keeps them.

    Args:
        name: of the section.
        packages: whose versions count.
        command: what makes it, `make bench-{name}` by default.
    """

    def __init__(self, name: str, title: str, packages: Sequence[str] = (), command: str | None = None) -> None:
        self._name = name
        self._command = command or f"make bench-{name}"
        self._title = title
        self._lines: list[str] = []
        self.line(f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {machine()}")
        self.line(", ".join([f"python {platform.python_version()}", *(f"{p} {version(p)}" for p in packages)]))

    def line(self, text: str = "") -> None:
        """Some lines of text."""
        print(text, flush=True)
        self._lines.append(text)

    def ratio(self, name: str, value: float, target: str) -> None:
        """One claim: `ratio NAME VALUE target <= 1.10`, or `target none` for a figure that nothing is claimed of."""
        self.line(f"ratio {name} {value:.{3 if value < 10 else 2}f} target {target}")

    def not_run(self, contender: str, reason: str) -> None:
        """A contender that cannot run here."""
        self.line(f"not run: {contender}: {reason}")

    def keep(self, docs: Path = DOCS) -> None:
        """Writes the section of this benchmark, in place of the one from its last run; other sections stay as they are."""
        begin, end = f"<!-- {self._name}: begin -->", f"<!-- {self._name}: end -->"
        body = "\n".join(self._lines)
        section = f"{begin}\n## {self._title}\n\n`{self._command}`\n\n```text\n{body}\n```\n{end}"
        text = docs.read_text(encoding="utf-8") if docs.exists() else HEAD
        before, there, rest = text.partition(begin)
        text = before + section + rest.partition(end)[2] if there else f"{text.rstrip()}\n\n{section}\n"
        docs.parent.mkdir(exist_ok=True)
        docs.write_text(text, encoding="utf-8")


def machine() -> str:
    """Processor, cores, memory and load."""
    return f"{_processor()}, {os.cpu_count()} cores, {host_bytes() / 2**30:.0f} GiB, load {os.getloadavg()[0]:.1f}"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    named = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE) if cpuinfo.exists() else None
    return named[1] if named else platform.processor() or platform.machine()
