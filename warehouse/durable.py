"""Files that are whole or absent: atomic writes, hashes and locks that die with their owner."""

import errno
import hashlib
import json
import os
import re
import shutil
import stat
import uuid
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from io import BufferedReader
from pathlib import Path
from typing import Any

from saelake.warehouse.errors import UserError
from saelake.warehouse.locks import hold

UNWAITING = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
"""Opens a pipe without waiting for its writer; Windows, which has none in folders, reads bytes as they are."""


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text, so that it can be hashed."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def sha256_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file, read in pieces; raises OSError for anything but a regular one."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_regular(path: Path) -> BufferedReader:
    """A file to read; raises OSError where a pipe or a device lies in its place, which would keep a reader waiting for ever."""
    fd = os.open(path, os.O_RDONLY | UNWAITING)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return os.fdopen(fd, "rb")


def utc_now() -> str:
    """The time, as records and logs hold it: 2026-01-31T23:59:59.123, in UTC."""
    return datetime.now(UTC).replace(tzinfo=None).isoformat(timespec="milliseconds")


def sync_folder(folder: Path) -> None:
    """Makes renames inside `folder` durable, where folders can be synchronised."""
    fd = _open_folder(folder)
    if fd is None:
        return
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_file(path: Path) -> None:
    """Makes a file's content durable."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def aside(path: Path) -> Path:
    """A name beside `path` that nobody else uses; what a killed process leaves there is garbage, never read."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")


def is_draft(path: Path) -> bool:
    """Whether a file or folder has a name that `aside` gave (or is the log that DuckDB keeps beside such a file)."""
    return re.fullmatch(r"\..+\.[0-9a-f]{8}(\.wal)?", path.name) is not None


def make_private(path: Path) -> None:
    """Makes an empty file that its owner alone can read and write, whatever the umask."""
    fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
    os.close(fd)
    path.chmod(0o600)


def write_atomic(path: Path, text: str, *, private: bool = False) -> None:
    """Writes a small file so that readers see the old content or the new one, never a part; a `private` one is its owner's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = aside(path)
    fd = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600 if private else 0o666)
    try:
        _hold(fd)
        with os.fdopen(os.dup(fd), "w", encoding="utf-8") as file:
            file.write(text)
        os.fsync(fd)
        if os.name != "nt":  # there, what is open cannot be renamed
            draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)
    if os.name == "nt":
        draft.replace(path)
    sync_folder(path.parent)


@contextmanager
def folder_atomic(path: Path, *, is_same: bool = True) -> Iterator[Path]:
    """A folder that appears at `path` with all its files, or not at all; yields the draft to write into.

    If another process has made `path` meanwhile, that one stays and the draft goes. Unless that one holds the same (`is_same`),
    UserError says so.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft, held = _new_draft(path)
    try:
        yield draft
        for file in draft.rglob("*"):
            sync_folder(file) if file.is_dir() else sync_file(file)
        sync_folder(draft)
        try:
            draft.rename(path)
        except OSError:
            if not path.is_dir():
                raise
            if not is_same:
                raise UserError(f"another process has made {path} meanwhile: this one has written nothing") from None
        sync_folder(path.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        if held is not None:
            os.close(held)


def _open_folder(folder: Path) -> int | None:
    """A descriptor of a folder; None on Windows, where only files can be opened, synchronised and locked."""
    if os.name == "nt":
        return None
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY)


def _new_draft(path: Path) -> tuple[Path, int | None]:
    """A new folder beside `path`, and a descriptor that holds its lock as long as this process lives."""
    while True:
        draft = aside(path)
        draft.mkdir()
        fd = _open_draft(draft)
        if fd is None:
            return draft, None
        _hold(fd)
        if _is_same_file(fd, draft):
            return draft, fd
        os.close(fd)  # taken for a dead one before it was locked


def _hold(fd: int) -> None:
    """Marks a draft as that of a living process."""
    with suppress(OSError):  # of a file system without locks: nobody clears drafts there
        hold(fd)


@contextmanager
def living(draft: Path) -> Iterator[None]:
    """Within it, a file that lies there is the draft of a living process."""
    fd = _open_draft(draft)
    try:
        if fd is not None:
            _hold(fd)
        yield
    finally:
        if fd is not None:
            os.close(fd)


def _open_draft(draft: Path) -> int | None:
    """A descriptor of a draft; None on Windows, where what is open can neither be locked like this nor renamed."""
    return None if os.name == "nt" else os.open(draft, os.O_RDONLY | os.O_NOFOLLOW | UNWAITING)


def clear_drafts(path: Path, names: Container[str] = ()) -> None:
    """Deletes the drafts of `path` that killed processes left beside it: files, and folders that hold nothing but `names`."""
    ours = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{8}}")
    for draft in [p for p in path.parent.glob(".*") if ours.fullmatch(p.name)]:
        with suppress(OSError), _if_dead(draft) as is_dead:  # what cannot be deleted harms nobody
            if is_dead and draft.is_file():
                draft.unlink()
            elif is_dead and all(entry.name in names for entry in draft.iterdir()):
                shutil.rmtree(draft)


def is_dead_draft(path: Path) -> bool:
    """Whether a file or folder is a draft whose writer is no more."""
    with suppress(OSError), _if_dead(path) as is_dead:
        return is_dead and is_draft(path)
    return False


@contextmanager
def _if_dead(draft: Path) -> Iterator[bool]:
    """Whether nobody holds the lock of a draft, which is held meanwhile."""
    fd = _open_draft(draft)
    if fd is None:
        yield False
        return
    try:
        try:
            is_dead = hold(fd)
        except OSError:
            is_dead = False
        yield is_dead
    finally:
        os.close(fd)


@contextmanager
def locked(path: Path, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Holds an exclusive lock on `path`; the kernel releases it when the process ends, however it ends.

    `on_wait` is called once if another process holds it.
    """
    fd = _acquire(path, wait=False)
    if fd is None:
        if on_wait:
            on_wait()
        fd = _acquire(path, wait=True)
    assert fd is not None
    try:
        yield
    finally:
        _release(fd, path)


@contextmanager
def try_locked(path: Path) -> Iterator[bool]:
    """Holds the lock on `path` if nobody else does; yields whether it is held."""
    fd = _acquire(path, wait=False)
    try:
        yield fd is not None
    finally:
        if fd is not None:
            _release(fd, path)


def _acquire(path: Path, wait: bool) -> int | None:
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        fd = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
        try:
            is_held = hold(fd, wait)
            if is_held and _is_same_file(fd, path):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
        if not is_held:
            return None
        # else its last owner removed the file when it was done with it: take the new one


def _release(fd: int, path: Path) -> None:
    with suppress(PermissionError):  # Windows keeps a file that is open: it stays, and is the lock of the next
        path.unlink(missing_ok=True)  # before the lock is free, so that nobody can hold the old file as if it were the new one
    os.close(fd)


def _is_same_file(fd: int, path: Path) -> bool:
    try:
        return os.fstat(fd).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False
