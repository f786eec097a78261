"""Sections about what ablating features sets off, what it costs, and how sure that is: R13, R14, R16, R21."""

import math
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
    here = {"first": percent(default["at_first"]), "system": percent(default["at_system"])} if default else {}
    return [
        Table("Critical features that are silent, and wake when the active ones go", redundant, cells),
        Beside(here),
        Figure("Where features wake, by what is ablated", charts.spec(chart, 40 + 36 * len(roles.rows)), roles, words, rows),
    ]


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
    return [
        Note(
            f"{without:,} of {n:,} sources could not be matched: no other feature of their layer fires where they do and about "
            "as strongly. They are in no test, and nothing is said about what they wake."
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


def _steering(study: Studied) -> Sequence[Block]:
    answer, rates = study.ask("steering", changed=True), study.ask("steering_rates")
    counts = [
        Cell("held_over", "held at"),
        Cell("value", "clamped to"),
        Cell("level", "level of its own"),
        Cell("n_prompts", "{control} prompts"),
        Cell("n_clean", "{shown} unmodified"),
        Cell("n_refused", "{shown}"),
        Cell("n_first", "by the first token"),
        Cell("n_degenerate", "degenerate"),
        Cell("n_changed", "changed"),
    ]
    cells = [
        Cell("text", "{control} prompt", "text"),
        Cell("value", "clamped to"),
        Cell("level", "level of its own"),
        Cell("clean", "unmodified", "text"),
        Cell("first_token", "held at the first token", "text"),
        Cell("all_tokens", "held at every token", "text"),
    ]
    return [
        *(Note(study.say(sentence)) for sentence in clamping_sentences(rates.rows)),
        Table("Prompts that change, by value", rates, counts, shown=20),
        Table("Continuations that change when features are held at a positive value", answer, cells, shown=10),
    ]


PLACES = {"first_token": "at the first token", "all_tokens": "at every token"}


def clamping_sentences(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What clamping brings about, in words, of rows of the question steering_rates; that it does nothing is a finding, too."""
    said = []
    for part, where in PLACES.items():
        mine = [row for row in rows if row["held_over"] == part]
        own = [row for row in mine if row["level"] is not None]
        if not mine:
            continue
        most = max(own or mine, key=lambda row: row["n_refused"] - row["n_clean"])
        up_to = f"at up to {max(row['level'] for row in own):g} times their largest activation" if own else "at any value"
        n = most["n_prompts"]
        if most["n_refused"] <= most["n_clean"]:
            said.append(
                f"Held {where}, {up_to}, {most['n_features']} features make no {{control}} prompt {{shown}} that was not: "
                f"a negative result, over {n:,} prompts."
            )
        else:
            at = f"level {most['level']:g}" if most["level"] is not None else f"the value {most['value']:g}"
            said.append(
                f"Held {where}, {up_to}, they make at most {most['n_refused']:,} of {n:,} {{control}} prompts {{shown}} (at "
                f"{at}; {most['n_clean']:,} are unmodified, {most['n_degenerate']:,} answers are degenerate)."
            )
    return said


SWEEP_SHARES = {"p_refusal_token": "probability of a target token", "refused": "{shown}", "degenerate": "degenerate"}


def sweep_chart(rows: Sequence[Mapping[str, Any]], study: Studied) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The chart of one sweep, of rows of the question `sweeps`, and what it draws, in the study's words."""
    named = {column: study.say(name) for column, name in SWEEP_SHARES.items()}
    drawn = [
        {"strength": row["strength"] or 0.0, "prompts": study.called(row["label"]), "what": name, "share": row[column]}
        for row in rows
        for column, name in named.items()
        if row[column] is not None and (row["strength"] is not None or row["edit"] == "add")
    ]
    how = "held at" if any(row["edit"] == "clamp" for row in rows) else "added, times"
    lines = charts.lines(
        alt.X("strength:Q", title=how),
        charts.share("share", "share of prompts, mean probability"),
        charts.colour("what", list(named.values())),
        ("prompts:N", "what:N", "strength:Q", alt.Tooltip("share:Q", format=".3f")),
    )
    return charts.spec(lines.encode(strokeDash=alt.StrokeDash("prompts:N", title=None))), drawn


def _sweeps(study: Studied) -> Sequence[Block]:
    answer = study.ask("sweeps", judge=study.judge)
    cells = [
        Cell("sweep", "sweep"),
        Cell("label", "prompts", "label"),
        Cell("source", "what"),
        Cell("edit", "how"),
        Cell("positions", "where"),
        Cell("strength", "strength"),
        Cell("p_refusal_token", "P(target token)"),
        Cell("refused", "{shown}", "share"),
        Cell("degenerate", "degenerate", "share"),
        Cell("changed", "answers changed", "share"),
    ]
    figures: list[Block] = []
    for name in dict.fromkeys(row["sweep"] for row in answer.rows):
        spec, drawn = sweep_chart([row for row in answer.rows if row["sweep"] == name], study)
        figures.append(Figure(f"Dose response: {name}", spec, answer, "Shares of answers by strength", drawn))
    return [*figures, Table("Answers by strength", answer, cells, shown=20)]


def _losses(study: Studied) -> Sequence[Block]:
    answer = study.ask("losses", judge=study.judge)
    cells = [
        Cell("texts", "texts"),
        Cell("condition", "intervention"),
        Cell("n_texts", "texts"),
        Cell("n_sets", "sets"),
        Cell("loss", "cross-entropy (nats)"),
        Cell("sd", "sd over sets"),
        Cell("added", "added"),
        Cell("kl", "KL a token"),
        Cell("control_answered", "{control} {absent}", "share"),
        Cell("control_refused", "{control} {shown}", "share"),
        Cell("control_degenerate", "{control} degenerate", "share"),
    ]
    rows = [row | {"low": row["loss"] - (row["sd"] or 0), "high": row["loss"] + (row["sd"] or 0)} for row in answer.rows]
    chart = charts.bars(
        alt.Y("condition:N", title=None, sort=None),
        alt.X("loss:Q", title="cross-entropy (nats a token), ± sd over sets"),
        ("texts:N", "condition:N", alt.Tooltip("loss:Q", format=".4f"), "n_texts:Q", "n_sets:Q"),
        interval=("low", "high"),
    )
    texts = list(dict.fromkeys(row["texts"] for row in answer.rows))
    figures = [
        Figure(
            f"On {name}",
            charts.spec(chart, 140),
            answer,
            "Cross-entropy by intervention",
            [r for r in rows if r["texts"] == name],
        )
        for name in texts
    ]
    notes = [Note(sentence) for sentence in text_sentences(study)]
    return [*figures, *notes, Table("Table 9: side effects on ordinary text", answer, cells, shown=24)]


BY_HEART = 0.1
"""Nats a token up to which texts are said to be known by heart: good models have twenty times as many on prose."""
DISTINCT_TOKENS = """
select count(distinct token_id)
from tokens
"""


def text_sentences(study: Studied) -> list[str]:
    """What texts are to the unmodified model, where that decides what can be seen on them: by heart, or worse than guessed."""
    rows = [row for row in study.ask("losses", judge=study.judge).rows if row["condition"] == "none"]
    named = {row["texts"]: row["texts"].replace("{", "{{").replace("}", "}}") for row in rows}
    ((n,),) = study.con.execute(DISTINCT_TOKENS).fetchall()
    guess = math.log(max(n, 1))
    known = [f"{named[row['texts']]} ({row['loss']:.3f} nats a token)" for row in rows if row["loss"] < BY_HEART]
    foreign = [f"{named[row['texts']]} ({row['loss']:.2f} nats a token)" for row in rows if n and row["loss"] > guess]
    said = [f"The unmodified model knows {', '.join(known)} by heart, where little can be lost."] if known else []
    if foreign:
        said.append(
            f"The unmodified model expects {', '.join(foreign)} less than guessing among the {n:,} tokens of the study's prompts "
            f"would ({guess:.2f}): it has not learned such text. A loss that falls there is no gain, and one that rises no cost."
        )
    return [study.say(sentence) for sentence in said]


def _stability(study: Studied) -> Sequence[Block]:
    stable, tested = study.ask("comparisons", rows="stability"), study.ask("comparisons", rows="comparison")
    kinds = [Cell("a", "sets of"), Cell("b", "found again over"), Cell("k", "K"), Cell("tau", "τ"), Cell("n", "prompts")]
    tests = [
        Cell("measure", "measure"),
        Cell("label", "prompts", "label"),
        Cell("a", "a"),
        Cell("b", "b"),
        Cell("k", "K"),
        Cell("tau", "τ"),
        Cell("n", "n"),
        Cell("estimate", "a − b"),
        Cell("low", "95% from"),
        Cell("high", "to"),
        Cell("test", "test"),
        Cell("p_holm", "p (Holm)"),
        Cell("n_families", "families"),
        Cell("low_families", "over families 95% from"),
        Cell("high_families", "to"),
        Cell("p_families_holm", "p over families (Holm)"),
    ]
    sure = [row for row in tested.rows if row["p_holm"] is not None and row["p_holm"] < 0.05]
    return [
        Table(
            "How alike the sets are that a search finds again (Jaccard index)",
            stable,
            [*kinds, Cell("estimate", "Jaccard"), Cell("low", "95% from"), Cell("high", "to")],
            shown=30,
        ),
        Table(
            f"Comparisons with their tests: {len(sure)} of {len(tested.rows)} differ at p < 0.05 after Holm's correction",
            tested,
            tests,
            shown=40,
            folded=True,
        ),
        *_families(tested),
    ]


def _families(tested: Answer) -> list[Block]:
    """What is left of the comparisons where prompts are not independent of each other."""
    rows = [row for row in tested.rows if row["p_families_holm"] is not None]
    if not rows:
        return [
            Note(
                "The recipe names no families of prompts, so every prompt counts as independent of all others. Where prompts "
                "share wordings, these intervals are too narrow and p-values too small: [[prompts]] family names the column."
            )
        ]
    sure = sum(row["p_families_holm"] < 0.05 for row in rows)
    most = max(row["n_families"] for row in rows)
    return [
        Note(
            f"The prompts share {most} wordings or the like (families). If all prompts of a family count as one observation, "
            f"{sure} of {len(rows)} comparisons differ at p < 0.05 after Holm's correction; what holds over prompts alone holds "
            "for these wordings."
        )
    ]


SECTIONS = (
    Section(
        "redundancy",
        "Silent features that wake",
        "Critical features that are silent on their prompt and switch on while the active ones are ablated, in two "
        "readings (default: sets count whose active features alone do not flip; literal: sets whose silent features alone change "
        "the answer), "
        "and the tokens at which anything wakes, beside matched controls.",
        _redundancy,
        "R13",
        ("waking", "waking_graph", "inert"),
    ),
    causes.BACKUPS,
    Section(
        "waking",
        "What wakes what",
        "Ablating feature A wakes feature B, silent until then. Tested against matched features of the same layers that fire "
        "where A does, about as strongly. That B wakes does not say that it stands in for A: see the section before this one.",
        _waking,
        "R13",
        ("waking_graph",),
    ),
    Section(
        "steering",
        "What features held at a positive value do",
        "Critical or redundant features are clamped to a positive value on {control} prompts, and the continuations compared.",
        _steering,
        "R14 · Tables 5 and 6",
        ("steering",),
    ),
    Section(
        "sweeps",
        "Dose responses",
        "Features or a direction added at growing strengths, or features held at growing values, as they were asked for; the "
        "unmodified model is strength 0, or the row without one.",
        _sweeps,
        "R14",
        ("steer_*",),
        command="saelake steer {recipe} --name NAME --features LAYER:ID --strengths 0,10,20",
    ),
    Section(
        "losses",
        "Side effects",
        "Cross-entropy on ordinary text, and answers to {control} prompts, with and without the interventions.",
        _losses,
        "R16 · Table 9",
        ("losses",),
    ),
    Section(
        "stability",
        "How sure is that?",
        "Sets that a search finds again under other seeds and on the other half of the prompts; every comparison with its test.",
        _stability,
        "R21",
        ("statistics",),
    ),
)
