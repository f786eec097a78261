"""Activations of watched features in a pass, as columns without the zeros."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import NamedTuple

import numpy as np
from torch import Tensor

from saelake.analysis.engine.slices import SliceCache
from saelake.ingest.capture import nonzeros
from saelake.ingest.subject import Batch, StopForward, Subject
from saelake.warehouse.errors import UserError

Watched = Mapping[int, np.ndarray | None]
"""Number of an SAE -> feature_ids; None: all its features."""

DENSE = 1 << 25
"""Activations of wanted features that exist at a time as a dense (n, f), in float32 numbers."""
NOT_FINITE = ": weights are damaged, or they or an edit are too large for the dtype"


class Activations(NamedTuple):
    """Non-zero activations, in the order of the columns."""

    request: np.ndarray
    """(nnz,) int64: place in the requests."""
    sae: np.ndarray
    """(nnz,) int16: the SAE's number."""
    feature_id: np.ndarray
    """(nnz,) int32"""
    pos: np.ndarray
    """(nnz,) int32: position in the prompt."""
    activation: np.ndarray
    """(nnz,) float32: as the SAE reads it before the interventions at its site."""

    @classmethod
    def of(cls, parts: Sequence["Activations"], place: np.ndarray) -> "Activations":
        """The parts together, each request with the rows of the one at its place, in order."""
        columns = [np.concatenate(column) for column in zip(cls.none(), *parts, strict=True)]
        # One number per row is sorted in a quarter of the time that four columns take.
        number = np.ravel_multi_index(columns[:4], [int(column.max(initial=0)) + 1 for column in columns[:4]])
        order = np.argsort(number, kind="stable")
        columns = [column[order] for column in columns]
        first, stop = (np.searchsorted(columns[0], place, side=side) for side in ("left", "right"))
        found = np.concatenate([np.empty(0, dtype=np.int64), *map(np.arange, first, stop)])
        return cls(np.repeat(np.arange(len(place)), stop - first), *(column[found] for column in columns[1:]))

    @classmethod
    def none(cls) -> "Activations":
        """No rows."""
        return cls(*(np.empty(0, dtype=dtype) for dtype in (np.int64, np.int16, np.int32, np.int32, np.float32)))


class Watch:
    """Reads what is watched. Opened before the interventions, its hooks see what is at a site before its edits."""

    def __init__(self, subject: Subject, slices: Mapping[int, SliceCache], watched: Watched, batch: Batch) -> None:
        self.parts: list[Activations] = []
        self._subject = subject
        self._slices = slices
        self._watched = watched
        self._unseen: set[int] = set()
        self._kept_bt = batch.attention_mask_bt.bool()
        self._row_n = self._kept_bt.nonzero()[:, 0].cpu().numpy()
        self._pos_n = batch.position_ids_bt[self._kept_bt].int().cpu().numpy()

    @contextmanager
    def open(self) -> Iterator[None]:
        """While open, a pass over the batch is read, and left once all that is watched was seen."""
        self._unseen = set(self._watched)
        with suppress(StopForward), ExitStack() as hooks:
            for number in sorted(self._watched, key=self._depth):
                site = self._slices[number].sae.reads
                hooks.enter_context(self._subject.at(site, partial(self._see, number), len(self._kept_bt)))
            yield

    def _depth(self, number: int) -> tuple[int, int, int]:
        return (*self._slices[number].sae.reads.depth, number)

    def _see(self, number: int, resid_btd: Tensor) -> None:
        slices, wanted = self._slices[number], self._watched[number]
        sae, resid_nd = slices.sae, resid_btd[self._kept_bt].float()
        if wanted is None and not (sae.off_device and sae.elementwise):
            found = nonzeros(sae.on(resid_btd.device), resid_nd, not_finite=NOT_FINITE)
            self._keep(number, found.token, found.feature_id, found.activation)
        else:
            for ids, encode in self._encoders(slices, wanted):
                self._encode(number, ids, encode, resid_nd)
        self._unseen.discard(number)
        if not self._unseen:
            raise StopForward

    def _encoders(self, slices: SliceCache, wanted: np.ndarray | None) -> Iterator[tuple[np.ndarray, Callable[[Tensor], Tensor]]]:
        """Features and what encodes them: those that are wanted, or all of an SAE that is not on the device, some at a time."""
        if wanted is None:
            yield from ((ids, part.encode) for ids, part in slices.parts())
        elif len(ids := np.unique(wanted)):
            yield ids, slices.of(ids).encode

    def _encode(self, number: int, ids: np.ndarray, encode: Callable[[Tensor], Tensor], resid_nd: Tensor) -> None:
        sae = self._slices[number].sae
        step = max(1, DENSE // sae.width)
        for start in range(0, len(resid_nd), step):
            acts_nu = encode(resid_nd[start : start + step])
            token, column = acts_nu.nonzero(as_tuple=True)
            activation = acts_nu[token, column].float().cpu().numpy()
            if not np.isfinite(activation).all():
                raise UserError(f"the SAE {sae.sae_id} gives activations that are not finite numbers{NOT_FINITE}")
            self._keep(number, (token + start).cpu().numpy(), ids[column.cpu().numpy()].astype(np.int32), activation)

    def _keep(self, number: int, token: np.ndarray, feature_id: np.ndarray, activation: np.ndarray) -> None:
        numbers = np.full(len(token), number, dtype=np.int16)
        self.parts.append(Activations(self._row_n[token], numbers, feature_id, self._pos_n[token], activation))
