"""Taking things out of a lake: `drop` makes a run unknown, `gc` deletes what no run record lists."""

import difflib
import os
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from saelake.warehouse.catalog import LEFT_BEHIND, changing_catalog, recover_catalog
from saelake.warehouse.durable import is_dead_draft, is_draft, try_locked
from saelake.warehouse.errors import UserError, storage_errors
from saelake.warehouse.keys import data_key, record_key, run_of_folder
from saelake.warehouse.lake import Lake
from saelake.warehouse.storage import Storage

DROPPED = ".dropped"
"""A file beside those of a dropped run, from whose date their grace period counts."""
MOST_NAMED = 5
"""Runs that a sentence names."""


@dataclass(frozen=True)
class Garbage:
    """Something that no run record lists: a file or a folder, relative to the lake."""

    path: str
    n_bytes: int
    why: str


def drop(lake: Lake, run_id: str) -> bool:
    """Takes a run out of the lake; its files stay for those who read them, until `gc`.

    False if it was dropped already, as by a process that was killed then: what that one left undone is done.

    Raises UserError if there is no such run, or if other runs depend on it.
    """
    with storage_errors(lake), changing_catalog(lake):
        published = lake.run_ids()
        if run_id not in published:
            if any(lake.published.exists(f"{folder}/{DROPPED}") for folder in lake.data_folders(run_id)):
                return False
            close = difflib.get_close_matches(run_id, published, n=1)
            hint = f"did you mean {close[0]}?" if close else "`saelake runs` lists them"
            raise UserError(f"the lake {lake} has no run {run_id!r}: {hint}")
        children = [child for child in published if child != run_id and run_id in lake.parents(child)]
        if children:
            more = f" and {len(children) - MOST_NAMED} more" if len(children) > MOST_NAMED else ""
            named = ", ".join(children[:MOST_NAMED]) + more
            are = "is" if len(children) == 1 else "are"
            raise UserError(f"run {run_id} is what {named} {are} computed from: drop that first")
        for folder in lake.data_folders(run_id):
            lake.published.write(f"{folder}/{DROPPED}", "")
        for (recipe, stage), current in lake.current().items():
            if run_id in current:
                lake.point(recipe, stage, [one for one in current if one != run_id])
        lake.published.delete(record_key(run_id))
    return True


def gc(lake: Lake, *, dry_run: bool = False, older_than_seconds: float | None = None, landings: bool = False) -> list[Garbage]:
    """Deletes what no run record lists and no living process works on; returns what it deleted, or built again.

    Args:
        dry_run: only says what it would delete.
        older_than_seconds: spares files of `data/` that are younger, or whose run was dropped more recently; by default
            15 minutes, on S3 a day, since what another machine uploads there is not known by a lock.
        landings: also deletes landed shards of runs that are not finished, which then start from nothing.
    Raises UserError if a run record is damaged, since then nobody knows what it lists.
    """
    spared = lake.published.grace_seconds if older_than_seconds is None else older_than_seconds
    deleted: list[Garbage] = []
    with storage_errors(lake):
        for run_id, folders in sorted(_folders(lake).items()):
            with try_locked(lake.lock(run_id)) as is_free:
                if is_free:  # no living process of this machine computes or publishes it
                    for storage, key, why in _garbage_of_run(lake, run_id, folders, time.time() - spared, landings):
                        deleted.append(_delete(storage, key, why, dry_run))
        with try_locked(lake.lock("catalog")) as is_free:
            if is_free:
                parts = ("*", "runs/*", "current/*/*", "studies/*")
                drafts = [p for part in parts for p in lake.root.glob(part) if _is_left(p, part)]
                deleted += [_delete(lake.work, _key(lake, p), "a draft of a killed process", dry_run) for p in sorted(drafts)]
        if lake.stale.exists() if dry_run else recover_catalog(lake):
            deleted.append(Garbage(lake.catalog.name, 0, f"{LEFT_BEHIND}: built again"))
    return deleted


def _is_left(path: Path, part: str) -> bool:
    """Whether a killed process left a draft; on Windows no lock says so, but nothing here is written without the catalog's."""
    return is_draft(path) if os.name == "nt" and part != "studies/*" else is_dead_draft(path)


class _Folders(NamedTuple):
    """What `data/` has of a run, each time listed once for all runs; what goes or comes since is looked for again."""

    published: list[str]
    drafts: list[str]


def _folders(lake: Lake) -> dict[str, _Folders]:
    """run -> its folders, for every run that anything is left of, published or not."""
    found: dict[str, _Folders] = defaultdict(lambda: _Folders([], []))
    for name in lake.published.names("data"):
        if name[0] != ".":
            found[run_of_folder(name)].published.append(data_key(name))
    for name in lake.work.names("data"):
        if is_draft(Path(name)):
            found[run_of_folder(name)].drafts.append(data_key(name))
    for name in lake.work.names("landing"):
        if is_draft(Path(name)) or name[0] != ".":
            found[run_of_folder(name)]  # nothing in `data/` yet
    return found


def _garbage_of_run(
    lake: Lake, run_id: str, folders: _Folders, before: float, landings: bool
) -> Iterator[tuple[Storage, str, str]]:
    """Where, what and why can go, for a run whose lock is held."""
    record = lake.record(run_id)
    listed = {f.path for f in record.files} if record else set()
    yield from ((lake.work, key, "a draft of a killed process") for key in folders.drafts if (lake.root / key).exists())
    for folder in folders.published:
        entries = lake.published.entries(folder)
        if not entries and not lake.published.exists(folder):
            continue
        if not any(entry.key in listed for entry in entries):
            if max((entry.modified for entry in entries), default=0.0) <= before:
                yield lake.published, folder, "no run lists it"
            continue
        strays = (entry.key for entry in entries if entry.key not in listed and entry.modified <= before)
        yield from ((lake.published, key, "no run lists it") for key in strays)
    landing, again = lake.landing(run_id), lake.landing(f"{run_id}.again")
    if again.exists():
        yield lake.work, _key(lake, again), "landed by a killed process, to be compared"
    if landing.exists():
        if record and not record.withheld:  # else it is computed again, whole
            yield lake.work, _key(lake, landing), "landed for a run that is published"
        elif landings:
            yield lake.work, _key(lake, landing), "landed for a run that is not finished"
        else:
            yield from ((lake.work, _key(lake, p), "a draft of a killed process") for p in sorted(landing.glob(".*")))


def _key(lake: Lake, path: Path) -> str:
    return path.relative_to(lake.root).as_posix()


def _delete(storage: Storage, key: str, why: str, dry_run: bool) -> Garbage:
    garbage = Garbage(key, sum(entry.n_bytes for entry in storage.entries(key)), why)
    if not dry_run:
        storage.delete(key)
    return garbage
