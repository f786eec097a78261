"""Locks where the system has other ones, or none: Windows' are tried with a stand-in for its module."""

import fcntl
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from saelake.warehouse import locks
from saelake.warehouse.durable import locked, try_locked
from tests.lakes import build_lake

READS = """
import sys
sys.modules["fcntl"] = None
import saelake
with saelake.open(sys.argv[1]) as lake:
    print(lake.sql("select count(*) from prompts").fetchall()[0][0], len(lake.query("candidates", k=1).fetchall()))
from saelake.cli import main
main(["query", "candidates", "--k", "1", "--lake", sys.argv[1], "--format", "csv"])
"""


def test_a_lake_is_read_where_there_is_no_fcntl(tmp_path: Path) -> None:
    lake = build_lake(tmp_path / "lake")
    done = subprocess.run([sys.executable, "-c", READS, str(lake.root)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, *rows = done.stdout.splitlines()
    assert first == "6 2"
    assert len(rows) == 3


def test_windows_locks_exclude_and_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def locking(fd: int, mode: int, n_bytes: int) -> None:
        assert (mode, n_bytes, os.lseek(fd, 0, os.SEEK_CUR)) == (7, 1, 0)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PermissionError("locked by another") from error

    monkeypatch.setattr(locks.sys, "platform", "win32")
    monkeypatch.setitem(sys.modules, "msvcrt", SimpleNamespace(locking=locking, LK_NBLCK=7))
    monkeypatch.setitem(sys.modules, "fcntl", None)
    path, waits, order = tmp_path / "lock", threading.Event(), list[str]()

    def second() -> None:
        with locked(path, waits.set):
            order.append("second")

    with try_locked(path) as is_held:
        assert is_held
        with try_locked(path) as is_free:
            assert not is_free
        thread = threading.Thread(target=second)
        thread.start()
        assert waits.wait(10)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]
