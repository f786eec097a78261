"""The lake that sources come into, and that is written out."""

from pathlib import Path

import pytest

from saelake.warehouse.lake import Lake
from tests.lakes import build_lake


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """The hand-made lake, a copy for each test."""
    return build_lake(tmp_path / "lake")
