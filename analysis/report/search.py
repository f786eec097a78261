"""Sections about directions and the search for causes: R3 to R8, R15, R17."""

from collections.abc import Sequence

import altair as alt

from saelake import queries
from saelake.analysis.notices import target_notice
from saelake.analysis.report import charts
from saelake.analysis.report.answers import Answer, Studied
from saelake.analysis.report.blocks import Beside, Block, Cell, Figure, Note, Section, Table, Tiles, count, percent

TOP_K = ("top_k_own", "top_k_chosen")
CONTROLS = "none,direction,top_k_own,top_k_chosen,random,random_algorithm1,random_minimal"
RATES = (
    Cell("condition", "intervention"),
    Cell("label", "prompts", "label"),
    Cell("k", "K"),
    Cell("n_prompts", "n"),
    Cell("asr", "{absent}", "share"),
    Cell("n_refused_at_baseline", "{shown} at baseline"),
    Cell("asr_of_refused", "of these {absent}", "share"),
)
RATE_TOOLTIP = (
    "condition:N",
    "k:Q",
    alt.Tooltip("rate:Q", format=".1%"),
    alt.Tooltip("low:Q", format=".1%"),
    "high:Q",
    "n_prompts:Q",
)


def _outcome(study: Studied) -> Sequence[Block]:
    own, chosen = (study.ask("k_choice", condition=name, judge=study.judge) for name in TOP_K)
    rates = study.ask("asr", judge=study.judge, conditions="none,random", k=[row["k"] for row in own.rows])
    notice = target_notice(study.con, study.words)
    blocks: list[Block] = [Note(notice + ".")] if notice else []
    for row in own.rows:
        refused = rates.one(condition="none", label=study.labels["target"]) or {}
        random = rates.one(condition="random", label=study.labels["target"]) or {}
        share = percent(refused.get("n_refused_at_baseline", 0) / refused["n_prompts"]) if refused else percent(None)
        tiles = [
            (share, study.say("of {target} prompts are {shown} by the unmodified model")),
            (percent(row["flipped_1"]), f"of the held-out half flip when the top {row['k']} features of each SAE are ablated"),
            (percent(random.get("asr_of_refused")), "flip when as many random active features are"),
            (percent(row["control_answered"]), study.say("of {control} prompts are still {absent}")),
        ]
        blocks.append(Tiles(tiles))
    cells = [
        Cell("condition", "features by"),
        Cell("k", "K per SAE"),
        Cell("n_0", "prompts, half 0"),
        Cell("flipped_0", "flipped", "share"),
        Cell("n_1", "prompts, half 1"),
        Cell("flipped_1", "flipped", "share"),
        Cell("control_answered", "{control} {absent}", "share"),
        Cell("degenerate", "degenerate", "share"),
    ]
    for answer, title in ((own, "each layer's own direction"), (chosen, "the one chosen direction (the paper)")):
        blocks.append(Table(f"K chosen on half 0, reported on half 1: {title}", answer, cells))
    return [*blocks, Table("The same judge on the unmodified model and on random features", rates, RATES)]


def _diagnostic(study: Studied) -> Sequence[Block]:
    blocks: list[Block] = []
    for direction, title in (("chosen", "the chosen direction"), ("own", "each layer's own direction")):
        answer = study.ask("direction_by_layer", direction=direction)
        if answer.rows:
            chart = charts.lines(
                alt.X("layer:O", title="layer", axis=alt.Axis(labelAngle=0)),
                alt.Y("mean:Q", title="mean cosine"),
                charts.colour("label", list(dict.fromkeys(study.called(row["label"]) for row in answer.rows))),
                (
                    "layer:O",
                    "label:N",
                    alt.Tooltip("mean:Q", format=".3f"),
                    "n_prompts:Q",
                    alt.Tooltip("separation:Q", format=".3f"),
                ),
                ("low", "high"),
            )
            words = study.say("Mean cosine per layer, label by label, with 95% intervals")
            rows = [row | {"label": study.called(row["label"])} for row in answer.rows]
            blocks.append(Figure(f"Last token's residual stream against {title}", charts.spec(chart), answer, words, rows))
    return blocks


def _directions(study: Studied) -> Sequence[Block]:
    answer = study.ask("directions")
    chosen = answer.one(chosen=True)
    cells = [
        Cell("layer", "layer"),
        Cell("flip_rate", "flips, projected out", "share"),
        Cell("n_prompts", "prompts"),
        Cell("p_refusal_token", "P(target token)"),
        Cell("kl", "KL on {control} (nats)"),
        Cell("induced", "{shown} when it is added", "share"),
        Cell("left_out", "left out by"),
        Cell("chosen", "chosen"),
    ]
    here = {"layer": f"{chosen['layer'] + 1} (resid_post {chosen['layer']})"} if chosen else {}
    return [Table("Every layer's direction on the selection prompts", answer, cells, shown=40), Beside(here)]


def _by_k(study: Studied) -> Sequence[Block]:
    blocks: list[Block] = []
    target, control = study.labels["target"], study.labels["control"]
    others = [label for (label,) in study.con.execute(queries.step("other_labels")).fetchall()]
    titles = {target: study.say("Of {target} prompts {shown} at baseline: {absent} now")}
    titles |= {label: f"Of {study.called(label)} prompts: {study.words['absent']}" for label in others}
    titles[control] = study.say("Of {control} prompts: still {absent}")
    for label, title in titles.items():
        answer = study.ask("rates", conditions=",".join((*TOP_K, "random")), label=label)
        chart = charts.lines(
            alt.X("k:Q", title="K: features per SAE", axis=alt.Axis(tickMinStep=1)),
            charts.share("rate", study.words["absent"]),
            charts.colour("condition", (*TOP_K, "random")),
            RATE_TOOLTIP,
            ("low", "high"),
        )
        words = "Share by K for candidates of either direction and random active features, with 95% intervals"
        blocks.append(Figure(title, charts.spec(chart), answer, words))
    return blocks


def _methods(study: Studied) -> Sequence[Block]:
    answer = study.ask("search_methods", judge=study.judge)
    by_tau = study.ask("rates", conditions="algorithm1,algorithm1_common")
    taus = sorted({row["tau"] for row in by_tau.rows})
    chart = charts.lines(
        alt.X("tau:Q", title="threshold τ", scale=alt.Scale(nice=False), axis=alt.Axis(values=taus, format="~g")),
        charts.share("rate", study.say("prompts {shown} at baseline that flip")),
        charts.colour("condition", ["algorithm1", "algorithm1_common"]),
        RATE_TOOLTIP,
        ("low", "high"),
    )
    found = [row for row in answer.rows if row["condition"] == "algorithm1_common"]
    best = max(found, key=lambda row: row["flip_rate"] or 0, default=None)
    cells = [
        Cell("condition", "method"),
        Cell("tau", "τ"),
        Cell("n_searched", "prompts with a set"),
        Cell("flip_rate", "flips", "share"),
        Cell("n_untested", "untested: fewer candidates than a block"),
        Cell("flip_rate_of_tested", "flips of the tested", "share"),
        Cell("median_features", "features a prompt (median)"),
        Cell("largest", "largest"),
        Cell("n_unique", "unique features"),
        Cell("control_answered", "{control} {absent}", "share"),
        Cell("n_evaluations", "ablated passes"),
        Cell("seconds", "seconds"),
    ]
    here = {"asr": percent(best["flip_rate"]), "features": count(best["n_unique"])} if best else {}
    return [
        Table("Table 1: every way of finding critical features", answer, cells, shown=24),
        Beside(here),
        Figure("Algorithm 1 by threshold", charts.spec(chart, 240), by_tau, "Share of flips by threshold, with 95% intervals"),
        Note(
            "algorithm1 is the published search, one set per seed; algorithm1_common keeps what all seeds find; minimal is a set "
            "from which no feature can be taken away; random_minimal and random_algorithm1 are as many "
            "random active features of the same SAEs."
        ),
        *_untested(answer),
        _uncertain(study),
    ]


def _untested(answer: Answer) -> list[Block]:
    """What the published search says nothing about."""
    rows = [row for row in answer.rows if row["n_untested"] and row["condition"] == "algorithm1_common"]
    if not rows:
        return []
    most = max(rows, key=lambda row: row["n_untested"])
    return [
        Note(
            f"On {most['n_untested']} of {most['n_searched']} prompts the pool has fewer candidates than a block, so Algorithm 1 "
            "tests nothing there and its set is empty. Its share of flips over all prompts measures that, and is no evidence "
            "that the search fails: compare the tested prompts, and other block sizes (algorithm1.other_block_sizes)."
        )
    ]


def _uncertain(study: Studied) -> Table:
    """Decisions of Algorithm 1 that rounding may turn."""
    cells = [
        Cell("tau", "tau"),
        Cell("n_decisions", "decisions"),
        Cell("n_accepted", "accept their block"),
        Cell("n_uncertain", "within the noise floor of tau"),
        Cell("floor", "noise floor (log-odds)"),
    ]
    return Table("Decisions of Algorithm 1 that rounding alone may turn", study.ask("uncertain"), cells, folded=True)


def _controls(study: Studied) -> Sequence[Block]:
    ks = [row["k"] for row in study.ask("k_choice", judge=study.judge).rows]
    answer = study.ask("asr", judge=study.judge, conditions=CONTROLS, k=ks)
    tokens = study.ask("rates", conditions="firing_on_tokens")
    chart = charts.lines(
        alt.X("k:Q", title="k: tokens of the prompt on which a feature must fire", axis=alt.Axis(tickMinStep=1)),
        charts.share("rate", study.say("prompts {shown} at baseline that flip")),
        charts.colour("condition", ["firing_on_tokens"]),
        RATE_TOOLTIP,
        ("low", "high"),
    )
    random = answer.one(condition="random_algorithm1", label=study.labels["target"])
    here = {"baseline": percent(max((row["rate"] for row in tokens.rows), default=None))}
    here |= {"random": count(random["asr_of_refused"] * random["n_refused_at_baseline"])} if random else {}
    blocks: list[Block] = [
        Table(f"Every intervention at the K that was chosen ({', '.join(map(str, ks))})", answer, RATES, shown=24)
    ]
    if tokens.rows:
        blocks.append(
            Figure("Baseline: ablate what fires on at least k tokens", charts.spec(chart, 240), tokens, "Share of flips by k")
        )
    return [*blocks, Beside(here)]


def _inert(study: Studied) -> Sequence[Block]:
    answer = study.ask("inert", judge=study.judge)
    cells = [
        Cell("method", "sets of"),
        Cell("n_prompts", "prompts"),
        Cell("n_features", "(prompt, feature) pairs"),
        Cell("n_inert", "of these inert"),
        Cell("unique_inert", "unique inert features"),
        Cell("flipped_full", "flip: whole set"),
        Cell("flipped_active", "only what fires"),
        Cell("flipped_silent", "only what is silent"),
        Cell("answer_changed", "answers changed by the silent"),
    ]
    row = answer.one(method="minimal")
    here = {"inert": count(row["unique_inert"]), "active": count(row["flipped_active"])} if row else {}
    return [Table("Critical features that do not fire on their own prompt", answer, cells), Beside(here)]


def _answers(study: Studied) -> Sequence[Block]:
    if not study.with_completions:
        return [
            Note(study.say("Answers to {target} prompts are left out; saelake report --with-completions folds them in here."))
        ]
    answer = study.ask("completions", condition="minimal", judge=study.judge)
    cells = [Cell("text", "prompt", "text"), Cell("clean", "unmodified model", "text"), Cell("completion", "set ablated", "text")]
    return [Table("Answers while a minimal set is ablated", answer, cells, folded=True)]


SECTIONS = (
    Section(
        "outcome",
        "What it came to",
        "The features of each SAE whose decoder rows lie closest to the {name} direction are ablated, K per SAE. K is chosen "
        "on one half of the {target} prompts that are {shown}, and reported on the other half, on which nothing was chosen.",
        _outcome,
        "R5",
        ("candidates",),
    ),
    Section(
        "diagnostic",
        "Does the residual stream tell {target} prompts apart?",
        "Cosine of the last token's residual stream with the {name} direction after each block; bands are 95% intervals of "
        "the mean.",
        _diagnostic,
        "R4 · Figures 4 and 5",
        ("layer_diagnostic",),
    ),
    Section(
        "directions",
        "Which direction is chosen",
        "A layer's direction is the difference of means between {target} and {control} prompts. Chosen is the one that flips "
        "most selection prompts when it is projected out of every layer.",
        _directions,
        "R3",
        ("direction",),
    ),
    Section(
        "by_k",
        "How many features does it take?",
        "Ablating the top K features per SAE, by the cosine of their decoder rows with their layer's own direction or with the "
        "chosen one, beside as many random active features. Bands are Wilson's 95% intervals over prompts.",
        _by_k,
        "R5",
        ("candidates", "controls", "statistics"),
    ),
    Section(
        "methods",
        "Which features are critical?",
        "Each prompt's candidates are pruned to those that matter. Flips are shares of all prompts {shown} at baseline: a "
        "prompt without a set counts as a failure.",
        _methods,
        "R6 · Table 1",
        ("algorithm1", "minimal", "statistics"),
    ),
    Section(
        "controls",
        "Is that more than chance?",
        "The unmodified model, the direction itself, as many random active features, and the baseline of O'Brien et al.",
        _controls,
        "R15, R17 · Figure 6",
        ("controls", "statistics"),
    ),
    Section(
        "inert",
        "Critical, yet silent",
        "Features that a prompt's set needs although they do not fire on that prompt. On the prompt's own pass they can do "
        "nothing; only on tokens that are generated later.",
        _inert,
        "R8",
        ("inert",),
    ),
    Section(
        "answers",
        "What the model says",
        "Model text is untrusted: it is escaped, so that nothing in it acts.",
        _answers,
        "R7",
        ("minimal",),
    ),
)
