"""What models answered is for the lake's owner: every file that holds completions is 0600, all others follow the umask."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from saelake.warehouse.durable import write_atomic
from saelake.warehouse.lake import Lake
from saelake.warehouse.layout import PRIVATE
from saelake.warehouse.runs import Rows
from saelake.warehouse.sharing.add import add
from saelake.warehouse.sharing.share import Choice, share
from tests.warehouse import toys


@pytest.fixture(params=[0o000, 0o022, 0o027])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(folder: Path) -> dict[str, set[int]]:
    """The modes of the data files of tables with completions, and of others."""
    found: dict[str, set[int]] = {"private": set(), "other": set()}
    for path in folder.rglob("*.parquet"):
        found["private" if path.parent.name in PRIVATE else "other"].add(path.stat().st_mode & 0o777)
    return found


def test_files_of_answers_are_their_owners_alone(umask: int, tmp_path: Path) -> None:
    assert {"ablations", "answer_tokens"} == PRIVATE
    lake, usual = Lake.create(tmp_path / "lake"), 0o666 & ~umask
    toys.ingest(lake)
    landed: list[dict[str, set[int]]] = []

    def compute(missing: Sequence[str]) -> Iterator[tuple[str, list[Rows]]]:
        for one in toys.answers_plan().compute(missing):
            yield one
            landed.append(modes(lake.root / "landing"))

    toys.ensure_run(lake, toys.answers_spec(), toys.Plan(toys.SHARDS, compute, toys.ANSWER_TABLES))
    assert landed[-1] == modes(lake.root / "data") == {"private": {0o600}, "other": {usual}}
    share(lake, tmp_path / "set")
    assert modes(tmp_path / "set") == {"private": {usual}, "other": {usual}}, "it is meant for others"
    share(lake, tmp_path / "whole", Choice(with_completions=True))
    assert modes(tmp_path / "whole") == {"private": {0o600}, "other": {usual}}
    other = Lake.create(tmp_path / "other")
    add(other, tmp_path / "whole")
    assert modes(other.root / "data") == {"private": {0o600}, "other": {usual}}


def test_a_page_with_completions_is_its_owners_alone(umask: int, tmp_path: Path) -> None:
    for private in (False, True, False):
        write_atomic(tmp_path / "report.html", "x", private=private)
        assert (tmp_path / "report.html").stat().st_mode & 0o777 == (0o600 if private else 0o666 & ~umask)
