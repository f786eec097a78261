"""Which prompt sets are restricted: their text is not passed on. Recipes mark them; records of the runs with prompts say so."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from saelake.warehouse.catalog import changing_catalog
from saelake.warehouse.errors import storage_errors
from saelake.warehouse.lake import Lake
from saelake.warehouse.records import RunRecord


def restricted_sets(about: Iterable[Mapping[str, Any]]) -> set[str]:
    """The prompt sets that recipes mark as restricted, from what the records of runs tell of them."""
    return {one["set"] for told in about for one in told.get("prompts", ()) if one.get("restricted")}


def restrict(lake: Lake, asked: Mapping[str, str]) -> None:
    """Marks prompt sets, set -> the published run that has it, whose recipe marks them only now.

    A mark is not in a run's identity, and stays: another recipe of the same prompts, without it, does not take it away.
    """
    if not any(_without(lake, run_id, name) for name, run_id in asked.items()):
        return
    with storage_errors(lake), changing_catalog(lake):
        for name, run_id in asked.items():
            if record := _without(lake, run_id, name):
                told = {one["set"]: one for one in record.about.get("prompts", ())}
                told[name] = told.get(name, {"set": name}) | {"restricted": True}
                lake.publish(replace(record, about={**record.about, "prompts": list(told.values())}))


def _without(lake: Lake, run_id: str, name: str) -> RunRecord | None:
    """The record of a run, unless it marks the set or another process has dropped it."""
    record = lake.record(run_id)
    return None if record is None or name in restricted_sets([record.about]) else record
