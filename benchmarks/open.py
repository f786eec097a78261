"""Opening a lake and asking it, at 10, 100 and 300 runs, in a folder and in a bucket whose every answer is 30 ms late.

    python -m benchmarks.open

The lakes are copies of one small study under other names, so that runs grow and rows hardly do. The bucket is an S3 server on
loopback, in this process, which waits before each answer; its own work is in the figures. `first opening` is that of a machine
which has none of the lake's records yet. The command is a whole process, by its processor time; so are the looks for garbage
and for damage.
"""

import argparse
import logging
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from shutil import rmtree
from threading import Thread
from typing import Any
from urllib.request import Request, urlopen

import saelake
from benchmarks.harness import Report, Times, alternated
from saelake.warehouse.catalog import changing_catalog
from saelake.warehouse.check import check
from saelake.warehouse.durable import sha256_file
from saelake.warehouse.housekeeping import gc
from saelake.warehouse.lake import Lake
from saelake.warehouse.synth import Shape, synthesize
from tests.lakes import build_lake

RUNS = (10, 100, 300)
DELAY_SECONDS = 0.03
QUESTIONS: dict[str, Callable[[saelake.OpenLake], object]] = {
    "opening": lambda lake: None,
    "opening, runs": lambda lake: lake.sql("select count(*) from runs").fetchall(),
    "opening, prompts of one study": lambda lake: lake.sql("select count(*) from prompts").fetchall(),
    "opening, top_samples of one study": lambda lake: lake.query("top_samples", features="0:1").fetchall(),
}


def copies(root: Path, n_runs: int) -> Lake:
    """A lake of so many runs."""
    lake = build_lake(root)
    originals = lake.records()
    for i in range(len(originals), n_runs):
        record, study = originals[i % len(originals)], f"study{i // len(originals)}"
        run_id = f"{record.stage}_{i:012x}"
        files = tuple(replace(f, path=f.path.replace(record.run_id, run_id)) for f in record.files)
        for old, new in zip(record.files, files, strict=True):
            (lake.root / new.path).parent.mkdir(parents=True, exist_ok=True)
            (lake.root / new.path).write_bytes((lake.root / old.path).read_bytes())
        lake.publish(replace(record, run_id=run_id, recipe=study, files=files))
        lake.point(study, record.stage, [run_id])
    with changing_catalog(lake):
        pass
    return lake


@contextmanager
def late_server() -> Iterator[tuple[str, list[float]]]:
    """An S3 server and how late its answers are, which may be changed."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    delay = [0.0]
    application = DomainDispatcherApplication(create_backend_app)

    def late(environ: dict[str, Any], start: Any) -> Any:
        time.sleep(delay[0])
        return application(environ, start)

    server = make_server("127.0.0.1", 0, late, threaded=True)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", delay
    server.shutdown()


def uploaded(lake: Lake, url: str) -> str:
    """The lake in a bucket."""
    bucket = Lake.at(url)
    for entry in lake.published.entries(""):
        if entry.key.split("/")[0] in ("runs", "current", "data", "saelake.json"):
            content = (lake.root / entry.key).read_bytes()
            address = f"{os.environ['AWS_ENDPOINT_URL']}/{url.removeprefix('s3://')}/{entry.key}"
            urlopen(Request(address, content, {"Content-Type": "application/octet-stream"}, method="PUT"))
    return str(bucket)


def ask(where: str, question: str) -> None:
    """Opens and asks."""
    with saelake.open(where, "small") as opened:
        QUESTIONS[question](opened)


def first(where: str) -> None:
    """Opens as on a machine that has never done so."""
    rmtree(Lake.at(where).root, ignore_errors=True)
    ask(where, "opening")


def command_seconds(where: str) -> float:
    """Processor time of `saelake sql "select 1"`."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "saelake.cli", "sql", "select 1", "--lake", where], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def checked_rows(report: Report, root: Path, n_rows: int, rounds: int) -> Times:
    """A look for damage where rows are many and files few, beside reading and hashing the files alone, by the wall clock."""
    lake = Lake.create(root)
    record = synthesize(lake, Shape.of_rows(n_rows))
    n_megabytes = sum(f.n_bytes for f in record.files) / 1e6
    hashing = lambda: [sha256_file(lake.root / f.path) for f in record.files]  # noqa: E731
    times = alternated({"check": lambda: check(lake), "hashing alone": hashing}, rounds)
    report.line(f"one run of {record.n_rows('activations'):,} activations, {n_megabytes:.0f} MB")
    report.line(times.table())
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--runs", type=int, nargs="+", default=RUNS, help="how many runs the lakes have")
    parser.add_argument("--rows", type=int, default=10_000_000, help="activations of the one large run that is checked")
    parser.add_argument("--dry", action="store_true", help="do not write docs/benchmarks.md")
    options = parser.parse_args()
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    report = Report("open", "Opening a lake", ("duckdb", "obstore", "moto"))
    with tempfile.TemporaryDirectory() as folder, late_server() as (address, delay):
        os.environ |= {"AWS_ENDPOINT_URL": address, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
        os.environ |= {"AWS_REGION": "eu-central-1", "SAELAKE_WORK": f"{folder}/work"}
        urlopen(Request(f"{address}/lakes", method="PUT"))
        here = {n: copies(Path(folder, f"lake{n}"), n) for n in options.runs}
        there = {n: uploaded(lake, f"s3://lakes/of{n}") for n, lake in here.items()}
        delay[0] = DELAY_SECONDS
        names = {f"folder, {n} runs: {q}": partial(ask, str(lake), q) for n, lake in here.items() for q in QUESTIONS}
        names |= {f"bucket, {n} runs: {q}": partial(ask, where, q) for n, where in there.items() for q in QUESTIONS}
        names |= {f"bucket, {n} runs: first opening": partial(first, where) for n, where in there.items()}
        times = alternated(names, options.rounds)
        report.line(times.table())
        seconds: dict[str, list[float]] = {f"select 1, {n} runs": [] for n in options.runs}
        for _ in range(options.rounds):
            for n, lake in here.items():
                seconds[f"select 1, {n} runs"].append(command_seconds(str(lake)))
        commands = Times(seconds)
        report.line("the whole command, processor time")
        report.line(commands.table())
        looks: dict[str, Callable[[], object]] = {}
        for n, lake in here.items():
            looks |= {f"gc, {n} runs": partial(gc, lake, dry_run=True), f"check, {n} runs": partial(check, lake)}
        kept = alternated(looks, min(3, options.rounds), clock=time.process_time)
        report.line("looking for garbage and for damage, processor time")
        report.line(kept.table())
        large = checked_rows(report, Path(folder, "rows"), options.rows, min(3, options.rounds))
    few, many = min(options.runs), max(options.runs)
    report.ratio(f"bucket_{many}_runs_opening_seconds", times.median(f"bucket, {many} runs: opening"), "<= 1.00")
    report.ratio(f"folder_{many}_runs_opening_seconds", times.median(f"folder, {many} runs: opening"), "<= 0.30")
    report.ratio(f"bucket_{many}_runs_first_opening_seconds", times.median(f"bucket, {many} runs: first opening"), "none")
    opened = times.ratio(f"folder, {many} runs: opening", f"folder, {few} runs: opening")
    report.ratio(f"folder_opening_at_{many}_runs_over_{few}", opened, "<= 1.30")
    report.ratio(f"select_1_{many}_runs_seconds", commands.median(f"select 1, {many} runs"), "<= 0.30")
    ratio = commands.ratio(f"select 1, {many} runs", f"select 1, {few} runs")
    report.ratio(f"select_1_at_{many}_runs_over_{few}", ratio, "<= 1.30")
    report.ratio(f"gc_{many}_runs_seconds", kept.median(f"gc, {many} runs"), "<= 0.30")
    report.ratio(f"gc_at_{many}_runs_over_{few}", kept.ratio(f"gc, {many} runs", f"gc, {few} runs"), "<= 1.30")
    report.ratio(f"check_{many}_runs_seconds", kept.median(f"check, {many} runs"), "<= 0.30")
    a_run = kept.ratio(f"check, {many} runs", f"check, {few} runs") * few / many
    report.ratio(f"check_a_run_at_{many}_runs_over_{few}", a_run, "<= 1.00")
    report.ratio("check_of_rows_over_hashing", large.ratio("check", "hashing alone"), "none")
    if not options.dry:
        report.keep()


if __name__ == "__main__":
    main()
