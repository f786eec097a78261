"""Kills, races and damage that a lake must survive; prints one line a claim and fails on any miss.

    python -m benchmarks.torture                        # the full count: 60 kills twice, 200 damages, a minute of many hands
    python -m benchmarks.torture --kills 6 --commands 6 --damages 20 --seconds 4
    python -m benchmarks.torture --study organism       # also kills `saelake analyze`

Workers are processes of their own (`--role`), so that kill -9 hits them wherever they are.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import duckdb

from saelake.warehouse.catalog import connect
from saelake.warehouse.check import check
from saelake.warehouse.errors import UserError
from saelake.warehouse.housekeeping import drop, gc
from saelake.warehouse.keys import record_key
from saelake.warehouse.lake import Lake
from tests.warehouse import toys

GRACE = 5.0
"""Seconds that `gc` spares a dropped run here: far longer than a reader of these lakes takes from opening to answer."""
PATIENCE = 60.0
"""Seconds that a reader of a busy machine looks on until it has seen a row."""
SEEDS = range(3)
ROOT = Path(__file__).resolve().parent.parent


def work_once(lake: Lake) -> None:
    """Drops a stage and what it is computed from, collects garbage, computes both again: the whole life of a run."""
    for spec in (toys.answers_spec(), toys.ingest_spec()):
        if (lake.root / record_key(spec.run_id)).exists():
            drop(lake, spec.run_id)
    gc(lake, older_than_seconds=GRACE)
    toys.ingest(lake)
    toys.answers(lake)


def write_until(lake: Lake, seed: int, deadline: float) -> None:
    """One of many writers: computes, drops and collects at random, in the way of all others."""
    chance = random.Random(seed)
    while time.time() < deadline:
        which = chance.choice(SEEDS)
        try:
            match chance.randrange(6):
                case 0:
                    drop(lake, toys.answers_spec(which).run_id)
                case 1:
                    drop(lake, toys.ingest_spec(which).run_id)
                case 2:
                    gc(lake, older_than_seconds=GRACE)
                case _:
                    toys.ingest(lake, which)
                    toys.answers(lake, which)
        except UserError as error:  # another writer was quicker, and it says so
            if not any(words in str(error) for words in ("again", "has no run", "computed from")):
                raise


def read_until(lake: Lake, deadline: float) -> None:
    """One of many readers: every run that it sees is whole and right, in a connection and in the catalog file."""
    expected = {run_id: tuple(n) for run_id, n in json.loads((lake.root.parent / EXPECTED).read_text()).items()}
    n_reads = n_rows = said = 0
    while time.time() < deadline or (not n_rows and time.time() < deadline + PATIENCE):
        n_rows += _check_runs(connect(lake), expected)
        if lake.catalog.exists():
            con = duckdb.connect(lake.catalog, read_only=True)
            con.execute("set variable lake = $1", [str(lake.root)])
            n_rows += _check_runs(con, expected)
        n_reads += 1
        if n_rows and time.time() > said + 1:
            print(n_reads, n_rows, flush=True)
            said = int(time.time())


COUNTED = """
with seen as (
    select run_id, count(*) as n, sum(feature_id + pos + activation::decimal(18, 6)) as total
    from all_runs.activations group by all
    union all by name
    select run_id, count(*) as n, sum(prompt_id & 4294967295) as total from all_runs.ablations group by all
)
select runs.run_id, n, total::double from all_runs.runs left join seen using (run_id)
"""
EXPECTED = "expected.json"


def write_expected(folder: Path) -> Path:
    """Rows and their sum of every run that a torture makes, counted in a lake of their own; returns the folder."""
    lake = Lake.create(folder / "undisturbed")
    for seed in SEEDS:
        toys.ingest(lake, seed)
        toys.answers(lake, seed)
    with connect(lake) as con:
        counted = {run_id: (n, total) for run_id, n, total in con.execute(COUNTED).fetchall()}
    (folder / EXPECTED).write_text(json.dumps(counted))
    return folder


def _check_runs(con: duckdb.DuckDBPyConnection, expected: dict[str, tuple[int, float]]) -> int:
    with con:
        rows = con.execute(COUNTED).fetchall()
    assert len({run_id for run_id, *_ in rows}) == len(rows), f"a run is listed twice: {rows}"
    for run_id, n, total in rows:
        assert (n, total) == expected[run_id], f"{run_id} shows {n} rows with sum {total}, not {expected[run_id]}"
    return sum(n for _, n, _ in rows)


def start(role: str, lake: Lake, *arguments: object) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "benchmarks.torture", "--role", role, "--lake", str(lake.root), *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: "subprocess.Popen[str]") -> str:
    """What is wrong with how a process ended; nothing if it ended well."""
    _, err = process.communicate(timeout=600)
    return "" if process.returncode == 0 else err.strip().splitlines()[-1]


def finish_reader(process: "subprocess.Popen[str]") -> str:
    """What is wrong with what a reader saw, or with how often it looked."""
    out, err = process.communicate(timeout=600)
    if process.returncode not in (0, -signal.SIGKILL):
        return f"a reader saw something partial or unreadable: {err.strip().splitlines()[-1]}"
    n_reads, n_rows = ["0", "0", *out.split()[1:]][-2:]  # after the word "begins"
    print(f"     a reader looked {n_reads} times at {int(n_rows):,} rows in all")
    return "" if n_rows != "0" else "a reader saw nothing at all"


def _contents(lake: Lake) -> dict[str, str]:
    return {r.run_id: r.content_hash for r in lake.records()}


def _damage(lake: Lake) -> list[str]:
    return [str(f) for f in check(lake) if not f.note]


def _timed(process: "subprocess.Popen[str]") -> tuple[float, str]:
    """How long a worker works, from its first word to its end, and what is wrong with it."""
    assert process.stdout is not None
    process.stdout.readline()
    started = time.monotonic()
    miss = finish(process)
    return time.monotonic() - started, miss


def kills(folder: Path, count: int, chance: random.Random) -> list[str]:
    """kill -9 at random moments of a run's life, while a reader looks on; after each a rerun must give the undisturbed lake."""
    lake = Lake.create(folder / "killed")
    seconds, miss = _timed(start("work", lake))
    misses, undisturbed = [miss], _contents(lake)
    reader = start("read", lake, "--until", time.time() + 3600)
    n_killed = 0
    for number in range(count):
        process = start("work", lake)
        assert process.stdout is not None
        process.stdout.readline()  # it begins
        try:
            process.wait(chance.uniform(0, seconds))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            n_killed += 1
        process.communicate()
        misses += [f"after kill {number}: {miss}" for miss in _damage(lake)]
        rerun = finish(start("rerun", lake))
        if rerun or _contents(lake) != undisturbed or _damage(lake):
            misses.append(f"after kill {number} a rerun gives another lake: {rerun} {_contents(lake)} {_damage(lake)}")
    reader.kill()
    misses.append(finish_reader(reader))
    gc(lake, older_than_seconds=0)
    misses += [f"garbage is left: {f}" for f in check(lake)]
    print(f"{n_killed} of {count} jobs were killed before they ended")
    return [miss for miss in misses if miss]


def many_hands(folder: Path, seconds: float, n_writers: int, n_readers: int) -> list[str]:
    """Writers that compute, drop and collect the same runs, and readers that count every row, all at once."""
    lake, until = Lake.create(folder / "hands"), time.time() + seconds
    writers = [start("write", lake, "--until", until, "--seed", seed) for seed in range(n_writers)]
    readers = [start("read", lake, "--until", until) for _ in range(n_readers)]
    misses = [finish(process) for process in writers]
    for seed in SEEDS:
        toys.ingest(lake, seed)
        toys.answers(lake, seed)
    misses += [finish_reader(process) for process in readers]
    gc(lake, older_than_seconds=0)
    if _contents(lake) != _contents(Lake.existing(folder / "undisturbed")):
        misses.append("the lake differs from one that was written by one process")
    return [miss for miss in misses if miss] + [str(f) for f in check(lake)]


def damages(folder: Path, count: int, chance: random.Random) -> list[str]:
    """Random bit flips and truncations in published files, one at a time."""
    lake, misses = Lake.create(folder / "damaged"), []
    toys.ingest(lake)
    toys.answers(lake)
    records = lake.records()
    paths = [lake.root / f.path for r in records for f in r.files] + [lake.root / record_key(r.run_id) for r in records]
    for number in range(count):
        path, is_cut = chance.choice(paths), number % 4 == 3
        content = path.read_bytes()
        place, bit = chance.randrange(len(content)), 1 << chance.randrange(8)
        path.write_bytes(content[:place] if is_cut else content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :])
        if not any(lake.root / f.path == path for f in check(lake)):
            misses.append(f"{path.name} {'cut' if is_cut else 'flipped'} at {place}")
        path.write_bytes(content)
    return misses + _damage(lake)


def study_kills(folder: Path, recipe: str, count: int, chance: random.Random) -> list[str]:
    """kill -9 at random moments of `saelake analyze`, each time resumed; in the end the lake is that of an undisturbed one."""

    def analyze(lake: Path) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "saelake.cli", "analyze", recipe, "--lake", str(lake)]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    started = time.monotonic()
    misses = [finish(analyze(folder / "whole"))]
    seconds = time.monotonic() - started
    n_killed = 0
    for _ in range(count):
        process = analyze(folder / "interrupted")
        try:
            process.wait(chance.uniform(0.2, 1.0) * seconds / 2)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            n_killed += 1
        process.communicate()
    misses.append(finish(analyze(folder / "interrupted")))
    whole, interrupted = Lake.existing(folder / "whole"), Lake.existing(folder / "interrupted")
    differing = sorted({run_id for run_id, _ in _contents(whole).items() ^ _contents(interrupted).items()})
    if differing:
        misses.append(f"the interrupted study's lake differs from the undisturbed one in {', '.join(differing)}")
    print(f"{n_killed} of {count} studies were killed before they ended")
    return [miss for miss in misses if miss] + _damage(interrupted)


def claim(text: str, prove: Callable[..., list[str]], *arguments: object) -> bool:
    started = time.monotonic()
    misses = prove(*arguments)
    print(
        f"{'ok  ' if not misses else 'MISS'} {text} ({time.monotonic() - started:.0f} s)", *misses[:5], sep="\n     ", flush=True
    )
    return not misses


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Kills, races and damage that a lake must survive.")
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--commands", type=int, default=60, help="how many commands are killed, on a tiny study")
    parser.add_argument("--damages", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60, help="how long many hands work at once")
    parser.add_argument("--writers", type=int, default=4)
    parser.add_argument("--readers", type=int, default=4)
    parser.add_argument("--study", metavar="RECIPE", help="also kill `saelake analyze RECIPE`, a tenth as often")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--role", choices=["work", "rerun", "write", "read"], help=argparse.SUPPRESS)
    parser.add_argument("--lake", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.role:
        lake = Lake.existing(asked.lake)
        roles = {
            "work": lambda: work_once(lake),
            "rerun": lambda: (toys.ingest(lake), toys.answers(lake)),
            "write": lambda: write_until(lake, asked.seed, asked.until),
            "read": lambda: read_until(lake, asked.until),
        }
        print("begins", flush=True)
        roles[asked.role]()
        return 0
    print(f"saelake torture: seed {asked.seed}, {os.cpu_count()} cores, duckdb {duckdb.__version__}")
    chance = random.Random(asked.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = write_expected(Path(name).resolve())
        hands = f"{asked.writers} writers and {asked.readers} readers for {asked.seconds:g} s: no lost, doubled or torn row"
        kept = [
            claim(
                f"{asked.kills} kills: a rerun equals the undisturbed lake, no reader sees a part",
                kills,
                folder,
                asked.kills,
                chance,
            ),
            claim(hands, many_hands, folder, asked.seconds, asked.writers, asked.readers),
            claim(f"{asked.damages} bit flips and truncations are all found", damages, folder, asked.damages, chance),
        ]
        if asked.commands:
            from benchmarks.kills import kill_commands  # imports torch, which the workers do without

            text = f"{asked.commands} kills of ingest, analyze, share, add, drop, gc, report and study: given again, all complete"
            kept.append(claim(text, kill_commands, folder / "commands", asked.commands, chance))
        if asked.study:
            count = max(1, asked.kills // 10)
            text = f"{count} kills of `saelake analyze {asked.study}`: the lake equals the undisturbed one"
            kept.append(claim(text, study_kills, folder, asked.study, count, chance))
    return 0 if all(kept) else 1


if __name__ == "__main__":
    sys.exit(main())
