"""Stage 3 (R10 to R12): new features that go with the critical ones by the factorisation machine, ablated with them and alone.

Rankings by the linear probe, by size (the paper's) and signed, by decoder alignment and by gradients go the same way, as a stage
of their own.
The machine's ranking has a control: in the place of the new features, as many random ones of the same SAEs that fire on the
prompt as well. The machine that saw none of the prompts, and the other rankings, have none.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import duckdb
import numpy as np
import torch

from saelake import queries
from saelake.analysis.engine.attribution import gradients
from saelake.analysis.engine.requests import FeatureSet, Request
from saelake.analysis.interactions.factorisation import held_out
from saelake.analysis.search.answers import Ablation, ablation_rows
from saelake.analysis.search.candidates import shards_of_split
from saelake.analysis.search.critical import controls_by_donor, on_controls
from saelake.analysis.search.ranking import log_odds
from saelake.analysis.stage import Condition, Stage, Work, searched_split
from saelake.ingest.saes.refs import layer_of
from saelake.warehouse.runs import Rows
from saelake.warehouse.schema import CAUSAL_LINKS

METHOD = "stage3"
RANKED_BESIDE = {"stage3_probe": "weight", "stage3_signed": "signed_weight", "stage3_alignment": "alignment"}
"""What else ranks the new features, in the place of the machine's embeddings: method -> `new_features --by`."""
HELD_OUT = "stage3_held_out"
"""By a machine that learned from none of the prompts that are ablated."""
GRADIENT = "stage3_gradient"
"""And the first-order effect of each on the prompt's own log-odds, by one backward pass: the first should lower them most."""
JOINED, ALONE = Condition(METHOD), Condition(METHOD, "alone")
Columns = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Ranking:
    """One prompt: its critical features that fire, and all others that fire, best first."""

    prompt: int
    critical: Columns
    """Columns sae (number), feature_id and max_activation."""
    others: Columns
    """Columns sae (number) and feature_id, in the order of rank."""
    place: int
    """The prompt's place in its run, by which random features are drawn."""

    def top(self, k: int) -> np.ndarray:
        """Places of the first k among the others; of all, where there are fewer."""
        return np.arange(min(k, len(self.others["sae"])))

    def like(self, places: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Random places with as many features of each SAE."""
        saes = self.others["sae"]
        drawn = [
            rng.choice(np.flatnonzero(saes == sae), size=np.count_nonzero(saes[places] == sae), replace=False)
            for sae in np.unique(saes[places])
        ]
        return np.sort(np.concatenate([np.empty(0, dtype=np.int64), *drawn]))

    def alone(self, places: np.ndarray) -> FeatureSet:
        """The features at these places."""
        return FeatureSet.of(self.others["sae"][places], self.others["feature_id"][places])

    def joined(self, places: np.ndarray) -> FeatureSet:
        """The critical features that fire, and those at these places."""
        columns = (np.concatenate([self.critical[n], self.others[n][places]]) for n in ("sae", "feature_id"))
        return FeatureSet.of(*columns)


def asked(ranking: Ranking, method: str, ks: Sequence[int], draws: int, seed: int) -> Iterator[Ablation]:
    """Every K of one prompt: with the critical features and alone, by rank and at random."""
    for k in ks:
        top = ranking.top(k)
        yield Ablation(Request(ranking.prompt, ranking.joined(top)), Condition(method), k=k)
        yield Ablation(Request(ranking.prompt, ranking.alone(top)), Condition(method, "alone"), k=k)
        for draw in range(draws):
            random = ranking.like(top, np.random.default_rng([seed, draw, ranking.place, k]))
            again: dict[str, Any] = {"k": k, "draw": draw, "seed": seed}
            yield Ablation(Request(ranking.prompt, ranking.joined(random)), Condition(method, control="matched"), **again)
            yield Ablation(Request(ranking.prompt, ranking.alone(random)), Condition(method, "alone", "matched"), **again)


def rankings(work: Work, con: duckdb.DuckDBPyConnection, by: str, model: str | None = None) -> dict[int, Ranking]:
    """Prompt number -> ranking, for the prompts that have a critical set and something to rank; the machine is the recipe's
    unless another is named."""
    settings, tokens = work.context.recipe.stage3, work.context.recipe.interactions.tokens
    found = queries.run(
        con,
        "new_features",
        by=by,
        model=model or f"fm_{settings.size}",
        similarity=settings.similarity,
        method=settings.critical,
        tokens=tokens if settings.active == "last_tokens" else None,
    )
    others = _by_prompt(_numbered(work, found.select("prompt_id", "sae_id", "feature_id").fetchnumpy()))
    critical = _by_prompt(
        _numbered(work, con.execute(queries.step("critical_firing"), {"method": settings.critical}).fetchnumpy())
    )
    none = {name: np.empty(0, dtype=np.int64) for name in ("sae", "feature_id", "max_activation")}
    number, place = work.context.number_of, work.context.places
    return {number[p]: Ranking(number[p], critical.get(p, none), rows, int(place[number[p]])) for p, rows in others.items()}


def _numbered(work: Work, rows: Columns) -> Columns:
    """Rows with the numbers of their SAEs."""
    return {name: column for name, column in rows.items() if name != "sae_id"} | {"sae": work.context.sae_numbers(rows["sae_id"])}


def _by_prompt(rows: Columns) -> dict[int, Columns]:
    """Rows that are sorted by prompt_id, cut into prompts."""
    ids, first = np.unique(rows["prompt_id"], return_index=True)
    cuts = {name: np.split(np.asarray(column), first[1:]) for name, column in rows.items()}
    return {int(p): {name: parts[i] for name, parts in cuts.items()} for i, p in enumerate(ids)}


def by_gradient(work: Work, ranked: Ranking) -> Ranking:
    """The same features in the order of their first-order effects on the target tokens' log-odds, over all of the prompt."""
    context, others = work.context, ranked.others
    acts, grads = gradients(context, context.token_ids[ranked.prompt], log_odds(context.subject))
    effects = np.zeros(len(others["sae"]))
    for place, (number, sae) in enumerate(context.saes.items()):
        mine = np.flatnonzero(others["sae"] == number)
        ids = torch.from_numpy(others["feature_id"][mine].astype(np.int64)).to(sae.W_dec.device)
        along_tk = grads[sae.writes] @ sae.W_dec[ids].float().to(grads[sae.writes].device).T
        effects[mine] = -(acts[place][:, ids] * along_tk).sum(0).double().cpu().numpy()
    order = np.lexsort((others["feature_id"], others["sae"], np.float32(effects)))
    return replace(ranked, others={name: column[order] for name, column in others.items()})


def link_rows(work: Work, ranked: Sequence[Ranking], ks: Sequence[int]) -> Rows:
    """R11b: what the critical features that fire do while the top K new ones alone are ablated."""
    context = work.context
    sae_ids = context.sae_ids
    passes = [(one, k, one.alone(one.top(k))) for one in ranked if len(one.critical["sae"]) for k in ks]
    saes = np.concatenate([np.empty(0, dtype=np.int64), *(one.critical["sae"] for one in ranked)])
    ids = np.concatenate([np.empty(0, dtype=np.int64), *(one.critical["feature_id"] for one in ranked)])
    watched = {int(sae): np.unique(ids[saes == sae]) for sae in np.unique(saes)}
    seen = context.engine.activations([Request(one.prompt, features) for one, _, features in passes], watched)
    largest: dict[tuple[int, int, int], float] = {}
    for *feature, activation in zip(
        seen.request.tolist(), seen.sae.tolist(), seen.feature_id.tolist(), seen.activation.tolist(), strict=True
    ):
        key = (feature[0], feature[1], feature[2])
        largest[key] = max(largest.get(key, 0.0), activation)
    rows = [
        (
            int(context.prompt_ids[one.prompt]),
            k,
            sae_ids[sae],
            layer_of(sae),
            feature_id,
            min(map(layer_of, features.saes)),
            clean,
            largest.get((i, sae, feature_id), 0.0),
        )
        for i, (one, k, features) in enumerate(passes)
        for sae, feature_id, clean in zip(
            *(one.critical[n].tolist() for n in ("sae", "feature_id", "max_activation")), strict=True
        )
    ]
    names = ("prompt_id", "k", "sae_id", "layer", "feature_id", "lowest_layer", "clean", "ablated")
    return Rows.of(CAUSAL_LINKS, {name: [row[i] for row in rows] for i, name in enumerate(names)})


def _answers(
    work: Work, ranked: Sequence[Ranking], controls: Mapping[int, Sequence[int]], method: str, ks: Sequence[int], draws: int
) -> list[Rows]:
    tests = [one for ranking in ranked for one in asked(ranking, method, ks, draws, work.spec.seed)]
    tests += on_controls([one for one in tests if one.condition == Condition(method)], controls)
    return ablation_rows(work.context, work.spec.stage, tests)


def _compute(work: Work, missing: Sequence[str]) -> Iterator[tuple[str, list[Rows]]]:
    settings, shards = work.context.recipe.stage3, shards_of_split(work.context.study, "stage3")
    with work.sql() as con:
        by_prompt = rankings(work, con, "embedding")
        own = held_out(work.context.study)
        unseen = {} if own is None else rankings(work, con, "embedding", own)
    controls, others = controls_by_donor(work.context, by_prompt), controls_by_donor(work.context, unseen)
    for name in missing:
        ranked = [by_prompt[p] for p in shards[name] if p in by_prompt]
        not_seen = [unseen[p] for p in shards[name] if p in unseen]
        yield (
            name,
            [
                *_answers(work, ranked, controls, METHOD, settings.ks, settings.random_draws),
                *_answers(work, not_seen, others, HELD_OUT, settings.ks, 0),
                link_rows(work, ranked, settings.ks),
            ],
        )


def _compute_probe(work: Work, missing: Sequence[str]) -> Iterator[tuple[str, list[Rows]]]:
    shards = shards_of_split(work.context.study, "stage3_probe")
    with work.sql() as con:
        ranked = {method: rankings(work, con, by) for method, by in RANKED_BESIDE.items()}
    controls = {method: controls_by_donor(work.context, by_prompt) for method, by_prompt in ranked.items()}
    for name in missing:
        rows: list[Rows] = []
        for method, by_prompt in ranked.items():
            mine = [by_prompt[p] for p in shards[name] if p in by_prompt]
            rows += _answers(work, mine, controls[method], method, work.context.recipe.probe.ks, 0)
        same = ranked["stage3_alignment"]
        mine = [by_gradient(work, same[p]) for p in shards[name] if p in same]
        rows += _answers(work, mine, controls["stage3_alignment"], GRADIENT, work.context.recipe.probe.ks, 0)
        yield name, rows


STAGE = Stage(
    name="stage3",
    parents=("fm", "inert", "prompts", "activations"),
    splits=searched_split,
    sections=("stage3", "generation", "verdicts", "capture"),
    tables=("feature_sets", "ablations", "verdicts", "causal_links"),
    shards=lambda study: list(shards_of_split(study, "stage3")),
    compute=_compute,
    code_version=4,
    conditions=(METHOD, HELD_OUT),
    compared=(
        (JOINED, Condition(METHOD, control="matched")),
        (JOINED, Condition(HELD_OUT)),
        (ALONE, Condition(HELD_OUT, "alone")),
        (ALONE, Condition(METHOD, "alone", "matched")),
    ),
)
PROBE_STAGE = Stage(
    name="stage3_probe",
    parents=("probe", "inert", "alignments", "prompts", "activations"),
    splits=searched_split,
    sections=("generation", "verdicts", "capture"),
    tables=("feature_sets", "ablations", "verdicts"),
    shards=lambda study: list(shards_of_split(study, "stage3_probe")),
    compute=_compute_probe,
    identity=lambda study: {"critical": study.recipe.stage3.critical, "active": study.recipe.stage3.active},
    code_version=5,
    conditions=(*RANKED_BESIDE, GRADIENT),
    compared=tuple(
        pair
        for method in (*RANKED_BESIDE, GRADIENT)
        for pair in ((JOINED, Condition(method)), (ALONE, Condition(method, "alone")))
    ),
)
