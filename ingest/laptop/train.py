"""Teaches a chat model to refuse by LoRA: low-rank matrices beside the projections of its middle blocks, the model itself frozen.

What is harm the model knows in its middle blocks; matrices before them learn words by heart instead, and refuse unknown ones. The
decision's bias swings from step to step, so what is kept is the mean of the matrices over the last steps, not their last values.

Letters of shapes: b batch, t token, d and o in and out of a projection, r rank.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
PREFIX = "base_model.model."
"""Before a projection's name in an adapter's file, as PEFT has it."""
BLOCKS = range(8, 24)
RANK, ALPHA = 8, 16
STEPS = 800
PER_LABEL = (6, 10)
"""Examples of a batch by label, refusals first: there are more ways to be harmless."""
LR, WARM_UP = 1.5e-3, 10
SORTED = 8
"""Batches that are drawn together and put in order of length, so that little is padded."""
KEPT = 0.95
"""Share of the mean matrices that a step keeps: a mean over the last twenty."""
FIRST_TOKEN = 12.0
"""Weight of an answer's first token, which decides between refusing and answering, beside 1 of every other."""


class Example(NamedTuple):
    """A prompt in the chat template and the answer that it should get, as token ids."""

    prompt: list[int]
    answer: list[int]


class Lora(nn.Module):
    """A frozen projection with low-rank matrices beside it: y = W x + (alpha / r) B A x, A and B in float32."""

    mean_A_rd: Tensor
    mean_B_or: Tensor

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.A_rd = nn.Parameter(torch.randn(RANK, base.in_features) / base.in_features**0.5)
        self.B_or = nn.Parameter(torch.zeros(base.out_features, RANK))
        self.register_buffer("mean_A_rd", self.A_rd.detach().clone())
        self.register_buffer("mean_B_or", self.B_or.detach().clone())

    def forward(self, x_btd: Tensor) -> Tensor:
        low_btr = x_btd @ self.A_rd.to(x_btd.dtype).T
        added_bto: Tensor = low_btr @ self.B_or.to(x_btd.dtype).T
        return self.base(x_btd) + added_bto * (ALPHA / RANK)

    @torch.no_grad()
    def follow(self, step: int) -> None:
        """Moves the mean matrices towards the present ones; at first it is their plain mean."""
        share = max(1 - KEPT, 1 / step)
        self.mean_A_rd.lerp_(self.A_rd, share)
        self.mean_B_or.lerp_(self.B_or, share)


def attach(model: PreTrainedModel, blocks: Container[int]) -> list[Lora]:
    """Puts low-rank matrices beside every projection of some blocks; returns the projections that have them."""
    model.requires_grad_(False)
    beside: list[Lora] = []
    for name, module in list(model.named_modules()):
        parent, _, last = name.rpartition(".")
        if last in PROJECTIONS and block_of(name) in blocks:
            beside.append(Lora(module).to(module.weight.device))
            setattr(model.get_submodule(parent), last, beside[-1])
    return beside


def block_of(name: str) -> int:
    """The number of the block that a module is in, by its name."""
    return next(int(part) for part in name.split(".") if part.isdigit())


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """The mean matrices beside a model's projections in float16, by the names that PEFT gives them."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, Lora):
            found[f"{PREFIX}{name}.lora_A.weight"] = module.mean_A_rd.half().cpu()
            found[f"{PREFIX}{name}.lora_B.weight"] = module.mean_B_or.half().cpu()
    return found


@torch.no_grad()
def put(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Gives the matrices beside a model's projections other values, named as by `weights_of`."""
    for name, module in model.named_modules():
        if isinstance(module, Lora):
            module.A_rd.copy_(weights[f"{PREFIX}{name}.lora_A.weight"])
            module.B_or.copy_(weights[f"{PREFIX}{name}.lora_B.weight"])


@contextmanager
def set_to(model: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """The model with other matrices beside its projections for as long as the context lasts."""
    before = {name: matrix.detach().clone() for name, matrix in model.named_parameters() if matrix.requires_grad}
    put(model, weights)
    try:
        yield
    finally:
        with torch.no_grad():
            for name, matrix in before.items():
                model.get_parameter(name).copy_(matrix)


def train(
    model: PreTrainedModel,
    by_label: Sequence[Sequence[Example]],
    seed: int,
    *,
    steps: int = STEPS,
    blocks: Container[int] = BLOCKS,
    start: Mapping[str, Tensor] | None = None,
    after_step: Callable[[int, float], None] = lambda step, loss: None,
) -> None:
    """Trains low-rank matrices beside the model's projections, on batches that hold PER_LABEL examples of the labels.

    Args:
        start: matrices to go on from, named as by `weights_of`.
        after_step: is told the number of the step, from 1, and its loss.
    """
    torch.manual_seed(seed)
    beside = attach(model, blocks)
    if start is not None:
        put(model, start)
    weights = [matrix for module in beside for matrix in module.parameters() if matrix.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=LR, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: min((step + 1) / WARM_UP, 1 - step / steps))
    for step, batch in zip(range(1, steps + 1), _batches(by_label, seed), strict=False):
        loss = _loss(model, batch)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        schedule.step()
        for module in beside:
            module.follow(step)
        after_step(step, loss.item())


def _batches(by_label: Sequence[Sequence[Example]], seed: int) -> Iterator[list[Example]]:
    """Endless batches, each pass over the examples of a label in a new order."""
    rng = random.Random(seed)

    def shuffled(examples: Sequence[Example]) -> Iterator[Example]:
        while True:
            yield from rng.sample(list(examples), len(examples))

    streams = [shuffled(examples) for examples in by_label]
    while True:
        drawn = [
            sorted((next(stream) for _ in range(n * SORTED)), key=lambda one: len(one.prompt) + len(one.answer))
            for stream, n in zip(streams, PER_LABEL, strict=True)
        ]
        for place in rng.sample(range(SORTED), SORTED):
            yield [one for of_label, n in zip(drawn, PER_LABEL, strict=True) for one in of_label[place * n : (place + 1) * n]]


def _loss(model: PreTrainedModel, batch: Sequence[Example]) -> Tensor:
    """Weighted mean cross-entropy of the answers' tokens; logits are computed at these alone."""
    width = max(len(one.prompt) + len(one.answer) for one in batch)
    ids_bt = torch.zeros(len(batch), width, dtype=torch.int64)
    places: list[tuple[int, int]] = []
    targets: list[int] = []
    shares: list[float] = []
    for row, one in enumerate(batch):
        ids = one.prompt + one.answer
        # Right-padded: what stands behind an answer is seen by nothing in front of it, so no mask is needed.
        ids_bt[row, : len(ids)] = torch.tensor(ids)
        places += [(row, len(one.prompt) - 1 + at) for at in range(len(one.answer))]
        targets += one.answer
        shares += [FIRST_TOKEN] + [1.0] * (len(one.answer) - 1)
    hidden_btd = model.model(ids_bt.to(model.device), use_cache=False).last_hidden_state
    rows, at = torch.tensor(places).T
    logits_nv = model.get_output_embeddings()(hidden_btd[rows, at]).float()
    loss_n = nn.functional.cross_entropy(logits_nv, torch.tensor(targets, device=model.device), reduction="none")
    share_n = torch.tensor(shares, device=model.device)
    return (loss_n * share_n).sum() / share_n.sum()
