"""Charts in one style, made with Altair. Colours are CSS variables, so that one picture is right in light, dark and print."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import altair as alt

COLOURS = tuple(f"var(--c{i})" for i in range(1, 9))
DATA = "rows"
"""The name under which the page hands a chart its rows."""
CONFIG: dict[str, Any] = {
    "background": "transparent",
    "font": "system-ui, sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelColor": "var(--soft)",
        "titleColor": "var(--ink)",
        "gridColor": "var(--line)",
        "domainColor": "var(--soft)",
        "tickColor": "var(--soft)",
        "labelFontSize": 12,
        "titleFontSize": 13,
        "titleFontWeight": "normal",
        "titlePadding": 8,
        "labelLimit": 240,  # Vega's own, 180, cuts what tells one row from the next
    },
    "legend": {"labelColor": "var(--ink)", "titleColor": "var(--ink)", "labelFontSize": 12, "orient": "top", "labelLimit": 260},
    "header": {"labelColor": "var(--ink)", "titleColor": "var(--ink)"},
    "title": {"color": "var(--ink)"},
    "text": {"color": "var(--ink)", "fill": "var(--ink)"},
    "rule": {"color": "var(--soft)"},
}


def spec(chart: Any, height: int = 280) -> dict[str, Any]:
    """A chart as a Vega-Lite specification as wide as the page; its rows come by the name DATA."""
    made: dict[str, Any] = chart.properties(width="container", height=height).to_dict(validate=True)
    return made | {"config": CONFIG, "autosize": {"type": "fit-x", "contains": "padding"}}


def picture(spec: dict[str, Any], rows: Sequence[Mapping[str, Any]], suffix: str) -> bytes:
    """A chart with its rows as an image of its own, in the colours that the page has in the light.

    Args:
        suffix: .svg or .png
    """
    import vl_convert

    root = (Path(__file__).parent / "page.css").read_text(encoding="utf-8").split("}", 1)[0]
    text = json.dumps(spec | {"width": 640, "background": "white", "datasets": {DATA: list(rows)}})
    for name, colour in re.findall(r"--(\w+): (#\w+)", root):
        text = text.replace(f"var(--{name})", colour)
    drawn = json.loads(text)
    if suffix == ".svg":
        return vl_convert.vegalite_to_svg(drawn).encode()
    return bytes(vl_convert.vegalite_to_png(drawn, scale=2.0))


def base() -> Any:
    return alt.Chart(alt.NamedData(DATA))


def share(field: str, title: str) -> Any:
    """The y axis for a share, from 0 to 100%."""
    return alt.Y(f"{field}:Q", title=title, axis=alt.Axis(format="%"), scale=alt.Scale(domain=[0, 1]))


def colour(field: str, values: Sequence[str]) -> Any:
    """One colour a value, in the order given."""
    scale = alt.Scale(domain=list(values), range=list(COLOURS[: len(values)]))
    columns = 2 if any(len(value) > 12 for value in values) else 4  # what a telephone has room for
    legend = alt.Legend(symbolOpacity=1, symbolType="circle", symbolStrokeWidth=2, columns=columns) if len(values) > 1 else None
    return alt.Color(f"{field}:N", title=None, scale=scale, legend=legend)


def lines(
    x: Any, y: Any, series: Any, tooltip: Sequence[Any], interval: tuple[str, str] | None = None, points: bool = True
) -> Any:
    """Lines with their points, and a band from `low` to `high` where there is an interval."""
    drawn = base().mark_line(point={"size": 40, "filled": True} if points else False, strokeWidth=2)
    chart = drawn.encode(x=x, y=y, color=series, tooltip=list(tooltip))
    if interval is None:
        return chart
    low, high = interval
    band = base().mark_area(opacity=0.15).encode(x=x, y=alt.Y(f"{low}:Q", title=y["title"]), y2=alt.Y2(f"{high}:Q"), color=series)
    return band + chart


def bars(
    category: Any, value: Any, tooltip: Sequence[Any], series: Any | None = None, interval: tuple[str, str] | None = None
) -> Any:
    """Horizontal bars, with a line from `low` to `high` where there is an interval."""
    colours = {"color": series} if series is not None else {"color": alt.value(COLOURS[0])}
    chart = base().mark_bar(height={"band": 0.7}).encode(y=category, x=value, tooltip=list(tooltip), **colours)
    if interval is None:
        return chart
    low, high = interval
    whisker = (
        base()
        .mark_rule(strokeWidth=2, color="var(--ink)")
        .encode(y=category, x=alt.X(f"{low}:Q", title=value["title"]), x2=f"{high}:Q")
    )
    return chart + whisker
