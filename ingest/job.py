"""The ingest job: prompts through the model and its SAEs into an `ingest` run, shard by shard."""

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from saelake.ingest.access import require_access
from saelake.ingest.fingerprint import fingerprint
from saelake.ingest.prompt_major import copy_by_prompt
from saelake.ingest.prompts import Prompt, content_hash, load_prompts
from saelake.ingest.recipe import Recipe
from saelake.ingest.recipe.sections import Role
from saelake.ingest.saes.refs import SaeRef, list_saes, numbered
from saelake.warehouse.progress import Quiet
from saelake.warehouse.records import Lake, RunRecord, RunSpec
from saelake.warehouse.runs import Compute, Plan, Rows, ensure_run, known
from saelake.warehouse.statistics import FeatureStatistics

if TYPE_CHECKING:
    from saelake.ingest.loaded import Loaded
    from saelake.ingest.shards import ShardMaker

CODE_VERSION = 3
OLDER_CODE = (2,)
"""Of version 1: these runs differ in how a token is spelt alone, and stand."""
TABLES = ("prompts", "tokens", "saes", "features", "activations")
SAES_SHARD = "saes"
Item = TypeVar("Item")


@dataclass(frozen=True)
class Study:
    """What a recipe names, found and fingerprinted; nothing is loaded on a device yet."""

    recipe: Recipe
    prompts: list[Prompt]
    saes: list[SaeRef]
    model_hash: str
    device: str
    """cpu, cuda or mps"""

    def numbers(self, split: str, role: Role | None = None) -> list[int]:
        """Places in `prompts` of the prompts of a split, and of the labels that are taken for a role if one is given."""
        return [i for i, p in enumerate(self.prompts) if p.split == split and role in (None, self.recipe.labels.role(p.label))]

    def role(self, prompt: int) -> Role:
        """What the label of a prompt is taken for, by its place in `prompts`."""
        return self.recipe.labels.role(self.prompts[prompt].label)

    @property
    def numbered_saes(self) -> dict[int, SaeRef]:
        """The SAEs by the numbers that arrays hold."""
        return numbered(self.saes)

    @property
    def sae_shards(self) -> dict[str, int]:
        """Names of shards of one SAE each -> its number: by layer, and where a layer has several by the SAE too."""
        found = self.numbered_saes
        several = Counter(ref.layer for ref in self.saes)
        return {
            f"layer-{ref.layer:02d}" + (f"-{ref.content_hash[:8]}" if several[ref.layer] > 1 else ""): number
            for number, ref in found.items()
        }

    @property
    def identity(self) -> dict[str, object]:
        """What every stage of the study depends on."""
        labels = self.recipe.section("labels")
        known = {"device": self.device, "dtype": self.recipe.model.dtype, "model_hash": self.model_hash}
        return known | ({"labels": labels} if labels else {})


def open_study(recipe: Recipe) -> Study:
    """Reads the prompt sets and fingerprints model and SAEs; raises UserError for whatever is missing or wrong."""
    from saelake.ingest.subject import load_tokenizer, resolve_device
    from saelake.ingest.template import ChatTemplate

    require_access(recipe.model)
    saes, model_hash = list_saes(recipe), fingerprint(recipe.model)
    template = ChatTemplate.of(load_tokenizer(recipe.model), recipe.model)
    prompts = load_prompts(recipe, template.identities)
    return Study(recipe, prompts, saes, model_hash, resolve_device(recipe.compute.device).type)


def ingest_spec(study: Study, lake: Lake | None = None) -> RunSpec:
    """Identity of the study's ingest run; in a lake also a run of an older version that has its content."""
    recipe = study.recipe
    config = study.identity | {
        "code": CODE_VERSION,
        "model": recipe.section("model"),
        "saes": recipe.section("saes") | {"names": [ref.name for ref in study.saes]},
        "prompts": recipe.section("prompts") | {"hash": content_hash(study.prompts)},
        "capture": recipe.section("capture"),
    }
    older = tuple({"code": code} for code in OLDER_CODE)
    spec = RunSpec("ingest", recipe.name, config, seed=recipe.compute.seed, about=recipe.about(), older=older)
    return spec if lake is None else known(lake)(spec)


def ingest(recipe: Recipe, lake: Lake, *, force: bool = False, progress: Quiet | None = None) -> RunRecord:
    """The published ingest run of a recipe: found, resumed or computed.

    Raises UserError for anything wrong with recipe, model, SAEs or prompts, before a forward pass is spent on it.
    """
    return ingest_study(open_study(recipe), lake, force=force, progress=progress)


def ingest_study(
    study: Study,
    lake: Lake,
    *,
    force: bool = False,
    progress: Quiet | None = None,
    compute: Compute | None = None,
    loaded: "Loaded | None" = None,
) -> RunRecord:
    """`ingest` for a study that is opened already.

    Args:
        compute: makes its shards elsewhere than in this process.
        loaded: the subject and SAEs of others in this process, who then have what it loads.
    """
    spec = ingest_spec(study, lake)
    plan = ingest_plan(study, spec=spec, parts=loaded)
    if compute is not None:
        plan = replace(plan, compute=compute)
    record = ensure_run(lake, spec, plan, force=force, progress=progress)
    if study.recipe.capture.prompt_major:
        copy_by_prompt(study.recipe.name, record, lake, progress)
    return record


def ingest_plan(
    study: Study, loaded: "ShardMaker | None" = None, spec: RunSpec | None = None, parts: "Loaded | None" = None
) -> Plan:
    """The shards of a study's ingest run, computed in this process; subject and SAEs are loaded for the first and then kept.

    Args:
        loaded: they are there already.
        spec: the run, if not the one of `ingest_spec(study)`.
        parts: subject and SAEs to be loaded into.
    """
    size = study.recipe.capture.shard_prompts
    shards = [SAES_SHARD] + [f"prompts-{start:07d}" for start in range(0, len(study.prompts), size)]

    @cache
    def maker() -> "ShardMaker":
        # torch is imported when there is work for it, so that finding a finished run stays quick.
        from saelake.ingest.shards import ShardMaker

        return loaded or ShardMaker(study, spec or ingest_spec(study), parts)

    def compute(missing: Sequence[str]) -> Iterator[tuple[str, list[Rows]]]:
        slices = {name: start for name in missing if name != SAES_SHARD for start in [int(name.removeprefix("prompts-"))]}
        ranges = [range(start, min(start + size, len(study.prompts))) for start in slices.values()]
        # Prompts first: their shards show whether the SAEs are the right ones.
        yield from zip(slices, maker().prompts(ranges), strict=True)
        if SAES_SHARD in missing:
            yield SAES_SHARD, maker().saes()

    tables = (*TABLES, "activations_by_prompt") if study.recipe.capture.prompt_major else TABLES
    return Plan(shards, lambda missing: one_ahead(compute(missing)), tables, completion=FeatureStatistics)


def one_ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The same items; while one is written, a thread computes the next."""
    with ThreadPoolExecutor(1) as worker:
        coming = worker.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = worker.submit(next, items, None)
            yield item


def prompt_ids(spec: RunSpec, n_prompts: int) -> np.ndarray:
    """(n_prompts,) int64: the ids that an ingest run gives its prompts, in their order."""
    return (spec.tag << 32) + np.arange(n_prompts, dtype=np.int64)
