"""Runs whose shards are landed are sorted and written several at a time where there are cores for it."""

from itertools import count
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

from saelake.ingest.job import ingest
from saelake.warehouse import runs
from saelake.warehouse.lake import Lake
from saelake.warehouse.publish import publish_files
from saelake.warehouse.records import RunSpec
from tests.ingest.small_study import write_study


def test_runs_are_published_together_where_there_are_cores_for_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The prompts first, which the statistics of the others read; the same content as one after the other."""
    recipe = write_study(tmp_path, "llama")
    one_by_one, together = (Lake.create(tmp_path / name) for name in ("one", "together"))
    alone = ingest(recipe, one_by_one)
    monkeypatch.setattr(runs.os, "cpu_count", lambda: 2 * runs.CORES_A_RUN)
    monkeypatch.setattr(runs, "BYTES_A_RUN", 1)
    two, asked, published = Barrier(2, timeout=60), count(), list[str]()

    def watched(landing: Path, spec: RunSpec, *given: Any) -> Any:
        if spec.stage == "activations" and next(asked) < 2:
            two.wait()  # breaks unless two are here at once
        published.append(spec.stage)
        return publish_files(landing, spec, *given)

    monkeypatch.setattr(runs, "publish_files", watched)
    found = ingest(recipe, together)
    assert published[0] == "prompts"
    assert next(asked) > 1
    assert [(one.run_id, one.tables) for one in found.records] == [(one.run_id, one.tables) for one in alone.records]
    assert not list(together.landing("").glob("*"))
