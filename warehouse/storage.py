"""Where a lake keeps what it publishes: a folder, or a bucket (bucket.py). Keys name its parts: `runs/x.json`."""

import errno
import os
import shutil
import stat
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from itertools import count
from pathlib import Path
from typing import NamedTuple, Protocol

import duckdb

from saelake.warehouse.durable import folder_atomic, open_regular, write_atomic
from saelake.warehouse.errors import UserError


class Entry(NamedTuple):
    """One published file or small text."""

    key: str
    n_bytes: int
    modified: float
    """Seconds since 1970."""


class Storage(Protocol):
    """What records, pointers and data files need of where they lie. Keys are relative and use slashes."""

    grace_seconds: float
    """How long `gc` spares what no run lists."""

    @property
    def url(self) -> str:
        """What a reader puts, with a slash, before a key."""

    def read(self, key: str) -> str:
        """A small text; raises FileNotFoundError."""

    def exists(self, key: str) -> bool: ...

    def create(self, key: str, text: str) -> bool:
        """Puts a small text where none is, durable and whole; False, and nothing changes, if there is one."""

    def write(self, key: str, text: str) -> None:
        """Puts a small text in the place of any, durable and whole."""

    def names(self, folder: str) -> list[str]:
        """What lies directly below a folder, sorted; [] if it is absent."""

    def entries(self, folder: str) -> list[Entry]:
        """Every file below a folder (or the file of that name), sorted by key; drafts are among them."""

    def sizes(self, keys: Sequence[str]) -> dict[str, int]:
        """The bytes of those of some data files that are there."""

    def unused(self, folder: str) -> str:
        """A folder that nobody has written to, named after `folder`."""

    def new_folder(self, key: str) -> AbstractContextManager[Path]:
        """A local folder to write into, all of which lies below `key` when the block ends; if it fails, nothing there is read."""

    def local(self, key: str) -> AbstractContextManager[Path]:
        """A published file as a local one."""

    def delete(self, key: str) -> None:
        """Deletes a file, or a folder with all that is in it, if there is any."""

    def prepare(self, con: duckdb.DuckDBPyConnection) -> None:
        """Lets a connection read what lies here."""

    def renew(self, con: duckdb.DuckDBPyConnection) -> None:
        """Lets a connection, prepared some time ago, go on reading."""


class Folder:
    """A folder of a file system."""

    grace_seconds = 15 * 60.0
    """Longer than a reader takes that still has files of a dropped run open, by its older catalog."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def url(self) -> str:
        return str(self._root.resolve())

    def read(self, key: str) -> str:
        try:
            with open_regular(self._root / key) as file:
                return file.read().decode("utf-8", errors="replace")
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            raise UserError(f"{self._root / key} is not a regular file: restore it from a copy") from error

    def exists(self, key: str) -> bool:
        return (self._root / key).exists()

    def create(self, key: str, text: str) -> bool:
        if self.exists(key):  # two who ask at once are kept apart by the locks of a lake on a file system
            return False
        self.write(key, text)
        return True

    def write(self, key: str, text: str) -> None:
        write_atomic(self._root / key, text)

    def names(self, folder: str) -> list[str]:
        return sorted(p.name for p in (self._root / folder).glob("*"))

    def entries(self, folder: str) -> list[Entry]:
        top = self._root / folder
        files = [top] if top.is_file() else [Path(where, name) for where, _, names in os.walk(top) for name in names]
        found = []
        for path in files:
            with suppress(FileNotFoundError):  # another process has renamed its draft, or deleted what it dropped
                status = path.stat()
                found.append(Entry(path.relative_to(self._root).as_posix(), status.st_size, status.st_mtime))
        return sorted(found)

    def sizes(self, keys: Sequence[str]) -> dict[str, int]:
        found = {}
        for key in keys:
            with suppress(OSError):
                status = os.stat(f"{self._root}/{key}")
                if stat.S_ISREG(status.st_mode):
                    found[key] = status.st_size
        return found

    def unused(self, folder: str) -> str:
        names = (folder if n == 1 else f"{folder}-{n}" for n in count(1))
        return next(name for name in names if not self.exists(name))

    def new_folder(self, key: str) -> AbstractContextManager[Path]:
        return folder_atomic(self._root / key)

    def local(self, key: str) -> AbstractContextManager[Path]:
        return nullcontext(self._root / key)

    def delete(self, key: str) -> None:
        path = self._root / key
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def prepare(self, con: duckdb.DuckDBPyConnection) -> None:
        """A file system needs nothing."""

    def renew(self, con: duckdb.DuckDBPyConnection) -> None:
        """A file system needs nothing."""
