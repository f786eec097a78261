"""What of a study a lake holds, and what would be computed: its prompts and activations, which are many runs each."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from saelake.ingest.prompt_major import STAGE as COPY
from saelake.ingest.prompt_major import copy_spec
from saelake.ingest.runs import ACTIVATIONS, PROMPTS, STAGES, SetRuns
from saelake.ingest.study import Study
from saelake.warehouse.records import Lake, RunRecord, RunSpec
from saelake.warehouse.runs import whole_run

Pointers = Mapping[tuple[str, str], Sequence[str]]
"""(study, stage) -> current runs"""
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
        _changed(spec.config["set"], spec.config, there[spec.config["set"]]) for spec in missing if spec.config["set"] in there
    ]
    return "; ".join(([f"new: {', '.join(new)}"] if new else []) + changed) or "added without some of their tables"


def _changed(name: str, config: Mapping[str, Any], previous: Mapping[str, Any]) -> str:
    fields = [field for field in ("model", "model_hash") if config[field] != previous.get(field)]
    return f"changed: {name} ({', '.join(fields) or 'its prompts'})"


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
    fields = ("device", "dtype", "model_hash", "code", "round")
    return [field for field in fields if not any(config.get(field) == missing[0].config[field] for config in old)]


def _counted(names: Iterable[str], what: str) -> str:
    """One by its name, several by their number."""
    listed = list(names)
    return f"{what} {listed[0]}" if len(listed) == 1 else f"{len(listed)} {what}s"
