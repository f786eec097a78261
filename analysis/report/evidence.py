"""What a study shows of each row of the replication list, and what the figures leave open: one sentence or two, by questions.

A function returns nothing where its tables have no rows; `claims.py` says so then. {words} are those of `Studied.say`.
"""

import re
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

from saelake import queries
from saelake.analysis.report.answers import Studied, as_said
from saelake.analysis.report.blocks import count, percent
from saelake.analysis.report.causes import backup_sentence, chosen_layer
from saelake.analysis.report.effects import clamping_sentences, text_sentences

PAPER_MODELS = ("google/gemma-2-2b-it", "meta-llama/Llama-3.1-8B-Instruct")
RANKINGS = {
    "stage3_alone": "the machine",
    "stage3_held_out_alone": "a machine that saw none of these prompts",
    "stage3_signed_alone": "the probe's signed weights",
    "stage3_probe_alone": "the size of its weights",
    "stage3_alignment_alone": "the cosine with the direction",
    "stage3_gradient_alone": "gradients",
    "stage3_alone_control": "chance",
}


def always(sentence: str) -> Callable[[Studied], str]:
    return lambda _study: sentence


def model(study: Studied) -> str:
    n, width, l0 = study.saes()
    return f"{n} SAEs of width {width}, mean L0 {l0:.1f}, on {as_said(study.model or 'a local model')}." if n else ""


def other_model(study: Studied) -> str:
    if study.model in PAPER_MODELS:
        return "That another training of the SAEs would give the same features: `saelake trainings` asks that."
    return "Anything about the paper's two models: these are figures of another one."


def prompts(study: Studied) -> str:
    none = study.ask("asr", conditions="none", judge=study.judge).one(condition="none", label=study.labels["target"])
    if none is None:
        return ""
    n, n_refused = none["n_prompts"], none["n_refused_at_baseline"]
    return f"{n_refused:,} of {n:,} {{target}} prompts are {{shown}} unmodified; none is dropped."


def families(study: Studied) -> str:
    if "statistics" not in study.records:
        return "How far the result carries beyond these prompts: what they share is not counted until statistics is computed."
    rows = study.ask("comparisons", rows="comparison").rows
    n = max((row["n_families"] for row in rows if row["n_families"] is not None), default=0)
    if not n:
        return "How far the result carries beyond these prompts: their families are not known, so each counts as independent."
    return (
        f"How far the result carries beyond the {n:,} wordings that these prompts share: intervals over prompts are too narrow."
    )


def direction(study: Studied) -> str:
    out = study.ask("asr", conditions="direction", judge=study.judge).one(condition="direction", label=study.labels["target"])
    chosen = study.ask("directions").one(chosen=True)
    if out is None or chosen is None:
        return ""
    return (
        f"Projected out everywhere, the direction of layer {chosen['layer']} flips {percent(out['asr_of_refused'])} of the "
        f"prompts {{shown}} at baseline (KL on {{control}} prompts {chosen['kl']:.2f} nats)."
    )


def of_direction(study: Studied) -> str:
    layer, last = chosen_layer(study)
    if layer is not None and layer == last:
        return "That this direction decides on {name}: the last layer's holds what is about to be said."
    return "That it is the only such direction, or that what it carries is {name} and not what goes with it."


def diagnostic(study: Studied) -> str:
    rows = study.ask("direction_by_layer").rows
    roles = [study.labels.get(role) for role in ("target", "control")]
    means = {(row["layer"], row["label"]): row["mean"] for row in rows}
    chosen = next((row["layer"] for row in rows if row["is_chosen"]), None)
    layers = sorted(n for n in {row["layer"] for row in rows} if chosen is not None and n <= chosen)
    if not all((n, role) in means for n in layers for role in roles) or not layers:
        return ""
    gaps = [round(means[n, roles[0]] - means[n, roles[1]], 2) + 0.0 for n in layers]
    found = (
        f"At the chosen layer the mean cosine is {means[layers[-1], roles[0]]:.2f} on {{target}} and "
        f"{means[layers[-1], roles[1]]:.2f} on {{control}} prompts."
    )
    if len(layers) == 1:
        return found
    if gaps[-1] <= gaps[0]:
        return f"{found} Their distance does not grow: it is {gaps[0]:.2f} at layer {layers[0]} and {gaps[-1]:.2f} there."
    everywhere = "" if all(a <= b for a, b in pairwise(gaps)) else ", but not at every layer"
    return f"{found} Their distance grows, from {gaps[0]:.2f} at layer {layers[0]} to {gaps[-1]:.2f}{everywhere}."


def top_k(study: Studied) -> str:
    parts = []
    for condition, name in (("top_k_own", "each layer's own"), ("top_k_chosen", "the one chosen")):
        for row in study.ask("k_choice", condition=condition, judge=study.judge).rows:
            parts.append(
                f"by {name} direction {percent(row['flipped_1'])} at K = {row['k']} ({{control}} prompts still {{absent}}: "
                f"{percent(row['control_answered'])})"
            )
    if not parts:
        return ""
    return f"With K chosen on one half of the prompts, the top features flip of the other half {'; '.join(parts)}."


def searches(study: Studied) -> str:
    rows = study.ask("search_methods", judge=study.judge).rows
    parts = [_algorithm1(rows)]
    if minimal := next((row for row in rows if row["condition"] == "minimal"), None):
        parts.append(
            f"The other search keeps only sets that flip, so its rate says for how many prompts there is one: "
            f"{minimal['n_searched']:,} of {minimal['n_refused']:,}, with a median of {count(minimal['median_features'])} "
            f"feature{'' if minimal['median_features'] == 1 else 's'}."
        )
    return " ".join(filter(None, parts))


def _algorithm1(rows: list[dict[str, Any]]) -> str:
    found = [row for row in rows if re.fullmatch(r"algorithm1(_n\d+)?_common", row["condition"]) and row["tau"] is not None]
    if not found:
        return ""
    tau = min(row["tau"] for row in found)
    controls = {row["condition"].removeprefix("random_"): row for row in rows if row["tau"] == tau}
    parts = []
    for row in (one for one in found if one["tau"] == tau):
        random = controls.get(row["condition"])
        blocks = re.search(r"_n(\d+)_", row["condition"])
        of_random = f"; as many random features {percent(random['flip_rate_of_tested'])}" if random is not row and random else ""
        parts.append(
            f"{f'with blocks of {blocks[1]} ' if blocks else ''}{percent(row['flip_rate_of_tested'])} of the "
            f"{row['n_searched'] - row['n_untested']:,} prompts on which it tests anything{of_random} (on {row['n_untested']:,} "
            "the pool is smaller than a block)"
        )
    return f"What Algorithm 1 finds under all seeds at tau {tau:g} flips {'; '.join(parts)}."


def of_searches(study: Studied) -> str:
    first = "Which of several such sets the model uses: each is minimal, none need be the only one."
    row = study.ask("readout_sets").one(method="minimal") if "readouts" in study.records else None
    if row is None or not row["n_flip"]:
        return f"{first} Nor whether they hold causes or read-outs: the stage readouts is not computed or found no set."
    return (
        f"{first} Nor that they hold what decides: {percent(row['n_direct_flip'] / row['n_flip'])} of the flips of minimal "
        "sets happen by what the features write into the answer themselves."
    )


def judges(study: Studied) -> str:
    found = study.con.execute(queries.step("judges_differ")).fetchall()
    parts = [f"{as_said(one)} and {as_said(other)} differ on {percent(share)} of {n:,} answers" for one, other, n, share in found]
    if parts:
        return f"{'; '.join(parts)}."
    names = [as_said(name) for (name,) in study.con.execute(queries.step("judges")).fetchall()]
    if len(names) > 1:
        return f"{' and '.join(names)} read answers, but no answer was read by two of them."
    return f"One judge, {''.join(names)}, read the answers." if names else ""


def inert(study: Studied) -> str:
    row = study.ask("inert", judge=study.judge).one(method="minimal")
    if row is None:
        return ""
    return (
        f"{row['unique_inert']:,} of {row['unique_features']:,} features of minimal sets are silent on a prompt of theirs; whole "
        f"sets flip {row['flipped_full']:,} times, what fires of them {row['flipped_active']:,}."
    )


def machine(study: Studied) -> str:
    rows = study.ask("fm_metrics").rows
    right = {row["model"]: row["test_accuracy"] for row in rows if row["test_accuracy"] is not None}
    parts = [f"{row['model']} {percent(right[row['model']])} of {row['n_test']:,}" for row in rows if row["model"] in right]
    alike = [row["model"] for row in rows if row["too_alike"]]
    line = f" The embeddings of {', '.join(alike)} lie on one line." if alike else ""
    probe = right.pop("probe", None)
    as_good = probe is not None and bool(right) and probe >= max(right.values())
    linear = " The probe, which knows no pairs, is right as often." if as_good else ""
    return f"Right on held-out prompts: {', '.join(parts)}.{linear}{line}" if parts else ""


def stage3(study: Studied) -> str:
    rows = study.ask("stage3", judge=study.judge).rows
    critical = next((row for row in rows if row["condition"] == "stage3" and row["k"] == 0), None)
    beside = _best(rows, "stage3", at_least=1)
    parts = []
    if critical and beside:
        parts.append(
            f"The critical features that fire flip {percent(critical['flip_rate'])}, and with new ones at most "
            f"{percent(beside['flip_rate'])} (K = {beside['k']})."
        )
    names = [name for name in RANKINGS if name != "stage3_probe_alone"]
    if alone := _alone(rows, names):
        parts.append(f"New ones alone flip at most, ranked by {alone}.")
    return " ".join(parts)


def _alone(rows: list[dict[str, Any]], names: list[str]) -> str:
    found = [(RANKINGS[name], _best(rows, name)) for name in names]
    return ", ".join(f"{what} {percent(row['flip_rate'])} (K = {row['k']})" for what, row in found if row)


def _best(rows: list[dict[str, Any]], condition: str, at_least: int = 0) -> dict[str, Any] | None:
    """The K that flips most, the smallest of equals."""
    mine = [row for row in rows if row["condition"] == condition and row["k"] >= at_least and row["flip_rate"] is not None]
    return max(mine, key=lambda row: row["flip_rate"], default=None)


def of_stage3(study: Studied) -> str:
    n, n_trained = study.con.execute(queries.step("stage3_seen")).fetchall()[0]
    seen = f" {n_trained:,} of the {n:,} prompts were seen in its training." if n_trained else ""
    return (
        "That the machine is what finds them, unless it beats the rankings that need none, at more than the K that does best "
        f"on these prompts.{seen}"
    )


def links(study: Studied) -> str:
    rows = study.ask("causal_link", judge=study.judge).rows
    if not rows:
        return ""
    row = max(rows, key=lambda one: one["n_alone"])
    fall = row["fall_of_others"]
    others = "" if fall is None else f", and the others {'fall' if fall >= 0 else 'rise'} by {percent(abs(fall))}"
    off = "" if row["switched_off"] is None else f" Meanwhile {percent(row['switched_off'])} of these switch off{others}."
    return (
        f"At K = {row['k']}, the best, the new features alone flip {percent(row['alone_share'])} of the {row['n_active']:,} "
        f"prompts that flip with the critical ones that fire.{off}"
    )


def probe(study: Studied) -> str:
    row = study.ask("fm_metrics").one(model="probe")
    rows = study.ask("stage3", judge=study.judge).rows
    alone = _alone(rows, ["stage3_probe_alone", "stage3_signed_alone", "stage3_alone"])
    if row is None or row["test_accuracy"] is None:
        return ""
    ranked = f" New features alone flip at most, ranked by {alone}." if alone else ""
    return f"The probe is right on {percent(row['test_accuracy'])} of held-out prompts.{ranked}"


def hydra(study: Studied) -> str:
    row = study.ask("self_repair", judge=study.judge).one(reading="default", method="minimal")
    first = f"{row['n_kept']:,} of {row['n_sets']:,} sets flip only with their silent features." if row else ""
    backed = study.ask("backups", judge=study.judge) if "backups" in study.records else None
    rows = [row for source in ("minimal", "one") if backed and (row := backed.one(source=source))]
    # Of sets and single features, those of which something can be said; else what cannot.
    said = [row for row in rows if row["n_tested"]] or rows[-1:]
    return " ".join(part for part in (first, *map(backup_sentence, said)) if part)


def clamping(study: Studied) -> str:
    sentences = clamping_sentences(study.ask("steering_rates").rows)
    held = study.records["steering"].config.get("steering", {}).get("features", "redundant")
    other = [f"The features are {held} ones, not silent ones that wake."] if sentences and held != "redundant" else []
    return " ".join([*sentences, *other])


def random(study: Studied) -> str:
    sets = [row for row in study.ask("search_methods", judge=study.judge).rows if row["condition"] == "random_minimal"]
    parts = [f"as many as a minimal set has {percent(row['flip_rate_of_tested'])}" for row in sets]
    pools = study.ask("asr", conditions="random", judge=study.judge).rows
    mine = [row for row in pools if row["label"] == study.labels["target"] and row["asr_of_refused"] is not None]
    if mine:
        most = max(mine, key=lambda row: row["asr_of_refused"])
        parts.append(f"as many as the top K at most {percent(most['asr_of_refused'])} (K = {most['k']})")
    return f"Random active features flip: {', '.join(parts)}." if parts else ""


def effects(study: Studied) -> str:
    rows = [row for row in study.ask("losses", judge=study.judge).rows if row["condition"] != "none"]
    return f"{'; '.join(_cost(row) for row in rows)}." if rows else ""


def _cost(row: Mapping[str, Any]) -> str:
    kl = "" if row["kl"] is None else f" (KL {row['kl']:.3f} a token)"
    return f"{row['condition']} adds {row['added']:.3f} nats on {as_said(row['texts'])}{kl}"


def of_effects(study: Studied) -> str:
    first = "What it costs on text unlike the one measured, or on tasks: cross-entropy is blind to much."
    return " ".join([first, *map(as_said, text_sentences(study))]) if "losses" in study.records else first


def firing(study: Studied) -> str:
    rows = study.ask("asr", conditions="firing_on_tokens", judge=study.judge).rows
    mine = [row for row in rows if row["label"] == study.labels["target"] and row["asr_of_refused"] is not None]
    if not mine:
        return ""
    best = max(mine, key=lambda row: row["asr_of_refused"])
    return f"At best {percent(best['asr_of_refused'])} flip (features that fire on at least {best['k']} tokens)."


def taxonomy(study: Studied) -> str:
    ((n, specific),) = study.con.execute(queries.step("specific_features")).fetchall()
    if not n:
        return ""
    return f"{n:,} features fire on some category, {specific:,} on more prompts of one than chance explains (q at most 5%)."


def rows_of(table: str, what: str) -> Callable[[Studied], str]:
    def shows(study: Studied) -> str:
        ((n,),) = study.con.execute(f"select count(*) from {table}").fetchall()
        return f"{n:,} {what}." if n else ""

    return shows


def tests(study: Studied) -> str:
    rows = [row for row in study.ask("comparisons", rows="comparison").rows if row["p_holm"] is not None]
    sure = sum(row["p_holm"] < 0.05 for row in rows)
    over = [row for row in rows if row["p_families_holm"] is not None]
    kept = sum(row["p_families_holm"] < 0.05 for row in over)
    with_families = f", {kept:,} of {len(over):,} with families of prompts as the units" if over else ""
    return f"{sure:,} of {len(rows):,} comparisons differ after Holm's correction{with_families}." if rows else ""
