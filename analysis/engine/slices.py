"""Encoder and decoder rows of some features of one SAE, copied side by side once for as long as batches keep asking for them."""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from saelake.ingest.saes.sae import Sae
from saelake.ingest.upload import upload

WHOLE = 0.8
"""A union of more than this share of all features is not worth a copy: the whole SAE is used as it lies."""
KEPT_BYTES = 1 << 27
"""Of the slices of an SAE that does not lie on the device: of the last one, if it is larger, and else of so many."""
PART_BYTES = 1 << 28
"""Rows of such an SAE that are on the device at a time while all of it is read."""
KEPT = 4
"""Slices of an SAE that are kept; of the searches, delta debugging needs most: the unions of a few prompts' halves in turn."""


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
        return self.sae.on(resid_nd.device).encode(resid_nd).index_select(1, self.feature_ids)


class SliceCache:
    """The slices of one SAE that were asked for last, by content, on the device where the model computes."""

    def __init__(self, sae: Sae, device: torch.device | None = None) -> None:
        self.sae = sae
        self._device = device
        self._kept: OrderedDict[bytes, Slice | FullSlice] = OrderedDict()

    @property
    def device(self) -> torch.device:
        """Where edits act; by default where the weights lie."""
        return self._device or self.sae.W_enc.device

    def union(self, feature_ids: np.ndarray) -> np.ndarray:
        """The distinct features (u,), sorted, of a slice that has all of `feature_ids`."""
        asked = np.zeros(self.sae.width, dtype=bool)
        asked[feature_ids] = True
        union = np.flatnonzero(asked)
        is_whole = len(union) > WHOLE * self.sae.width and not self.sae.off_device
        return np.arange(self.sae.width) if is_whole else union

    def of(self, union: np.ndarray) -> Slice | FullSlice:
        """The slice of these features, which are sorted and distinct."""
        key = union.tobytes()
        if key not in self._kept:
            self._kept[key] = self.cut(union)
            while len(self._kept) > KEPT or (len(self._kept) > 1 and self._n_bytes > self._most_bytes):
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

    @torch.no_grad()
    def cut(self, union: np.ndarray) -> Slice | FullSlice:
        """The same, without keeping it."""
        sae, ids, device = self.sae, torch.from_numpy(union), self.device
        if not sae.elementwise:
            return FullSlice(sae, upload(ids, device), sae.decoder_rows(ids, device))
        if len(union) == sae.width and not sae.off_device:
            encoder_ud, bias_u, threshold_u, decoder_ud = sae.W_enc.T, sae.b_enc, sae.threshold, sae.W_dec
        else:
            bias_u, threshold_u = sae.gates(ids, device)
            encoder_ud, decoder_ud = sae.encoder_rows(ids, device), sae.decoder_rows(ids, device)
        if sae.apply_b_dec_to_input:
            bias_u = bias_u - encoder_ud @ upload(sae.b_dec, device)
        return Slice(encoder_ud, bias_u, threshold_u.clamp(min=0), decoder_ud)

    def parts(self) -> Iterator[tuple[np.ndarray, Slice | FullSlice]]:
        """All features, some at a time: what a whole SAE that is not on the device is encoded by, where latents stand alone."""
        step = max(1, PART_BYTES // (8 * self.sae.d_in))
        for start in range(0, self.sae.width, step):
            ids = np.arange(start, min(start + step, self.sae.width))
            yield ids, self.cut(ids)

    @property
    def _n_bytes(self) -> int:
        return sum(len(one.decoder_ud) for one in self._kept.values()) * 8 * self.sae.d_in

    @property
    def _most_bytes(self) -> float:
        return KEPT_BYTES if self.sae.off_device else float("inf")
