"""What a study shows of each of the paper's claims, and what it cannot show: the page that a referee would write.

Every figure comes from a question over the lake. What a study cannot show is said whether its figures are good or bad.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from saelake import queries
from saelake.analysis.report.answers import Studied
from saelake.analysis.report.blocks import Block, Claim, Claims, Section, count, percent
from saelake.analysis.report.causes import backup_sentence, chosen_layer
from saelake.analysis.report.effects import clamping_sentences
from saelake.warehouse.errors import UserError, view_errors


class Row(NamedTuple):
    """One row of the replication list."""

    row: str
    claim: str
    """What the paper says or does, in our words; like all sentences here in the study's words (`Studied.say`)."""
    stages: tuple[str, ...]
    """Without which nothing can be said, as patterns."""
    shows: Callable[[Studied], str]
    cannot: Callable[[Studied], str]


def claims(study: Studied) -> list[Claim]:
    """All rows, for a study."""
    return [_claim(one, study) for one in ROWS]


def _claim(one: Row, study: Studied) -> Claim:
    absent = study.absent(one.stages)
    shows = f"Nothing: {', '.join(absent)} is not computed." if absent else _shown(one.shows, study) or "Nothing: no rows."
    return Claim(one.row, study.say(one.claim), study.say(shows), study.say(_shown(one.cannot, study)))


def _shown(sentence: Callable[[Studied], str], study: Studied) -> str:
    """A sentence made from the study's tables, or that a shared set has left one of them out."""
    try:
        with view_errors(study.con):
            return sentence(study)
    except UserError as error:
        if queries.LEFT_OUT not in str(error):
            raise
        return f"Nothing: {_word(str(error))}."


def _always(sentence: str) -> Callable[[Studied], str]:
    return lambda _study: sentence


def _word(name: str) -> str:
    """A name that a person gave, for a sentence in which {words} are filled in."""
    return name.replace("{", "{{").replace("}", "}}")


def _render(study: Studied) -> Sequence[Block]:
    return [Claims(claims(study))]


def _model(study: Studied) -> str:
    n, width, l0 = study.con.execute("select count(*), string_agg(distinct width, ', '), avg(measured_l0) from saes").fetchall()[
        0
    ]
    return f"{n} SAEs of width {width}, mean L0 {l0:.1f}, on {_word(study.model or 'a local model')}." if n else ""


def _other_model(study: Studied) -> str:
    if study.model in PAPER_MODELS:
        return "That another training of the SAEs would give the same features: `saelake trainings` asks that."
    return "Anything about the paper's two models: these are figures of another one."


def _prompts(study: Studied) -> str:
    none = study.ask("asr", conditions="none", judge=study.judge).one(condition="none", label=study.labels["target"])
    if none is None:
        return ""
    n, n_refused = none["n_prompts"], none["n_refused_at_baseline"]
    return f"{n_refused:,} of {n:,} {{target}} prompts are {{shown}} unmodified; none is dropped."


def _families(study: Studied) -> str:
    rows = study.ask("comparisons", rows="comparison").rows if "statistics" in study.records else []
    n = max((row["n_families"] for row in rows if row["n_families"] is not None), default=0)
    if not n:
        return "How far the result carries beyond these prompts: their families are not known, so each counts as independent."
    return (
        f"How far the result carries beyond the {n:,} wordings that these prompts share: intervals over prompts are too narrow."
    )


def _direction(study: Studied) -> str:
    out = study.ask("asr", conditions="direction", judge=study.judge).one(condition="direction", label=study.labels["target"])
    chosen = study.ask("directions").one(chosen=True)
    if out is None or chosen is None:
        return ""
    return (
        f"Projected out everywhere, the direction of layer {chosen['layer']} flips {percent(out['asr_of_refused'])} of the "
        f"prompts {{shown}} at baseline (KL on {{control}} prompts {chosen['kl']:.2f} nats)."
    )


def _of_direction(study: Studied) -> str:
    layer, last = chosen_layer(study)
    if layer is not None and layer == last:
        return "That this direction decides on {name}: the last layer's holds what is about to be said."
    return "That it is the only such direction, or that what it carries is {name} and not what goes with it."


def _diagnostic(study: Studied) -> str:
    by_label = {row["label"]: row for row in study.ask("direction_by_layer").rows if row["is_chosen"]}
    rows = {role: by_label[label] for role, label in study.labels.items() if label in by_label}
    if not {"target", "control"} <= set(rows):
        return ""
    return (
        f"At the chosen layer the mean cosine is {rows['target']['mean']:.2f} on {{target}} and {rows['control']['mean']:.2f} "
        "on {control} prompts."
    )


def _top_k(study: Studied) -> str:
    parts = []
    for condition, name in (("top_k_own", "each layer's own"), ("top_k_chosen", "the one chosen")):
        for row in study.ask("k_choice", condition=condition, judge=study.judge).rows:
            parts.append(
                f"by {name} direction {percent(row['flipped_1'])} of the held-out half at K = {row['k']} ({{control}} prompts "
                f"still {{absent}}: {percent(row['control_answered'])})"
            )
    return f"The top features flip {'; '.join(parts)}." if parts else ""


def _searches(study: Studied) -> str:
    rows = study.ask("search_methods", judge=study.judge)
    parts = []
    common = [row for row in rows.rows if row["condition"] == "algorithm1_common" and row["tau"] is not None]
    if common:
        row = min(common, key=lambda one: one["tau"])
        controls = [one for one in rows.rows if one["condition"] == "random_algorithm1_common" and one["tau"] == row["tau"]]
        random = f", as many random features {percent(controls[0]['flip_rate_of_tested'])}" if controls else ""
        parts.append(
            f"What Algorithm 1 finds under all seeds at tau {row['tau']:.1f} flips {percent(row['flip_rate_of_tested'])} of the "
            f"prompts on which it tests anything{random}; on {row['n_untested']:,} of {row['n_searched']:,} it tests nothing."
        )
    if minimal := rows.one(condition="minimal"):
        parts.append(
            f"A search that cannot fail finds sets of {count(minimal['median_features'])} features (median), which flip "
            f"{percent(minimal['flip_rate'])}."
        )
    return " ".join(parts)


def _of_searches(study: Studied) -> str:
    row = study.ask("readout_sets").one(method="minimal") if "readouts" in study.records else None
    if row is None or not row["n_flip"]:
        return "Whether the sets hold causes or read-outs: the stage readouts is not computed or found no set."
    return (
        f"That the sets hold what decides: {percent(row['n_direct_flip'] / row['n_flip'])} of the flips of minimal sets happen "
        "by what the features write into the answer themselves."
    )


def _judges(study: Studied) -> str:
    statement = """
        select v.judge, w.judge, count(*), avg((v.flipped <> w.flipped)::integer)
        from verdicts as v
        join verdicts as w on w.ablation_id = v.ablation_id and w.judge > v.judge
        where v.flipped is not null and w.flipped is not null
        group by all
        order by all
    """
    found = study.con.execute(statement).fetchall()
    parts = [f"{_word(one)} and {_word(other)} differ on {percent(share)} of {n:,} answers" for one, other, n, share in found]
    return f"{'; '.join(parts)}." if parts else f"One judge, {_word(study.judge)}, read the answers."


def _inert(study: Studied) -> str:
    row = study.ask("inert", judge=study.judge).one(method="minimal")
    if row is None:
        return ""
    return (
        f"{row['unique_inert']:,} of {row['unique_features']:,} critical features are silent on a prompt of theirs; whole sets "
        f"flip {row['flipped_full']:,} times, what fires of them {row['flipped_active']:,}."
    )


def _machine(study: Studied) -> str:
    rows = study.ask("fm_metrics").rows
    parts = [f"{row['model']} {percent(row['test_accuracy'])}" for row in rows]
    alike = [row["model"] for row in rows if row["too_alike"]]
    line = f" The embeddings of {', '.join(alike)} lie on one line." if alike else ""
    return f"Right on held-out prompts: {', '.join(parts)}.{line}" if parts else ""


def _stage3(study: Studied) -> str:
    rows = study.ask("stage3", judge=study.judge).rows
    best = []
    for name in (
        "stage3_alone",
        "stage3_signed_alone",
        "stage3_alignment_alone",
        "stage3_gradient_alone",
        "stage3_held_out_alone",
        "stage3_probe_alone",
    ):
        mine = [row for row in rows if row["condition"] == name and row["flip_rate"] is not None]
        if mine:
            row = max(mine, key=lambda one: one["flip_rate"])
            best.append(f"{name} {percent(row['flip_rate'])} (K = {row['k']})")
    return f"New features alone flip at most: {', '.join(best)}." if best else ""


def _links(study: Studied) -> str:
    rows = study.ask("causal_link", judge=study.judge).rows
    if not rows:
        return ""
    row = max(rows, key=lambda one: one["n_alone"])
    return (
        f"At K = {row['k']} the new features alone flip {percent(row['alone_share'])} of what the critical ones flip; "
        f"{percent(row['switched_off'])} of the critical ones switch off."
    )


def _probe(study: Studied) -> str:
    row = study.ask("fm_metrics").one(model="probe")
    return f"The probe is right on {percent(row['test_accuracy'])} of held-out prompts. {_stage3(study)}" if row else ""


def _hydra(study: Studied) -> str:
    row = study.ask("self_repair", judge=study.judge).one(reading="default", method="minimal")
    first = f"{row['n_kept']:,} of {row['n_sets']:,} sets flip only with their silent features." if row else ""
    backed = study.ask("backups", judge=study.judge).one(source="one") if "backups" in study.records else None
    return f"{first} {backup_sentence(backed) if backed else ''}".strip()


def _clamping(study: Studied) -> str:
    return " ".join(clamping_sentences(study.ask("steering_rates").rows))


def _random(study: Studied) -> str:
    rows = study.ask("search_methods", judge=study.judge).rows
    parts = [
        f"{row['condition']} {percent(row['flip_rate'])}" for row in rows if row["condition"] in ("random_minimal", "minimal")
    ]
    return f"Flips: {', '.join(parts)}." if parts else ""


def _effects(study: Studied) -> str:
    rows = [row for row in study.ask("losses", judge=study.judge).rows if row["condition"] != "none"]
    return f"{'; '.join(_cost(row) for row in rows)}." if rows else ""


def _cost(row: Mapping[str, Any]) -> str:
    kl = "" if row["kl"] is None else f" (KL {row['kl']:.3f} a token)"
    return f"{row['condition']} adds {row['added']:.3f} nats on {_word(row['texts'])}{kl}"


def _firing(study: Studied) -> str:
    rows = study.ask("asr", conditions="firing_on_tokens", judge=study.judge).rows
    mine = [row for row in rows if row["label"] == study.labels["target"] and row["asr_of_refused"] is not None]
    if not mine:
        return ""
    best = max(mine, key=lambda row: row["asr_of_refused"])
    return f"At best {percent(best['asr_of_refused'])} flip (features that fire on at least {best['k']} tokens)."


def _taxonomy(study: Studied) -> str:
    n, specific = study.con.execute(
        "select count(*), count(*) filter (where q_value <= 0.05) "
        "from (select min(q_value) as q_value from taxonomy group by sae_id, feature_id)"
    ).fetchall()[0]
    return f"{n:,} features fire in some category, {specific:,} in one more often than chance (q at most 5%)." if n else ""


def _rows_of(table: str, what: str) -> Callable[[Studied], str]:
    def shows(study: Studied) -> str:
        ((n,),) = study.con.execute(f"select count(*) from {table}").fetchall()
        return f"{n:,} {what}." if n else ""

    return shows


def _tests(study: Studied) -> str:
    rows = [row for row in study.ask("comparisons", rows="comparison").rows if row["p_holm"] is not None]
    sure = sum(row["p_holm"] < 0.05 for row in rows)
    over = [row for row in rows if row["p_families_holm"] is not None]
    kept = sum(row["p_families_holm"] < 0.05 for row in over)
    families = f", {kept:,} of {len(over):,} with families of prompts as the units" if over else ""
    return f"{sure:,} of {len(rows):,} comparisons differ after Holm's correction{families}." if rows else ""


PAPER_MODELS = ("google/gemma-2-2b-it", "meta-llama/Llama-3.1-8B-Instruct")
ROWS = (
    Row("R1", "SAE features of two chat models were studied.", (), _model, _other_model),
    Row("R2", "861 {target} prompts, all {shown}.", ("baseline",), _prompts, _families),
    Row("R3", "One direction mediates {name}.", ("direction", "baseline"), _direction, _of_direction),
    Row(
        "R4",
        "The residual stream of {target} prompts lies along the direction, more so with depth.",
        ("layer_diagnostic",),
        _diagnostic,
        _always("That the model uses it: a difference of means separates by construction the prompts that it is made of."),
    ),
    Row(
        "R5",
        "Some features of each layer, by their cosine with the direction, flip a prompt.",
        ("candidates",),
        _top_k,
        _always("That these features are the cause: their number is chosen so that something flips; see R6, R15."),
    ),
    Row("R6", "A greedy search prunes them to the few that matter.", ("algorithm1", "minimal"), _searches, _of_searches),
    Row(
        "R7",
        "Flips are real answers, by a list of phrases and a classifier.",
        ("baseline",),
        _judges,
        _always("That an answer is of use, or does harm, where no classifier read it; fluent nonsense passes the rules."),
    ),
    Row(
        "R8",
        "Many critical features are silent on the very prompt that they are critical for.",
        ("inert",),
        _inert,
        _always("Dormancy: on the prompt's own pass a silent feature does nothing when it is ablated, unless it wakes first."),
    ),
    Row(
        "R9",
        "A factorisation machine tells {target} from {control} by pairs of features.",
        ("fm",),
        _machine,
        _always(
            "Which pairs interact: on planted pairs the machine finds partners with thousands of training rows, not hundreds."
        ),
    ),
    Row(
        "R10",
        "Features near the critical ones in the machine's embedding matter, too.",
        ("stage3",),
        _stage3,
        _always(
            "That the machine is what finds them, unless it beats rankings that need none. Most of these prompts trained it as "
            "well: stage3_held_out is by a machine that saw none of them."
        ),
    ),
    Row(
        "R11",
        "These new features act through the critical ones.",
        ("stage3",),
        _links,
        _always("Which way the influence goes within a layer, or that critical ones that fall would have acted."),
    ),
    Row(
        "R12",
        "A linear probe finds far fewer.",
        ("probe", "stage3_probe"),
        _probe,
        _always("That a probe is worse than the machine: by the size of its weights it also picks what speaks for {control}."),
    ),
    Row(
        "R13",
        "Redundant features wake when others are ablated, and stand in for them.",
        ("waking_graph",),
        _hydra,
        _always(
            "That what wakes is a backup, where its removal flips nothing more; sources without a matched control are untested."
        ),
    ),
    Row(
        "R14",
        "Clamping such features makes {control} prompts {shown}.",
        ("steering",),
        _clamping,
        _always("That features that do nothing alone do nothing together with others, or at other tokens."),
    ),
    Row(
        "R15",
        "As many random active features flip hardly anything.",
        ("controls",),
        _random,
        _always("That critical features are special beyond their strength: random ones fire less strongly."),
    ),
    Row(
        "R16",
        "Ablation costs little on ordinary text.",
        ("losses",),
        _effects,
        _always("What it costs on text unlike the one measured, or on tasks: cross-entropy is blind to much."),
    ),
    Row(
        "R17",
        "Features chosen by how often they fire flip little.",
        ("controls",),
        _firing,
        _always("That frequency is no use with another threshold, or other layers."),
    ),
    Row(
        "R18",
        "Features map to categories of harm.",
        ("taxonomy",),
        _taxonomy,
        _always("That a feature means a category: it fires on it, among other things."),
    ),
    Row(
        "R19",
        "People hardly recover categories from explanations.",
        ("study_*",),
        _rows_of("annotations", "annotations"),
        _always("How others would judge; and without a true category a feature scores if None is chosen."),
    ),
    Row(
        "R20",
        "Explanations and concept groups say what features are about.",
        ("explanations",),
        _rows_of("explanations", "explanations"),
        _always("That an explanation is right: it was made from a few activating texts."),
    ),
    Row(
        "R21",
        "Variation and tests are reported.",
        ("statistics",),
        _tests,
        _always("Anything about another model, or prompts of other families, by tests on these."),
    ),
)
SECTION = Section(
    "claims",
    "What can be concluded, and what cannot",
    "Row by row of the paper that this study follows: what it claims, what this study's tables show, and what they cannot show.",
    _render,
    "R1 to R21",
    ("baseline",),
)
