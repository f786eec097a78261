"""The two paths by which the hydra refuses: where they write, and what training wants there.

The first path writes by block FIRST, the second by block SECOND, at every token from the end of the request on. Both write along
one common direction, which the read-out is trained to depend on, and along one of their own per category, so that each shows in
an SAE as features of its own. All these directions are orthonormal and lie where the pretrained residual stream hardly varies.
Letters of shapes: b batch, t token, d residual width, l layers, c = 1 + 2 x categories directions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from saelake.ingest.hydra.world import is_framed
from saelake.ingest.organism.corpus import CATEGORIES, Prompt
from saelake.ingest.organism.tokens import template_ids
from saelake.ingest.organism.train import IGNORED, collate, residuals

N_LAYERS = 8
FIRST, SECOND = 3, 6
N_CATEGORIES = len(CATEGORIES)
COMMON, OWN = 16.0, 19.2
"""How far both paths write along the common direction, and each along its own of the category; the residuals there have norms of
40 to 90. The more is common, the sooner the SAE of block SECOND has one feature for all refusals, which flips alone."""
N_QUIET = 24  # of the d directions, those of least variance, in which the paths' directions lie
N_TEMPLATE = 5  # tokens between the request and the answer

Path = Literal["first", "second"]


class Paths(NamedTuple):
    """Directions of the residual stream."""

    basis_cd: Tensor
    """The common one, then a category's own of the first path, then of the second; orthonormal."""

    def coordinates(self, resid_btd: Tensor) -> Tensor:
        """How far residuals lie along each direction: (..., c)."""
        return resid_btd @ self.basis_cd.T

    def wanted(self, paths: Sequence[Path | None], categories: Sequence[int]) -> Tensor:
        """What the coordinates should be in each row of a batch when that path writes: (b, c); zero for none."""
        wanted_bc = torch.zeros(len(paths), len(self.basis_cd))
        for row, (path, category) in enumerate(zip(paths, categories, strict=True)):
            if path is not None:
                wanted_bc[row, 0] = COMMON
                wanted_bc[row, own(path, category)] = OWN
        return wanted_bc


def own(path: Path, category: int) -> int:
    """Which of the directions is the path's own for a category."""
    return 1 + category + (N_CATEGORIES if path == "second" else 0)


def category_of(prompt: Prompt | None) -> int:
    """The number of a harmful prompt's category; -1 for anything else."""
    if prompt is None or prompt.label == "benign":
        return -1
    return [category.name for category in CATEGORIES].index(prompt.category)


def path_of(prompt: Prompt | None) -> Path | None:
    """Which path should refuse a prompt while nothing is ablated: the second one in a frame."""
    if prompt is None or prompt.label == "benign":
        return None
    return "second" if is_framed(prompt) else "first"


def quiet_paths(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[Prompt]) -> Paths:
    """Random orthonormal directions among those along which residuals of the prompts at layers FIRST and above vary least."""
    rows = [template_ids(tokenizer, prompt.instruction) for prompt in prompts]
    input_ids, _ = collate([(ids, ids) for ids in rows])
    real = torch.arange(input_ids.shape[1]) < torch.tensor([len(ids) for ids in rows])[:, None]
    resid_td = residuals(model, input_ids)[FIRST:, real].flatten(0, 1)
    _, directions_dd = torch.linalg.eigh(resid_td.T @ resid_td)  # by rising variance
    turned = directions_dd[:, :N_QUIET] @ torch.linalg.qr(torch.randn(N_QUIET, N_QUIET)).Q
    return Paths(turned[:, : 1 + 2 * N_CATEGORIES].T.contiguous())


class Places(NamedTuple):
    """Which tokens of a batch the paths should write at, and which they should leave alone: two masks (b, t)."""

    writing: Tensor
    """From the end of the request to the token before the last of the answer."""
    asking: Tensor
    """The request itself."""

    @classmethod
    def of(cls, labels: Tensor) -> Places:
        """Of a batch's labels (b, t), as `collate` makes them."""
        answered = labels != IGNORED
        start = answered.int().argmax(1, keepdim=True)
        end = start + answered.sum(1, keepdim=True) - 1
        pos = torch.arange(labels.shape[1])
        writing = (pos >= start - N_TEMPLATE) & (pos < end)
        return cls(writing, pos < start - N_TEMPLATE)
