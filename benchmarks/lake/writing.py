"""From captured rows to a published lake, beside what it takes the peers to write theirs and to sum up every feature."""

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.harness import Report, alternated, seconds_of
from benchmarks.lake.captured import Captured
from benchmarks.lake.floor import floor
from benchmarks.lake.numpy_peers import Csr, Delphi
from benchmarks.lake.real import bytes_of, files_of
from benchmarks.lake.sql_peers import Polars, Sql, naive, native, native_bytes, open_lake
from saelake.warehouse.lake import Lake
from saelake.warehouse.landing import Plan, Rows, land
from saelake.warehouse.records import RunRecord, RunSpec
from saelake.warehouse.runs import ensure_run
from saelake.warehouse.schema import ALIGNMENTS
from saelake.warehouse.statistics import FeatureStatistics
from saelake.warehouse.synth import TABLES


@dataclass(frozen=True)
class Stores:
    """All contenders, written and open."""

    lake: Lake
    ours: Sql
    native: Sql
    naive: Sql
    delphi: Delphi
    delphi_by_hand: Delphi
    csr: Csr
    polars: Polars


def publish(captured: Captured, root: Path, by_prompt: bool = False) -> tuple[Lake, RunRecord]:
    """Lands and publishes the captured rows."""
    lake = Lake.create(root)
    land_all(captured, lake)
    return lake, publish_landed(captured, lake, by_prompt)


def land_all(captured: Captured, lake: Lake) -> None:
    for name, rows in captured.shards:
        land(lake.landing(captured.spec.run_id) / name, rows)


def publish_landed(captured: Captured, lake: Lake, by_prompt: bool = False) -> RunRecord:
    tables = (*TABLES, "activations_by_prompt") if by_prompt else TABLES
    plan = Plan([name for name, _ in captured.shards], lambda missing: iter(()), tables, summary=FeatureStatistics)
    return ensure_run(lake, captured.spec, plan)


def align(captured: Captured, lake: Lake) -> None:
    """A run of random cosines, for the questions about candidates."""
    random = np.random.default_rng(0)

    def rows(layer: int) -> Rows:
        width = captured.shape.width
        columns = {
            "direction": np.repeat(["own", "chosen"], width),
            "sae_id": [f"synth{captured.spec.seed}/layer-{layer:02d}"] * (2 * width),
            "layer": np.full(2 * width, layer),
            "feature_id": np.tile(np.arange(width), 2),
            "cosine": random.uniform(-1, 1, 2 * width),
        }
        return Rows.of(ALIGNMENTS, columns, layer)

    spec = RunSpec("alignments", captured.spec.recipe, {"device": "cpu"}, (captured.spec.run_id,))
    shard = ("all", [rows(layer) for layer in range(captured.shape.n_layers)])
    ensure_run(lake, spec, Plan(["all"], lambda missing: iter([shard]), ["alignments"]))


def size(report: Report, captured: Captured, root: Path, target: str) -> None:
    """Bytes a non-zero of one synthetic capture."""
    lake, record = publish(captured, root)
    n_rows, each = bytes_of(record)
    least = floor(files_of(lake, record))
    values = captured.shape.round
    report.line(f"\n{n_rows:,} synthetic non-zeros, {values}: {each:.3f} bytes each; floor {least.total:.2f}")
    report.ratio(f"bytes_synthetic_{values}", each, target)
    report.ratio(f"bytes_synthetic_{values}_over_floor", each / least.total, "none")
    shutil.rmtree(root)


def measure(report: Report, captured: Captured, work: Path) -> Stores:
    """Speeds of landing and publishing, the whole way to answered statistics against the peers, and every contender's bytes."""
    _speeds(report, captured, work / "speed")
    _pipelines(report, captured, work)
    lake, record = publish(captured, work / "lake", by_prompt=True)
    align(captured, lake)
    ours = open_lake(lake, captured)
    delphi, csr = Delphi(captured, work / "delphi", own_loader=True), Csr(captured, work / "csr")
    stores = Stores(
        lake,
        ours,
        native(lake, captured, work / "native.duckdb"),
        naive(lake, captured, work / "naive"),
        delphi,
        Delphi(captured, work / "delphi", own_loader=False),
        csr,
        Polars(lake, captured),
    )
    _bytes(report, captured, stores, record, work)
    return stores


def _speeds(report: Report, captured: Captured, root: Path) -> None:
    landing, publishing, wall = [], [], []
    for _ in range(3):
        lake = Lake.create(root)
        begin = time.perf_counter()
        landing.append(seconds_of(lambda lake=lake: land_all(captured, lake)))  # type: ignore[misc]
        publishing.append(seconds_of(lambda lake=lake: publish_landed(captured, lake)))  # type: ignore[misc]
        wall.append(time.perf_counter() - begin)
        shutil.rmtree(root)
    n = captured.n_rows / 1e6
    report.ratio("landing_million_rows_a_second", n / sorted(landing)[1], ">= 12")
    report.ratio("publishing_million_rows_a_second", n / sorted(publishing)[1], ">= 10")
    report.line(
        f"  both by the wall clock, disk included, load {os.getloadavg()[0]:.1f}: {n / sorted(wall)[1]:.2f} million rows a second"
    )


def _pipelines(report: Report, captured: Captured, work: Path) -> None:
    """Captured rows to the answer, each contender from the memory that its own capture leaves; writes the peers' files."""
    delphi, csr = Delphi(captured, work / "delphi", own_loader=True), Csr(captured, work / "csr")
    by_hand = Delphi(captured, work / "delphi", own_loader=False)
    delphi.take()
    by_hand.share(delphi)

    def ours() -> None:
        lake, _ = publish(captured, work / "pipeline")
        with open_lake(lake, captured).con as con:
            con.sql("select * from features").to_arrow_table()
        shutil.rmtree(lake.root)

    contenders: dict[str, Callable[[], object]] = {
        "saelake": ours,
        "delphi": lambda: (delphi.write(), delphi.statistics()),
        "delphi by hand": lambda: (by_hand.write(), by_hand.statistics()),
        "csr": lambda: (csr.write(), csr.statistics()),
        "csr by hand": lambda: (csr.write(), csr.statistics_by_hand()),
    }
    times = alternated(contenders, rounds=3, warmups=0, clock=time.process_time)
    report.line("\nFrom captured rows to the statistics of every feature, publishing included")
    report.line(times.table())
    report.line(
        "  delphi is read by its TensorBuffer and csr by SciPy's methods; by hand: the quickest NumPy that we could write"
    )
    for peer in list(contenders)[1:]:
        target = {"delphi": ">= 1.2", "csr by hand": ">= 0.6"}.get(peer, "none")
        report.ratio(f"captured_to_statistics_vs_{peer.replace(' ', '_')}", times.ratio(peer, "saelake"), target)
    delphi.forget()
    by_hand.forget()


def _bytes(report: Report, captured: Captured, stores: Stores, record: RunRecord, work: Path) -> None:
    n = captured.n_rows
    each = {t: sum(f.n_bytes for f in record.files if f.table == t) / n for t in {f.table for f in record.files}}
    sizes = {
        "saelake": each["activations"],
        "saelake with the copy by prompt": each["activations"] + each["activations_by_prompt"],
        "DuckDB native, sorted by feature": native_bytes(stores.native) / n,
        "naive Parquet": _folder_bytes(work / "naive") / n,
        "delphi": _folder_bytes(work / "delphi") / n,
        "csr": _folder_bytes(work / "csr") / n,
    }
    least = floor(files_of(stores.lake, record))
    report.line(
        f"\nBytes a non-zero (floor: ids {least.ids:.2f}, values {least.values:.2f}; the table of statistics is "
        f"{each['features']:.2f} more)"
    )
    for name, value in sizes.items():
        report.line(f"  {name:<34} {value:6.3f}")
    report.ratio("bytes_synthetic_bfloat16", sizes["saelake"], "<= 2.4")
    report.ratio("bytes_synthetic_bfloat16_over_floor", sizes["saelake"] / least.total, "<= 1.2")
    report.ratio("bytes_with_copy_by_prompt_vs_delphi", sizes["saelake with the copy by prompt"] / sizes["delphi"], "none")
    report.ratio("bytes_vs_native", sizes["saelake"] / sizes["DuckDB native, sorted by feature"], "<= 0.5")


def _folder_bytes(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
