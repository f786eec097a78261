"""Sparse activations of a batch of prompts: forward, encode, keep what is not zero.

Tensor names carry shapes: n tokens without padding, d residual width, f features.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from saelake.ingest.saes.sae import Sae
from saelake.ingest.sites import Site
from saelake.ingest.subject import Subject
from saelake.warehouse.errors import UserError

CHUNK_VALUES = {"cpu": 2**21, "cuda": 2**26}
"""Pre-activations that are held at once, by device kind: a cache's worth, or enough to keep a GPU busy. A part of the plan,
since how rows share a matrix product can move a value by a rounding."""
FOREIGN = ': check that the SAE belongs to this model, or set model.dtype = "float32"'


class Captured(NamedTuple):
    """Residuals of some prompts, without padding."""

    order: list[int]
    """Places of the prompts in the order in which their tokens follow one another."""
    resid: dict[Site, Tensor]
    """site -> (n, d) in the model's dtype"""


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


def capture(
    subject: Subject, prompts: Sequence[Sequence[int]], sites: Sequence[Site], max_tokens: int, *, on_host: bool = False
) -> Captured:
    """What is at each of `sites` for `prompts` (token ids).

    Args:
        on_host: keep them in main memory (page-locked beside a CUDA device), not on the subject's device.
    Raises UserError naming the site whose values are not finite numbers.
    """
    device = torch.device("cpu") if on_host else subject.device
    pinned = on_host and subject.device.type == "cuda"
    batches = length_batches([len(p) for p in prompts], max_tokens)
    n_tokens = sum(map(len, prompts))
    resid: dict[Site, Tensor] = {}
    finite: dict[Site, Tensor] = {}
    start = 0
    for rows in batches:
        batch = subject.batch([prompts[i] for i in rows])
        kept = batch.attention_mask_bt.bool()
        end = start + sum(len(prompts[i]) for i in rows)
        for site, resid_btd in subject.read(batch, sites).items():
            resid_nd = resid_btd[kept]
            if site not in resid:
                resid[site] = torch.empty(n_tokens, resid_nd.shape[-1], dtype=resid_nd.dtype, device=device, pin_memory=pinned)
                finite[site] = torch.ones((), dtype=torch.bool, device=subject.device)
            finite[site] &= resid_nd.isfinite().all()
            resid[site][start:end].copy_(resid_nd, non_blocking=True)
        start = end
    # Waits for the device, and so for the copies.
    broken = [site for site in sorted(finite, key=lambda site: site.depth) if not finite[site]]
    if broken:
        raise UserError(
            f"the model's {_name(broken[0])} holds values that are not finite numbers: "
            f'check the model\'s files, or set model.dtype = "float32"'
        )
    return Captured([i for rows in batches for i in rows], resid)


def residuals(subject: Subject, prompts: Sequence[Sequence[int]], layers: Sequence[int], max_tokens: int) -> dict[int, Tensor]:
    """resid_post of `prompts` (token ids) after each of `layers`, on the subject's device.

    Returns: layer -> resid_nd, the prompts' tokens one after another, without padding, in the order given.
    """
    captured = capture(subject, prompts, [Site(layer) for layer in layers], max_tokens)
    starts = np.cumsum([0] + [len(prompts[i]) for i in captured.order])
    at = dict(zip(captured.order, starts, strict=False))
    rows = torch.cat([torch.arange(at[i], at[i] + len(p)) for i, p in enumerate(prompts)]).to(subject.device)
    return {site.layer: resid_nd[rows] for site, resid_nd in captured.resid.items()}


def last_residuals(subject: Subject, prompts: Sequence[Sequence[int]], layers: Sequence[int], max_tokens: int) -> Tensor:
    """(b, l, d) resid_post at the last token of each prompt, on the subject's device; of all tokens only a batch is ever held."""
    sites = [Site(layer) for layer in layers]
    last_bld = torch.empty(0)
    for rows in length_batches([len(p) for p in prompts], max_tokens):
        captured = capture(subject, [prompts[i] for i in rows], sites, max_tokens)
        places = [rows[i] for i in captured.order]
        ends = torch.tensor([len(prompts[i]) for i in places], device=subject.device).cumsum(0) - 1
        here_bld = torch.stack([captured.resid[site][ends] for site in sites], dim=1)
        if not len(last_bld):
            last_bld = here_bld.new_empty(len(prompts), *here_bld.shape[1:])
        last_bld[places] = here_bld
    return last_bld


def _name(site: Site) -> str:
    return f"residual stream after layer {site.layer}" if site.kind == "resid_post" else str(site)


@torch.inference_mode()
def nonzeros(sae: Sae, resid_nd: Tensor, *, to_bfloat16: bool = False, not_finite: str = FOREIGN) -> Nonzeros:
    """What of `sae.encode(resid_nd)` is not zero, found on the SAE's device.

    Args:
        to_bfloat16: round the values to bfloat16 (a recorded setting of the recipe; the sparsity pattern is untouched).
        not_finite: what may be wrong where an activation is not a finite number.
    Raises UserError if an activation or a residual is not finite.
    """
    device = sae.W_enc.device
    n_rows = max(CHUNK_VALUES.get(device.type, CHUNK_VALUES["cpu"]) // sae.width, 1)
    parts = []
    for start, acts_nf, active_nf in _activations(sae, resid_nd.to(device, non_blocking=True), n_rows):
        place = active_nf.flatten().nonzero().squeeze(1)
        activation = acts_nf.flatten()[place]
        if to_bfloat16:
            activation = activation.bfloat16().float()
        token = place // sae.width
        parts.append((token + start, (place - token * sae.width).int(), activation))
    if not parts:
        return Nonzeros(np.empty(0, np.int64), np.empty(0, np.int32), np.empty(0, np.float32))
    found = Nonzeros(*(torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True)))
    # A residual that is not a number is above no threshold.
    if not (np.isfinite(found.activation).all() and resid_nd.isfinite().all()):
        raise UserError(f"the SAE {sae.sae_id} gives activations that are not finite numbers{not_finite}")
    return found


def _activations(sae: Sae, resid_nd: Tensor, n_rows: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(first row, values, which of them are active), chunk by chunk; where active, the values are those of `sae.encode`."""
    if not sae.elementwise:
        for start in range(0, len(resid_nd), n_rows):
            acts_nf = sae.encode(resid_nd[start : start + n_rows])
            yield start, acts_nf, acts_nf != 0
        return
    # relu(pre) * (pre > threshold) is not zero exactly where pre > max(threshold, 0), and there it is pre.
    bound_f = sae.threshold.clamp_min(0)
    out_nf = resid_nd.new_empty(min(n_rows, len(resid_nd)), sae.width, dtype=torch.float32)
    for start in range(0, len(resid_nd), n_rows):
        part_nd = resid_nd[start : start + n_rows]
        pre_nf = sae.pre_activations(part_nd, out_nf[: len(part_nd)])
        yield start, pre_nf, pre_nf > bound_f
