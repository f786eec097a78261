"""Workers of a Ray cluster against one process: the same content, whatever happens to the workers."""

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from saelake.analysis.stage import Stage
from saelake.analysis.stage_list import SEARCH, specs
from saelake.analysis.study_context import StudyContext
from saelake.analysis.verbs import ensure_stage, open_analysis
from saelake.analysis.workers import MOST_DEATHS, RayWorkers
from saelake.cli import main
from saelake.ingest.job import ingest_study
from saelake.ingest.pieces import PROMPTS_SHARD
from saelake.ingest.recipe import load_recipe
from saelake.ingest.runs import SetRuns, ingest_runs
from saelake.ingest.study import Study
from saelake.warehouse.check import check
from saelake.warehouse.errors import UserError
from saelake.warehouse.lake import Lake
from saelake.warehouse.records import RunRecord, RunSpec
from tests.ray_processes import worker_pids

pytest.importorskip("ray")
from ray.cluster_utils import Cluster


@pytest.fixture(scope="module")
def study() -> Study:
    """Six shards of prompts and two of a search: what a worker does takes no longer than to start it."""
    recipe = load_recipe("organism").limit(4)
    searched = recipe.algorithm1.model_copy(update={"taus": (0.1, 0.4), "seeds": 2})
    capture = recipe.capture.model_copy(update={"shard_prompts": 4})
    return open_analysis(recipe.model_copy(update={"capture": capture, "algorithm1": searched}))


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


@pytest.fixture(scope="module")
def machine() -> Iterator[Cluster]:
    """A cluster of one machine with one processor, which takes as long to start as a worker."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    yield cluster
    cluster.shutdown()


@pytest.fixture
def cluster(machine: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """That machine; others that join it go with the test, and so do its workers."""
    monkeypatch.setenv("RAY_ADDRESS", machine.address)
    yield machine
    for node in list(machine.worker_nodes):
        machine.remove_node(node)
    give_up = time.monotonic() + 60
    while worker_pids():
        assert time.monotonic() < give_up, "a worker outlives those whom it worked for"
        time.sleep(0.05)


def test_workers_that_are_killed_and_a_machine_that_joins_publish_what_one_process_does(
    study: Study, alone: list[RunRecord], tmp_path: Path, cluster: Cluster
) -> None:
    lake, seen, killed = Lake.create(tmp_path / "lake"), set[int](), set[int]()
    with RayWorkers(study, lake) as workers, ThreadPoolExecutor(1) as pool:
        running = pool.submit(run, study, lake, workers)
        while not running.done():
            now = worker_pids()
            if now and not seen:
                cluster.add_node(num_cpus=1)
            for pid in sorted(now - killed)[: len(killed) < MOST_DEATHS - 1]:
                time.sleep(1.0)  # so that it is at work
                killed.add(pid)
                os.kill(pid, signal.SIGKILL)
            seen |= now
            time.sleep(0.2)
        together = running.result()
    assert len(killed) == MOST_DEATHS - 1
    assert len(seen) >= 4, "two died, and as many took their places, on each machine one"
    assert [r.run_id for r in together] == [r.run_id for r in alone]
    assert [r.content_hash for r in together] == [r.content_hash for r in alone]
    assert not check(lake)


def test_a_machine_that_vanishes_costs_its_shards_only_and_workers_without_a_place_are_not_waited_for(
    study: Study, alone: list[RunRecord], tmp_path: Path, cluster: Cluster
) -> None:
    lake = Lake.create(tmp_path / "lake")
    gone = threading.Event()

    def remove(second: Any) -> None:
        while len(worker_pids()) < 2:
            time.sleep(0.05)
        cluster.remove_node(second, allow_graceful=False)
        gone.set()

    with RayWorkers(study, lake, n_workers=3) as workers:
        second = cluster.add_node(num_cpus=1)  # after this process has joined the first, whose store has what it gives to workers
        threading.Thread(target=remove, args=(second,), daemon=True).start()
        together = run(study, lake, workers, SEARCH[:4])
    assert gone.is_set(), "the machine vanished while there was work"
    assert [r.content_hash for r in together] == [r.content_hash for r in alone[:4]]


def test_a_worker_that_fits_on_no_machine_is_one_sentence(study: Study, tmp_path: Path, cluster: Cluster) -> None:
    compute = study.recipe.compute.model_copy(update={"threads": 4})
    wide = open_analysis(study.recipe.model_copy(update={"compute": compute}))
    with (
        RayWorkers(wide, Lake.create(tmp_path / "lake")) as workers,
        pytest.raises(UserError, match="no machine of the Ray cluster has the 4 CPU that a worker needs"),
    ):
        list(workers.ingest(wide, *asked(wide)))


@pytest.mark.parametrize(("n_workers", "n_shards", "threads"), [(2, 5, 4), (2, 1, 8), (None, 3, 2), (None, 30, 1), (16, 40, 1)])
def test_workers_on_this_machine_leave_no_processor_idle(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_workers: int | None, n_shards: int, threads: int
) -> None:
    monkeypatch.setattr("saelake.analysis.workers.n_processors", lambda: 8)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    compute, lake = study.recipe.compute.model_copy(update={"threads": None}), Lake.at(tmp_path / "lake")
    free = replace(study, recipe=study.recipe.model_copy(update={"compute": compute}))
    assert RayWorkers(free, lake, n_workers)._threads_of_each(n_shards) == threads
    given = replace(study, recipe=study.recipe.model_copy(update={"compute": compute.model_copy(update={"threads": 3})}))
    assert RayWorkers(given, lake, n_workers)._threads_of_each(n_shards) is None, "as the recipe says"
    with monkeypatch.context() as asked_for:
        asked_for.setenv("OMP_NUM_THREADS", "1")
        assert RayWorkers(free, lake, n_workers)._threads_of_each(n_shards) is None, "as whoever calls it says"
    monkeypatch.setenv("RAY_ADDRESS", "elsewhere:6379")
    assert RayWorkers(free, lake, n_workers)._threads_of_each(n_shards) is None, "as the cluster gives"


def test_a_worker_that_comes_up_first_leaves_the_others_their_shards(study: Study, tmp_path: Path) -> None:
    workers = RayWorkers(study, Lake.at(tmp_path / "lake"))
    workers._workers, workers._starting = ["first"], {"ready": "second"}
    assert workers._free({}, 2) == ["first"], "the other shard is the second worker's"
    assert workers._free({}, 3) == ["first", "first"], "one is ahead, one is left"
    assert workers._free({"rows": ("first", "shard")}, 1) == []
    workers._workers, workers._starting = ["first", "second"], {}
    assert workers._free({}, 1) == ["first"]
    assert workers._free({"rows": ("first", "shard")}, 3) == ["second", "first", "second"], "all are up: each has one ahead"


def test_a_cluster_that_does_not_answer_leaves_no_lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    done = CliRunner().invoke(main, ["ingest", "organism", "--limit", "1", "--lake", str(tmp_path / "lake"), "--workers", "ray"])
    assert done.exit_code == 1
    assert "Error: no Ray cluster answers at RAY_ADDRESS=127.0.0.1:1: " in done.stderr
    assert not (tmp_path / "lake").exists()


def test_a_workers_mistake_is_the_one_sentence_of_this_process(study: Study, tmp_path: Path, cluster: Cluster) -> None:
    other = specs(study)["direction"]
    other = RunSpec(other.stage, other.recipe, other.config | {"device": "elsewhere"}, other.parents, other.seed)
    elsewhere = replace(study, device="elsewhere")
    with RayWorkers(study, Lake.create(tmp_path / "lake"), n_workers=1) as workers:
        with pytest.raises(UserError, match="device kind, model, SAEs or prompts differ"):
            list(workers.compute(other, ["all"]))
        with pytest.raises(UserError, match="another ingest run"):
            list(workers.ingest(elsewhere, *asked(elsewhere)))


def test_workers_that_cannot_see_the_lake_say_so(study: Study, tmp_path: Path, cluster: Cluster) -> None:
    with RayWorkers(study, Lake.at(tmp_path / "elsewhere"), n_workers=1) as workers, pytest.raises(UserError, match="no lake at"):
        list(workers.ingest(study, *asked(study)))


def test_workers_read_a_lake_in_a_bucket(study: Study, alone: list[RunRecord], bucket: str) -> None:
    """Without a cluster, on this machine's processors; last, since workers of one that was there before do not start any more."""
    with RayWorkers(study, lake := Lake.create(f"{bucket}/lake"), n_workers=1) as workers:
        together = run(study, lake, workers, SEARCH[:2])
    assert [r.content_hash for r in together] == [r.content_hash for r in alone[:2]]
