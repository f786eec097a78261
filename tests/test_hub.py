"""Sharing through the hub, with a stand-in for it on this machine: push, then add from hf:// into an empty lake."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import DatasetCard

import saelake
from saelake.warehouse.check import check
from saelake.warehouse.errors import UserError
from saelake.warehouse.lake import Lake
from saelake.warehouse.schema import TABLES
from saelake.warehouse.sharing.share import share
from saelake.warehouse.sharing.sources import fetched
from tests.conftest import ROOT
from tests.hub import Hub, hub
from tests.warehouse.toys import answers, ingest


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    lake = Lake.create(tmp_path / "mine")
    ingest(lake)
    answers(lake)
    return lake


def run(tmp_path: Path, address: str, *arguments: object, token: str | None = "hf_test") -> subprocess.CompletedProcess[str]:
    """A command of the command line that sees the stand-in, or no hub at all."""
    environment = os.environ | {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "0"}
    environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    environment |= {"HF_TOKEN": token} if token else {}
    command = [sys.executable, "-m", "saelake.cli", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def pushed(tmp_path: Path, lake: Lake, held: Hub, target: str = "set") -> None:
    done = run(tmp_path, held.address, "share", tmp_path / target, "--lake", lake.root, "--push", "org/name")
    assert done.returncode == 0, done.stderr
    assert f"pushed to {held.address}/datasets/org/name" in done.stdout


def test_what_is_pushed_is_the_set_and_comes_back_as_the_same_lake(lake: Lake, tmp_path: Path) -> None:
    with hub() as held:
        pushed(tmp_path, lake, held)
        local = {p.relative_to(tmp_path / "set").as_posix(): p.read_bytes() for p in (tmp_path / "set").rglob("*") if p.is_file()}
        assert held.files["org/name"] == local
        assert held.private == {"org/name": True}
        assert set(held.cards) == {local["README.md"].decode()}, "huggingface_hub asks the hub to validate the card"
        done = run(tmp_path, held.address, "add", "hf://datasets/org/name", "--lake", tmp_path / "theirs")
        assert done.returncode == 0, done.stderr
        missing = run(tmp_path, held.address, "add", "hf://datasets/org/other", "--lake", tmp_path / "nothing")
        assert missing.returncode == 1
        assert "hf://datasets/org/other cannot be reached" in missing.stderr
        assert not (tmp_path / "nothing").exists()
    # The cache has it now: no hub is needed any more.
    done = run(tmp_path, "http://127.0.0.1:9", "add", "hf://datasets/org/name@main", "--lake", tmp_path / "again")
    assert done.returncode == 0, done.stderr
    for name in ("theirs", "again"):
        assert check(Lake(tmp_path / name)) == []
        with saelake.open(tmp_path / name) as theirs, saelake.open(lake.root) as mine:
            count = "select count(*), sum(feature_id), sum(pos) from activations"
            assert theirs.sql(count).fetchall() == mine.sql(count).fetchall()


def test_nobody_is_asked_to_wait_for_an_upload_without_a_login(lake: Lake, tmp_path: Path) -> None:
    done = run(tmp_path, "http://127.0.0.1:9", "share", tmp_path / "set", "--lake", lake.root, "--push", "org/name", token=None)
    assert done.returncode == 1
    assert "log in with `hf auth login`" in done.stderr
    assert not (tmp_path / "set").exists()


def test_a_hub_that_does_not_answer_is_a_sentence_and_the_set_is_kept(lake: Lake, tmp_path: Path) -> None:
    done = run(tmp_path, "http://127.0.0.1:9", "share", tmp_path / "set", "--lake", lake.root, "--push", "org/name")
    assert done.returncode == 1
    assert "the hub refuses org/name" in done.stderr
    assert (tmp_path / "set" / "README.md").is_file()


def test_the_card_is_one_that_huggingface_hub_reads(lake: Lake, tmp_path: Path) -> None:
    share(lake, tmp_path / "set")
    card = DatasetCard.load(tmp_path / "set" / "README.md")
    assert card.data.license == "other"
    assert {c["config_name"] for c in card.data.configs} == {p.name for p in (tmp_path / "set" / "data").iterdir()}
    assert card.text.strip().startswith("# saelake: toy0")


def test_every_configuration_of_the_embedded_study_loads_with_all_its_columns(organism_lake: Path, tmp_path: Path) -> None:
    import datasets

    lake = Lake(organism_lake)
    share(lake, tmp_path / "set")
    configurations = datasets.get_dataset_config_names(str(tmp_path / "set"))
    with saelake.open(lake.root) as opened:
        shared = {p.name for p in (tmp_path / "set" / "data").iterdir()}
        assert set(configurations) == {name for name in shared if opened.sql(f"select count(*) from {name}").fetchall() != [(0,)]}
        for name in configurations:
            loaded = datasets.load_dataset(str(tmp_path / "set"), name, split="train", cache_dir=str(tmp_path / "cache"))
            assert loaded.column_names == TABLES[name].schema.names
            assert [(len(loaded),)] == opened.sql(f"select count(*) from {name}").fetchall()


def test_sources_that_are_none_are_sentences() -> None:
    for source, says in [
        ("ftp://host/set", "sets are read from a folder or from hf://"),
        ("hf://datasets/justaname", "is not a data set of the hub"),
        ("hf://datasets/../../etc", "is not a data set of the hub|cannot be reached"),
    ]:
        with pytest.raises(UserError, match=says), fetched(source):
            pass
