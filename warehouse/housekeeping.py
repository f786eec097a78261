"""Taking things out of a lake: `drop` makes a run unknown, `gc` deletes what no run record lists."""

import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .catalog import changing_catalog
from .errors import UserError, storage_errors
from .records import Lake
from .store import is_draft, try_locked

GRACE_SECONDS = 15 * 60
"""How long files stay that a reader may still have open: those of a dropped run, by its older catalog."""


@dataclass(frozen=True)
class Garbage:
    """Something that no run record lists: a file or a folder, relative to the lake."""

    path: str
    n_bytes: int
    why: str


def drop(lake: Lake, run_id: str) -> None:
    """Takes a run out of the lake; its files stay for those who read them, until `gc`.

    Raises UserError if there is no such run, or if other runs depend on it.
    """
    with storage_errors(lake.root), changing_catalog(lake):
        path = lake.record_path(run_id)
        if path not in lake.record_paths():
            known = ", ".join(p.stem for p in lake.record_paths()) or "none"
            raise UserError(f"the lake {lake.root} has no run {run_id!r}; it has {known}")
        children = [p.stem for p in lake.record_paths() if p != path and run_id in lake.parents(p)]
        if children:
            raise UserError(f"run {run_id} is what {', '.join(children)} is computed from: drop that first")
        for folder in lake.data_folders(run_id):
            folder.touch()  # the grace period counts from here
        for (recipe, stage), current in lake.current().items():
            if current == run_id:
                lake.pointer(recipe, stage).unlink(missing_ok=True)
        path.unlink()


def gc(lake: Lake, *, dry_run: bool = False, older_than_seconds: float = GRACE_SECONDS, landings: bool = False) -> list[Garbage]:
    """Deletes what no run record lists and no living process works on; returns what it deleted.

    Args:
        dry_run: only says what it would delete.
        older_than_seconds: spares files of `data/` that are younger, or whose run was dropped more recently.
        landings: also deletes landed shards of runs that are not finished, which then start from nothing.
    Raises UserError if a run record is damaged, since then nobody knows what it lists.
    """
    deleted: list[Garbage] = []
    with storage_errors(lake.root):
        for run_id in sorted(_run_ids(lake)):
            with try_locked(lake.lock(run_id)) as is_free:
                if is_free:  # no living process computes or publishes it
                    for path, why in _garbage_of_run(lake, run_id, time.time() - older_than_seconds, landings):
                        deleted.append(_delete(lake, path, why, dry_run))
        with try_locked(lake.lock("catalog")) as is_free:
            if is_free:
                drafts = [p for part in ("*", "runs/*", "current/*/*") for p in lake.root.glob(part) if is_draft(p)]
                deleted += [_delete(lake, path, "a draft of a killed process", dry_run) for path in sorted(drafts)]
    return deleted


def _run_ids(lake: Lake) -> set[str]:
    return {
        _run_id(p.name)
        for folder in (lake.data, lake.root / "landing")
        for p in folder.glob("*")
        if is_draft(p) or p.name[0] != "."
    }


def _run_id(name: str) -> str:
    """The run that a folder of `data/` or `landing/` belongs to: `run`, `run-2`, `run.again`, or a draft `.run.1a2b3c4d`."""
    name = name[1:].rsplit(".", 1)[0] if name.startswith(".") else name
    return re.sub(r"-\d+$", "", name.removesuffix(".again"))


def _garbage_of_run(lake: Lake, run_id: str, before: float, landings: bool) -> Iterator[tuple[Path, str]]:
    """Paths that can go, for a run whose lock is held."""
    record = lake.record(run_id)
    listed = {lake.root / f.path for f in record.files} if record else set()
    yield from ((p, "a draft of a killed process") for p in sorted(lake.data.glob(f".{run_id}*")) if is_draft(p))
    for folder in lake.data_folders(run_id):
        if not any(folder in path.parents for path in listed):
            if max(p.stat().st_mtime for p in (folder, *folder.rglob("*"))) <= before:
                yield folder, "no run lists it"
            continue
        strays = (p for p in sorted(folder.rglob("*")) if p.is_file() and p not in listed)
        yield from ((p, "no run lists it") for p in strays if p.stat().st_mtime <= before)
    landing, again = lake.landing(run_id), lake.landing(f"{run_id}.again")
    if again.exists():
        yield again, "landed by a killed process, to be compared"
    if landing.exists():
        if record:
            yield landing, "landed for a run that is published"
        elif landings:
            yield landing, "landed for a run that is not finished"
        else:
            yield from ((p, "a draft of a killed process") for p in sorted(landing.glob(".*")))


def _delete(lake: Lake, path: Path, why: str, dry_run: bool) -> Garbage:
    files = [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]
    garbage = Garbage(path.relative_to(lake.root).as_posix(), sum(p.stat().st_size for p in files), why)
    if not dry_run:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    return garbage
