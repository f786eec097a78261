"""Sections about features held or added at values, what an intervention costs, and how sure that is: R14, R16, R21."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from saelake.analysis.report import charts
from saelake.analysis.report.answers import Answer, Studied, as_said
from saelake.analysis.report.blocks import Block, Cell, Figure, Note, Section, Table


def _steering(study: Studied) -> Sequence[Block]:
    answer, rates = study.ask("steering", changed=True), study.ask("steering_rates")
    counts = [
        Cell("held_over", "held at"),
        Cell("value", "clamped to"),
        Cell("level", "level of its own"),
        Cell("n_prompts", "{control} prompts"),
        Cell("n_clean", "{shown} unmodified"),
        Cell("n_refused", "{shown}"),
        Cell("n_begun", "of these not unmodified"),
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
        most = max(own or mine, key=lambda row: row["n_begun"])
        up_to = _up_to(max(row["level"] for row in own)) if own else "at any value"
        n = most["n_prompts"]
        if not most["n_begun"]:
            said.append(
                f"Held {where}, {up_to}, {most['n_features']} features make no {{control}} prompt {{shown}} that was not: "
                f"a negative result, over {n:,} prompts."
            )
        else:
            at = f"level {most['level']:g}" if most["level"] is not None else f"the value {most['value']:g}"
            said.append(
                f"Held {where}, {up_to}, they make at most {most['n_begun']:,} of {n:,} {{control}} prompts {{shown}} that "
                f"were not (at {at}; {most['n_clean']:,} are unmodified, {most['n_degenerate']:,} answers are degenerate)."
            )
    return said


def _up_to(level: float) -> str:
    """How strongly features are held at most, by the highest level: see `steering.levels`."""
    if level < 1:
        return f"at up to the {level:g} quantile of their activations"
    return "at up to their largest activation" if level == 1 else f"at up to {level:g} times their largest activation"


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


ALMOST_SURE = 0.1
"""Nats a token up to which texts are said to be predicted almost perfectly: good models have twenty times as many on prose."""


def text_sentences(study: Studied) -> list[str]:
    """What texts are to the unmodified model, where that decides what can be seen on them: almost sure, or worse than guessed."""
    rows = [row for row in study.ask("losses", judge=study.judge).rows if row["condition"] == "none"]
    named = {row["texts"]: as_said(row["texts"]) for row in rows}
    ((n,),) = study.con.execute("select count(distinct token_id) from tokens").fetchall()
    guess = math.log(max(n, 1))
    known = [f"{named[row['texts']]} ({row['loss']:.3f} nats a token)" for row in rows if row["loss"] < ALMOST_SURE]
    foreign = [f"{named[row['texts']]} ({row['loss']:.2f} nats a token)" for row in rows if n and row["loss"] > guess]
    said = [f"The unmodified model predicts {', '.join(known)} almost perfectly, where little can be lost."] if known else []
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
