"""What a section is made of: pictures, tables, notes, and the paper's figures beside ours."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from saelake.analysis.report.answers import Answer, Studied


@dataclass(frozen=True)
class Figure:
    """A chart: a Vega-Lite specification whose data are the rows of an answer."""

    title: str
    spec: dict[str, Any]
    answer: Answer
    alt: str = ""
    """What it shows, in words."""
    rows: Sequence[Mapping[str, Any]] | None = None
    """What is drawn, if not the answer's rows as they are."""


@dataclass(frozen=True)
class Cell:
    """A column of a table: its name in the answer, its heading (see `Studied.say`), and how its values are written."""

    name: str
    heading: str
    kind: str = "auto"
    """auto, share (a percentage), label (of prompts, in the study's words), text or tokens (monospaced)"""


@dataclass(frozen=True)
class Table:
    """Rows of an answer to read."""

    title: str
    answer: Answer
    cells: Sequence[Cell]
    shown: int = 12
    """Rows that stand on the page; the data has all."""
    rows: Sequence[Mapping[str, Any]] | None = None
    """What is shown, if not the answer's rows."""
    folded: bool = False


@dataclass(frozen=True)
class Beside:
    """The paper's published figures for this model beside this study's: key of published.py -> our value as text."""

    here: Mapping[str, str]


@dataclass(frozen=True)
class Note:
    """A sentence or two."""

    text: str
    page: str = ""
    """The place of a page beside this one that its end links to, as a relative address; empty for none."""


@dataclass(frozen=True)
class Tiles:
    """A few numbers to see first: (value, what it is)."""

    values: Sequence[tuple[str, str]]


class Claim(NamedTuple):
    """One row of the paper, and what a study says of it."""

    row: str
    claim: str
    published: str
    """The paper's own figures, which are of its two models; may be empty."""
    shows: str
    cannot: str
    """What the study cannot show, and why."""


@dataclass(frozen=True)
class Claims:
    """All of them, one under the other."""

    rows: Sequence[Claim]


Block = Figure | Table | Tiles | Beside | Note | Claims


@dataclass(frozen=True)
class Section:
    """One section of the report. It is shown as not run yet while a stage has no run or a question is unknown."""

    key: str
    title: str
    lead: str
    """What is shown and how to read it; like the title in the study's words (`Studied.say`)."""
    render: Callable[[Studied], Sequence[Block]]
    rows: str = ""
    """Rows of the replication list."""
    stages: tuple[str, ...] = ()
    """Stages whose tables it reads, as patterns: study_* is met by any study."""
    questions: tuple[str, ...] = ()
    """Questions that it asks, where these may not be there."""
    command: str = "saelake analyze {recipe}"
    """What computes what is missing."""


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}%".replace(".0%", "%")


def count(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"
