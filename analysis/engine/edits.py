"""The arithmetic of an intervention at one layer, for a batch whose rows may each have their own.

Ablating features S keeps the SAE's reconstruction error, so h' = h - sum over S of z_i d_i, with z from the residual of the
same, ablated pass. Only the encoder columns and decoder rows of S are read. Clamping to v adds v_i d_i. Encoding and gate are
float32 whatever the model's dtype is.

Letters of shapes: b batch, t token, d residual width, u features in use at this layer, k features a row.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from analysis.engine.requests import DirectionEdit, FeatureSet
from ingest.saes import Sae

# A gathered row costs its weights' memory traffic on top of the arithmetic, as much as this many tokens' arithmetic.
GATHER_TOKENS = 48


class Edit(Protocol):
    """A change of the residual stream; `where_bt` is True at the positions that it may touch (None: all)."""

    def __call__(self, resid_btd: Tensor, where_bt: Tensor | None) -> Tensor: ...


class PooledEdit:
    """One encoder slice for the union of all rows' features, and a mask that says whose they are."""

    def __init__(self, sae: Sae, sets: Sequence[np.ndarray]) -> None:
        union = np.unique(np.concatenate([rows["feature_id"] for rows in sets]))
        mask_bu = np.zeros((len(sets), len(union)), dtype=np.float32)
        value_bu = np.zeros_like(mask_bu)
        for row, features in enumerate(sets):
            columns = np.searchsorted(union, features["feature_id"])
            mask_bu[row, columns] = 1
            value_bu[row, columns] = features["value"]
        self._columns = sae.columns(union)
        device = sae.W_enc.device
        # Where every row has every feature (one set for the whole batch), there is nothing to mask.
        self._mask_b1u = None if mask_bu.all() else torch.from_numpy(mask_bu).to(device)[:, None]
        self._value_b1u = torch.from_numpy(value_bu).to(device)[:, None] if value_bu.any() else None

    def __call__(self, resid_btd: Tensor, where_bt: Tensor | None) -> Tensor:
        change_btu = -self._columns.encode(resid_btd.float())
        if self._value_b1u is not None:
            change_btu = change_btu + self._value_b1u
        if self._mask_b1u is not None:
            change_btu = change_btu * self._mask_b1u
        return _added(resid_btd, change_btu @ self._columns.W_dec, where_bt)


class GatheredEdit:
    """Each row's own encoder columns, padded to the longest row: for many distinct features and few a row."""

    def __init__(self, sae: Sae, sets: Sequence[np.ndarray]) -> None:
        longest = max(len(rows) for rows in sets)
        ids_bk = np.zeros((len(sets), longest), dtype=np.int64)
        value_bk = np.zeros((len(sets), longest), dtype=np.float32)
        mask_bk = np.zeros((len(sets), longest), dtype=np.float32)
        for row, features in enumerate(sets):
            ids_bk[row, : len(features)] = features["feature_id"]
            value_bk[row, : len(features)] = features["value"]
            mask_bk[row, : len(features)] = 1
        device = sae.W_enc.device
        self._columns = sae.columns(ids_bk)
        self._value_b1k = torch.from_numpy(value_bk).to(device)[:, None]
        self._mask_b1k = torch.from_numpy(mask_bk).to(device)[:, None]

    def __call__(self, resid_btd: Tensor, where_bt: Tensor | None) -> Tensor:
        change_btk = (self._value_b1k - self._columns.encode(resid_btd.float())) * self._mask_b1k
        return _added(resid_btd, torch.bmm(change_btk, self._columns.W_dec), where_bt)


class FullEdit:
    """Decode-plus-error over all latents: for SAEs whose activation looks at all of them (TopK)."""

    def __init__(self, sae: Sae, sets: Sequence[np.ndarray]) -> None:
        self._sae = sae
        row = np.repeat(np.arange(len(sets)), [len(rows) for rows in sets])
        features = np.concatenate(sets)
        device = sae.W_enc.device
        self._row = torch.from_numpy(row).to(device)
        self._feature_id = torch.from_numpy(features["feature_id"].astype(np.int64)).to(device)
        self._value = torch.from_numpy(features["value"].copy()).to(device)

    def __call__(self, resid_btd: Tensor, where_bt: Tensor | None) -> Tensor:
        acts_btf = self._sae.encode(resid_btd.float())
        edited_btf = acts_btf.clone()
        edited_btf[self._row, :, self._feature_id] = self._value[:, None]
        return _added(resid_btd, (edited_btf - acts_btf) @ self._sae.W_dec, where_bt)


class ProjectionEdit:
    """h' = h - (h.r) r + add r, each row with its own r; a row without an edit has r = 0."""

    def __init__(self, edits: Sequence[DirectionEdit | None], d_model: int, device: torch.device) -> None:
        vectors = np.zeros((len(edits), d_model), dtype=np.float32)
        for row, edit in enumerate(edits):
            if edit is not None:
                vectors[row] = edit.vector
        self._vector_b1d = torch.from_numpy(vectors).to(device)[:, None]
        out = [float(edit is not None and edit.project_out) for edit in edits]
        add = [edit.add if edit is not None else 0.0 for edit in edits]
        self._out_b11 = torch.tensor(out, device=device)[:, None, None]
        self._add_b11 = torch.tensor(add, device=device)[:, None, None]

    def __call__(self, resid_btd: Tensor, where_bt: Tensor | None) -> Tensor:
        along_bt1 = (resid_btd.float() * self._vector_b1d).sum(-1, keepdim=True)
        return _added(resid_btd, (self._add_b11 - self._out_b11 * along_bt1) * self._vector_b1d, where_bt)


def feature_edit(sae: Sae, sets: Sequence[FeatureSet], n_tokens: int) -> Edit | None:
    """The cheapest exact form for these rows at the SAE's layer; None where no row touches it.

    Args:
        n_tokens: tokens a row, which weigh a gathered row's memory traffic against pooled arithmetic.
    """
    rows = [one.at(sae.layer) for one in sets]
    longest = max(len(r) for r in rows)
    if longest == 0:
        return None
    if not sae.elementwise:
        return FullEdit(sae, rows)
    n_union = len(np.unique(np.concatenate([r["feature_id"] for r in rows])))
    if n_union * n_tokens <= longest * (n_tokens + GATHER_TOKENS):
        return PooledEdit(sae, rows)
    return GatheredEdit(sae, rows)


def _added(resid_btd: Tensor, delta_btd: Tensor, where_bt: Tensor | None) -> Tensor:
    if where_bt is not None:
        delta_btd = delta_btd * where_bt[..., None]
    return (resid_btd.float() + delta_btd).to(resid_btd.dtype)
