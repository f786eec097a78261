"""The processes in which Ray computes for this one: what kills them has to find them."""

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path


def worker_pids() -> set[int]:
    """Processes that compute a shard for this one's cluster."""
    parents, found = dict[int, int](), set[int]()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if (folder / "cmdline").read_bytes().startswith(b"ray::Worker"):
                found.add(int(folder.name))
    return {pid for pid in found if os.getpid() in _ancestors(pid, parents)}


def _ancestors(pid: int, parents: Mapping[int, int]) -> Iterator[int]:
    while pid := parents.get(pid, 0):
        yield pid
