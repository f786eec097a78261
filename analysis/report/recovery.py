"""The section about recoveries: what brings the behaviour back while a set that flips is held ablated."""

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from saelake.analysis.report import charts
from saelake.analysis.report.answers import Answer, Studied
from saelake.analysis.report.blocks import Block, Cell, Figure, Note, Section, Table, percent

KINDS = {
    "free": "anything",
    "orthogonal": "the set left as it is",
    "features": "other features",
    "error": "the SAE's error",
    "random": "by chance",
}


def _recoveries(study: Studied) -> Sequence[Block]:
    answer = study.ask("recoveries", by_layer=False)
    sites = study.ask("recovery_sites", source="minimal")
    cells = [
        Cell("label_role", "prompts"),
        Cell("source", "held set"),
        Cell("control", "in its place"),
        Cell("kind", "change"),
        Cell("budget", "budget", "share"),
        Cell("n_prompts", "prompts without the behaviour"),
        Cell("n_recovered", "of these recovered"),
        Cell("rate", "rate", "share"),
        Cell("low", "from", "share"),
        Cell("high", "to", "share"),
    ]
    where = [
        Cell("layer", "layer"),
        Cell("kind", "change"),
        Cell("n_prompts", "prompts"),
        Cell("n_recovered", "recovered"),
        Cell("budget", "at budget", "share"),
        Cell("norm", "length", "share"),
        Cell("drift", "drift of the set", "share"),
        Cell("cosine", "cosine with the direction"),
        Cell("in_features", "in other features", "share"),
        Cell("in_error", "in the error", "share"),
        Cell("behind", "behind the set", "share"),
    ]
    rows = [_drawn(row) for row in answer.rows if row["control"] is None and row["source"] in ("minimal", "none")]
    kinds = [KINDS[kind] for kind in KINDS]
    chart = charts.bars(
        alt.Y("what:N", title=None, sort=None),
        alt.X("rate:Q", title="prompts recovered", axis=alt.Axis(format="%"), scale=alt.Scale(domain=[0, 1])),
        ("what:N", "change:N", alt.Tooltip("rate:Q", format=".1%")),
        charts.colour("change", kinds),
    )
    title = "Recovered by minimal sets' prompts, and by control prompts, by budget"
    words = "Share of prompts that a change brings back, by what is held, budget and kind of change"
    return [
        *_said(study, answer),
        Figure(title, charts.spec(chart, 40 + 12 * len(rows)), answer, words, rows),
        Table("Recovery by kind and budget, at any of the sites", answer, cells, shown=20),
        Table("Where changes lie that recover, under minimal sets (medians)", sites, where, shown=30),
    ]


def _drawn(row: Mapping[str, Any]) -> dict[str, Any]:
    held = "nothing held" if row["source"] == "none" else "minimal sets"
    return {
        "what": f"{held}, {row['label_role']}, {percent(row['budget'])}, {row['kind']}",
        "rate": row["rate"],
        "change": KINDS[row["kind"]],
    }


def _said(study: Studied, answer: Answer) -> list[Block]:
    """What the audit shows of minimal sets, in a sentence, at the budget that tells most."""
    mine = [row for row in answer.rows if row["source"] == "minimal" and row["control"] is None]
    if not mine:
        return []
    rates = {(row["label_role"], row["kind"], row["budget"]): row["rate"] for row in mine}
    budget = _telling(rates)
    found = [f"{KINDS[kind]} {percent(rates[here])}" for kind in KINDS if (here := ("target", kind, budget)) in rates]
    n = next(row["n_prompts"] for row in mine)
    sentence = (
        f"With minimal sets held ablated, changes of at most {percent(budget)} of the residual stream bring the behaviour back "
        f"on so many of {n:,} prompts: {', '.join(found)}."
    )
    never = rates.get(("control", "free", budget))
    if never is not None:
        sentence += study.say(
            f" On {{control}} prompts, which never showed it, any change of that length does on {percent(never)}."
        )
    return [Note(sentence)]


def _telling(rates: Mapping[tuple[str, str, float], float]) -> float:
    """The largest budget of those at which control prompts recover the least: past it a change writes the behaviour itself."""
    by_budget = {budget: rate for (role, kind, budget), rate in rates.items() if (role, kind) == ("control", "free")}
    budgets = by_budget or {budget: 0.0 for *_, budget in rates}
    return max(budget for budget, rate in budgets.items() if rate == min(budgets.values()))


SECTION = Section(
    "recovery",
    "The cause, or one route to it?",
    "Sets that flip {target} prompts are held ablated, and a small change of the residual stream is sought that brings the "
    "behaviour back: anything; what leaves the readings of the set as the ablation left them; a sum of the decoder rows of other "
    "features that fire; what the SAE leaves in its error. Where these do so more often than on {control} prompts, and than "
    "random changes do, there is a route that the set has left.",
    _recoveries,
    "R13",
    ("audit", "audit_rates"),
    command="saelake audit {recipe}",
)
