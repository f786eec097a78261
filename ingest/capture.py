"""Sparse activations of a batch of prompts: forward, encode, keep what is not zero.

Tensor names carry shapes: n tokens without padding, d residual width, f features.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ingest.saes import Sae
from ingest.subject import Subject
from warehouse.errors import UserError


class Nonzeros(NamedTuple):
    """The non-zero activations of one layer, in token order."""

    token: np.ndarray
    """(nnz,) int64: row of the residuals."""
    feature_id: np.ndarray
    """(nnz,) int32"""
    activation: np.ndarray
    """(nnz,) float32"""


def length_batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Indices grouped so that a padded batch holds at most `max_tokens` tokens (or one prompt), similar lengths together."""
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        # Sorted by length, so the newcomer is the longest of its batch.
        if batches and lengths[index] * (len(batches[-1]) + 1) <= max_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def residuals(subject: Subject, prompts: Sequence[Sequence[int]], layers: Sequence[int], max_tokens: int) -> dict[int, Tensor]:
    """resid_post of `prompts` (token ids) after each of `layers`, on the subject's device.

    Returns: layer -> resid_nd, the prompts' tokens one after another, without padding, in the order given.
    """
    lengths = [len(p) for p in prompts]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    out: dict[int, Tensor] = {}
    for batch_rows in length_batches(lengths, max_tokens):
        batch = subject.batch([prompts[i] for i in batch_rows])
        kept = batch.attention_mask_bt.bool()
        rows = torch.cat([torch.arange(starts[i], starts[i + 1], device=subject.device) for i in batch_rows])
        for layer, resid_btd in subject.read_resid_post(batch, layers).items():
            if layer not in out:
                out[layer] = resid_btd.new_empty(int(starts[-1]), resid_btd.shape[-1])
            out[layer][rows] = resid_btd[kept]
    return out


@torch.inference_mode()
def nonzeros(sae: Sae, resid_nd: Tensor, max_tokens: int, *, to_bfloat16: bool = False) -> Nonzeros:
    """What of `sae.encode(resid_nd)` is not zero, found on the device that holds the residuals.

    Args:
        to_bfloat16: round the values to bfloat16 (a recorded setting of the recipe; the sparsity pattern is untouched).
    Raises UserError if an activation is not finite.
    """
    parts = []
    for start in range(0, len(resid_nd), max_tokens):
        acts_nf = sae.encode(resid_nd[start : start + max_tokens])
        token, feature_id = acts_nf.nonzero(as_tuple=True)
        activation = acts_nf[token, feature_id]
        if to_bfloat16:
            activation = activation.bfloat16().float()
        parts.append(((token + start).cpu().numpy(), feature_id.int().cpu().numpy(), activation.float().cpu().numpy()))
    found = Nonzeros(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    if not np.isfinite(found.activation).all():
        raise UserError(
            f"layer {sae.layer} gives activations that are not finite numbers: check that the SAE belongs to this model, "
            f'or set model.dtype = "float32"'
        )
    return found
