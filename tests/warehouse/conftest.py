"""Settings of the warehouse's tests, which touch the disk, whose time hypothesis must not judge; and sets to be spoiled."""

import shutil
from pathlib import Path

import pytest
from hypothesis import settings

from saelake.warehouse.lake import Lake
from saelake.warehouse.sharing.share import share
from tests.warehouse.toys import answers, ingest

settings.register_profile("disk", deadline=None)
settings.load_profile("disk")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound set of two runs."""
    lake = Lake.create(tmp_path_factory.mktemp("lakes") / "theirs")
    ingest(lake)
    answers(lake)
    share(lake, lake.root.parent / "set")
    return lake.root.parent / "set"


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """A lake with a study of its own, which no hostile set may touch."""
    lake = Lake.create(tmp_path_factory.mktemp("lakes") / "mine")
    ingest(lake, seed=1)
    return lake


@pytest.fixture
def hostile(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "set"))
