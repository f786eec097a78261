"""Sections about what ablating features wakes: R13."""

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from saelake.analysis.report import causes, charts
from saelake.analysis.report.answers import Answer, Studied
from saelake.analysis.report.blocks import Beside, Block, Cell, Figure, Note, Section, Table, percent

EDGES_DRAWN = 60


def _redundancy(study: Studied) -> Sequence[Block]:
    redundant, roles = study.ask("self_repair", judge=study.judge), study.ask("waking_roles")
    cells = [
        Cell("reading", "reading"),
        Cell("method", "sets of"),
        Cell("n_sets", "sets"),
        Cell("n_with_silent", "with silent features"),
        Cell("n_kept", "kept"),
        Cell("n_silent", "silent features"),
        Cell("n_woken", "of these wake"),
        Cell("at_first", "at the first token", "share"),
        Cell("at_system", "at system tokens", "share"),
    ]
    places = ("first", "template", "user")
    rows = [
        {"who": f"{row['source']}{' (control)' if row['is_control'] else ''}", "place": place, "share": row[f"tokens_{place}"]}
        for row in roles.rows
        for place in places
    ]
    chart = charts.bars(
        alt.Y("who:N", title=None, sort=None),
        alt.X("share:Q", title="share of woken tokens", axis=alt.Axis(format="%"), scale=alt.Scale(domain=[0, 1])),
        ("who:N", "place:N", alt.Tooltip("share:Q", format=".1%")),
        charts.colour("place", places),
    )
    words = "Share of woken tokens that are the first, template or user tokens"
    default = redundant.one(reading="default", method="minimal")
    here = _beside(default) if default else {}
    return [
        Table("Critical features that are silent, and wake when the active ones go", redundant, cells),
        Beside(here),
        Figure("Where features wake, by what is ablated", charts.spec(chart, 40 + 36 * len(roles.rows)), roles, words, rows),
    ]


def _beside(default: Mapping[str, Any]) -> dict[str, str]:
    """Where silent features wake, as the paper counts: of all that wake, and of those that do at system tokens."""
    first, system = default["at_first"], default["at_system"]
    of_system = first / system if system else None
    return {"first": percent(first), "system": percent(system), "first_of_system": percent(of_system)}


def _waking(study: Studied) -> Sequence[Block]:
    answer, controls = study.ask("waking_edges"), study.ask("waking_controls")
    matching = [
        Cell("layer", "layer"),
        Cell("n_sources", "sources"),
        Cell("n_matched", "with controls"),
        Cell("n_unmatched", "not matched"),
        Cell("controls", "controls (mean)"),
    ]
    cells = [
        Cell("source_layer", "layer"),
        Cell("source_feature_id", "ablated"),
        Cell("layer", "layer"),
        Cell("feature_id", "wakes"),
        Cell("n_woken", "on prompts"),
        Cell("n_prompts", "of"),
        Cell("expected", "expected of controls"),
        Cell("template", "at template tokens", "share"),
        Cell("q_value", "q"),
    ]
    drawn = _edges(answer)
    blocks: list[Block] = []
    if drawn:
        title = f"Ablating A wakes B: the {len(drawn)} most certain edges"
        words = "Edges from ablated features to features that wake, by layer; thicker on more prompts"
        blocks.append(Figure(title, charts.spec(_graph(), 420), answer, words, drawn))
    return [
        *_unmatched(controls),
        *blocks,
        Table("Edges that matched controls do not explain, at a false discovery rate of 5%", answer, cells, shown=15),
        Table("Sources that have matched controls (last row: whole sets)", controls, matching, shown=40, folded=True),
    ]


def _unmatched(controls: Answer) -> list[Block]:
    ones = [row for row in controls.rows if row["layer"] is not None]
    n, without = sum(row["n_sources"] for row in ones), sum(row["n_unmatched"] for row in ones)
    if not without:
        return []
    if without == n:
        return [
            Note(f"None of {n:,} sources has a matched control. They are in no test, and nothing is said about what they wake.")
        ]
    return [
        Note(
            f"{without:,} of {n:,} sources have no matched control. No feature of their SAE was left for them that fires where "
            "they do and about as strongly: candidates and critical features are no controls, and a feature is the control of "
            "one source of a prompt. They are in no test, and nothing is said about what they wake."
        )
    ]


def _edges(answer: Answer) -> list[dict[str, Any]]:
    """The first edges with a place for both ends: layers from left to right, a layer's features one above the other."""
    rows = answer.rows[:EDGES_DRAWN]
    by_layer: dict[int, set[tuple[int, str]]] = {}
    for row in rows:
        for end in ("source_", ""):
            by_layer.setdefault(row[f"{end}layer"], set()).add((row[f"{end}feature_id"], row[f"{end}sae_id"]))
    place = {one: (i + 0.5) / len(found) for found in by_layer.values() for i, one in enumerate(sorted(found))}
    return [
        {
            "from": f"L{row['source_layer']}-{row['source_feature_id']}",
            "to": f"L{row['layer']}-{row['feature_id']}",
            "x": row["source_layer"],
            "y": place[row["source_feature_id"], row["source_sae_id"]],
            "x2": row["layer"],
            "y2": place[row["feature_id"], row["sae_id"]],
            "share": row["n_woken"] / row["n_prompts"],
            "n_woken": row["n_woken"],
            "n_prompts": row["n_prompts"],
        }
        for row in rows
    ]


def _graph() -> Any:
    tooltip = ["from:N", "to:N", "n_woken:Q", "n_prompts:Q"]
    up = alt.Y("y:Q", axis=None, scale=alt.Scale(domain=[0, 1]))
    apart = alt.Scale(zero=False, padding=60)
    across = alt.X("x:Q", title="layer", scale=apart, axis=alt.Axis(tickMinStep=1, grid=False, format="d"))
    width = alt.StrokeWidth("share:Q", legend=None, scale=alt.Scale(domain=[0, 1], range=[0.4, 4]))
    edges = (
        charts.base()
        .mark_rule(opacity=0.45, color="var(--c1)")
        .encode(x=across, y=up, x2="x2:Q", y2="y2:Q", strokeWidth=width, tooltip=tooltip)
    )
    ends = (
        charts.base()
        .mark_circle(size=50, opacity=1, color="var(--c1)")
        .encode(x="x2:Q", y=alt.Y("y2:Q", axis=None), tooltip=["to:N"])
    )
    once = charts.base().transform_aggregate(groupby=["from", "x", "y"])
    sources = once.mark_circle(size=110, opacity=1, color="var(--c2)").encode(x="x:Q", y="y:Q", tooltip=["from:N"])
    names = once.mark_text(align="right", dx=-9, fontSize=11, fill="var(--ink)").encode(x="x:Q", y="y:Q", text="from:N")
    return edges + ends + sources + names


SECTIONS = (
    Section(
        "redundancy",
        "Silent features that wake",
        "Critical features that are silent on their prompt and wake while the active ones are ablated, in two readings (default: "
        "sets count whose active features alone do not flip; literal: sets whose silent features alone change the answer), and "
        "the tokens at which anything wakes, beside matched controls.",
        _redundancy,
        "R13",
        ("waking", "waking_graph", "inert"),
    ),
    causes.BACKUPS,
    Section(
        "waking",
        "What wakes what",
        "Ablating feature A wakes feature B, silent until then. Tested against matched features of the same SAEs that fire "
        "where A does, about as strongly. That B wakes does not say that it stands in for A: see the section before this one.",
        _waking,
        "R13",
        ("waking_graph",),
    ),
)
