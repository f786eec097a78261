"""What a study will take on this machine, measured: its first prompts are analysed twice, the second time twice as many of them.

    trial = try_study(load_recipe("organism"), 12)
    sum(one.seconds for one in trial.stages)

What a stage takes is a part that any study takes and a part for each prompt that it reads. Two sizes tell them apart. A study of
the smaller size goes before them, untimed, for what a process loads once. Nothing is kept.
"""

import tempfile
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from time import perf_counter
from typing import Any

from saelake.analysis.stages import analyze_study, open_analysis, stages
from saelake.ingest.loading import resolve_device
from saelake.ingest.recipe import Recipe
from saelake.ingest.runs import STAGES, ingest_runs
from saelake.ingest.study import Study
from saelake.warehouse.errors import UserError
from saelake.warehouse.progress import Quiet
from saelake.warehouse.records import Lake, RunRecord

INGEST = "ingest"
"""How the runs of prompts and activations are called together."""
BETWEEN = "between stages"
"""What belongs to none: loading, opening the lake."""


@dataclass(frozen=True)
class Measured:
    """One stage: what it took on few prompts and on twice as many, and is expected to take on all."""

    stage: str
    few: float
    """Seconds."""
    more: float
    n_prompts: int
    """That it reads in the whole study."""
    seconds: float
    """Expected of the whole study."""


@dataclass(frozen=True)
class Trial:
    """A study's time, bytes and memory, from two small ones."""

    limits: tuple[int, int]
    """Prompts of each set, label and split."""
    stages: list[Measured]
    n_bytes: int
    """Of the whole study's lake, expected."""
    memory: int
    """Peak bytes of main memory that the larger trial has taken; of a GPU's memory, where the study computes on one."""

    @property
    def seconds(self) -> float:
        """Expected of the whole study."""
        return sum(one.seconds for one in self.stages)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self) | {"seconds": self.seconds}


@dataclass(frozen=True)
class _Small:
    """One of the two small studies, as it went."""

    prompts: dict[str, int]
    """Stage -> prompts that it reads."""
    seconds: dict[str, float]
    n_bytes: int


def try_study(recipe: Recipe, few: int, *, progress: Quiet | None = None) -> Trial:
    """What the study of a recipe will take.

    Args:
        few: prompts of each set, label and split in the first small study; the second has twice as many.
    Raises UserError where model, SAEs or prompts are not here, or where so few prompts show no direction, as `analyze` does.
    """
    study = open_analysis(recipe)
    if max(Counter((one.set, one.label, one.split) for one in study.prompts).values()) <= few:
        raise UserError(f"a trial of {few}: no set, label and split of {recipe.name} has more prompts: analyse it whole")
    whole = _prompts_read(study)
    _, first, second = (_run(recipe.limit(n), progress) for n in (few, few, 2 * few))
    measured = [
        Measured(name, took, second.seconds[name], whole[name], _expected(name, first, second, whole))
        for name, took in first.seconds.items()
    ]
    n_bytes = _line((first.prompts[INGEST], second.prompts[INGEST]), (first.n_bytes, second.n_bytes), whole[INGEST])
    return Trial((few, 2 * few), measured, round(n_bytes), _peak_memory(recipe))


def _expected(name: str, first: _Small, second: _Small, whole: Mapping[str, int]) -> float:
    return _line((first.prompts[name], second.prompts[name]), (first.seconds[name], second.seconds[name]), whole[name])


def _line(sizes: tuple[int, int], values: tuple[float, float], at: int) -> float:
    """The line through two measurements, at a third size; it neither falls nor begins below nothing."""
    (small, large), (low, high) = sizes, values
    slope = max(high - low, 0.0) / (large - small) if large > small else 0.0
    slope = min(slope, high / large)
    return high + slope * (at - large)


def _run(recipe: Recipe, progress: Quiet | None) -> _Small:
    with tempfile.TemporaryDirectory() as folder:
        began = perf_counter()
        study = open_analysis(recipe)
        records = analyze_study(study, Lake.create(Path(folder, "lake")), progress=progress)
        took = perf_counter() - began
    seconds = _seconds(records)
    seconds[BETWEEN] = max(took - sum(seconds.values()), 0.0)
    return _Small(_prompts_read(study), seconds, sum(file.n_bytes for record in records for file in record.files))


def _seconds(records: Sequence[RunRecord]) -> dict[str, float]:
    """Stage -> how long its runs took."""
    found: defaultdict[str, float] = defaultdict(float)
    for record in records:
        name = INGEST if record.stage in STAGES else record.stage
        found[name] += (datetime.fromisoformat(record.finished) - datetime.fromisoformat(record.started)).total_seconds()
    return dict(found)


def _prompts_read(study: Study) -> dict[str, int]:
    """Stage -> prompts that it reads."""
    sets, found = ingest_runs(study), {INGEST: len(study.prompts), BETWEEN: len(study.prompts)}
    for stage in stages(study.recipe):
        splits = None if stage.splits is None else set(stage.splits(study.recipe))
        numbers = [i for one in stage.reads(study, sets) for i in one.prompt_numbers]
        found[stage.name] = sum(splits is None or study.prompts[i].split in splits for i in numbers)
    return found


def _peak_memory(recipe: Recipe) -> int:
    import resource
    import sys

    import torch

    if resolve_device(recipe.compute.device).type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
