"""The runs that a study's ingest is made of: one for every prompt set, and one for every prompt set and SAE.

Each is known by what determines it: the prompts of a set, their labels, the model and how it reads them; beside these one SAE,
the kind of device and how values are rounded. A study that grows by a set or an SAE finds the runs of all the others; one that
only counts other first tokens as its behaviour finds them all. Studies share what they have in common. Version 1 had one run for
all prompts and SAEs of a study: where that one holds nothing else, it stands for them.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, NamedTuple, TypeVar

import numpy as np

from saelake.ingest.prompts import Prompt, content_hash
from saelake.ingest.saes.refs import SaeRef
from saelake.ingest.study import Study
from saelake.warehouse.durable import canonical_json, sha256_text
from saelake.warehouse.errors import UserError
from saelake.warehouse.files import DataFile
from saelake.warehouse.lake import Lake
from saelake.warehouse.records import RunRecord, RunSpec, run_tag
from saelake.warehouse.runs import whole_run

PROMPTS, ACTIVATIONS = "prompts", "activations"
"""The stages."""
OLDER = "ingest"
"""The stage of version 1 that was both."""
STAGES = (PROMPTS, ACTIVATIONS, OLDER)
CODE_VERSION = {PROMPTS: 1, ACTIVATIONS: 1}
OLDER_CODE = (2, 3)
"""Code versions of `ingest` whose runs still count: 2 differs from 3 only in how the text of a token is written."""
Places = TypeVar("Places", range, Sequence[int])
"""Of prompts in the study: those of a set lie together."""


def prompt_shards(prompts: Places, size: int) -> dict[str, Places]:
    """Slices of some prompts, by shard name, which says where they end too: landed slices of another size are not these."""
    starts = range(0, len(prompts), size)
    return {f"prompts-{start:07d}-{min(start + size, len(prompts)):07d}": prompts[start : start + size] for start in starts}


@dataclass(frozen=True)
class SetRuns:
    """One prompt set of a study, and the runs that hold it."""

    name: str
    prompt_numbers: range
    """The places of its prompts in the study."""
    first_id: int
    """prompt_id of the first; the others follow one by one."""
    prompts: RunSpec
    activations: Mapping[int, RunSpec]
    """Number of an SAE -> the run with what fires."""

    @property
    def holds_target_tokens(self) -> bool:
        """Whether the target tokens are part of what its run is known by, as in version 1."""
        return self.prompts.known_as is not None

    def shards(self, size: int) -> dict[str, range]:
        """Slices of the set: names of shards -> places of their prompts in the study."""
        return prompt_shards(self.prompt_numbers, size)

    @property
    def run_ids(self) -> list[str]:
        """Of all its runs; parents first."""
        return list(dict.fromkeys([self.prompts.run_id, *(spec.run_id for spec in self.activations.values())]))


@dataclass(frozen=True)
class Ingested:
    """The published runs of a study's ingest."""

    records: tuple[RunRecord, ...]

    @property
    def run_ids(self) -> list[str]:
        return [record.run_id for record in self.records]

    def n_rows(self, table: str) -> int:
        """The rows that all runs together have of a table."""
        return sum(record.n_rows(table) for record in self.records)

    @property
    def files(self) -> list[DataFile]:
        """The files of all runs."""
        return [file for record in self.records for file in record.files]

    @property
    def content_hash(self) -> str:
        """Equal for equal content, whatever the runs are called."""
        return sha256_text("".join(record.content_hash for record in self.records))


def ingest_runs(study: Study, lake: Lake | None = None) -> list[SetRuns]:
    """The runs that a study asks for, set by set; in a lake, also those of version 1 that hold the same."""
    place, found = 0, []
    for name, group in groupby(study.prompts, key=lambda prompt: prompt.set):
        prompts = list(group)
        found.append(_runs(study, name, range(place, place + len(prompts)), prompts))
        place += len(prompts)
    return found if lake is None else [_as_published(one, older) for older in [_older(study, lake, found)] for one in found]


def _runs(study: Study, name: str, prompt_numbers: range, prompts: Sequence[Prompt]) -> SetRuns:
    recipe, whole = study.recipe, study.recipe.about()
    digest = content_hash(prompts)
    config: dict[str, Any] = {
        "code": CODE_VERSION[PROMPTS],
        "model": recipe.section("model"),
        "model_hash": study.model_hash,
        "set": name,
        "hash": digest,
    }
    config |= {"labels": labels} if (labels := recipe.section("labels")) else {}
    about = whole | {"prompts": [one for one in whole["prompts"] if one["set"] == name]}
    spec = RunSpec(PROMPTS, recipe.name, config, about=about)
    parts = {"behaviour": whole["behaviour"], "model": whole["model"], "saes": whole["saes"]}
    activations = {}
    for number, ref in study.numbered_saes.items():
        config = study.identity | {
            "code": CODE_VERSION[ACTIVATIONS],
            "set": name,
            "hash": digest,
            "sae": {"name": ref.name, "sae_id": ref.sae_id, "declared_l0": ref.declared_l0},
            "round": recipe.capture.round,
        }
        activations[number] = RunSpec(ACTIVATIONS, recipe.name, config, (spec.run_id,), about=parts)
    return SetRuns(name, prompt_numbers, spec.tag << 32, spec, activations)


class _Older(NamedTuple):
    """A run of version 1."""

    run_id: str
    first_ids: dict[str, int]
    """prompt set -> prompt_id of its first prompt"""
    saes: frozenset[str]
    """Names of its SAEs."""


def _as_published(one: SetRuns, older: Sequence[_Older]) -> SetRuns:
    """The runs of a set, with a run of version 1 in the place of those that it holds."""
    stands = next((run for run in older if one.name in run.first_ids), None)
    if stands is None:
        return one
    activations = {
        number: replace(spec, known_as=stands.run_id)
        if spec.config["sae"]["name"] in stands.saes
        else replace(spec, parents=(stands.run_id,))
        for number, spec in one.activations.items()
    }
    prompts = replace(one.prompts, known_as=stands.run_id)
    return replace(one, first_id=stands.first_ids[one.name], prompts=prompts, activations=activations)


def _older(study: Study, lake: Lake, sets: Sequence[SetRuns]) -> list[_Older]:
    """Runs of version 1 that hold prompt sets and SAEs of the study and nothing else, no set twice."""
    candidates = [run_id for run_id in lake.run_ids() if run_id.startswith(f"{OLDER}_")]
    pointers = lake.current() if candidates else {}
    current = {one for stage in STAGES for one in pointers.get((study.recipe.name, stage), ())}
    taken = {one.name for one in sets if one.prompts.run_id in current}  # the study has these as runs of their own
    found = []
    for run_id in sorted(candidates, key=lambda one: (one not in current, one)):
        record = None
        with suppress(UserError):  # a damaged record is reported where it is used
            record = lake.record(run_id)
        held = _held(study, record, sets) if record and not record.withheld else None
        if held and not taken & held.first_ids.keys():
            found.append(held)
            taken |= held.first_ids.keys()
    return found


def _held(study: Study, record: RunRecord, sets: Sequence[SetRuns]) -> _Older | None:
    """What a run of version 1 holds; None if that is not what the study would compute, or is more."""
    config = record.config_now
    recipe, model = study.recipe, dict(config.get("model", {}))
    model.pop("max_prompt_tokens", None)
    asked = study.identity | {"capture": {"round": recipe.capture.round}}
    asked |= {"model": recipe.section("model") | {"refusal_tokens": recipe.model.refusal_tokens}}
    if config.get("code") not in OLDER_CODE or any(
        canonical_json((config | {"model": model}).get(name)) != canonical_json(value) for name, value in asked.items()
    ):
        return None
    by_name, refs = {one.name: one for one in sets}, {ref.name: ref for ref in study.saes}
    names = [one["set"] for one in config["prompts"]["sets"]]
    held = [study.prompts[i] for name in names if name in by_name for i in by_name[name].prompt_numbers]
    if not by_name.keys() >= set(names) or content_hash(held) != config["prompts"]["hash"]:
        return None
    if not all(name in refs and _declares(config["saes"], refs[name]) for name in config["saes"]["names"]):
        return None
    sizes = [len(by_name[name].prompt_numbers) for name in names]
    first = run_tag(record.run_id) << 32
    starts = np.cumsum([0, *sizes[:-1]]).tolist()
    return _Older(record.run_id, {n: first + s for n, s in zip(names, starts, strict=True)}, frozenset(config["saes"]["names"]))


def _declares(section: Mapping[str, Any], ref: SaeRef) -> bool:
    """Whether a recipe's section, as a run of version 1 holds it, declares the L0 that an SAE has, or leaves it to SAELens."""
    for group in section.get("groups", [section]):
        declared = group.get("l0")
        if declared is not None and ref.layer in group["layers"]:
            value = declared[group["layers"].index(ref.layer)] if isinstance(declared, list) else declared
            if value == ref.declared_l0:
                return True
    silent = all(group.get("l0") is None or ref.layer not in group["layers"] for group in section.get("groups", [section]))
    return silent and (ref.declared_l0 is None or ref.release is not None)


def is_ingested(study: Study, lake: Lake) -> bool:
    """Whether a lake has all of a study's prompts and activations."""
    return all(whole_run(lake, run_id) for one in ingest_runs(study, lake) for run_id in one.run_ids)


def prompt_ids(sets: Sequence[SetRuns]) -> np.ndarray:
    """(n_prompts,) int64: the ids of a study's prompts, in their order."""
    return np.concatenate([one.first_id + np.arange(len(one.prompt_numbers), dtype=np.int64) for one in sets])


def ingest_key(study: Study, sets: Sequence[SetRuns]) -> RunSpec:
    """What stands for all runs of an ingest together, to be compared between machines; no such run is published."""
    return RunSpec(OLDER, study.recipe.name, {"runs": [run_id for one in sets for run_id in one.run_ids]})
