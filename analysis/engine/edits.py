"""The arithmetic of an intervention at one site, for a batch whose rows may each have their own.

Ablating features S keeps the SAE's reconstruction error, so h' = h - sum over S of z_i d_i, with z from what the SAE reads in the
same, ablated pass. Only the encoder and decoder rows of S are read. Clamping to v adds v_i d_i. Encoding and gate are float32
whatever the model's dtype is. A transcoder reads z at one site, and h is what it writes at another.

Letters of shapes: b batch, t token, n = b t, d residual width, u features in use of this SAE, k features a row.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from saelake.analysis.engine.requests import FEATURE, DirectionEdit, FeatureSet
from saelake.analysis.engine.slices import Slice, SliceCache
from saelake.ingest.upload import upload

GATHER_TOKENS = 26
"""Gathering a row's features costs as much as this many tokens' arithmetic on them (measured: 26 at d = 576 and at d = 2304)."""


Where = Tensor | None
"""(b, t) bool: the positions that an edit may touch; None: all."""
Edit = Callable[[Tensor, Where], Tensor]
"""A change of what is at a site (b, t, d), where it may touch that."""


class FeatureEdit(Protocol):
    """A change by features, in the two halves that a transcoder does at two sites."""

    def taken(self, read_btd: Tensor, where_bt: Where) -> Tensor:
        """How much of each feature goes, from what the SAE reads."""
        ...

    def without(self, written_btd: Tensor, taken: Tensor) -> Tensor:
        """What the SAE writes, without that."""
        ...


def at_one_site(edit: FeatureEdit, resid_btd: Tensor, where_bt: Where) -> Tensor:
    """The edit of an SAE that writes where it reads."""
    whole_btd = resid_btd.float()
    return edit.without(whole_btd, edit.taken(whole_btd, where_bt)).to(resid_btd.dtype)


class RowFeatures(NamedTuple):
    """What features the rows of a batch hold, one row after another."""

    n_rows: int
    row: np.ndarray
    """(k,) int64: whose feature it is."""
    features: np.ndarray
    """(k,) of dtype FEATURE, sorted in each row."""

    @classmethod
    def of(cls, sets: Sequence[FeatureSet]) -> "RowFeatures":
        """All rows' sets, of all SAEs."""
        # As bytes, because numpy is slow to join structured arrays.
        whole = np.concatenate([one.rows.view(np.uint8) for one in sets]).view(FEATURE)
        return cls(len(sets), np.repeat(np.arange(len(sets)), [len(one) for one in sets]), whole)

    @property
    def saes(self) -> list[int]:
        """Numbers of the SAEs of which some row holds features, rising."""
        return np.flatnonzero(np.bincount(self.features["sae"])).tolist()

    def at(self, sae: int) -> "RowFeatures":
        """What is held of one SAE."""
        here = self.features["sae"] == sae
        return RowFeatures(self.n_rows, self.row[here], self.features[here])


class PooledEdit:
    """One slice for the union of all rows' features, and a mask that says whose they are, where they are not everyone's."""

    def __init__(self, slices: SliceCache, held: RowFeatures) -> None:
        ids = held.features["feature_id"]
        union = slices.union(ids)
        place = np.searchsorted(union, ids)
        self._slice = slices.of(union)
        mask_bu = np.zeros((held.n_rows, len(union)), dtype=np.float32)
        mask_bu[held.row, place] = 1
        self._mask_b1u = None if mask_bu.all() else _on(slices.device, mask_bu)
        self._value_b1u = _values(slices.device, mask_bu.shape, held, place)

    def taken(self, read_btd: Tensor, where_bt: Where) -> Tensor:
        acts_nu = self._slice.encode(read_btd.float().reshape(-1, read_btd.shape[-1]))
        _taken_out(acts_nu.view(*read_btd.shape[:2], -1), self._mask_b1u, self._value_b1u, where_bt)
        return acts_nu

    def without(self, written_btd: Tensor, taken: Tensor) -> Tensor:
        written_nd = written_btd.float().reshape(-1, written_btd.shape[-1])
        edited_nd = torch.addmm(written_nd, taken, self._slice.decoder_ud, alpha=-1)
        return edited_nd.view(written_btd.shape).to(written_btd.dtype)


class GatheredEdit:
    """Each row's own features, padded to the longest row: for many distinct features and few a row. Elementwise SAEs only."""

    def __init__(self, slices: SliceCache, held: RowFeatures) -> None:
        ids = held.features["feature_id"]
        union = slices.union(ids)
        counts = np.bincount(held.row, minlength=held.n_rows)
        column = np.arange(len(ids)) - np.repeat(np.cumsum(counts) - counts, counts)
        places_bk = np.zeros((held.n_rows, counts.max()), dtype=np.int64)
        places_bk[held.row, column] = np.searchsorted(union, ids)
        mask_bk = np.zeros(places_bk.shape, dtype=np.float32)
        mask_bk[held.row, column] = 1
        pooled = slices.of(union)
        assert isinstance(pooled, Slice), "a latent of this SAE cannot be computed alone"
        self._rows = pooled.rows(upload(torch.from_numpy(places_bk), slices.device))
        self._mask_b1k = None if mask_bk.all() else _on(slices.device, mask_bk)
        self._value_b1k = _values(slices.device, mask_bk.shape, held, column)

    def taken(self, read_btd: Tensor, where_bt: Where) -> Tensor:
        acts_btk = self._rows.encode(read_btd.float())
        _taken_out(acts_btk, self._mask_b1k, self._value_b1k, where_bt)
        return acts_btk

    def without(self, written_btd: Tensor, taken: Tensor) -> Tensor:
        return torch.baddbmm(written_btd.float(), taken, self._rows.decoder_bkd, alpha=-1).to(written_btd.dtype)


class ProjectionEdit:
    """h' = h - (h.r) r + add r, each row with its own r of width d; a row without an edit has r = 0."""

    def __init__(self, edits: Sequence[DirectionEdit | None], d: int, device: torch.device) -> None:
        vectors = np.zeros((len(edits), d), dtype=np.float32)
        for row, edit in enumerate(edits):
            if edit is not None:
                vectors[row] = edit.vector
        self._vector_b1d = _on(device, vectors)
        out = [float(edit is not None and edit.project_out) for edit in edits]
        add = [edit.add if edit is not None else 0.0 for edit in edits]
        self._out_b11 = upload(torch.tensor(out), device)[:, None, None]
        self._add_b11 = upload(torch.tensor(add), device)[:, None, None]

    def __call__(self, resid_btd: Tensor, where_bt: Where) -> Tensor:
        resid = resid_btd.float()
        along_bt1 = self._add_b11 - self._out_b11 * (resid @ self._vector_b1d.mT)
        if where_bt is not None:
            along_bt1 = along_bt1 * where_bt[..., None]
        return torch.baddbmm(resid, along_bt1, self._vector_b1d).to(resid_btd.dtype)


def feature_edit(slices: SliceCache, held: RowFeatures, n_tokens: int) -> FeatureEdit:
    """The cheapest exact form for what the rows hold of one SAE.

    Args:
        n_tokens: tokens a row, whose pooled arithmetic is weighed against a row's gather.
    """
    longest = np.bincount(held.row).max()
    n_union = len(slices.union(held.features["feature_id"]))
    if not slices.sae.elementwise or n_union * n_tokens <= longest * (n_tokens + GATHER_TOKENS):
        return PooledEdit(slices, held)
    return GatheredEdit(slices, held)


def _taken_out(acts_btu: Tensor, mask_b1u: Tensor | None, value_b1u: Tensor | None, where_bt: Where) -> None:
    """In place, from activations to what an edit takes out of the residual stream."""
    if mask_b1u is not None:
        acts_btu.mul_(mask_b1u)
    if value_b1u is not None:
        acts_btu.sub_(value_b1u)
    if where_bt is not None:
        acts_btu.mul_(where_bt[..., None])


def _values(device: torch.device, shape: tuple[int, ...], held: RowFeatures, column: np.ndarray) -> Tensor | None:
    """What features are held at, 0 elsewhere; None where all are ablated."""
    if not held.features["value"].any():
        return None
    value_bu = np.zeros(shape, dtype=np.float32)
    value_bu[held.row, column] = held.features["value"]
    return _on(device, value_bu)


def _on(device: torch.device, rows_bx: np.ndarray) -> Tensor:
    """(b, 1, x) on the device."""
    return upload(torch.from_numpy(rows_bx), device)[:, None]
