"""What a study will take on this machine, measured: a few of its prompts in each kind of pass that its stages are made of.

    trial = try_study(load_recipe("organism"), 12)
    sum(one.seconds for one in trial.stages)

How many passes of each kind there are is the plan's estimate. So a trial costs about eleven passes a prompt, five of them with
whole answers (twelve prompts: 135, and 60 of these), however large the study is, and no search is run. Nothing is kept.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from saelake.analysis.engine.requests import FeatureSet, Request
from saelake.analysis.study_context import StudyContext
from saelake.analysis.verbs import open_analysis
from saelake.ingest.capture import capture, nonzeros
from saelake.ingest.loading import resolve_device
from saelake.ingest.plan.estimate import StageTime
from saelake.ingest.plan.supposed import searched_layers, usual
from saelake.ingest.recipe import Recipe
from saelake.ingest.sites import Site
from saelake.warehouse.lake import Lake

SETS = 4
"""Sets of features ablated on each prompt: a study's batches hold several of one prompt, too."""
Asked = TypeVar("Asked", list[Request], list[list[int]], Tensor)


@dataclass(frozen=True)
class Kinds:
    """Seconds of one prompt, by kind of pass."""

    captured: float
    """Up to the highest SAE, every feature of every SAE read: what ingest does."""
    ablated: float
    """Above the lowest searched layer, for the next token."""
    answered: float
    """The same, with a whole answer."""


@dataclass(frozen=True)
class Tried:
    """One stage, at the measured seconds of its passes."""

    stage: str
    passes: int
    answers: int
    seconds: float


@dataclass(frozen=True)
class Trial:
    """A study's time, from a few passes of each kind."""

    n_prompts: int
    kinds: Kinds
    stages: list[Tried]
    memory: int
    """Peak bytes of main memory that the trial has taken; of a GPU's memory, where the study computes on one."""

    @property
    def seconds(self) -> float:
        """Expected of the whole study."""
        return sum(one.seconds for one in self.stages)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self) | {"seconds": self.seconds}


def try_study(recipe: Recipe, n: int, planned: Sequence[StageTime]) -> Trial:
    """What the study of a recipe will take.

    Args:
        n: prompts of the searched split that are tried; all, where there are fewer.
        planned: the stages of the study's plan.
    Raises UserError where model, SAEs or prompts are not here, as `analyze` does.
    """
    study = open_analysis(recipe)
    with tempfile.TemporaryDirectory() as folder:
        context = StudyContext(study, Lake.create(Path(folder, "lake")))
        searched = [i for role in ("target", "control") for i in study.prompts_of(recipe.candidates.split, role)]
        prompts = searched[:n]
        kinds = _measure(context, prompts)
        mean = float(np.mean([len(context.token_ids[p]) for p in prompts]))
        lowest, n_layers = min(searched_layers(recipe), default=0), context.subject.n_layers
    above = (n_layers - lowest) / n_layers
    stages = [Tried(one.work.stage, one.work.passes, one.work.answers, _seconds(one, kinds, above, mean)) for one in planned]
    return Trial(len(prompts), kinds, stages, _peak_memory(recipe))


def _seconds(planned: StageTime, kinds: Kinds, above: float, mean: float) -> float:
    """Of one stage; a pass through more layers, or of a longer text, takes as much more. Another model's stay an estimate."""
    work = planned.work
    if work.n_parameters is not None:
        return planned.hours * 3600
    if work.stage == "ingest":
        return work.passes * kinds.captured
    a_pass = kinds.ablated * work.share / above * (1.0 if work.length is None else work.length / mean)
    decoded = max(kinds.answered - kinds.ablated, 0.0)
    return work.waits * ((work.passes + work.answers) * a_pass + work.answers * decoded)


def _measure(context: StudyContext, prompts: Sequence[int]) -> Kinds:
    """Each kind of pass."""
    engine, recipe = context.engine, context.recipe
    n_new = recipe.generation.max_new_tokens
    requests = [Request(p, some) for p in prompts for some in _sets(context, SETS)]
    return Kinds(
        captured=_captured(context, prompts) / len(prompts),
        ablated=_timed(engine.next_token, requests) / len(requests),
        answered=_timed(lambda asked: engine.answer(asked, n_new), requests) / len(requests),
    )


def _captured(context: StudyContext, prompts: Sequence[int]) -> float:
    """Seconds as ingest takes them, but for the loading of SAEs, which many prompts share there."""
    settings, loader = context.recipe.capture, context.loaded.sae_loader
    reads, tokens = {number: sae.reads for number, sae in loader.items()}, [context.token_ids[p] for p in prompts]
    sites, resid = list(dict.fromkeys(reads.values())), dict[Site, Tensor]()

    def read(asked: list[list[int]]) -> None:
        resid.update(capture(context.subject, asked, sites, settings.batch_tokens, on_host=not loader.all_fit).resid)

    seconds = _timed(read, tokens)
    for number, site in reads.items():
        encode = partial(nonzeros, loader.whole(number), to_bfloat16=settings.round == "bfloat16")
        seconds += _timed(encode, resid[site])
    return seconds


def _timed(compute: Callable[[Asked], object], asked: Asked) -> float:
    """Seconds, after a first batch that is not timed: what is read once, and kept below the first edit."""
    compute(asked[::SETS])
    began = perf_counter()
    compute(asked)
    return perf_counter() - began


def _sets(context: StudyContext, n: int) -> Iterator[FeatureSet]:
    """Random sets with as many features of each searched SAE as a pool is supposed to have."""
    layers, rng = searched_layers(context.recipe), np.random.default_rng(context.recipe.compute.seed)
    saes = [number for number, ref in context.study.numbered_saes.items() if ref.layer in layers]
    k = max(1, usual(context.recipe).n_pool // len(layers))
    for _ in range(n):
        ids = [rng.choice(context.saes[number].width, min(k, context.saes[number].width), replace=False) for number in saes]
        yield FeatureSet.of(np.repeat(saes, [len(some) for some in ids]), np.concatenate(ids))


def _peak_memory(recipe: Recipe) -> int:
    import resource
    import sys

    import torch

    if resolve_device(recipe.compute.device).type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
