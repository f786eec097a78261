"""Workers of a Ray cluster against one process: the same content, whatever happens to the workers."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from analysis.bench import Bench
from analysis.crew import MOST_DEATHS, RayCrew
from analysis.stages import SEARCH, ensure_stage, open_analysis, specs
from ingest.job import Study, ingest_spec, ingest_study
from ingest.recipe import load_recipe
from warehouse.check import check
from warehouse.errors import UserError
from warehouse.records import Lake, RunRecord, RunSpec

pytest.importorskip("ray")
STAGES = SEARCH[:5]
"""Up to Algorithm 1."""


@pytest.fixture(scope="module")
def study() -> Study:
    recipe = load_recipe("organism").limit(8)
    return open_analysis(recipe.model_copy(update={"capture": recipe.capture.model_copy(update={"shard_prompts": 8})}))


@pytest.fixture(scope="module")
def alone(study: Study, tmp_path_factory: pytest.TempPathFactory) -> list[RunRecord]:
    return run(study, Lake.create(tmp_path_factory.mktemp("alone") / "lake"), None)


def run(study: Study, lake: Lake, crew: RayCrew | None) -> list[RunRecord]:
    known, bench = specs(study), Bench(study, lake)
    compute = (lambda missing: crew.compute(known["ingest"], missing)) if crew else None
    records = [ingest_study(study, lake, compute=compute)]
    return records + [ensure_stage(stage, known, bench, crew=crew) for stage in STAGES]


def workers() -> Iterator[int]:
    """Processes that compute a shard for this one's cluster."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            name = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if name.startswith(b"ray::Hand"):
            yield int(folder.name)


def test_two_workers_one_of_which_is_killed_again_and_again_publish_what_one_process_does(
    study: Study, alone: list[RunRecord], tmp_path: Path
) -> None:
    lake = Lake.create(tmp_path / "lake")
    killed: set[int] = set()
    done = threading.Event()

    def kill() -> None:
        while not done.wait(0.2):
            for pid in [pid for pid in workers() if pid not in killed][:1]:
                time.sleep(1.0)  # so that it is at work
                killed.add(pid)
                os.kill(pid, signal.SIGKILL)
            if len(killed) == MOST_DEATHS - 1:
                return

    killer = threading.Thread(target=kill)
    with RayCrew(study, lake, n_workers=2) as crew:
        killer.start()
        try:
            together = run(study, lake, crew)
        finally:
            done.set()
            killer.join()
    assert killed, "a worker was at work when it was killed"
    assert [r.run_id for r in together] == [r.run_id for r in alone]
    assert [r.content_hash for r in together] == [r.content_hash for r in alone]
    assert not check(lake)


def test_a_workers_mistake_is_the_one_sentence_of_this_process(study: Study, tmp_path: Path) -> None:
    lake = Lake.create(tmp_path / "lake")
    other = ingest_spec(study)
    other = RunSpec(other.stage, other.recipe, other.config | {"device": "elsewhere"}, other.parents, other.seed)
    with RayCrew(study, lake, n_workers=1) as crew, pytest.raises(UserError, match="device kind, model, SAEs or prompts differ"):
        list(crew.compute(other, ["prompts-0000000"]))
