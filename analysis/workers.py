"""Many workers on one study: the shards of any stage, ingest included, computed by Ray actors, each with a subject of its own.

    with RayWorkers(study, lake) as workers:
        analyze_study(study, lake, workers=workers)

Workers compute, the calling process lands: a shard's rows come back to it, so that a worker that dies or vanishes costs the one
shard that it was at. Ray starts another worker in its place, and what joins the cluster meanwhile is put to work too.
"""

import os
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ingest.job import Study
from ingest.recipe import Recipe
from warehouse.errors import UserError
from warehouse.records import Lake, RunSpec
from warehouse.runs import Rows

MOST_DEATHS = 3
"""Workers that may die of one shard, until the shard is held to be the reason."""
POLL_SECONDS = 5.0
"""After which the cluster is asked again what it has."""
SHARDS_A_WORKER = 2
"""Shards that a worker is given at once: while one's rows travel, the next is computed."""


class Worker:
    """One worker, as it lives in its own process, perhaps on another machine: study, subject and runs are its own."""

    def __init__(self, recipe: Recipe, lake: str) -> None:
        from analysis.stages import open_analysis
        from analysis.workbench import Workbench

        self._bench = Workbench(open_analysis(recipe), Lake.existing(lake))
        self._ingest: Any = None

    def shard(self, stage: str, run_id: str, shard: str) -> list[Rows]:
        """One shard's rows; raises UserError if this machine would compute another run than the one that is asked for."""
        from analysis.stages import specs, stage_named, stage_rows, stages
        from ingest.job import ingest_plan

        study = self._bench.study
        asked = None if stage == "ingest" else stage_named(study.recipe, stage)
        known = specs(study, [*stages(study.recipe), *([asked] if asked else [])])
        if known[stage].run_id != run_id:
            raise UserError(
                f"a worker finds another {stage} run than the process that started it ({known[stage].run_id}, not {run_id}): "
                f"device kind, model, SAEs or prompts differ there"
            )
        if asked is None:
            # Kept from shard to shard, since it holds the subject and its SAEs.
            self._ingest = self._ingest or ingest_plan(study)
            ((_, rows),) = self._ingest.compute([shard])
            return rows
        self._ingest = None
        ((_, rows),) = stage_rows(asked, self._bench, known, [shard])
        return rows


class RayWorkers:
    """Ray actors on the cluster of RAY_ADDRESS, or on this machine's processors.

    Args:
        n_workers: how many; by default one a GPU of the cluster (one a processor, where it has none), and more as it grows.
    """

    def __init__(self, study: Study, lake: Lake, n_workers: int | None = None) -> None:
        try:
            import ray
        except ImportError as error:
            raise UserError("--workers ray needs the extra ray: pip install 'saelake[ray]'") from error
        self._ray = ray
        # A folder whole, since workers have another working directory; of a bucket, its address.
        self._recipe, self._lake, self._n_workers = study.recipe, lake.published.url, n_workers
        self._threads = study.recipe.compute.threads or 1
        self._workers: list[Any] = []

    def __enter__(self) -> Self:
        address = os.environ.get("RAY_ADDRESS")
        local = {} if address else {"include_dashboard": False, "num_cpus": self._n_workers and self._n_workers * self._threads}
        # Workers import this code as the caller does, from wherever it is started.
        paths = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")])}
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        self._ray.init(address=address, log_to_driver=False, logging_level="ERROR", runtime_env={"env_vars": paths}, **local)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ray.shutdown()

    def compute(self, spec: RunSpec, missing: Sequence[str]) -> Iterator[tuple[str, list[Rows]]]:
        """The missing shards of a run, in the order in which workers finish them."""
        waiting, running, deaths = deque(missing), dict[Any, tuple[Any, str]](), Counter[str]()
        while waiting or running:
            self._start(len(waiting) + len(running))
            for worker in self._free(running) if waiting else ():
                if waiting:
                    shard = waiting.popleft()
                    running[worker.shard.remote(spec.stage, spec.run_id, shard)] = worker, shard
            finished, _ = self._ray.wait(list(running), timeout=POLL_SECONDS)
            for ref in finished:
                worker, shard = running.pop(ref)
                rows = self._rows(ref)
                if rows is not None:
                    yield shard, rows
                    continue
                waiting.append(shard)
                deaths[shard] += 1
                if worker in self._workers:
                    self._workers.remove(worker)
                if deaths[shard] == MOST_DEATHS:
                    raise UserError(
                        f"{spec.stage}: shard {shard} ended {MOST_DEATHS} workers before it was done: Ray's logs tell why, in "
                        f"/tmp/ray/session_latest/logs on its machine (most often: too little memory)"
                    )

    def _rows(self, ref: Any) -> list[Rows] | None:
        """What a worker gives back; None if it is gone."""
        try:
            return self._ray.get(ref)
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise error.cause from error
            raise
        except self._ray.exceptions.ActorDiedError as error:
            if "creation task" in str(error) and isinstance(cause := getattr(error, "cause", None), UserError):
                raise cause from error
            return None
        except (self._ray.exceptions.RayActorError, self._ray.exceptions.ObjectLostError):
            return None

    def _start(self, n_shards: int) -> None:
        """New workers, for what the cluster has more than before and in place of those that died; never more than shards."""
        resources = self._ray.cluster_resources()
        kind = "num_gpus" if resources.get("GPU", 0) else "num_cpus"
        room = int(resources["GPU"] if kind == "num_gpus" else resources.get("CPU", 1) // self._threads)
        actor = self._ray.remote(Worker).options(**{kind: 1 if kind == "num_gpus" else self._threads})
        while len(self._workers) < min(self._n_workers or max(room, 1), n_shards):
            self._workers.append(actor.remote(self._recipe, self._lake))

    def _free(self, running: dict[Any, tuple[Any, str]]) -> list[Any]:
        """Workers to give a shard to, those with the fewest first."""
        load = Counter(id(worker) for worker, _ in running.values())
        return [worker for n in range(SHARDS_A_WORKER) for worker in self._workers if load[id(worker)] <= n]
