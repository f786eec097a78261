"""What a lake holds of a stage, and why the rest is to be computed."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from saelake.ingest.prompt_major import STAGE as COPY
from saelake.ingest.prompt_major import copy_spec
from saelake.ingest.runs import ACTIVATIONS, PROMPTS, STAGES, SetRuns
from saelake.ingest.study import Study
from saelake.warehouse.lake import Lake
from saelake.warehouse.records import RunRecord, RunSpec
from saelake.warehouse.runs import whole_run
from saelake.warehouse.schema import SCHEMA_VERSION

Pointers = Mapping[tuple[str, str], Sequence[str]]
"""(study, stage) -> current runs"""
COMPILED = "compiled"
"""The field that stands in a run's configuration only where it is true."""
OLDER_VERSION = "published by an older version of saelake, with the content that the recipe asks for"


@dataclass(frozen=True)
class StageStatus:
    """One stage of a recipe in a lake, as `saelake status` shows it."""

    stage: str
    run_id: str
    """Of a stage with several runs their number."""
    state: str
    """done, resumable (some shards are landed), to do, or unknown (its classifier cannot be found)"""
    why: str


def landed_shards(lake: Lake, run_id: str) -> int:
    """How many shards a process that was stopped has landed for a run."""
    landing = lake.landing(run_id)
    return sum(1 for p in landing.iterdir() if p.is_dir() and p.name[0] != ".") if landing.is_dir() else 0


def ingest_status(study: Study, lake: Lake, sets: Sequence[SetRuns], current: Pointers) -> list[StageStatus]:
    """What there is of a study's prompts and activations, and what is new."""
    before = [
        record for stage in STAGES for run_id in current.get((study.recipe.name, stage), ()) if (record := lake.record(run_id))
    ]
    prompts = [one.prompts for one in sets]
    activations = [spec for one in sets for spec in one.activations.values()]
    found = [
        stage_status(PROMPTS, prompts, lake, lambda missing: _new_sets(missing, before)),
        stage_status(ACTIVATIONS, activations, lake, lambda missing: _new_activations(missing, before, len(activations))),
    ]
    if study.recipe.capture.prompt_major:
        records = [record for spec in activations if (record := whole_run(lake, spec.run_id))]
        if copies := [copy for record in records if (copy := copy_spec(study.recipe.name, record))]:
            found.append(stage_status(COPY, copies, lake, lambda _: "never computed"))
    return found


def stage_status(stage: str, specs: Sequence[RunSpec], lake: Lake, why: Callable[[Sequence[RunSpec]], str]) -> StageStatus:
    """Of a stage with these runs; `why` says why some are missing."""
    run_ids = list(dict.fromkeys(spec.run_id for spec in specs))
    name = run_ids[0] if len(run_ids) == 1 else f"{len(run_ids)} runs"
    missing = [spec for spec in specs if whole_run(lake, spec.run_id) is None]
    if not missing:
        return StageStatus(stage, name, "done", OLDER_VERSION if any(spec.known_as for spec in specs) else "")
    if n_landed := sum(landed_shards(lake, spec.run_id) for spec in missing):
        return StageStatus(stage, name, "resumable", f"{n_landed} shards landed")
    return StageStatus(stage, name, "to do", why(missing))


def _new_sets(missing: Sequence[RunSpec], before: Sequence[RunRecord]) -> str:
    """Which prompt sets are new, and what has changed about the others."""
    if not before:
        return "never computed"
    there = {one.config["set"]: one.config for one in before if one.stage == PROMPTS}
    there |= {one["set"]: record.config for record in before for one in record.config.get("prompts", {}).get("sets", ())}
    new = [spec.config["set"] for spec in missing if spec.config["set"] not in there]
    changed = [
        f"changed: {_which_changed(name, spec.config, there[name])}" for spec in missing if (name := spec.config["set"]) in there
    ]
    return "; ".join(([f"new: {', '.join(new)}"] if new else []) + changed) or "added without some of their tables"


def _which_changed(name: str, config: Mapping[str, Any], previous: Mapping[str, Any]) -> str:
    fields = [field for field in ("model", "model_hash", "labels") if config.get(field) != previous.get(field)]
    return f"{name} ({', '.join(fields) or 'its prompts'})"


def _new_activations(missing: Sequence[RunSpec], before: Sequence[RunRecord], n_asked: int) -> str:
    """What would be computed: for which SAEs, on which sets."""
    if not before:
        return "never computed"
    by_saes: dict[tuple[str, ...], list[str]] = {}
    names: dict[str, list[str]] = {}
    for spec in missing:
        names.setdefault(spec.config["set"], []).append(spec.config["sae"]["sae_id"])
    for name, sae_ids in names.items():
        by_saes.setdefault(tuple(sae_ids), []).append(name)
    parts = [f"{_counted(saes, 'SAE')} on {_counted(on, 'prompt set')}" for saes, on in by_saes.items()]
    old = {record.config.get("set") for record in before if record.stage == ACTIVATIONS}
    settings = _settings(missing, before) if old & names.keys() else []
    ending = f"; changed: {', '.join(settings)}" if settings else ""
    return f"{len(missing):,} of {n_asked:,} are missing: {', '.join(parts)}{ending}"


def _settings(missing: Sequence[RunSpec], before: Sequence[RunRecord]) -> list[str]:
    """What has changed of what all activations depend on."""
    old = [record.config for record in before if record.stage == ACTIVATIONS]
    fields = ("device", "dtype", COMPILED, "model_hash", "code", "round")
    found = [field for field in fields if not any(config.get(field) == missing[0].config.get(field) for config in old)]
    there = {(one.config["set"], one.config["sae"]["name"]): one for one in before if one.stage == ACTIVATIONS}
    same = [(spec, there[key]) for spec in missing if (key := (spec.config["set"], spec.config["sae"]["name"])) in there]
    found += ["declared L0"] if any(spec.config["sae"] != one.config["sae"] for spec, one in same) else []
    return found + (["run of prompts"] if any(set(spec.parents) != set(one.parents) for spec, one in same) else [])


def _counted(names: Iterable[str], what: str) -> str:
    """One by its name, several by their number."""
    listed = list(names)
    return f"{what} {listed[0]}" if len(listed) == 1 else f"{len(listed)} {what}s"


class _Held(NamedTuple):
    """What a run of prompts, or of activations, holds; one of version 1 holds many such."""

    set: str
    sae: str | None
    """The exact name of its SAE; None for the prompts themselves."""


_Read = Mapping[_Held, tuple[str, Mapping[str, Any]]]
"""What a stage reads of prompts and activations -> run_id and configuration of the run that holds it"""
_MANY = 4
"""More prompt sets or SAEs than these are counted."""


def changes(spec: RunSpec, previous: RunRecord | None, known: Mapping[str, RunSpec], sets: Sequence[SetRuns], lake: Lake) -> str:
    """Why the current run of a stage is not the one that the recipe asks for: all that its identity holds is compared.

    Args:
        known: the stages of the study; what else a stage reads are prompts and activations.
        sets: which those are.
    """
    if previous is None:
        return "never computed"
    if previous.run_id == spec.run_id:
        return f"added without {', '.join(previous.withheld)}"
    asked = {held: run for held, run in _held_by_sets(sets).items() if run[0] in spec.parents}
    before = _held_by_runs(lake, previous.parents)
    parts = [f"new: {added}"] if (added := _named(asked, before)) else []
    parts += [f"no more: {left}"] if (left := _named(before, asked)) else []
    changed = _other_settings(spec, previous) + _other_runs(asked, before)
    changed += [f"run of {name}" for name, one in known.items() if one.run_id in set(spec.parents) - set(previous.parents)]
    parts += [f"changed: {', '.join(changed)}"] if changed else []
    return "; ".join(parts) or "changed: the order of prompt sets or SAEs"


def _held_by_sets(sets: Sequence[SetRuns]) -> _Read:
    specs = [spec for one in sets for spec in (one.prompts, *one.activations.values())]
    return {held: (spec.run_id, spec.config) for spec in specs for held in _held(spec.config)}


def _held_by_runs(lake: Lake, run_ids: Sequence[str]) -> _Read:
    records = [record for one in run_ids if one.rpartition("_")[0] in STAGES and (record := lake.record(one))]
    return {held: (record.run_id, record.config) for record in records for held in _held(record.config)}


def _held(config: Mapping[str, Any]) -> list[_Held]:
    if "set" in config:
        return [_Held(config["set"], config["sae"]["name"] if "sae" in config else None)]
    return [_Held(one["set"], name) for one in config["prompts"]["sets"] for name in (None, *config["saes"]["names"])]


def _named(these: _Read, others: _Read) -> str:
    """The prompt sets and SAEs that only these have."""
    sets = dict.fromkeys(one.set for one in these if one.set not in {other.set for other in others})
    known = {other.sae for other in others} | {None}
    saes = {one.sae: config.get("sae", {}).get("sae_id", one.sae) for one, (_, config) in these.items() if one.sae not in known}
    return ", ".join(_all(names, what) for names, what in ((sets, "prompt set"), (saes.values(), "SAE")) if names)


def _all(names: Collection[str], what: str) -> str:
    """All by their names, many by their number."""
    several = what if len(names) == 1 else f"{what}s"
    return f"{len(names)} {several}" if len(names) > _MANY else f"{several} {', '.join(names)}"


def _other_runs(asked: _Read, before: _Read) -> list[str]:
    """What is read of the same prompt sets and SAEs as before, and is something else by now."""
    found: dict[str, None] = {}
    other = [held for held in asked if held in before and asked[held][0] != before[held][0]]
    sets = {held.set for held in other if held.sae is None}
    for held in other:
        (_, config), (_, previous) = asked[held], before[held]
        if held.sae is None:
            found[f"prompt set {_which_changed(held.set, config, previous)}"] = None
        elif held.set not in sets:
            known = (*(field for field in config if field in previous and field != COMPILED), COMPILED)
            fields = [field for field in known if config.get(field) != previous.get(field)]
            found[f"activations ({', '.join(fields)})" if fields else "activations"] = None
    return list(found)


def _other_settings(spec: RunSpec, previous: RunRecord) -> list[str]:
    """The fields of the recipe, and whatever else a stage depends on, that are not as they were; a judge by its name."""
    before, found = previous.config_now, ["seed"] if previous.seed != spec.seed else []
    for name, value in spec.config.items():
        was = before.get(name)
        if value == was:
            continue
        if not isinstance(value, dict) or not isinstance(was, dict):
            found.append(name)
        elif name == "verdicts" and value["name"] != was["name"]:
            found.append(f"oracle ({value['name']}, was {was['name']})")
        else:
            found += [f"{name}.{field}" for field in {**value, **was} if value.get(field) != was.get(field)]
    return found + [name for name in before if name not in spec.config and previous.schema_version == SCHEMA_VERSION]
