"""Many workers on one study: the shards of any stage, ingest included, computed by Ray actors, each with a subject of its own.

    with RayWorkers(study, lake) as workers:
        analyze_study(study, lake, workers=workers)

Workers compute, the calling process lands: a shard's rows come back to it, so that a worker that dies or vanishes costs the one
shard that it was at. Ray starts another worker in its place, and what joins the cluster meanwhile is put to work too.
"""

import os
import socket
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from saelake.extras import require
from saelake.ingest.pieces import Piece, pieces
from saelake.ingest.recipe import Recipe
from saelake.ingest.runs import SetRuns, ingest_key
from saelake.ingest.study import Study
from saelake.warehouse.errors import UserError
from saelake.warehouse.lake import Lake
from saelake.warehouse.machine import n_processors
from saelake.warehouse.records import RunSpec
from saelake.warehouse.runs import Rows

if TYPE_CHECKING:
    from saelake.analysis.study_context import StudyContext
    from saelake.ingest.shards import ShardMaker

MOST_DEATHS = 3
"""Workers that may die of one shard, until the shard is held to be the reason."""
POLL_SECONDS = 5.0
"""After which the cluster is asked again what it has."""
LOGS = "Ray's logs say why, in /tmp/ray/session_latest/logs on that machine (most often: too little memory)"
SHARDS_A_WORKER = 2
"""Shards that a worker is given at once: while one's rows travel, the next is computed."""


@dataclass(frozen=True)
class Gone:
    """In the place of a result, where the worker died or vanished."""

    why: str


class Worker:
    """One worker, as it lives in its own process, perhaps on another machine: study, subject and runs are its own."""

    def __init__(self, recipe: Recipe, lake: str) -> None:
        self._recipe, self._lake = recipe, lake
        self._maker: ShardMaker | None = None

    def ready(self) -> None:
        """Answers as soon as the worker has a place."""

    @cached_property
    def _context(self) -> "StudyContext":
        """Opened with the first shard, not with the worker: a mistake is then that shard's, and comes back as it is."""
        from saelake.analysis.study_context import StudyContext
        from saelake.analysis.verbs import open_analysis

        return StudyContext(open_analysis(self._recipe), Lake.existing(self._lake))

    def shard(self, stage: str, run_id: str, shard: str, n_threads: int | None = None) -> list[Rows]:
        """One shard's rows, computed with so many of torch's threads, as many as before if None.

        Raises UserError if this machine would compute another run than the one that is asked for.
        """
        from saelake.analysis.stage_list import ATLAS, AUDIT, specs, stage_named, stages
        from saelake.analysis.verbs import stage_rows

        self._maker = None
        if n_threads is not None:
            import torch

            torch.set_num_threads(n_threads)
        study = self._context.study
        asked = stage_named(study.recipe, stage)
        known = specs(study, [*stages(study.recipe), *ATLAS, *AUDIT, asked], self._context.lake)
        _require_same(stage, known[stage].run_id, run_id)
        ((_, rows),) = stage_rows(asked, self._context, known, [shard])
        return rows

    def piece(self, key: str, needed: Sequence[Piece], piece: Piece) -> list[list[Rows]]:
        """The rows of one piece of an ingest, whose workers together compute all that is `needed`; raises as `shard`."""
        from saelake.ingest.shards import ShardMaker

        study, sets = self._context.study, self._context.sets
        _require_same("ingest", ingest_key(study, sets).run_id, key)
        # Kept from piece to piece, since it holds the prompts; subject and SAEs are the context's, for the stages that follow.
        self._maker = self._maker or ShardMaker(study, sets, needed, self._context.loaded)
        (rows,) = self._maker.rows([piece])
        return rows


def _require_same(stage: str, mine: str, asked: str) -> None:
    if mine != asked:
        raise UserError(
            f"a worker finds another {stage} run than the process that started it ({mine}, not {asked}): "
            f"device kind, model, SAEs or prompts differ there"
        )


class RayWorkers:
    """Ray actors on the cluster of RAY_ADDRESS, or on this machine's processors.

    Args:
        n_workers: how many; a cluster that has no room for all of them yet is asked for it, and starts with those that it has.
            By default as many as there is room for (one per GPU or, where there is none, one for `compute.threads` processors),
            and more as it grows.
    """

    def __init__(self, study: Study, lake: Lake, n_workers: int | None = None) -> None:
        require("ray", "--workers ray")
        import ray

        self._ray = ray
        # A folder whole, since workers have another working directory; of a bucket, its address.
        self._recipe, self._lake, self._n_workers = study.recipe, lake.published.url, n_workers
        self._threads = study.recipe.compute.threads or 1
        self._workers: list[Any] = []
        self._starting: dict[Any, Any] = {}
        """What `ready` will give -> the worker, which has no place yet"""
        self._stillborn: list[Gone] = []
        """Workers that ended before they had a place, since one last came up"""

    def __enter__(self) -> Self:
        address = os.environ.get("RAY_ADDRESS")
        n_cpus = max(n_processors(), self._threads) if self._n_workers is None else self._n_workers * self._threads
        local = {} if address else {"include_dashboard": False, "num_cpus": n_cpus}
        # Workers import this code as the caller does, from wherever it is started.
        paths = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])}
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        settings = {"log_to_driver": False, "logging_level": "ERROR", "runtime_env": {"env_vars": paths}}
        try:
            if address and ":" in address:  # Ray itself would try for minutes
                host, _, port = address.removeprefix("ray://").rpartition(":")
                socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
            self._ray.init(address=address or "local", **settings, **local)
        except (OSError, ValueError, RuntimeError) as error:
            failed = f"no Ray cluster answers at RAY_ADDRESS={address}" if address else "Ray does not start"
            raise UserError(f"{failed}: {str(error).splitlines()[0]}") from error
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ray.shutdown()

    def compute(self, spec: RunSpec, missing: Sequence[str]) -> Iterator[tuple[str, list[Rows]]]:
        """The missing shards of a run, in the order in which workers finish them."""
        n_threads = self._threads_of_each(len(missing))
        yield from self._computed(
            spec.stage, missing, lambda worker, shard: worker.shard.remote(spec.stage, spec.run_id, shard, n_threads)
        )

    def ingest(
        self, study: Study, sets: Sequence[SetRuns], missing: Mapping[str, Sequence[str]]
    ) -> Iterator[tuple[str, str, list[Rows]]]:
        """The missing shards of the runs of an ingest (run_id -> shards), one forward pass for all SAEs: run_id, shard, rows."""
        key, asked = ingest_key(study, sets).run_id, dict(pieces(study, sets, missing))
        needed = self._ray.put(list(asked))
        for piece, parts in self._computed("ingest", list(asked), lambda worker, one: worker.piece.remote(key, needed, one)):
            for run_id, rows in zip(asked[piece], parts, strict=True):
                yield run_id, piece.shard, rows

    def _computed(self, stage: str, missing: Sequence[Any], start: Callable[[Any, Any], Any]) -> Iterator[tuple[Any, Any]]:
        """What workers give for some shards, which `start` hands to one of them, in the order in which they finish them."""
        waiting, running, deaths = deque(missing), dict[Any, tuple[Any, Any]](), Counter[Any]()
        while waiting or running:
            self._start(len(waiting) + len(running))
            for worker in self._free(running, len(waiting)):
                shard = waiting.popleft()
                running[start(worker, shard)] = worker, shard
            finished, _ = self._ray.wait([*running, *self._starting], timeout=POLL_SECONDS)
            for ref in finished:
                if ref in self._starting:
                    self._settle(ref)
                    continue
                worker, shard = running.pop(ref)
                rows = self._result(ref)
                if not isinstance(rows, Gone):
                    yield shard, rows
                    continue
                waiting.append(shard)
                deaths[shard] += 1
                self._drop(worker)
                if deaths[shard] == MOST_DEATHS:
                    raise UserError(f"{stage}: shard {shard} ended {MOST_DEATHS} workers before it was done ({rows.why}): {LOGS}")

    def _threads_of_each(self, n_shards: int) -> int | None:
        """Torch's, for workers that share this machine alone: what has fewer shards than workers leaves no processor idle.

        None where the recipe, a cluster or OMP_NUM_THREADS decides.
        """
        if self._recipe.compute.threads or os.environ.get("RAY_ADDRESS") or os.environ.get("OMP_NUM_THREADS"):
            return None
        n_cpus = n_processors()
        return max(n_cpus // min(self._n_workers or n_cpus, max(n_shards, 1)), 1)

    def _result(self, ref: Any) -> "Any | Gone":
        """What a worker gives back; Gone if the worker is. Raises what was raised there."""
        errors = self._ray.exceptions
        try:
            return self._ray.get(ref)
        except errors.RayTaskError as error:
            if isinstance(error.cause, Exception):
                raise error.cause from error
            raise
        except (errors.RayActorError, errors.ObjectLostError, errors.OutOfMemoryError) as error:
            return Gone(str(error).splitlines()[0].rstrip("."))

    def _start(self, n_shards: int) -> None:
        """New workers, for what the cluster has more than before and in place of those that died; never more than shards.

        Raises UserError if there is no worker, and no machine on which one could be, and if none comes up.
        """
        machines = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        needs = {"GPU": 1} if any(machine.get("GPU") for machine in machines) else {"CPU": self._threads}
        ((kind, n),) = needs.items()
        room = sum(int(machine.get(kind, 0) // n) for machine in machines)
        if not room and not self._workers:
            raise UserError(f"no machine of the Ray cluster has the {n} {kind} that a worker needs (compute.threads)")
        wanted = min(self._n_workers or room, n_shards)
        if len(self._stillborn) >= MOST_DEATHS * wanted > 0:
            raise UserError(f"{len(self._stillborn)} workers ended before they were at work ({self._stillborn[-1].why}): {LOGS}")
        actor = self._ray.remote(Worker).options(**{f"num_{kind.lower()}s": n})
        while len(self._workers) + len(self._starting) < wanted:
            worker = actor.remote(self._recipe, self._lake)
            self._starting[worker.ready.remote()] = worker
        while self._starting and len(self._workers) + len(self._starting) > wanted:
            self._ray.kill(self._starting.popitem()[1])  # its machine is gone, or its shards are done by others

    def _settle(self, ref: Any) -> None:
        """A worker has its place, or has died on the way to it: `_start` then asks for another."""
        worker, answer = self._starting.pop(ref), self._result(ref)
        if isinstance(answer, Gone):
            self._stillborn.append(answer)
            self._drop(worker)
        else:
            self._stillborn.clear()
            self._workers.append(worker)

    def _drop(self, worker: Any) -> None:
        if worker in self._workers:
            self._workers.remove(worker)
        self._ray.kill(worker)  # it may be out of reach only, and would keep its place

    def _free(self, running: Mapping[Any, tuple[Any, Any]], n_waiting: int) -> list[Any]:
        """Workers to give the waiting shards to, those with the fewest first; a second one only if workers to come lack none."""
        load = Counter(id(worker) for worker, _ in running.values())
        idle = [worker for worker in self._workers if not load[id(worker)]][:n_waiting]
        n_ahead = max(n_waiting - len(idle) - len(self._starting), 0)
        return idle + [worker for n in range(1, SHARDS_A_WORKER) for worker in self._workers if load[id(worker)] <= n][:n_ahead]
