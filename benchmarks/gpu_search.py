"""Stage 2 at the paper's sizes: ablated forwards of shrinking pools, as Algorithm 1 asks for them. Part of `make bench-gpu`."""

import time
from collections.abc import Sequence

import numpy as np

from benchmarks.gemma import wait
from benchmarks.harness import Report
from saelake.analysis.engine.engine import AblationEngine
from saelake.analysis.engine.requests import FeatureSet, Request
from saelake.ingest.compiled import compile_blocks
from saelake.ingest.shards import ShardMaker

FORWARDS_OF_THE_PAPER = 1_450_000
"""That Stage 2 asks for on both models' prompts: every block of every pool at three seeds."""
POOL, BLOCK, TIMES = 50, 5, 3
"""Features a layer, features a block, and how often the same number of forwards is timed."""
PROMPTS_TOGETHER = 16
"""Prompts whose searches are handed over at once."""


def requests_of(maker: ShardMaker, n_prompts: int, n_requests: int, seed: int) -> list[Request]:
    """Pools of random features of every layer, from which one block after another is put back, prompt by prompt."""
    draw, numbers = np.random.default_rng(seed), list(maker.sae_loader)
    found: list[Request] = []
    while len(found) < n_requests:
        prompt = int(draw.integers(n_prompts))
        ids = [draw.choice(maker.sae_loader[number].width, POOL, replace=False) for number in numbers]
        saes, features = np.repeat(numbers, POOL), np.concatenate(ids)
        order = draw.permutation(len(saes))
        for left in range(len(saes), 0, -BLOCK):
            found.append(Request(prompt, FeatureSet.of(saes[order[:left]], features[order[:left]])))
    return found[:n_requests]


def stage2(report: Report, name: str, maker: ShardMaker, n_requests: int) -> None:
    """Ablated forwards a second, and on a GPU alone how long those of the whole paper would take at that rate, compiled too."""
    _stage2(report, name, maker, n_requests)
    if maker.subject.device.type == "cuda":
        compile_blocks(maker.subject.blocks)
        report.line("  with the blocks compiled (compute.compile):")
        _stage2(report, f"{name}_compiled", maker, n_requests)


def _stage2(report: Report, name: str, maker: ShardMaker, n_requests: int) -> None:
    device = maker.subject.device
    token_ids: Sequence[Sequence[int]] = [one.token_ids for one in maker.tokenized.values()]
    engine = AblationEngine(maker.subject, maker.sae_loader, token_ids)
    asked = [requests_of(maker, len(token_ids), n_requests, seed) for seed in range(TIMES + 1)]
    spent = []
    for requests in asked:
        start = time.perf_counter() if device.type == "cuda" else time.process_time()
        for first in range(0, len(requests), PROMPTS_TOGETHER * POOL):
            engine.next_token(requests[first : first + PROMPTS_TOGETHER * POOL])
        wait(device)
        spent.append((time.perf_counter() if device.type == "cuda" else time.process_time()) - start)
    seconds = float(np.median(spent[1:]))  # the first warms up
    report.line(f"  Stage 2: {n_requests:,} ablated forwards in {seconds:.2f} s, {n_requests / seconds:,.0f} a second")
    if device.type == "cuda":
        report.ratio(f"gpu_{name}_stage2_minutes", FORWARDS_OF_THE_PAPER * seconds / n_requests / 60, "<= 20")
    else:
        report.not_run(f"the projection to the paper's {FORWARDS_OF_THE_PAPER:,} forwards", "nothing is projected from a CPU")
