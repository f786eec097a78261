"""A small count of `make torture`: kills, many hands and damages, with real processes."""

import pytest

from benchmarks import torture


def test_torture(capsys: pytest.CaptureFixture[str]) -> None:
    failed = torture.main(["--kills", "4", "--commands", "0", "--damages", "10", "--seconds", "6", "--seed", "1"])
    assert not failed, capsys.readouterr().out
