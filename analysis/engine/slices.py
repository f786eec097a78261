"""Encoder and decoder rows of some features of one SAE, copied side by side once for as long as batches keep asking for them."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from saelake.ingest.saes.sae import Sae

WHOLE = 0.8
"""A union of more than this share of all features is not worth a copy: the whole SAE is used as it lies."""
KEPT = 4
"""Slices kept a layer; of the searches, delta debugging needs most: the unions of a few prompts' halves in turn."""


class Slice(NamedTuple):
    """What u features need of an elementwise SAE, in float32."""

    encoder_ud: Tensor
    bias_u: Tensor
    """b_enc, with the subtraction of b_dec from the input folded in."""
    threshold_u: Tensor
    """Not below 0, so that the gate implies the ReLU."""
    decoder_ud: Tensor

    def encode(self, resid_nd: Tensor) -> Tensor:
        """Activations (n, u) of float32 residuals."""
        pre_nu = torch.addmm(self.bias_u, resid_nd, self.encoder_ud.T)
        return pre_nu.mul_(pre_nu > self.threshold_u)

    def rows(self, places_bk: Tensor) -> "RowSlice":
        """Each row's own features, by their places in this slice."""
        places, shape = places_bk.flatten(), (*places_bk.shape, -1)
        return RowSlice(
            self.encoder_ud.index_select(0, places).view(shape),
            self.bias_u[places_bk][:, None],
            self.threshold_u[places_bk][:, None],
            self.decoder_ud.index_select(0, places).view(shape),
        )


class RowSlice(NamedTuple):
    """What the k features of each of b rows need."""

    encoder_bkd: Tensor
    bias_b1k: Tensor
    threshold_b1k: Tensor
    decoder_bkd: Tensor

    def encode(self, resid_btd: Tensor) -> Tensor:
        """Activations (b, t, k) of float32 residuals."""
        pre_btk = torch.baddbmm(self.bias_b1k, resid_btd, self.encoder_bkd.mT)
        return pre_btk.mul_(pre_btk > self.threshold_b1k)


@dataclass(frozen=True)
class FullSlice:
    """u features of an SAE whose activations depend on one another (TopK): all are encoded, u are read and decoded."""

    sae: Sae
    feature_ids: Tensor
    decoder_ud: Tensor

    def encode(self, resid_nd: Tensor) -> Tensor:
        """Activations (n, u)."""
        return self.sae.encode(resid_nd).index_select(1, self.feature_ids)


class Slices:
    """The slices of one SAE that were asked for last, by content."""

    def __init__(self, sae: Sae) -> None:
        self.sae = sae
        self._kept: OrderedDict[bytes, Slice | FullSlice] = OrderedDict()

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.sae.W_enc.device

    def union(self, feature_ids: np.ndarray) -> np.ndarray:
        """The distinct features (u,), sorted, of a slice that has all of `feature_ids`."""
        asked = np.zeros(self.sae.width, dtype=bool)
        asked[feature_ids] = True
        union = np.flatnonzero(asked)
        return np.arange(self.sae.width) if len(union) > WHOLE * self.sae.width else union

    def of(self, union: np.ndarray) -> Slice | FullSlice:
        """The slice of these features, which are sorted and distinct."""
        key = union.tobytes()
        if key not in self._kept:
            self._kept[key] = self._cut(union)
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

    @torch.no_grad()
    def _cut(self, union: np.ndarray) -> Slice | FullSlice:
        sae, ids = self.sae, torch.from_numpy(union).to(self.device)
        if not sae.elementwise:
            return FullSlice(sae, ids, sae.W_dec.index_select(0, ids))
        if len(union) == sae.width:
            encoder_ud, bias_u, threshold_u, decoder_ud = sae.W_enc.T, sae.b_enc, sae.threshold, sae.W_dec
        else:
            # index_select is many times faster than W_enc[:, ids]; the copy makes rows that a row's gather reads in one piece.
            encoder_ud = sae.W_enc.index_select(1, ids).T.contiguous()
            bias_u, threshold_u, decoder_ud = sae.b_enc[ids], sae.threshold[ids], sae.W_dec.index_select(0, ids)
        if sae.apply_b_dec_to_input:
            bias_u = bias_u - encoder_ud @ sae.b_dec
        return Slice(encoder_ud, bias_u, threshold_u.clamp(min=0), decoder_ud)
