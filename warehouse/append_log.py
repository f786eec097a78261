"""A durable append log: what is written bit by bit, one JSON object per line, until it is published as a run.

An entry is there once `append` returns, whatever happens then; a line that a killed process left unfinished is not one.
"""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saelake.warehouse.durable import canonical_json, locked, open_regular, sync_folder
from saelake.warehouse.errors import UserError

Entry = Mapping[str, Any]
BINARY = getattr(os, "O_BINARY", 0)
"""Windows would write \\r\\n for the end of a line."""


@dataclass(frozen=True)
class AppendLog:
    """A log file, and the lock that lets one process at a time append to it."""

    path: Path
    lock: Path

    def entries(self) -> list[Entry]:
        """All entries in the order they were appended; raises UserError for a line that is none."""
        try:
            with open_regular(self.path) as log:
                lines = log.read().split(b"\n")[:-1]  # behind the last end of line: nothing, or an unfinished entry
        except FileNotFoundError:
            return []
        entries: list[Entry] = []
        for number, line in enumerate(lines, start=1):
            try:
                entry = json.loads(line)
                if not isinstance(entry, dict):
                    raise ValueError("it is not an object")
            except (ValueError, RecursionError) as error:
                raise UserError(f"{self.path}, line {number}, is damaged ({error}): restore the file from a copy") from error
            entries.append(entry)
        return entries

    def append(self, make: Callable[[list[Entry]], Entry]) -> Entry:
        """Appends the entry that `make` makes of those that are there, while nobody else appends.

        Whatever `make` raises leaves the log as it was, and so does a full disk (OSError).
        """
        with locked(self.lock):
            is_new = not self.path.exists()
            entry = make(self.entries())
            fd = os.open(self.path, os.O_CREAT | os.O_RDWR | BINARY, 0o600)
            try:
                end = _end_of_entries(fd)
                os.ftruncate(fd, end)
                try:
                    _write(fd, (canonical_json(entry) + "\n").encode(), end)
                    os.fsync(fd)
                except OSError:
                    os.ftruncate(fd, end)
                    raise
            finally:
                os.close(fd)
            if is_new:
                sync_folder(self.path.parent)
        return entry


def _end_of_entries(fd: int) -> int:
    """Where the last finished line ends."""
    size = os.lseek(fd, 0, os.SEEK_END)
    os.lseek(fd, 0, os.SEEK_SET)
    return os.read(fd, size).rfind(b"\n") + 1


def _write(fd: int, line: bytes, at: int) -> None:
    os.lseek(fd, at, os.SEEK_SET)
    while line:
        line = line[os.write(fd, line) :]
