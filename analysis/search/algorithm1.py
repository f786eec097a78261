"""Algorithm 1 of the paper (Stage 2, R6), every threshold at once.

As published, the loop evaluates P(C \\ K) and P(C \\ (K u V)) for one random block V after another. After an accept the ablated
set is C \\ (K u V), after a reject (C \\ V) \\ K: the same set. So the sets do not depend on the decisions. With A_t = C without
the first t blocks of one random sequence,

    K_tau = union of the blocks V_{t+1} with |P(A_t) - P(A_{t+1})| / P(A_t) >= tau

for every tau from the same floor(|C| / N) + 1 independent evaluations. The candidates left over, fewer than N, are never tested.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import product

import numpy as np

from saelake.analysis.engine.requests import FeatureSet, Request
from saelake.analysis.search import minimal
from saelake.analysis.search.answers import Ablation, ablation_rows
from saelake.analysis.search.candidates import shards_of_split
from saelake.analysis.search.critical import Pool, controls_by_donor, on_controls, pools, search_rows
from saelake.analysis.search.noise import SEQUENCES, Noise, changes, measured, noise_rows
from saelake.analysis.stage import Condition, Stage, Work, searched_split
from saelake.analysis.study_context import StudyContext
from saelake.ingest.recipe.search import Algorithm1
from saelake.warehouse.runs import Rows
from saelake.warehouse.schema import SEARCH_TRACE

COMPLEMENTS = {None: "complement", "common": "common_complement"}
"""The part that a found set is stored as (null: one seed's; common: all seeds') -> the part that the rest of the pool is."""


def block_sequence(n_candidates: int, block_size: int, rng: np.random.Generator) -> np.ndarray:
    """(n_blocks, block_size): random blocks of places in the pool, without replacement; none if the pool is smaller than N."""
    order = rng.permutation(n_candidates)
    n_blocks = n_candidates // block_size
    return order[: n_blocks * block_size].reshape(n_blocks, block_size)


def found_sets(blocks: np.ndarray, p_target: np.ndarray, taus: np.ndarray) -> list[np.ndarray]:
    """K_tau for every tau, as sorted places in the pool, nested; blocks are (n_blocks, N), p_target (n_blocks + 1,)."""
    change = changes(p_target)
    return [np.sort(blocks[change >= tau].ravel()) for tau in taus]


@dataclass(frozen=True)
class Sequenced:
    """One random sequence of blocks through one prompt's pool."""

    method: str
    """algorithm1; algorithm1_nN for a further block size"""
    pool: Pool
    seed: int
    blocks: np.ndarray

    def ablated(self) -> list[FeatureSet]:
        """A_0, A_1, ...: the pool without the first t blocks."""
        gone = np.zeros(len(self.pool), dtype=bool)
        sets = [self.pool.at(np.flatnonzero(~gone))]
        for block in self.blocks:
            gone[block] = True
            sets.append(self.pool.at(np.flatnonzero(~gone)))
        return sets


def _compute(work: Work, missing: Sequence[str]) -> Iterator[tuple[str, list[Rows]]]:
    settings, shards = work.context.recipe.algorithm1, shards_of_split(work.context.study, "algorithm1")
    by_prompt = pools(work, settings.direction)
    controls = controls_by_donor(work.context, by_prompt)
    noise = _noise(work, by_prompt)
    for name in missing:
        rows: list[Rows] = [noise_rows(noise)] if name == next(iter(shards)) else []
        for method, size in methods(settings).items():
            searched = product((by_prompt[p] for p in shards[name] if p in by_prompt), range(settings.seeds))
            sequences = [_sequenced(work, method, size, pool, seed) for pool, seed in searched]
            rows += _search(work, method, sequences, controls, noise)
        yield name, rows


def methods(settings: Algorithm1) -> dict[str, int | str]:
    """What each search of a recipe is called -> its block size; the first is the recipe's own."""
    others: dict[str, int | str] = {f"algorithm1_n{size}": size for size in settings.other_block_sizes}
    return {"algorithm1": settings.block_size, **others}


def _sequenced(work: Work, method: str, size: int | str, pool: Pool, seed: int) -> Sequenced:
    n = Algorithm1.n_of(size, len(pool))
    return Sequenced(method, pool, seed, block_sequence(len(pool), n, _rng(work, seed, pool.prompt)))


def _rng(work: Work, seed: int, prompt: int) -> np.random.Generator:
    """Draws depend on the prompt and the seed, never on tau or on what else is searched."""
    return np.random.default_rng([work.spec.seed, seed, work.context.places[prompt]])


def _noise(work: Work, by_prompt: Mapping[int, Pool]) -> Noise:
    """The noise floor, on the first sequences of prompts that are spread over the study."""
    context, settings = work.context, work.context.recipe.algorithm1
    method, size = next(iter(methods(settings).items()))
    chosen = list(by_prompt)[:: max(1, len(by_prompt) // SEQUENCES)][:SEQUENCES]
    sequences = [_sequenced(work, method, size, by_prompt[prompt], 0) for prompt in chosen]
    requests = [[Request(s.pool.prompt, features) for features in s.ablated()] for s in sequences]
    return measured(context.subject, context.saes, context.token_ids, requests)


def _search(
    work: Work, method: str, sequences: Sequence[Sequenced], controls: Mapping[int, Sequence[int]], noise: Noise
) -> list[Rows]:
    """The searches of one method; a trace is kept for the recipe's own block size, not for further ones."""
    context, taus = work.context, np.array(work.context.recipe.algorithm1.taus)
    requests = [Request(s.pool.prompt, features) for s in sequences for features in s.ablated()]
    p_target = context.engine.next_token(requests).p_target.astype(np.float64)
    stops = np.cumsum([len(s.blocks) + 1 for s in sequences])
    traces = np.split(p_target, stops[:-1]) if sequences else []
    found = [found_sets(s.blocks, trace, taus) for s, trace in zip(sequences, traces, strict=True)]
    moved = [changes(trace) for trace in traces]
    by_rounding = [noise.of_changes(trace) for trace in traces]
    uncertain = [
        [int((np.abs(change - tau) <= own).sum()) for tau in taus] for change, own in zip(moved, by_rounding, strict=True)
    ]
    asked = list(_tests(sequences, found, uncertain, taus))
    asked += on_controls([a for a in asked if a.condition.part in COMPLEMENTS], controls)
    evaluations = {(s.pool.prompt, s.seed): (s.pool, len(s.blocks) + 1) for s in sequences}
    traced = sequences if method == "algorithm1" else []
    return [
        *ablation_rows(context, work.spec.stage, asked, more_sets=[s.pool.at(b) for s in traced for b in s.blocks]),
        *([_trace_rows(context, sequences, traces, by_rounding)] if method == "algorithm1" else []),
        search_rows(context, method, evaluations),
    ]


def _tests(
    sequences: Sequence[Sequenced], found: Sequence[list[np.ndarray]], uncertain: Sequence[list[int]], taus: np.ndarray
) -> Iterator[Ablation]:
    """What is ablated to see whether each found set flips its prompt, whether what all seeds found does, and the complements."""
    by_prompt: dict[int, list[tuple[Sequenced, list[np.ndarray], list[int]]]] = {}
    for sequence, sets, n_uncertain in zip(sequences, found, uncertain, strict=True):
        by_prompt.setdefault(sequence.pool.prompt, []).append((sequence, sets, n_uncertain))
    for prompt, searched in by_prompt.items():
        pool = searched[0][0].pool
        for i, tau in enumerate(taus.tolist()):
            method = searched[0][0].method
            tests: list[tuple[str | None, int | None, np.ndarray, int]] = [
                (None, s.seed, by_tau[i], of_tau[i]) for s, by_tau, of_tau in searched
            ]
            common = reduce(np.intersect1d, [by_tau[i] for _, by_tau, _ in searched])
            tests.append(("common", None, common, sum(of_tau[i] for *_, of_tau in searched)))
            for part, seed, members, n in tests:
                rest, complement = np.setdiff1d(np.arange(len(pool)), members), Condition(method, COMPLEMENTS[part])
                yield Ablation(Request(prompt, pool.at(members)), Condition(method, part), seed=seed, tau=tau, n_uncertain=n)
                yield Ablation(Request(prompt, pool.at(rest)), complement, seed=seed, tau=tau, n_uncertain=n)


def _trace_rows(
    context: StudyContext, sequences: Sequence[Sequenced], traces: Sequence[np.ndarray], by_rounding: Sequence[np.ndarray]
) -> Rows:
    columns: dict[str, list[object]] = {
        "prompt_id": [int(context.prompt_ids[s.pool.prompt]) for s in sequences for _ in range(len(s.blocks) + 1)],
        "seed": [s.seed for s in sequences for _ in range(len(s.blocks) + 1)],
        "step": [step for s in sequences for step in range(len(s.blocks) + 1)],
        "block": [key for s in sequences for key in (None, *(s.pool.at(b).key for b in s.blocks))],
        "p_refusal_token": [p for trace in traces for p in trace.tolist()],
        "noise": [own for noise in by_rounding for own in (None, *noise.tolist())],
    }
    return Rows.of(SEARCH_TRACE, columns)


STAGE = Stage(
    name="algorithm1",
    parents=("candidates", "baseline", "alignments", "prompts"),
    splits=searched_split,
    sections=("algorithm1", "candidates", "generation", "verdicts", "capture"),
    tables=("feature_sets", "ablations", "verdicts", "search_trace", "searches", "noise"),
    shards=lambda study: list(shards_of_split(study, "algorithm1")),
    compute=_compute,
    code_version=3,
    conditions=("algorithm1",),
    compared=((Condition("algorithm1"), minimal.FOUND), (Condition("algorithm1", "common"), minimal.FOUND)),
)
