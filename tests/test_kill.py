"""Whatever moment a job is killed at, the same command again ends in the content of an undisturbed lake."""

import multiprocessing
import os
import random
import signal
import time
from contextlib import suppress
from glob import glob
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from saelake import cli
from saelake.analysis import verbs
from saelake.ingest.recipe import load_recipe
from saelake.warehouse.housekeeping import gc
from saelake.warehouse.lake import Lake
from tests.planted import write_planted

FEW = "\n[algorithm1]\nseeds = 1\ntaus = [0.5]\nblock_size = 2\n[minimal]\nstarts = 2\n"
N_SAES = 6
PROMPTS = 3
"""Of each label and split: as many shards as the whole study has, of half as many prompts."""
N_INGEST = 1 + N_SAES * (9 + 1)
"""Shards of the ingest: the prompts; for each SAE nine slices of the prompts, and what it is."""
N_RUNS = 1 + N_SAES
"""Its runs."""
PATIENCE = 300
"""Seconds after which a process counts as hung."""
PROCESSES = multiprocessing.get_context("forkserver")
"""Processes are forked from one that has imported everything: a command that is killed after a second need not take eight."""
PROCESSES.set_forkserver_preload([__name__])


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = write_planted(tmp_path_factory.mktemp("kill")).recipe
    text = file.read_text().replace("shard_prompts = 16", "shard_prompts = 2").replace("random_draws = 3", "random_draws = 1")
    file.write_text(text.replace("cap = 4", "cap = 2") + FEW)
    return file


@pytest.fixture(scope="module")
def undisturbed(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    lake = Lake.create(tmp_path_factory.mktemp("undisturbed") / "lake")
    verbs.analyze(load_recipe(recipe).limit(PROMPTS), lake)
    return contents(lake)


def contents(lake: Lake) -> dict[str, str]:
    """run_id -> content hash"""
    return {record.run_id: record.content_hash for record in lake.records()}


def start(command: str, recipe: Path, lake: Lake) -> BaseProcess:
    """A command in a process of its own."""
    process = PROCESSES.Process(target=saelake, args=(command, str(recipe), "--limit", str(PROMPTS), "--lake", str(lake.root)))
    process.start()
    return process


def saelake(*arguments: str) -> None:
    for number in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    cli.main(arguments)


def ended(process: BaseProcess) -> int | None:
    """The exit code, negative for a signal, of a process that has ended or is about to."""
    process.join(PATIENCE)
    return process.exitcode


class Watched:
    """What becomes of a lake while processes work on it and are killed."""

    def __init__(self, lake: Lake) -> None:
        self.lake = lake
        self.landed: dict[str, set[int]] = {}
        """Shard -> inode of every folder that was seen in its place."""

    def look(self) -> int:
        """How many shards and runs have been finished since the first look, as far as they were seen."""
        # glob, since Path.glob fails when a folder goes while it looks.
        for shard in map(Path, glob(f"{self.lake.root}/landing/*/[!.]*")):
            with suppress(FileNotFoundError):  # published meanwhile
                self.landed.setdefault(f"{shard.parent.name}/{shard.name}", set()).add(shard.stat().st_ino)
        return len(self.landed) + len(glob(f"{self.lake.root}/runs/[!.]*"))

    def until_over(self, *processes: BaseProcess, events: int = 10**6) -> None:
        """Watches until the processes are over, or so many shards and runs are finished."""
        give_up = time.monotonic() + PATIENCE
        while self.look() < events and any(process.is_alive() for process in processes):
            assert time.monotonic() < give_up, "a process hangs"
            time.sleep(0.002)


@pytest.mark.parametrize("seed", [0])
def test_killed_at_random_moments_ends_in_the_same_content(
    seed: int, recipe: Path, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    draw = random.Random(seed)
    watched = Watched(Lake(tmp_path / "lake"))
    moments = [draw.randint(1, N_INGEST), *sorted(draw.sample(range(N_INGEST + N_RUNS + 1, N_INGEST + N_RUNS + 37), 2))]
    for command, moment in zip(("ingest", "analyze", "analyze"), moments, strict=True):
        process = start(command, recipe, watched.lake)
        watched.until_over(process, events=moment)
        time.sleep(draw.uniform(0, 0.02))
        process.kill()
        assert ended(process) == -signal.SIGKILL, "the job was over too soon to be killed"
        assert contents(watched.lake).items() < undisturbed.items(), "what was published before is right, and not all"
    both = [start("analyze", recipe, watched.lake) for _ in range(2)]
    watched.until_over(*both)
    assert list(map(ended, both)) == [0, 0], "two go on with it at once"
    assert contents(watched.lake) == undisturbed
    repeated = {shard: seen for shard, seen in watched.landed.items() if len(seen) > 1}
    assert not repeated, "a finished shard was computed again"
    gc(watched.lake)  # of a process that was killed between publishing a run and clearing up
    assert not list(watched.lake.root.glob("landing/*"))


def test_two_processes_at_once_on_a_new_lake(recipe: Path, undisturbed: dict[str, str], tmp_path: Path) -> None:
    watched = Watched(Lake(tmp_path / "lake"))
    both = [start("ingest", recipe, watched.lake) for _ in range(2)]
    watched.until_over(*both)
    assert list(map(ended, both)) == [0, 0]
    assert len(contents(watched.lake)) == N_RUNS
    assert contents(watched.lake).items() <= undisturbed.items()
    assert all(len(seen) == 1 for seen in watched.landed.values()), "each shard is computed by one of them"
