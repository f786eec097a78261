"""Workers of a Ray cluster against one process: the same content, whatever happens to the workers."""

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from saelake.analysis.stage import Stage
from saelake.analysis.stages import SEARCH, ensure_stage, open_analysis, specs
from saelake.analysis.study_context import StudyContext
from saelake.analysis.workers import MOST_DEATHS, RayWorkers
from saelake.cli import main
from saelake.ingest.job import Study, ingest_study
from saelake.ingest.pieces import PROMPTS_SHARD
from saelake.ingest.recipe import load_recipe
from saelake.ingest.runs import SetRuns, ingest_runs
from saelake.warehouse.check import check
from saelake.warehouse.errors import UserError
from saelake.warehouse.records import Lake, RunRecord, RunSpec

pytest.importorskip("ray")


@pytest.fixture(scope="module")
def study() -> Study:
    recipe = load_recipe("organism").limit(8)
    return open_analysis(recipe.model_copy(update={"capture": recipe.capture.model_copy(update={"shard_prompts": 8})}))


@pytest.fixture(scope="module")
def alone(study: Study, tmp_path_factory: pytest.TempPathFactory) -> list[RunRecord]:
    return run(study, Lake.create(tmp_path_factory.mktemp("alone") / "lake"), None)


def run(study: Study, lake: Lake, workers: RayWorkers | None, stages: Sequence[Stage] = SEARCH[:5]) -> list[RunRecord]:
    """Ingest and the first stages; by default up to Algorithm 1."""
    known, context = specs(study), StudyContext(study, lake)
    compute = (lambda missing: workers.ingest(study, context.sets, missing)) if workers else None
    ingest_study(study, lake, compute=compute)
    return [ensure_stage(stage, known, context, workers=workers) for stage in stages]


def asked(study: Study) -> tuple[list[SetRuns], dict[str, list[str]]]:
    """What `RayWorkers.ingest` is asked for when only the prompts are missing."""
    sets = ingest_runs(study)
    return sets, {sets[0].prompts.run_id: [PROMPTS_SHARD]}


def worker_pids() -> Iterator[int]:
    """Processes that compute a shard for this one's cluster."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            name = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if name.startswith(b"ray::Worker"):
            yield int(folder.name)


def test_two_workers_one_of_which_is_killed_again_and_again_publish_what_one_process_does(
    study: Study, alone: list[RunRecord], tmp_path: Path
) -> None:
    lake = Lake.create(tmp_path / "lake")
    killed: set[int] = set()
    done = threading.Event()

    def kill() -> None:
        while not done.wait(0.2):
            for pid in [pid for pid in worker_pids() if pid not in killed][:1]:
                time.sleep(1.0)  # so that it is at work
                killed.add(pid)
                os.kill(pid, signal.SIGKILL)
            if len(killed) == MOST_DEATHS - 1:
                return

    killer = threading.Thread(target=kill)
    with RayWorkers(study, lake, n_workers=2) as workers:
        killer.start()
        try:
            together = run(study, lake, workers)
        finally:
            done.set()
            killer.join()
    assert killed, "a worker was at work when it was killed"
    assert [r.run_id for r in together] == [r.run_id for r in alone]
    assert [r.content_hash for r in together] == [r.content_hash for r in alone]
    assert not check(lake)


def test_a_machine_that_joins_a_cluster_is_put_to_work_in_the_place_of_one_that_dies(
    study: Study, alone: list[RunRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    lake, seen = Lake.create(tmp_path / "lake"), set[int]()
    try:
        with RayWorkers(study, lake) as workers, ThreadPoolExecutor(1) as pool:
            running = pool.submit(run, study, lake, workers)
            while not running.done():
                now = set(worker_pids())
                if now and not seen:
                    cluster.add_node(num_cpus=1)
                    for pid in now:
                        os.kill(pid, signal.SIGKILL)
                seen |= now
                time.sleep(0.1)
            together = running.result()
    finally:
        cluster.shutdown()
    assert len(seen) >= 3, "one died, one on each machine took its place"
    assert [r.content_hash for r in together] == [r.content_hash for r in alone]


def test_a_machine_that_vanishes_costs_its_shards_only_and_workers_without_a_place_are_not_waited_for(
    study: Study, alone: list[RunRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    second = cluster.add_node(num_cpus=1)
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    lake = Lake.create(tmp_path / "lake")
    gone = threading.Event()

    def remove() -> None:
        while len(set(worker_pids())) < 2:
            time.sleep(0.05)
        cluster.remove_node(second, allow_graceful=False)
        gone.set()

    try:
        with RayWorkers(study, lake, n_workers=3) as workers:
            threading.Thread(target=remove, daemon=True).start()
            together = run(study, lake, workers, SEARCH[:4])
    finally:
        cluster.shutdown()
    assert gone.is_set(), "the machine vanished while there was work"
    assert [r.content_hash for r in together] == [r.content_hash for r in alone[:4]]


def test_a_worker_that_fits_on_no_machine_is_one_sentence(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.cluster_utils import Cluster

    compute = study.recipe.compute.model_copy(update={"threads": 4})
    wide = open_analysis(study.recipe.model_copy(update={"compute": compute}))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    try:
        with (
            RayWorkers(wide, Lake.create(tmp_path / "lake")) as workers,
            pytest.raises(UserError, match="no machine of the Ray cluster has the 4 CPU that a worker needs"),
        ):
            list(workers.ingest(wide, *asked(wide)))
    finally:
        cluster.shutdown()


def test_a_cluster_that_does_not_answer_leaves_no_lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    done = CliRunner().invoke(main, ["ingest", "organism", "--limit", "1", "--lake", str(tmp_path / "lake"), "--workers", "ray"])
    assert done.exit_code == 1
    assert "Error: no Ray cluster answers at RAY_ADDRESS=127.0.0.1:1: " in done.stderr
    assert not (tmp_path / "lake").exists()


def test_workers_read_a_lake_in_a_bucket(study: Study, alone: list[RunRecord], bucket: str) -> None:
    with RayWorkers(study, lake := Lake.create(f"{bucket}/lake"), n_workers=1) as workers:
        together = run(study, lake, workers, SEARCH[:2])
    assert [r.content_hash for r in together] == [r.content_hash for r in alone[:2]]


def test_a_workers_mistake_is_the_one_sentence_of_this_process(study: Study, tmp_path: Path) -> None:
    lake = Lake.create(tmp_path / "lake")
    other = specs(study)["direction"]
    other = RunSpec(other.stage, other.recipe, other.config | {"device": "elsewhere"}, other.parents, other.seed)
    with (
        RayWorkers(study, lake, n_workers=1) as workers,
        pytest.raises(UserError, match="device kind, model, SAEs or prompts differ"),
    ):
        list(workers.compute(other, ["all"]))
    elsewhere = replace(study, device="elsewhere")
    with (
        RayWorkers(study, lake, n_workers=1) as workers,
        pytest.raises(UserError, match="another ingest run"),
    ):
        list(workers.ingest(elsewhere, *asked(elsewhere)))


def test_workers_that_cannot_see_the_lake_say_so(study: Study, tmp_path: Path) -> None:
    with RayWorkers(study, Lake.at(tmp_path / "elsewhere"), n_workers=1) as workers, pytest.raises(UserError, match="no lake at"):
        list(workers.ingest(study, *asked(study)))
