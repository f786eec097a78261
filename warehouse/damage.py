"""Pointers and files of a lake that are not as they were published. Readers refuse what is built on them, and say why."""

import re
from collections.abc import Iterable, Mapping, Sequence

from saelake.warehouse.errors import WITHOUT
from saelake.warehouse.files import DataFile
from saelake.warehouse.keys import pointer_key
from saelake.warehouse.lake import POINTER_IS_FOLDER, Lake
from saelake.warehouse.records import RunRecord

HINT = "`saelake check` says what to do"


def pointer_damage(
    pointers: Mapping[tuple[str, str], Sequence[str]], stages: Mapping[str, str | None]
) -> dict[tuple[str, str], str]:
    """What is wrong with pointers, (recipe, stage) -> run_ids, where `stages` has each published run's stage, if it is known."""
    found = {(recipe, stage): _damage(stage, run_ids, stages) for (recipe, stage), run_ids in pointers.items()}
    return {key: what for key, what in found.items() if what}


def _damage(stage: str, run_ids: Sequence[str], stages: Mapping[str, str | None]) -> str | None:
    for run_id in run_ids:
        if run_id == POINTER_IS_FOLDER:
            return "it is a folder"
        if not run_id:
            return "it is empty"
        if not re.fullmatch(r"[\w.-]{1,200}", run_id):
            return "it holds no run's id"
        if run_id not in stages:
            return f"it points to run {run_id}, which is not in the lake"
        if stages[run_id] not in (None, stage):
            return f"it points to run {run_id}, which is of stage {stages[run_id]}"
    return None


def pointer_sentence(key: tuple[str, str], what: str) -> str:
    """What to say where a damaged pointer is needed."""
    recipe, stage = key
    fix = f"delete it and repeat stage {stage} of recipe {recipe}; {HINT}"
    return f"the pointer {pointer_key(recipe, stage)} is damaged ({what}): {fix}"


def file_damage(lake: Lake, files: Iterable[DataFile]) -> dict[str, str]:
    """path -> what is wrong, of published files that are missing or of another size. Their content is `check`'s to read."""
    files = list(files)
    sizes = lake.published.sizes([f.path for f in files])
    found = {f.path: f"has {sizes[f.path]:,} bytes, published were {f.n_bytes:,}" for f in files if f.path in sizes}
    return {f.path: found.get(f.path, "is missing") for f in files if sizes.get(f.path) != f.n_bytes}


def withheld_sentence(table: str, records: Iterable[RunRecord]) -> str | None:
    """What to say of a table that shared runs left out; None if none of them did."""
    without = [r for r in records if table in r.withheld]
    if not without:
        return None
    first = without[0]
    more = f" (and {len(without) - 1} more)" if len(without) > 1 else ""
    left_out = ", ".join(name for name in first.withheld if "." not in name)
    return (
        f"{table} is not here: run {first.run_id}{more}{WITHOUT}{left_out}; ask who shared it, "
        f"or `saelake analyze` its recipe, which computes it whole"
    )
