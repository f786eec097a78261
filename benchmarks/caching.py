"""The ingest job beside delphi's LatentCache: the same model, prompts and SAEs, each contender in a process of its own.

    python -m benchmarks.caching saelake --cache ~/.cache/saelake-bench --to FOLDER     # one contender, once

Run by `make bench-ingest`. delphi takes token rows of one length, so the prompts are those of the commonest length. It runs the
model to its end, keeps everything in memory and writes float16 values; saelake stops after the last SAE and writes float32.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.harness import Report
from saelake.ingest.job import ingest_study
from saelake.ingest.recipe import RECIPES, Recipe
from saelake.ingest.study import open_study
from saelake.warehouse.catalog import connect
from saelake.warehouse.lake import Lake

BATCH = 8
"""Rows of a batch; delphi leaves out an incomplete last one."""
N_SPLITS = 5
"""delphi's own default"""
TOLERANCE = 1e-5
"""Share of non-zeros that may lie on one side only: values within a rounding of their threshold."""


def equal_length_study(cache: Path, threads: int) -> Recipe:
    """The study of bench-ingest on the organism's prompts of one token length, in whole batches."""
    from benchmarks.ingest import write_study
    from benchmarks.subjects import smollm2

    rows = (RECIPES.parent / "ingest" / "organism" / "prompts.jsonl").read_text("utf-8").splitlines()
    recipe = write_study(cache, len(rows), threads)
    subject = smollm2(cache, threads)
    lengths = [len(subject.encode(json.loads(row)["instruction"]).token_ids) for row in rows]
    length, n = Counter(lengths).most_common(1)[0]
    chosen = [row for row, its in zip(rows, lengths, strict=True) if its == length][: n // BATCH * BATCH]
    file = cache / "prompts-equal.jsonl"
    file.write_text("\n".join(chosen) + "\n", "utf-8")
    prompts = recipe.prompts[0].model_copy(update={"file": file})
    capture = recipe.capture.model_copy(update={"batch_tokens": BATCH * length})
    return recipe.model_copy(update={"prompts": (prompts,), "capture": capture})


def run_saelake(recipe: Recipe, folder: Path) -> None:
    """The job as users run it."""
    ingest_study(open_study(recipe), Lake.create(folder))


def run_delphi(recipe: Recipe, folder: Path) -> None:
    """Its cache as its pipeline fills and writes it, with SAELens' encoders."""
    import torch
    from delphi.latents.cache import LatentCache
    from sae_lens import SAE

    from saelake.ingest.prompts import load_prompts
    from saelake.ingest.subject import Subject

    subject = Subject.load(recipe.model, recipe.compute)
    folders = {layer: Path(recipe.saes.fill(str(recipe.saes.path), layer)) for layer in recipe.saes.layers}
    encoders = {f"model.layers.{layer}": SAE.load_from_disk(path, dtype="float32").encode for layer, path in folders.items()}
    tokens = torch.tensor([subject.encode(prompt.text).token_ids for prompt in load_prompts(recipe)])
    cache = LatentCache(subject.model, encoders, BATCH)
    cache.run(tokens.numel(), tokens)
    cache.save_splits(N_SPLITS, folder)


CONTENDERS: dict[str, Callable[[Recipe, Path], None]] = {"saelake": run_saelake, "delphi": run_delphi}


def saelake_rows(folder: Path, layer: int) -> tuple[np.ndarray, np.ndarray]:
    """(nnz, 3) prompt, pos and feature in this order, and (nnz,) activations of what the job wrote."""
    with connect(Lake.existing(folder)) as con:
        found = con.execute(
            "select prompt_id & 4294967295 as prompt, pos, feature_id, activation from activations where layer = ?", [layer]
        ).fetchnumpy()
    return np.stack([found[name].astype(np.int64) for name in ("prompt", "pos", "feature_id")], 1), found["activation"]


def delphi_rows(folder: Path, layer: int) -> tuple[np.ndarray, np.ndarray]:
    """The same of what delphi wrote."""
    from safetensors.numpy import load_file

    parts = []
    for file in sorted((folder / f"model.layers.{layer}").glob("*.safetensors")):
        part = load_file(file)
        place = part["locations"].astype(np.int64)
        place[:, 2] += int(file.stem.split("_")[0])
        parts.append((place, part["activations"].astype(np.float32)))
    places, activations = zip(*parts, strict=True)
    return np.concatenate(places), np.concatenate(activations)


def assert_equal(ours: Path, theirs: Path, layers: tuple[int, ...]) -> tuple[int, int]:
    """Non-zeros, and how many are on one side only; AssertionError where these are many or a value differs."""
    n_all = n_apart = 0
    for layer in layers:
        keyed = []
        for place, activation in (saelake_rows(ours, layer), delphi_rows(theirs, layer)):
            key = (place[:, 0] << 40) | (place[:, 1] << 24) | place[:, 2]
            order = np.argsort(key)
            keyed.append((key[order], activation[order]))
        (key, value), (other_key, other) = keyed
        _, here, there = np.intersect1d(key, other_key, assume_unique=True, return_indices=True)
        np.testing.assert_allclose(value[here], other[there], rtol=2e-3, err_msg=f"values of layer {layer}, float16 there")
        n_all += len(key)
        n_apart += len(key) + len(other_key) - 2 * len(here)
    assert n_apart <= TOLERANCE * n_all, f"{n_apart} of {n_all} non-zeros are on one side only"
    return n_all, n_apart


def measure(report: Report, cache: Path, rounds: int, threads: int) -> None:
    """Processor time, peak memory and bytes of both, in alternation, and that they found the same."""
    recipe = equal_length_study(cache, threads)
    seconds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    memory: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    n_bytes: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as work:
        for number in range(rounds):
            for name in list(CONTENDERS)[:: -1 if number % 2 else 1]:
                folder = Path(work, f"{name}-{number}")
                measured = _in_a_process(name, cache, folder, threads)
                seconds[name].append(measured["seconds"])
                memory[name].append(measured["peak_bytes"])
                data = folder / "data" if name == "saelake" else folder
                n_bytes[name] = sum(file.stat().st_size for file in data.rglob("*") if file.is_file())
        n_rows, n_apart = assert_equal(Path(work, "saelake-0"), Path(work, "delphi-0"), recipe.saes.layers)
    n_prompts = len(open_study(recipe).prompts)
    report.line(
        f"\nbeside delphi's LatentCache: {n_prompts} prompts of one length, the same SAEs, each run a process of its own; "
        f"{n_rows:,} non-zeros, {n_apart} of them on one side only; delphi runs all layers and writes float16, the job stops "
        f"after layer {max(recipe.saes.layers)} and writes float32"
    )
    for name in CONTENDERS:
        report.line(
            f"  {name:<8} {statistics.median(seconds[name]):7.1f} s of processor time ({min(seconds[name]):.1f} .. "
            f"{max(seconds[name]):.1f}), peak memory {statistics.median(memory[name]) / 1e6:,.0f} MB, "
            f"{n_bytes[name] / 1e6:,.1f} MB on disk"
        )
    pairs = zip(seconds["saelake"], seconds["delphi"], strict=True)
    report.ratio("ingest_over_delphi_time", statistics.median(a / b for a, b in pairs), "<= 1.00")
    report.ratio("ingest_over_delphi_memory", statistics.median(memory["saelake"]) / statistics.median(memory["delphi"]), "none")
    report.ratio("ingest_over_delphi_bytes", n_bytes["saelake"] / n_bytes["delphi"], "<= 1.00")


def _in_a_process(name: str, cache: Path, folder: Path, threads: int) -> dict[str, float]:
    options = ("--cache", str(cache), "--to", str(folder), "--threads", str(threads))
    command = [sys.executable, "-m", "benchmarks.caching", name, *options]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("contender", choices=CONTENDERS)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    recipe = equal_length_study(options.cache, options.threads)
    start = time.process_time()
    CONTENDERS[options.contender](recipe, options.to)
    measured = {"seconds": time.process_time() - start, "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
