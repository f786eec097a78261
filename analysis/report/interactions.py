"""Sections about other features that matter and how they do: R9 to R12."""

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from saelake.analysis.report import charts
from saelake.analysis.report.answers import Answer, Studied
from saelake.analysis.report.blocks import Beside, Block, Cell, Figure, Note, Section, Table, count, percent


def _machines(study: Studied) -> Sequence[Block]:
    best, epochs = study.ask("fm_metrics"), study.ask("fm_metrics", every_epoch=True)
    names = [row["model"] for row in best.rows]
    chart = charts.lines(
        alt.X("epoch:Q", title="epoch", axis=alt.Axis(tickMinStep=1)),
        alt.Y("val_loss:Q", title="loss on validation (nats)", scale=alt.Scale(zero=True)),
        charts.colour("model", names),
        ("model:N", "epoch:Q", alt.Tooltip("val_loss:Q", format=".3f"), alt.Tooltip("val_accuracy:Q", format=".1%")),
        points=False,
    )
    cells = [
        Cell("model", "model"),
        Cell("epoch", "best epoch"),
        Cell("n_features", "features"),
        Cell("train_accuracy", "train", "share"),
        Cell("val_accuracy", "validation", "share"),
        Cell("test_accuracy", "test", "share"),
        Cell("n_test", "test prompts"),
        Cell("mean_abs_cosine", "mean |cosine| of embeddings"),
        Cell("effective_rank", "directions in use"),
        Cell("first_direction", "energy in the first", "share"),
    ]
    machine = next((row for row in best.rows if row["model"] == "fm_20"), None)
    rates = study.ask("comparisons", rows="rate", measure="correct")
    intervals = [
        Cell("a", "model"),
        Cell("n", "test prompts"),
        Cell("estimate", "right", "share"),
        Cell("low", "95% from", "share"),
    ]
    return [
        Table("Accuracy at the epoch that is best on validation", best, cells),
        *_alike(best),
        Beside({"accuracy": percent(machine["test_accuracy"])} if machine else {}),
        Table("Test accuracy with Wilson's interval", rates, [*intervals, Cell("high", "to", "share")]),
        Figure("Validation loss by epoch", charts.spec(chart, 240), epochs, "Validation loss of each model by epoch"),
    ]


def _alike(best: Answer) -> list[Block]:
    """What the embeddings cannot show."""
    alike = [row for row in best.rows if row["too_alike"]]
    if not alike:
        return []
    names = ", ".join(f"{row['model']} ({row['mean_abs_cosine']:.2f})" for row in alike)
    return [
        Note(
            f"Embeddings that lie on one line: {names}. Their mean |cosine| is above 0.9, where the paper discards embeddings. "
            "The cosine of two of them says whether both features push to the same side, and identifies no pair."
        )
    ]


WITHOUT_MACHINE = {
    "stage3_signed_alone": "the signed probe",
    "stage3_alignment_alone": "decoder alignment",
    "stage3_gradient_alone": "gradients",
}
"""Rankings of new features that need no factorisation machine."""


SURE = 0.05
"""Largest p, after Holm's correction, at which one ranking is said to flip more than another."""


def machine_sentence(rows: Sequence[Mapping[str, Any]], tests: Sequence[Mapping[str, Any]]) -> str:
    """Which part of the paper's claim about the machine stands, in words; empty without any.

    Args:
        rows: of the question stage3.
        tests: of the question comparisons: whether a lead is more than chance, K by K. The K that does best was chosen on these
            prompts, so a lead at that one alone decides nothing.
    """
    rates = {(row["condition"], row["k"]): row["flip_rate"] for row in rows if row["flip_rate"] is not None}
    mine = {k: rate for (condition, k), rate in rates.items() if condition == "stage3_alone"}
    shared = {k: rate for k, rate in mine.items() if any((name, k) in rates for name in WITHOUT_MACHINE)}
    if not shared:
        return ""
    k = max(shared, key=lambda one: (shared[one], -one))
    beside = {name: rates[condition, k] for condition, name in WITHOUT_MACHINE.items() if (condition, k) in rates}
    listed = ", ".join(f"{percent(rate)} by {name}" for name, rate in beside.items())
    paper = rates.get(("stage3_probe_alone", k))
    by_size = "" if paper is None else f" By the size of the probe's weights, the paper's comparison, it is {percent(paper)}."
    first = f"The first {k} new features alone flip {percent(shared[k])} by the machine's ranking, {listed}.{by_size}"
    ahead = sorted(one for one in shared if _is_ahead(one, rates, tests))
    if len(ahead) > 1:
        return (
            f"{first} The machine flips more than each ranking that needs none at K = {', '.join(map(str, ahead))} (p < {SURE:g} "
            "after Holm's correction), so that part of the paper's claim stands here."
        )
    where = f"At K = {ahead[0]} alone" if ahead else "At no K"
    return (
        f"{first} {where} does the machine flip more than each ranking that needs none (p < {SURE:g} after Holm's "
        "correction). So that such features exist stands, that it takes the machine to find them does not."
    )


def _is_ahead(k: int, rates: Mapping[tuple[str, int], float], tests: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the machine's first k features alone flip more than those of each ranking that has them, beyond chance."""
    p = {
        one["b"]: one["p_holm"]
        for one in tests
        if (one["measure"], one["a"], one["k"]) == ("flipped", "stage3_alone", k) and one["estimate"] > 0
    }
    return all(p.get(name, 1.0) < SURE for name in WITHOUT_MACHINE if (name, k) in rates)


def _stage3(study: Studied) -> Sequence[Block]:
    answer = study.ask("stage3", judge=study.judge)
    names = (
        "stage3",
        "stage3_alone",
        "stage3_control",
        "stage3_alone_control",
        "stage3_probe",
        "stage3_signed",
        "stage3_alignment",
        "stage3_gradient",
        "stage3_held_out",
    )
    rates = study.ask("rates", conditions=",".join(names))
    chart = charts.lines(
        alt.X("k:Q", title="K: new features ablated", axis=alt.Axis(tickMinStep=1)),
        charts.share("rate", study.say("prompts {shown} at baseline that flip")),
        charts.colour("condition", names),
        ("condition:N", "k:Q", alt.Tooltip("rate:Q", format=".1%"), alt.Tooltip("low:Q", format=".1%"), "high:Q", "n_prompts:Q"),
        ("low", "high"),
    )
    cells = [
        Cell("condition", "ablated"),
        Cell("k", "K"),
        Cell("flip_rate", "flips", "share"),
        Cell("flip_rate_up_to", "at this K or less", "share"),
        Cell("median_features", "features (median)"),
        Cell("n_unique", "unique features of sets that flip"),
        Cell("control_answered", "{control} {absent}", "share"),
    ]
    here: dict[str, str] = {}
    if best := _best(answer, "stage3"):
        here |= {"asr": percent(best["flip_rate"]), "features": count(best["n_unique"])}
    if probe := _best(answer, "stage3_probe"):
        here |= {"probe": count(probe["flip_rate"] * probe["n_refused"])}
    stands = machine_sentence(answer.rows, study.ask("comparisons", rows="comparison").rows)
    return [
        *([Note(stands)] if stands else []),
        Figure("Flips by the number of new features", charts.spec(chart, 320), rates, "Share of flips by K, with 95% intervals"),
        Beside(here),
        Table("Table 2: what new features flip, with the critical ones and alone", answer, cells, shown=60, folded=True),
        Note(
            study.say(
                "stage3: the critical features that fire and the top K new ones; alone: the new ones only; control: as many "
                "random others that fire; held_out: by a machine that learned from none of these prompts; probe: ranked by the "
                "size of the linear probe's weights, as in the paper; signed: by the weights themselves; alignment: by decoder "
                "rows alone; gradient: by the first-order effect on the prompt's own answer. Large weights may speak for "
                "{control}: ablating those works against a flip, so a lead over probe is no lead over a linear model. The fair "
                "comparisons are those with signed, alignment and gradient."
            )
        ),
    ]


def _best(answer: Answer, condition: str) -> dict[str, Any] | None:
    """The row of the K at which most prompts flip, of new features that are ablated: one rate and the features behind it."""
    rows = (row for row in answer.rows if row["condition"] == condition and row["k"] and row["flip_rate"] is not None)
    return max(rows, key=lambda row: row["flip_rate"], default=None)


def _causal_link(study: Studied) -> Sequence[Block]:
    answer = study.ask("causal_link", judge=study.judge)
    cells = [
        Cell("k", "K"),
        Cell("n_active", "flip by active critical"),
        Cell("n_alone", "of these by new ones alone"),
        Cell("alone_share", "share", "share"),
        Cell("switched_off", "critical that switch off", "share"),
        Cell("most_switched_off", "most on a prompt", "share"),
        Cell("fall_of_others", "fall of the others", "share"),
        Cell("in_reach", "could change at all", "share"),
    ]
    best = max(answer.rows, key=lambda row: row["n_alone_up_to"] or 0, default=None)
    here = {}
    if best:
        share = (best["n_alone_up_to"] or 0) / best["n_active"] if best["n_active"] else None
        here = {
            "alone": f"{count(best['n_alone_up_to'])} of {count(best['n_active'])} ({percent(share)})",
            "off": percent(best["switched_off"]),
            "fall": percent(best["fall_of_others"]),
        }
    return [Table("New features alone, and what they do to the critical ones", answer, cells, shown=24), Beside(here)]


SECTIONS = (
    Section(
        "fm",
        "Can a machine tell the prompts apart by their features?",
        "A factorisation machine and a linear probe learn {target} from {control} prompts, from the features on the last tokens.",
        _machines,
        "R9, R12",
        ("fm", "probe", "statistics"),
    ),
    Section(
        "stage3",
        "Which other features matter?",
        "Active features are ranked by how close their embeddings lie to those of the prompt's critical ones, and ablated with "
        "them and alone.",
        _stage3,
        "R10, R12 · Table 2",
        ("stage3", "stage3_probe", "statistics"),
    ),
    Section(
        "causal_link",
        "Are the new features causes by themselves?",
        "The new features alone are ablated: do they flip the prompts, and what happens to the critical ones meanwhile?",
        _causal_link,
        "R11",
        ("stage3",),
    ),
)
