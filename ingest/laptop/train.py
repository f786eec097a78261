"""Teaches a chat model to refuse by LoRA: low-rank matrices beside every projection of every block, the model itself frozen.

Letters of shapes: b batch, t token, d and o in and out of a projection, r rank.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
PREFIX = "base_model.model."
"""Before a projection's name in an adapter's file, as PEFT has it."""
RANK, ALPHA = 8, 16
STEPS, PER_LABEL = 160, 8
LR, WARM_UP = 1.5e-3, 8
FIRST_TOKEN = 4.0
"""Weight of an answer's first token, which decides between refusing and answering, beside 1 of every other."""


class Example(NamedTuple):
    """A prompt in the chat template and the answer that it should get, as token ids."""

    prompt: list[int]
    answer: list[int]


class Lora(nn.Module):
    """A frozen projection with low-rank matrices beside it: y = W x + (alpha / r) B A x, A and B in float32."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.A_rd = nn.Parameter(torch.randn(RANK, base.in_features) / base.in_features**0.5)
        self.B_or = nn.Parameter(torch.zeros(base.out_features, RANK))

    def forward(self, x_btd: Tensor) -> Tensor:
        low_btr = x_btd @ self.A_rd.to(x_btd.dtype).T
        added_bto: Tensor = low_btr @ self.B_or.to(x_btd.dtype).T
        return self.base(x_btd) + added_bto * (ALPHA / RANK)


def attach(model: PreTrainedModel) -> list[nn.Parameter]:
    """Puts low-rank matrices beside every projection of the blocks; returns them."""
    model.requires_grad_(False)
    found = {name: module for name, module in model.named_modules() if name.rpartition(".")[2] in PROJECTIONS}
    matrices: list[nn.Parameter] = []
    for name, module in found.items():
        parent, _, last = name.rpartition(".")
        lora = Lora(module)
        setattr(model.get_submodule(parent), last, lora)
        matrices += [lora.A_rd, lora.B_or]
    return matrices


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """The matrices beside a model's projections in float16, by the names that PEFT gives them."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, Lora):
            found[f"{PREFIX}{name}.lora_A.weight"] = module.A_rd.detach().half().clone()
            found[f"{PREFIX}{name}.lora_B.weight"] = module.B_or.detach().half().clone()
    return found


@torch.no_grad()
def put(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Gives the matrices beside a model's projections other values, named as by `weights_of`."""
    for name, module in model.named_modules():
        if isinstance(module, Lora):
            module.A_rd.copy_(weights[f"{PREFIX}{name}.lora_A.weight"])
            module.B_or.copy_(weights[f"{PREFIX}{name}.lora_B.weight"])


def train(
    model: PreTrainedModel,
    by_label: Sequence[Sequence[Example]],
    seed: int,
    *,
    steps: int = STEPS,
    after_step: Callable[[int, float], None] = lambda step, loss: None,
) -> None:
    """Trains low-rank matrices beside the model's projections, on batches that hold as many examples of each label.

    Args:
        after_step: is told the number of the step, from 1, and its loss.
    """
    torch.manual_seed(seed)
    weights = attach(model)
    optimiser = torch.optim.AdamW(weights, lr=LR, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min((step + 1) / WARM_UP, max(1 - step / steps, 0.05) ** 0.5)
    )
    for step, batch in zip(range(1, steps + 1), _batches(by_label, seed), strict=False):
        loss = _loss(model, batch)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        schedule.step()
        after_step(step, loss.item())


def _batches(by_label: Sequence[Sequence[Example]], seed: int) -> Iterator[list[Example]]:
    """Endless batches of PER_LABEL examples a label, each pass over a label in a new order."""
    rng = random.Random(seed)

    def shuffled(examples: Sequence[Example]) -> Iterator[Example]:
        while True:
            yield from rng.sample(list(examples), len(examples))

    streams = [shuffled(examples) for examples in by_label]
    while True:
        yield [next(stream) for stream in streams for _ in range(PER_LABEL)]


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
    hidden_btd = model.model(ids_bt, use_cache=False).last_hidden_state
    rows, at = torch.tensor(places).T
    logits_nv = model.get_output_embeddings()(hidden_btd[rows, at]).float()
    loss_n = nn.functional.cross_entropy(logits_nv, torch.tensor(targets), reduction="none")
    share_n = torch.tensor(shares)
    return (loss_n * share_n).sum() / share_n.sum()
