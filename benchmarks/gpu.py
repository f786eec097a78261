"""The ingest job at the paper's sizes, beside the same forward and encode alone. Run by `make bench-gpu`.

    python -m benchmarks.gpu --cache ~/.cache/saelake-bench

Then ablated forwards as Stage 2 of the search asks for them, projected to the paper's number of them on a GPU alone.

Gemma-2-2B's and Llama-3.1-8B's shapes with random weights, SAEs as wide and on as many layers as the recipes'. Without a CUDA
device every width is divided by 16, and the section says so. Model and SAEs are loaded before the clock starts; the job then
computes, lands, sorts, publishes and sums up.
"""

import argparse
import json
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import Gemma2Config, LlamaConfig
from transformers.utils import logging

from benchmarks.gemma import matmul_rate, wait
from benchmarks.gpu_search import stage2
from benchmarks.harness import Report, Times, alternated
from benchmarks.ingest import forward_and_encode
from benchmarks.subjects import GEMMA_2_2B, LLAMA_3_1_8B, random_model, random_sae, save_sae
from saelake.ingest.capture import CHUNK_VALUES, capture, residuals
from saelake.ingest.job import ingest_study, plans, shards_of
from saelake.ingest.model_shape import shape_of
from saelake.ingest.pieces import Piece, pieces
from saelake.ingest.recipe import RECIPES, Recipe, load_recipe
from saelake.ingest.runs import Ingested, ingest_runs
from saelake.ingest.shards import ShardMaker
from saelake.ingest.sites import Site
from saelake.ingest.study import Study, open_study
from saelake.ingest.subject import Subject
from saelake.warehouse.lake import Lake
from saelake.warehouse.runs import Rows

ORGANISM = RECIPES.parent / "ingest" / "organism" / "model"
WIDTHS = ("hidden_size", "intermediate_size", "head_dim", "query_pre_attn_scalar", "vocab_size")
CPU_SCALE, CPU_PROMPTS, CUDA_PROMPTS = 16, 128, 1024
CPU_FORWARDS, CUDA_FORWARDS = 64, 2048
"""Of Stage 2, that are timed."""


@dataclass(frozen=True)
class Size:
    """What is built and run."""

    recipe: str
    """Whose layers and settings of capture are taken."""
    config: dict[str, Any]
    family: type
    width: int
    """Latents of an SAE."""

    def scaled(self, divisor: int) -> "Size":
        """The same with every width divided."""
        config = {name: value // divisor if name in WIDTHS else value for name, value in self.config.items()}
        return Size(self.recipe, config, self.family, self.width // divisor)


SIZES = {
    "gemma_2_2b": Size("gemma-2-2b", GEMMA_2_2B, Gemma2Config, 65_536),
    "llama_3_1_8b": Size("llama-3.1-8b", LLAMA_3_1_8B, LlamaConfig, 131_072),
}


def write_study(folder: Path, size: Size, n_prompts: int, device: torch.device) -> Recipe:
    """A model, SAEs and prompts of that size on disk, and their recipe. On a CPU in float32, which it multiplies faster."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    shipped = load_recipe(size.recipe)
    words = _words()
    draw = np.random.default_rng(0)
    prompts = [{"instruction": " ".join(draw.choice(words, draw.integers(10, 60)))} for _ in range(n_prompts)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts), "utf-8")
    random_model(size.family(**size.config), device, dtype).save_pretrained(folder / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ORGANISM / name, folder / "model")
    recipe = Recipe.model_validate(
        {
            "name": "bench",
            "model": {"path": folder / "model", "dtype": str(dtype).removeprefix("torch."), "max_prompt_tokens": 256},
            "saes": {"path": folder / "saes" / "layer_{layer}", "layers": shipped.saes.layers},
            "prompts": [{"set": "words", "file": folder / "prompts.jsonl", "label": "benign", "split": "test"}],
            "capture": shipped.section("capture") | ({} if device.type == "cuda" else {"shard_prompts": CPU_PROMPTS // 4}),
            "compute": {"device": device.type} | ({} if device.type == "cuda" else {"threads": 1}),
        }
    )
    subject = Subject.load(recipe.model, recipe.compute)
    generator = torch.Generator(device).manual_seed(0)
    some = [subject.encode(row["instruction"]).token_ids for row in prompts[:40]]
    for layer, resid_nd in residuals(subject, some, list(shipped.saes.layers), 2048).items():
        sae = random_sae(resid_nd.float(), layer, size.width, generator)
        # In bfloat16, so that 13 of Llama's fit on a disk; they are loaded as float32.
        save_sae(folder / "saes" / f"layer_{layer}", layer, sae.module, torch.bfloat16)
    return recipe


def _words() -> list[str]:
    vocabulary = json.loads((ORGANISM / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
    return sorted(word for word in vocabulary if word.isalpha())


Span = tuple[float, float]
"""Start and end by the wall clock, in seconds."""


class Watched(ShardMaker):
    """Remembers when it was computing shards of prompts."""

    computing: list[Span]

    def rows(self, pieces: Sequence[Piece]) -> Iterator[list[list[Rows]]]:
        self.computing = []
        found = super().rows(pieces)
        while True:
            start = time.perf_counter()
            shard = next(found, None)
            self.computing.append((start, time.perf_counter()))
            if shard is None:
                return
            yield shard


class Phases(NamedTuple):
    """Seconds of the wall clock that a job took."""

    shards: float
    """Until every shard was computed and landed."""
    landing: float
    """Of these, spent writing shards."""
    hidden: float
    """Of these again, while another shard was computed."""
    publishing: float
    """After that: sorting, writing Parquet, summing up."""


def job(study: Study, maker: Watched, lake: Lake) -> tuple[Ingested, Phases]:
    """The real job, with a look at the clock around every shard."""
    sets = ingest_runs(study)
    landing: list[Span] = []

    def watched(missing: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, str, list[Rows]]]:
        for shard in shards_of(list(pieces(study, sets, missing)), maker):
            given = time.perf_counter()
            yield shard
            landing.append((given, time.perf_counter()))

    start = time.perf_counter()
    record = ingest_study(study, lake, compute=watched)
    landed = landing[-1][1]
    hidden = sum(max(min(end, e) - max(begin, b), 0) for begin, end in landing for b, e in maker.computing)
    spent = sum(end - begin for begin, end in landing)
    return record, Phases(landed - start, spent, hidden, time.perf_counter() - landed)


@torch.inference_mode()
def bare(maker: ShardMaker, batch_tokens: int) -> None:
    """Forward and encode of every token with what the job has loaded; the SAEs one by one where they do not all fit."""
    token_ids = [one.token_ids for one in maker.tokenized.values()]
    loader, subject = maker.sae_loader, maker.subject
    if loader.all_fit:
        forward_and_encode(subject, {layer: loader[layer] for layer in loader}, token_ids, batch_tokens)
    else:
        captured = capture(subject, token_ids, [Site(layer) for layer in loader], batch_tokens, on_host=True)
        for layer in loader:
            sae = loader.whole(layer)
            for resid_nd in captured.resid.pop(Site(layer)).split(max(CHUNK_VALUES[subject.device.type] // sae.width, 1)):
                sae.module.encode(resid_nd.to(subject.device, non_blocking=True).float())
    wait(subject.device)


def measure(report: Report, name: str, size: Size, recipe: Recipe, rounds: int) -> None:
    """One model: ratio to bare forward and encode, share of the matmul rate, overlap, memory."""
    study = open_study(recipe)
    sets = ingest_runs(study)
    everything = {spec.run_id: plan.shards for spec, plan in plans(study, Lake(Path()), sets)}
    maker = Watched(study, sets, [piece for piece, _ in pieces(study, sets, everything)])
    device = maker.subject.device
    batch_tokens = recipe.capture.batch_tokens
    jobs: list[tuple[Ingested, Phases]] = []
    with tempfile.TemporaryDirectory(dir=recipe.model.path.parent if recipe.model.path else None) as folder:
        numbers = count()

        def whole() -> None:
            lake = Path(folder, f"lake-{next(numbers)}")
            jobs.append(job(study, maker, Lake.create(lake)))
            shutil.rmtree(lake)

        def shards_only() -> None:
            for _ in shards_of(list(pieces(study, sets, everything)), maker):
                pass

        contenders: dict[str, Callable[[], object]] = {
            "forward + encode": lambda: bare(maker, batch_tokens),
            "shards, not written": shards_only,
            "whole job": whole,
        }
        # On a shared CPU the wall clock says more about the others.
        clock = time.perf_counter if device.type == "cuda" else time.process_time
        times = alternated(contenders, rounds, clock=clock)
    # The first job is the warm-up's.
    _report(report, name, size, maker, times, [phases for _, phases in jobs[1:]], jobs[-1][0])
    stage2(report, name, maker, CUDA_FORWARDS if device.type == "cuda" else CPU_FORWARDS)


def _report(
    report: Report, name: str, size: Size, maker: ShardMaker, times: Times, jobs: Sequence[Phases], record: Ingested
) -> None:
    device = maker.subject.device
    n_tokens, n_rows = record.n_rows("tokens"), record.n_rows("activations")
    n_bytes = sum(file.n_bytes for file in record.files)
    loaded = "all SAEs stay loaded" if maker.sae_loader.all_fit else "SAEs loaded layer by layer"
    report.line(
        f"\n{name}: width {size.config['hidden_size']:,}, SAEs of {size.width:,} latents on "
        f"{len(maker.sae_loader)} layers, "
        f"{maker.subject.dtype}, {loaded}; "
        f"{n_tokens:,} tokens, {n_rows:,} rows, {n_bytes / 1e6:,.1f} MB"
    )
    report.line(times.table())
    report.line(f"  {n_tokens / times.median('whole job'):,.0f} tokens/s, {n_rows / times.median('whole job'):,.0f} rows/s")
    report.ratio(f"gpu_{name}_ingest", times.ratio("whole job", "forward + encode"), "<= 1.25")
    report.ratio(f"gpu_{name}_shards", times.ratio("shards, not written", "forward + encode"), "none")
    least = _least_seconds(size, maker, n_tokens)
    for contender in ("forward + encode", "whole job"):
        report.line(f"  {contender}: {least / times.median(contender):.0%} of the measured matmul rate")
    phases = Phases(*(float(np.median(column)) for column in zip(*jobs, strict=True)))
    report.line(
        f"  wall clock: computing and landing shards {phases.shards:.2f} s, of which landing {phases.landing:.2f} s, "
        f"{phases.hidden / phases.landing:.0%} of it while the next was computed; then publishing {phases.publishing:.2f} s"
    )
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    report.line(f"  peak memory: {host / 1e9:.2f} GB of the process" + _on_device(device))


def _least_seconds(size: Size, maker: ShardMaker, n_tokens: int) -> float:
    """Time of the same multiplications at the rate of a large matrix product: blocks in the model's dtype, encode in float32."""
    device, loader = maker.subject.device, maker.sae_loader
    shape = shape_of(maker.subject.model.config.to_dict())
    tied = maker.subject.model.config.tie_word_embeddings
    in_blocks = shape.n_parameters - shape.d_vocab * shape.d_model * (1 if tied else 2)
    used = in_blocks * (max(loader) + 1) / shape.n_layers
    encode = size.width * shape.d_model * len(loader)
    forward_rate, encode_rate = (matmul_rate(device, dtype) for dtype in (maker.subject.dtype, torch.float32))
    return 2 * n_tokens * (used / forward_rate + encode / encode_rate)


def _on_device(device: torch.device) -> str:
    return f", {torch.cuda.max_memory_allocated(device) / 1e9:.2f} GB on the device" if device.type == "cuda" else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--models", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--prompts", type=int, help=f"{CUDA_PROMPTS:,} on a CUDA device, else {CPU_PROMPTS}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dry", action="store_true", help="do not write docs/benchmarks.md")
    options = parser.parse_args()
    logging.disable_progress_bar()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    report = Report("gpu", "The ingest job at the paper's sizes", ["torch", "transformers", "sae-lens", "duckdb", "pyarrow"])
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info()
        report.line(f"{torch.cuda.get_device_name()}, {free / 1e9:.0f} of {total / 1e9:.0f} GB free; times are of the wall clock")
    else:
        report.line(
            f"no CUDA device here: one thread of the CPU, every width divided by {CPU_SCALE}, float32; times are processor time"
        )
    n_prompts = options.prompts or (CUDA_PROMPTS if device.type == "cuda" else CPU_PROMPTS)
    for name in options.models:
        size = SIZES[name] if device.type == "cuda" else SIZES[name].scaled(CPU_SCALE)
        if device.type != "cuda":
            report.not_run(f"{name} at full size", "no CUDA device here")
        with tempfile.TemporaryDirectory(prefix="gpu-", dir=options.cache) as folder:
            recipe = write_study(Path(folder), size, n_prompts, device)
            if device.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            measure(report, name if device.type == "cuda" else f"{name}_scaled", size, recipe, options.rounds)
    if not options.dry:
        report.keep()


if __name__ == "__main__":
    main()
