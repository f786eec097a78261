"""Stage 2 on the embedded organism, the way of the paper and ours, without a lake."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cosine_similarity

from benchmarks.harness import Clock, Report, alternated
from benchmarks.published import algorithm1_loop, decode_plus_error, greedy
from saelake.analysis.engine.engine import AblationEngine
from saelake.analysis.engine.requests import Request
from saelake.analysis.search import ranking
from saelake.analysis.search.algorithm1 import Sequenced, block_sequence, found_sets
from saelake.analysis.search.critical import Pool, falls_of
from saelake.analysis.search.directions import difference_of_means
from saelake.analysis.search.minimal import Trials, drawn_set, ranked_set, run_together
from saelake.analysis.study_context import StudyContext
from saelake.ingest.recipe import load_recipe
from saelake.ingest.study import open_study
from saelake.warehouse.lake import Lake

N_LITERAL = 2
TAU = 0.5
N_NEW = 16


@dataclass(frozen=True)
class Organism:
    """The loaded study and the candidate pools of its prompts."""

    context: StudyContext
    pools: list[Pool]
    """At each prompt's first flip, for the refused harmful test prompts that flip at some K."""
    capped: list[Pool]
    """The same prompts at K = cap."""


def load() -> Organism:
    """The organism of the shipped recipe; candidates as the recipe chooses them."""
    recipe = load_recipe("organism")
    study = open_study(recipe)
    context = StudyContext(study, Lake(Path("unused")))
    directions = torch.from_numpy(difference_of_means(context, recipe.direction.split))
    settings = recipe.candidates
    layers = [layer for layer in context.saes if layer not in settings.exclude_layers]
    ranked = {
        layer: cosine_similarity(context.saes[layer].W_dec, directions[layer][None]).argsort(descending=True).numpy()
        for layer in layers
    }

    def top(prompt: int, k: int) -> Pool:
        return Pool(prompt, k, np.repeat(layers, k), np.concatenate([ranked[layer][:k] for layer in layers]))

    harmful = np.array(study.prompts_of(settings.split, "target"))
    requests = [
        Request(p, top(p, k).at(range(k * len(layers))) if k else Request(p).features)
        for p in harmful
        for k in range(settings.cap + 1)
    ]
    said = context.engine.next_token(requests).token_id.reshape(len(harmful), -1)
    refuses = np.isin(said, context.subject.target_token_ids)
    flips = [p for p, row in zip(harmful, refuses, strict=True) if row[0] and not row.all()]
    first = {int(p): int(np.argmin(row)) for p, row in zip(harmful, refuses, strict=True)}
    return Organism(context, [top(int(p), first[int(p)]) for p in flips], [top(int(p), settings.cap) for p in flips])


def published_evaluations(n_candidates: int, block_size: int, n_taus: int, seeds: int) -> int:
    """Two evaluations a step, for every threshold and seed."""
    return 2 * (n_candidates // block_size) * n_taus * seeds


def distinct_evaluations(n_candidates: int, block_size: int, seeds: int) -> int:
    """floor(|C| / N) + 1 a seed; the whole pool is one state for all seeds, and so is the empty set where N divides |C|."""
    n_blocks = n_candidates // block_size
    shared = (seeds - 1) * (2 if n_candidates % block_size == 0 else 1)
    return seeds * (n_blocks + 1) - shared


def stage2(organism: Organism, pools: Sequence[Pool]) -> int:
    """Algorithm 1 for all thresholds and seeds of the recipe, by a fresh engine: the evaluations."""
    context, settings = organism.context, organism.context.recipe.algorithm1
    n = int(settings.block_size)
    engine = AblationEngine(context.subject, context.saes, context.token_ids)
    sequences = [
        Sequenced("algorithm1", pool, seed, block_sequence(len(pool), n, np.random.default_rng([seed, pool.prompt])))
        for pool in pools
        for seed in range(settings.seeds)
    ]
    requests = [Request(s.pool.prompt, features) for s in sequences for features in s.ablated()]
    p_target = engine.next_token(requests).p_target.astype(np.float64)
    stops = np.cumsum([len(s.blocks) + 1 for s in sequences])
    for s, trace in zip(sequences, np.split(p_target, stops[:-1]), strict=True):
        found_sets(s.blocks, trace, np.array(settings.taus))
    return len({r.state for r in requests})


def measure(report: Report, rounds: int, clock: Clock) -> None:
    """Algorithm 1 and greedy answers on the organism, batched against one prompt at a time."""
    organism = load()
    context, settings = organism.context, organism.context.recipe.algorithm1
    n_taus, seeds, n = len(settings.taus), settings.seeds, settings.block_size
    report.line(
        f"\norganism: {context.subject.n_layers} layers of width {context.subject.d_model}, "
        f"SAEs of {context.saes[0].width} latents, {len(organism.pools)} prompts that flip; "
        f"{n_taus} thresholds x {seeds} seeds, N = {n}"
    )
    for name, pools in (("first_flip", organism.pools), ("cap", organism.capped)):
        _algorithm1(report, organism, name, pools, rounds, clock)
    _minimal(report, organism)
    _greedy(report, organism, rounds, clock)


def _minimal(report: Report, organism: Organism) -> None:
    """Evaluations of both searches for minimal sets, from the same pools and as many starts; the backward pass is counted."""
    context, starts = organism.context, organism.context.recipe.minimal.starts
    engine = ranking.engine_of(context)
    falls = {pool.prompt: falls_of(context, engine, pool) for pool in organism.pools}
    by_prompt = {pool.prompt: pool for pool in organism.pools}

    def order(prompt: int, start: int) -> list[int]:
        rng = np.random.default_rng([start, prompt])
        drawn = ranking.drawn_order(falls[prompt], rng) if start else np.argsort(-falls[prompt], kind="stable")
        return list(drawn.tolist())

    keys = [(prompt, start) for prompt in by_prompt for start in range(starts)]
    searches = {
        "drawn": {key: drawn_set(len(by_prompt[key[0]]), np.random.default_rng(key)) for key in keys},
        "ranked": {key: ranked_set(order(*key)) for key in keys},
    }
    asked, sizes = {}, {}
    for name, some in searches.items():
        found = run_together(some, Trials(context, by_prompt).flips)
        passes = ranking.PASSES_OF_A_GRADIENT * len(by_prompt) if name == "ranked" else 0
        asked[name] = sum(one.n_evaluations for one in found.values()) + passes
        sizes[name] = float(np.mean([len(one.members) for one in found.values()]))
    report.line(
        f"\nminimal sets of {len(by_prompt)} prompts, {starts} starts each: {asked['drawn']:,} evaluations in drawn orders, sets "
        f"of {sizes['drawn']:.2f} features; {asked['ranked']:,} along attribution, its passes included, sets of "
        f"{sizes['ranked']:.2f}"
    )
    report.ratio("organism_minimal_ranked", asked["ranked"] / asked["drawn"], "<= 0.5")
    report.ratio("organism_minimal_ranked_size", sizes["ranked"] / sizes["drawn"], "<= 1.0")


def _algorithm1(report: Report, organism: Organism, name: str, pools: Sequence[Pool], rounds: int, clock: Clock) -> None:
    context, settings = organism.context, organism.context.recipe.algorithm1
    n_taus, seeds, n = len(settings.taus), settings.seeds, settings.block_size
    # The largest pools, where the loop has most steps to be timed on.
    assert isinstance(n, int), "as in the paper"
    two = sorted(pools, key=len, reverse=True)[:N_LITERAL]
    counted: list[int] = []

    def literal() -> None:
        counted[:] = [
            algorithm1_loop(context.subject, context.saes, context.token_ids[p.prompt], p, n, TAU, seed=0)[1] for p in two
        ]

    times = alternated({"literal": literal, "stage2": partial(stage2, organism, pools)}, rounds, clock=clock)
    n_ours = stage2(organism, pools)
    n_published = sum(published_evaluations(len(p), n, n_taus, seeds) for p in pools)
    per_literal, per_ours = times.median("literal") / sum(counted), times.median("stage2") / n_ours
    report.line(f"\npools at {name}: {len(pools)} prompts, {min(map(len, pools))} to {max(map(len, pools))} candidates")
    report.line(
        f"  literal loop on SAELens hooks: {N_LITERAL} prompts, one seed, one threshold: {sum(counted)} evaluations in "
        f"{times.median('literal'):.3f} s ({1e3 * per_literal:.2f} ms each); extrapolated to the {n_published} of the "
        f"published sweep: {n_published * per_literal:.1f} s"
    )
    report.line(
        f"  whole Stage 2 search here: {n_ours} evaluations in {times.median('stage2'):.3f} s ({1e3 * per_ours:.3f} ms each)"
    )
    claimed = name == "cap"  # pools at first flip hold a few blocks, less than the count's 16 n / (n + 1) supposes
    report.ratio(f"organism_{name}_evaluation_speedup", n_ours / sum(counted) / times.ratio("stage2", "literal"), ">= 10")
    report.ratio(f"organism_{name}_evaluations_saved", n_published / n_ours, ">= 16" if claimed else "none")
    report.ratio(f"organism_{name}_stage2_speedup", n_published / sum(counted) / times.ratio("stage2", "literal"), ">= 100")


def _greedy(report: Report, organism: Organism, rounds: int, clock: Clock) -> None:
    context = organism.context
    requests = [Request(p.prompt, p.at(range(len(p)))) for p in organism.pools]
    some = requests[:8]

    def hooked() -> None:
        for r in some:
            with decode_plus_error(context.subject, context.saes, r.features):
                greedy(context.subject, context.token_ids[r.prompt], N_NEW)

    def one_at_a_time() -> None:
        for r in some:
            context.engine.answer([r], N_NEW)

    def batched() -> None:
        context.engine.answer(requests, N_NEW)

    times = alternated(
        {"SAELens hooks, one prompt": hooked, "engine, one prompt": one_at_a_time, "batch": batched}, rounds, clock=clock
    )
    report.line(f"\ngreedy continuations of {N_NEW} tokens: {len(some)} prompts one at a time, {len(requests)} in a batch")
    report.line(times.table())
    scale = len(requests) / len(some)
    report.ratio("organism_greedy_speedup", scale / times.ratio("batch", "engine, one prompt"), ">= 5")
    report.ratio("organism_greedy_speedup_over_hooks", scale / times.ratio("batch", "SAELens hooks, one prompt"), ">= 5")
