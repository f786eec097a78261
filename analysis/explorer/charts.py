"""Small charts as rectangles, which a template draws as SVG: no page needs a script to show one."""

from collections.abc import Sequence
from math import isfinite, sqrt
from typing import Any, NamedTuple

CHART = (480, 96)
"""Width and height of a histogram, in pixels."""
SMALL = (160, 40)
"""Of one of several side by side."""


class Bar(NamedTuple):
    """One bin of a histogram, as a rectangle."""

    x: float
    y: float
    width: float
    height: float
    title: str
    is_marked: bool = False


def histogram(
    counts: Sequence[int], titles: Sequence[str], size: tuple[int, int] = CHART, marked: int | None = None, by_root: bool = False
) -> list[Bar]:
    """Bars whose heights grow with what is counted; the fullest has the chart's height.

    Args:
        marked: the place of a bar that stands out.
        by_root: heights are square roots, so that few are seen beside many.
    """
    width, height = size
    heights = [sqrt(count) if by_root else count for count in counts]
    fullest = max(heights, default=0) or 1
    step = width / max(len(counts), 1)
    return [
        Bar(place * step, height - height * one / fullest, step - 1.5, height * one / fullest, title, place == marked)
        for place, (one, title) in enumerate(zip(heights, titles, strict=True))
    ]


class Point(NamedTuple):
    """One row, by its place in a chart."""

    x: float
    y: float
    title: str


class Chart(NamedTuple):
    """A chart of an answer's rows: columns against each other."""

    kind: str
    """bars, line or points"""
    x: str
    y: str
    bars: list[Bar]
    points: list[Point]
    left: str
    right: str
    low: str
    high: str


KINDS = ("bars", "line", "points")
WIDE = (720, 240)
"""Width and height of a chart, in pixels."""
MOST_BARS = 120
MOST_COLUMNS = 6


def chart_of(
    names: Sequence[str], numeric: Sequence[bool], rows: Sequence[Sequence[Any]], x: str = "", y: str = "", kind: str = ""
) -> Chart | None:
    """A chart of some rows; None where no column is one of numbers, where there is one row or none, or kind is none.

    Args:
        x, y, kind: as a person chooses. What they do not say, or what there is not, is chosen here: the first column against the
            last one of numbers, as bars where the first is text; nothing where there are more than MOST_COLUMNS.
    """
    if kind == "none" or len(rows) < 2 or not any(numeric) or (kind not in KINDS and len(names) > MOST_COLUMNS):
        return None
    across = names.index(x) if x in names else 0
    numbers = [place for place, is_number in enumerate(numeric) if is_number]
    up = names.index(y) if y in names and numeric[names.index(y)] else numbers[-1]
    told = [(row[across], float(row[up])) for row in rows if row[up] is not None and row[across] is not None]
    told = [one for one in told if isfinite(one[1]) and (not numeric[across] or isfinite(float(one[0])))]
    if len(told) < 2:
        return None
    if kind not in KINDS:
        kind = "points" if numeric[across] and len(told) > MOST_BARS // 4 else "bars"
    if kind != "bars" and not numeric[across]:
        kind = "bars"
    if kind == "bars":
        told = told[:MOST_BARS]
    heights = [value for _, value in told]
    low, high = (min(0.0, *heights), max(0.0, *heights)) if kind == "bars" else (min(heights), max(heights))
    titles = [f"{one}: {value:.6g}" for one, value in told]
    bars = _signed(heights, low, high, titles) if kind == "bars" else []
    places = [float(one) for one, _ in told] if kind != "bars" else []
    points = _points(places, heights, titles, kind) if kind != "bars" else []
    ends = (told[0][0], told[-1][0]) if kind == "bars" else (min(places), max(places))
    left, right = (f"{end:.4g}" if isinstance(end, float) else str(end)[:40] for end in ends)
    return Chart(kind, names[across], names[up], bars, points, left, right, f"{low:.4g}", f"{high:.4g}")


def _signed(heights: Sequence[float], low: float, high: float, titles: Sequence[str]) -> list[Bar]:
    """Bars up and down from 0."""
    width, height = WIDE
    scale, step = height / ((high - low) or 1), width / len(heights)
    return [
        Bar(place * step, (high - max(value, 0)) * scale, max(step - 2, 1), max(abs(value) * scale, 0.5), title)
        for place, (value, title) in enumerate(zip(heights, titles, strict=True))
    ]


def _points(places: Sequence[float], heights: Sequence[float], titles: Sequence[str], kind: str) -> list[Point]:
    width, height = WIDE
    across, up = (max(places) - min(places)) or 1, (max(heights) - min(heights)) or 1
    found = [
        Point(width * (place - min(places)) / across, height - height * (value - min(heights)) / up, title)
        for place, value, title in zip(places, heights, titles, strict=True)
    ]
    return sorted(found) if kind == "line" else found
