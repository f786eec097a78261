"""What long work says to the person who waits for it."""

from dataclasses import dataclass
from threading import Event, Thread
from time import monotonic
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text


class Quiet:
    """Says nothing: for tests and programs."""

    def start(self, what: str, total: int, unit: str, done: int = 0) -> None:
        """A piece of work of `total` units begins, `done` of which an earlier process finished."""

    def advance(self, n: int = 1, rows: int = 0) -> None:
        """`n` more units are finished; together they wrote `rows` rows."""

    def say(self, sentence: str) -> None:
        """Something worth a line."""


class _RowsPerSecond(ProgressColumn):
    def render(self, task: Task) -> Text:
        rows, elapsed = task.fields["rows"], task.elapsed or 0
        return Text(f"{rows / elapsed:,.0f} rows/s" if rows and elapsed else "", style="cyan")


class Bar(Quiet):
    """A rich progress bar on standard error: units, rows/s and time left.

    Where there is no terminal, but a file or a pipe, a plain line at the beginning of each piece of work, and one every
    `seconds` while it goes on, whether anything was finished meanwhile or not.
    """

    def __init__(self, console: Console | None = None, seconds: float = 60.0) -> None:
        self.console = console or Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            _RowsPerSecond(),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self._task: TaskID | None = None
        self._lines = None if self.console.is_terminal else _Lines(self, seconds)

    def __enter__(self) -> Self:
        self._bar.start()
        if self._lines:
            self._lines.begin()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._lines:
            self._lines.end()
        self._bar.stop()

    def start(self, what: str, total: int, unit: str, done: int = 0) -> None:
        if self._lines:
            self._lines.work = _Work(what, total, unit, done, done, monotonic())
            self.say(f"{what}: {total - done:,} {unit}")
            return
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(what, total=total, unit=unit, rows=0, completed=done)

    def advance(self, n: int = 1, rows: int = 0) -> None:
        if self._lines and self._lines.work:
            self._lines.work.done += n
        if self._task is not None:
            total_rows = self._bar.tasks[-1].fields["rows"] + rows
            self._bar.update(self._task, advance=n, rows=total_rows)

    def say(self, sentence: str) -> None:
        self.console.print(sentence, highlight=False, markup=False, soft_wrap=True)


@dataclass
class _Work:
    """A piece of work that goes on."""

    what: str
    total: int
    unit: str
    before: int
    """Units that an earlier process finished."""
    done: int
    started: float

    def line(self, now: float) -> str:
        """How far it is."""
        passed, finished = now - self.started, self.done - self.before
        left = f", about {_minutes(passed / finished * (self.total - self.done))} left" if finished else ""
        return f"{self.what}: {self.done:,} of {self.total:,} {self.unit} after {_minutes(passed)}{left}"


def _minutes(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"


class _Lines:
    """A thread that says how far the work is, since a shard may take longer than anyone waits without a sign."""

    def __init__(self, progress: Quiet, seconds: float) -> None:
        self.work: _Work | None = None
        self._progress = progress
        self._seconds = seconds
        self._ended = Event()
        self._thread = Thread(target=self._run, daemon=True)

    def begin(self) -> None:
        self._thread.start()

    def end(self) -> None:
        """Returns when no line can come any more."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(self._seconds):
            if (work := self.work) and work.done < work.total:
                self._progress.say(work.line(monotonic()))
