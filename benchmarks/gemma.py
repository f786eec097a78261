"""The paper's own size: Gemma-2-2B's shapes in bfloat16 with SAEs of 65k latents on 14 layers, all weights random. Needs CUDA."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import Gemma2Config

from benchmarks.harness import Report, alternated
from benchmarks.organism import distinct_evaluations
from benchmarks.subjects import GEMMA_2_2B, random_model, random_sae
from saelake.analysis.engine.engine import AblationEngine
from saelake.analysis.engine.interventions import Interventions
from saelake.analysis.engine.requests import FeatureSet, Request
from saelake.analysis.engine.slices import SliceCache
from saelake.ingest.saes.sae import Sae
from saelake.ingest.subject import Subject

NEEDED = 40e9
"""Bytes: 5 of the model, 17 of the SAEs, the rest for the batch."""


@dataclass(frozen=True)
class Shapes:
    """Of the model, the SAEs and the work."""

    config: dict[str, Any] = field(default_factory=lambda: dict(GEMMA_2_2B))
    layers: Sequence[int] = range(2, 16)
    width: int = 65536
    per_layer: int = 200
    n_prompts: int = 256
    n_tokens: int = 40


@dataclass(frozen=True)
class _Tokenizer:
    """As much of one as the engine asks for."""

    pad_token_id: int = 0
    eos_token_id: int = 1

    def get_vocab(self) -> dict[str, int]:
        return {"I": 2}


def measure(report: Report, rounds: int) -> None:
    """Ablated against bare forward, tokens a second, share of the matmul rate, and the paper's searches projected."""
    name = "Gemma-2-2B shapes, 65k SAEs on 14 layers, bfloat16"
    if not torch.cuda.is_available():
        report.line()
        return report.not_run(name, "no CUDA device here")
    free, _ = torch.cuda.mem_get_info()
    if free < NEEDED:
        report.line()
        return report.not_run(name, f"needs {NEEDED / 1e9:.0f} GB on the CUDA device, {free / 1e9:.0f} GB are free")
    return measure_on(report, torch.device("cuda"), Shapes(), rounds)


def measure_on(report: Report, device: torch.device, shapes: Shapes, rounds: int) -> None:
    """The same on any device, at any size."""
    subject = _subject(device, shapes)
    rng = np.random.default_rng(0)
    prompts = rng.integers(2, shapes.config["vocab_size"], (shapes.n_prompts, shapes.n_tokens)).tolist()
    saes = _saes(subject, prompts[:4], shapes)
    layers = np.repeat(shapes.layers, shapes.per_layer)
    ids = np.concatenate([rng.choice(shapes.width, shapes.per_layer, replace=False) for _ in shapes.layers])
    shared = FeatureSet.of(layers, ids)
    batch, requests = subject.batch(prompts), [Request(row, shared) for row in range(len(prompts))]
    slices = {layer: SliceCache(sae) for layer, sae in saes.items()}
    engine = AblationEngine(subject, saes, prompts)

    def bare() -> None:
        subject.forward(batch)
        wait(device)

    def ablated() -> None:
        with torch.inference_mode(), Interventions(subject, slices, requests, shapes.n_tokens).at_work(batch):
            subject.forward(batch)
        wait(device)

    times = alternated({"bare": bare, "ablated": ablated, "engine": lambda: engine.next_token(requests)}, rounds, warmups=2)
    n_tokens = len(prompts) * shapes.n_tokens
    rate, peak = n_tokens / times.median("ablated"), matmul_rate(device, subject.dtype)
    n_weights = sum(p.numel() for p in subject.blocks.parameters())
    where = torch.cuda.get_device_name() if device.type == "cuda" else device.type
    report.line(
        f"\nGemma-2-2B shapes, bfloat16, on {where}: {n_tokens:,} tokens a pass, "
        f"SAEs of {shapes.width:,} latents on {len(shapes.layers)} layers"
    )
    report.line(times.table())
    report.line(
        f"  ablated: {rate:,.0f} tokens/s, {2 * n_weights * rate / peak:.0%} of the measured matmul rate "
        f"({peak / 1e12:.2f} TFLOP/s)"
    )
    report.ratio("gemma_ablated_forward", times.ratio("ablated", "bare"), "<= 1.15")
    per_evaluation = times.median("engine") / len(prompts)
    stage1, stage2 = 861 * 20, 861 * distinct_evaluations(200 * 14, 5, 3)
    start = time.perf_counter()
    engine.answer(requests, 64)
    per_answer = (time.perf_counter() - start) / len(requests)
    report.line(
        f"  projected for the paper's 861 prompts of {shapes.n_tokens} tokens: Stage 1, {stage1:,} answers of 64 tokens: "
        f"{stage1 * per_answer / 60:.1f} min; Stage 2, {stage2:,} evaluations: {stage2 * per_evaluation / 60:.1f} min"
    )


def _subject(device: torch.device, shapes: Shapes) -> Subject:
    dtype = torch.bfloat16
    model = random_model(Gemma2Config(**shapes.config), device, dtype)
    tokenizer: Any = _Tokenizer()
    template: Any = None
    return Subject.of(model, tokenizer, template, (2,), shapes.n_tokens)


def _saes(subject: Subject, prompts: Sequence[Sequence[int]], shapes: Shapes) -> dict[int, Sae]:
    generator = torch.Generator(subject.device).manual_seed(0)
    resid = subject.read_resid_post(subject.batch(prompts), list(shapes.layers))
    return {layer: random_sae(resid[layer].float().flatten(0, 1), layer, shapes.width, generator) for layer in shapes.layers}


def matmul_rate(device: torch.device, dtype: torch.dtype, size: int | None = None) -> float:
    """FLOP/s of one large matrix product."""
    n = size or (8192 if device.type == "cuda" else 1024)
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))

    def product() -> None:
        a @ b
        wait(device)

    clock = time.perf_counter if device.type == "cuda" else time.process_time
    times = alternated({"matmul": product}, rounds=10, warmups=3, clock=clock)
    return 2 * n**3 / times.median("matmul")


def wait(device: torch.device) -> None:
    """Until a CUDA device has done what it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize()
