"""Bytes a non-zero on real captures: the embedded organism, and SmolLM2-135M."""

from pathlib import Path

from benchmarks.harness import Report
from benchmarks.lake.floor import floor
from saelake.ingest.job import ingest_study
from saelake.ingest.recipe import Recipe, load_recipe
from saelake.ingest.runs import Ingested
from saelake.ingest.study import open_study
from saelake.warehouse.lake import Lake
from saelake.warehouse.records import RunRecord


def bytes_of(record: RunRecord | Ingested) -> tuple[int, float]:
    """The rows that a run, or the runs of an ingest, have of `activations`, and the bytes of each."""
    n_rows = record.n_rows("activations")
    return n_rows, sum(f.n_bytes for f in record.files if f.table == "activations") / n_rows


def files_of(lake: Lake, record: RunRecord | Ingested) -> list[Path]:
    """Of the table `activations`."""
    return [lake.root / f.path for f in record.files if f.table == "activations"]


def measure(report: Report, work: Path, cache: Path, n_prompts: int) -> None:
    """Both captures, each with float32 values and with bfloat16."""
    report.line("\nReal captures: bytes a non-zero of all copies of the activations (one), and the estimated floor")
    for target, rounding in (("<= 4.5", "none"), ("<= 2.4", "bfloat16")):
        _capture(report, work, "organism", load_recipe("organism"), rounding, target)
    try:
        from benchmarks.ingest import write_study

        study = write_study(cache, n_prompts, threads=1)
    except (ImportError, AssertionError) as error:
        report.not_run("SmolLM2-135M", str(error))
        return
    for target, rounding in (("<= 4.5", "none"), ("<= 2.4", "bfloat16")):
        _capture(report, work, "smollm2", study, rounding, target)
    report.line("smollm2: 12 SAEs of 16,384 latents with random directions, since nobody has published trained ones")


def _capture(report: Report, work: Path, name: str, recipe: Recipe, rounding: str, target: str) -> None:
    capture = recipe.capture.model_copy(update={"round": rounding})
    lake = Lake.create(work / f"{name}-{rounding}")
    record = ingest_study(open_study(recipe.model_copy(update={"capture": capture})), lake)
    n_rows, size = bytes_of(record)
    least = floor(files_of(lake, record))
    values = {"none": "float32", "bfloat16": "bfloat16"}[rounding]
    report.line(
        f"  {name}, {values}: {n_rows:,} non-zeros, {record.n_rows('prompts'):,} prompts, {size:.3f} bytes each; "
        f"floor {least.total:.2f} (ids {least.ids:.2f}, values {least.values:.2f})"
    )
    report.ratio(f"bytes_{name}_{values}", size, target)
    report.ratio(f"bytes_{name}_{values}_over_floor", size / least.total, "none")
