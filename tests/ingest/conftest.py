"""Fixtures of the ingest tests."""

from pathlib import Path

import pytest

from tests.ingest.tiny import empty_offline_hub


@pytest.fixture
def offline_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, and no network."""
    return empty_offline_hub(tmp_path / "hub", monkeypatch)
