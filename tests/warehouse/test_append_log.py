"""The append log: what was appended stays, whatever happens to the process or the disk."""

import os
import signal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saelake.warehouse.append_log import AppendLog
from saelake.warehouse.errors import UserError
from tests.warehouse import processes

APPENDING = """
from saelake.warehouse.append_log import AppendLog
log = AppendLog(Path(sys.argv[1]), Path(sys.argv[2]))
for n in range(100000):
    log.append(lambda entries: {"writer": sys.argv[3], "n": n})
    print(n, flush=True)
"""


@pytest.fixture
def log(tmp_path: Path) -> AppendLog:
    return AppendLog(tmp_path / "log.jsonl", tmp_path / "locks" / "log.lock")


def test_entries_come_back_in_order(log: AppendLog) -> None:
    assert log.entries() == []
    for _ in range(3):
        log.append(lambda entries: {"n": len(entries), "text": "a\nb\u2028"})
    assert log.entries() == [{"n": n, "text": "a\nb\u2028"} for n in range(3)]


@given(kept=st.integers(0, 40))
@settings(max_examples=20, deadline=None)
def test_an_unfinished_line_is_no_entry_and_the_next_takes_its_place(tmp_path_factory: pytest.TempPathFactory, kept: int) -> None:
    folder = tmp_path_factory.mktemp("log")
    log = AppendLog(folder / "log.jsonl", folder / "log.lock")
    log.append(lambda entries: {"n": 0})
    first = log.path.read_bytes()
    log.append(lambda entries: {"n": 1, "text": "x" * 30})
    line = log.path.read_bytes()[len(first) :]
    log.path.write_bytes(first + line[: min(kept, len(line) - 1)])  # cut before its end of line
    assert log.entries() == [{"n": 0}]
    log.append(lambda entries: {"n": 2})
    assert log.entries() == [{"n": 0}, {"n": 2}]


def test_a_refusal_or_a_full_disk_leaves_the_log_as_it_was(log: AppendLog, monkeypatch: pytest.MonkeyPatch) -> None:
    log.append(lambda entries: {"n": 0})
    before = log.path.read_bytes()

    def refuse(entries: object) -> dict[str, int]:
        raise UserError("closed")

    with pytest.raises(UserError, match="closed"):
        log.append(refuse)

    write = os.write

    def full(fd: int, data: bytes) -> int:
        write(fd, data[:3])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"):
        log.append(lambda entries: {"n": 1})
    assert log.path.read_bytes() == before


@pytest.mark.parametrize("line", ['{"n": ', "[]", pytest.param("[" * 100_000, id="deep")])
def test_a_damaged_line_is_named(log: AppendLog, line: str) -> None:
    log.path.write_text(f'{{"n": 0}}\n{line}\n{{"n": 2}}\n')
    with pytest.raises(UserError, match="line 2, is damaged"):
        log.entries()


def test_two_processes_append_side_by_side_and_one_is_killed(log: AppendLog) -> None:
    writers = [processes.start(APPENDING, log.path, log.lock, name) for name in ("a", "b")]
    acknowledged = {}
    for name, writer in zip("ab", writers, strict=True):
        assert writer.stdout is not None
        for _ in range(20):
            acknowledged[name] = int(writer.stdout.readline())
    for writer in writers:
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
    found = log.entries()
    for name in "ab":
        mine = [entry["n"] for entry in found if entry["writer"] == name]
        assert mine == list(range(len(mine)))
        assert len(mine) > acknowledged[name]
