"""A model's last projection in float32, whatever its dtype, and some rows of the vocabulary at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from saelake.ingest.forwards import with_forward

VOCABULARY_AT_ONCE = 1 << 15
"""Rows of the unembedding that exist in float32 at a time."""


@contextmanager
def exact_unembedding(model: PreTrainedModel) -> Iterator[None]:
    """While open, the model's last projection is computed in float32, and so is what it does with its logits."""
    head: Any = model.get_output_embeddings()
    if model.dtype == torch.float32 or not isinstance(head, nn.Linear):
        yield
        return
    with with_forward(head, partial(_project_float32, head)):
        yield


def _project_float32(head: nn.Linear, hidden_bkd: Tensor) -> Tensor:
    """Logits (b, k, v) in float32."""
    biases = (None,) if head.bias is None else head.bias.split(VOCABULARY_AT_ONCE)
    rows = head.weight.split(VOCABULARY_AT_ONCE)
    parts = [
        nn.functional.linear(hidden_bkd.float(), some.float(), None if biases[0] is None else biases[i].float())
        for i, some in enumerate(rows)
    ]
    return torch.cat(parts, dim=-1)
