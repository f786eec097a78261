"""What long work tells the person who waits for it."""

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
    """A rich progress bar on standard error: units, rows/s and time left; plain lines where there is no terminal."""

    def __init__(self, console: Console | None = None) -> None:
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

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()

    def start(self, what: str, total: int, unit: str, done: int = 0) -> None:
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(what, total=total, unit=unit, rows=0, completed=done)
        if not self.console.is_terminal:
            self.say(f"{what}: {total - done:,} {unit}")

    def advance(self, n: int = 1, rows: int = 0) -> None:
        if self._task is not None:
            total_rows = self._bar.tasks[-1].fields["rows"] + rows
            self._bar.update(self._task, advance=n, rows=total_rows)

    def say(self, sentence: str) -> None:
        self.console.print(sentence, highlight=False, markup=False)
