"""Whatever moment a job is killed at, the same command again ends in the content of an undisturbed lake."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.forks import ROOT, Forks
from tests.planted import write_planted
from warehouse.records import Lake

FEW = "\n[algorithm1]\nseeds = 1\ntaus = [0.5]\nblock_size = 2\n[minimal]\nstarts = 2\n"
INGEST_SHARDS = 13


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = write_planted(tmp_path_factory.mktemp("kill")).recipe
    text = file.read_text().replace("shard_prompts = 16", "shard_prompts = 4").replace("random_draws = 3", "random_draws = 1")
    file.write_text(text.replace("cap = 4", "cap = 2") + FEW)
    return file


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    with Forks() as forks:
        yield forks


@pytest.fixture(scope="module")
def undisturbed(recipe: Path, forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    lake = Lake(tmp_path_factory.mktemp("undisturbed") / "lake")
    assert forks.wait(forks.start("analyze", recipe, "--lake", lake.root)) == 0
    return contents(lake)


def contents(lake: Lake) -> dict[str, str]:
    """run_id -> content hash"""
    return {record.run_id: record.content_hash for record in lake.records()}


def files(lake: Lake) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in lake.root.rglob("*") if path.is_file()}


class Watched:
    """What becomes of a lake while processes work on it and are killed."""

    def __init__(self, lake: Lake) -> None:
        self.lake = lake
        self.landed: dict[str, set[tuple[int, int]]] = {}
        """Shard -> every different folder that was seen in its place."""

    def look(self) -> int:
        """How many shards and runs have been finished since the first look, as far as they were seen."""
        for shard in self.lake.root.glob("landing/*/[!.]*"):
            try:
                found = shard.stat()
            except FileNotFoundError:  # published meanwhile
                continue
            self.landed.setdefault(f"{shard.parent.name}/{shard.name}", set()).add((found.st_ino, found.st_mtime_ns))
        return len(self.landed) + len(list(self.lake.root.glob("runs/[!.]*")))


def kill_after(forks: Forks, watched: Watched, pid: int, events: int, delay: float) -> bool:
    """Kills the process once so many shards and runs are finished; whether it was still at work."""
    while watched.look() < events and Path(f"/proc/{pid}").exists() and not is_over(pid):
        time.sleep(0.001)
    time.sleep(delay)
    os.kill(pid, signal.SIGKILL)
    watched.look()
    return forks.wait(pid) == -signal.SIGKILL


def is_over(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"


@pytest.mark.parametrize("seed", range(3))
def test_killed_at_random_moments_ends_in_the_same_content(
    seed: int, recipe: Path, forks: Forks, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    draw = random.Random(seed)
    watched = Watched(Lake(tmp_path / "lake"))
    command = ("analyze", recipe, "--lake", watched.lake.root)
    moments = sorted([*draw.sample(range(1, INGEST_SHARDS + 1), 2), *draw.sample(range(INGEST_SHARDS + 2, 36), 3)])
    n_killed = sum(kill_after(forks, watched, forks.start(*command), moment, draw.uniform(0, 0.02)) for moment in moments)
    assert n_killed >= 3, "the job was over too soon to be killed"
    assert contents(watched.lake).items() < undisturbed.items(), "what was published before is right, and not all"
    last = forks.start(*command)
    while not is_over(last):
        watched.look()
        time.sleep(0.001)
    assert forks.wait(last) == 0
    assert contents(watched.lake) == undisturbed
    repeated = {shard: seen for shard, seen in watched.landed.items() if len(seen) > 1}
    assert not repeated, "a finished shard was computed again"
    assert not list(watched.lake.root.glob("landing/*"))
    before = files(watched.lake)
    assert forks.wait(forks.start(*command)) == 0
    assert files(watched.lake) == before, "asking for a finished study does nothing"


def test_two_processes_at_once_on_one_lake(recipe: Path, forks: Forks, undisturbed: dict[str, str], tmp_path: Path) -> None:
    lake = Lake(tmp_path / "lake")
    both = [forks.start("analyze", recipe, "--lake", lake.root) for _ in range(2)]
    assert [forks.wait(pid) for pid in both] == [0, 0]
    assert contents(lake) == undisturbed


def test_the_survivor_of_two_finishes_what_the_other_began(
    recipe: Path, forks: Forks, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    watched = Watched(Lake(tmp_path / "lake"))
    first = forks.start("analyze", recipe, "--lake", watched.lake.root)
    while watched.look() < 3:
        time.sleep(0.001)
    second = forks.start("analyze", recipe, "--lake", watched.lake.root)
    assert kill_after(forks, watched, first, 5, 0)
    assert forks.wait(second) == 0
    assert contents(watched.lake) == undisturbed


def test_a_killed_ingest_of_the_very_command_goes_on(recipe: Path, undisturbed: dict[str, str], tmp_path: Path) -> None:
    watched = Watched(Lake(tmp_path / "lake"))
    command = [sys.executable, "-m", "cli", "ingest", str(recipe), "--lake", str(watched.lake.root)]
    killed = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    while watched.look() < 2 and killed.poll() is None:
        time.sleep(0.001)
    killed.kill()
    assert killed.wait() == -signal.SIGKILL
    assert not contents(watched.lake)
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "ingest" in again.stdout
    assert contents(watched.lake).items() <= undisturbed.items()
    assert len(contents(watched.lake)) == 1
