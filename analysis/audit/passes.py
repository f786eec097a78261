"""Passes under held sets with a change at one site: what the model says next, with gradients, and what the sets' features read.

A set's features are held as the engine holds them, at every token. The change is added at the site behind what the set does
there: to the residual stream as the intervention leaves it. A change is of the last tokens, so that it reaches no token before
them and no block below its site: the keys and values of those, and what comes to the block of the site, are computed once.

Letters of shapes: b rows, t changed tokens, d width of the site, f features, m watched readings, v vocabulary.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from copy import copy
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from saelake.analysis.engine.interventions import Interventions
from saelake.analysis.engine.prefix import resumed
from saelake.analysis.engine.requests import FeatureSet, Request
from saelake.analysis.engine.slices import SliceCache
from saelake.ingest.saes.sae import Sae
from saelake.ingest.sites import Site
from saelake.ingest.subject import Batch, StopForward, Subject

LEAST = 1e-6
"""Readings below it are none."""


class Said(NamedTuple):
    """One pass."""

    gap_b: Tensor
    """The largest logit of a target token less that of all others: above 0 the answer begins with a target token."""
    readings_bm: Tensor
    """What the watched features read before their gates, 0 for places that a row does not use."""


class _Watched(NamedTuple):
    """The held features of one SAE, each row's own."""

    encoder_bud: Tensor
    bias_bu: Tensor
    where_bu: Tensor
    """float32: 0 for places that a row does not use."""

    def read(self, x_btd: Tensor) -> Tensor:
        """(b, t u)"""
        found_btu = x_btd.float() @ self.encoder_bud.mT + self.bias_bu[:, None]
        return (found_btu * self.where_bu[:, None]).flatten(1)

    def of(self, rows: Tensor) -> "_Watched":
        """Of some rows, without the places that none of them uses."""
        used = self.where_bu[rows].any(0)
        return _Watched(self.encoder_bud[rows][:, used], self.bias_bu[rows][:, used], self.where_bu[rows][:, used])


class Passes:
    """Rows whose passes are of their last tokens, from the block of the site on.

    Args:
        slices: number of an SAE -> its slices, made outside of inference mode.
        asked: (prompt's tokens, the set that is held) of each row.
        site: where changes are made.
        n_changed: t, how many last tokens they are of.
    """

    def __init__(
        self,
        subject: Subject,
        saes: Mapping[int, Sae],
        slices: Mapping[int, SliceCache],
        asked: Sequence[tuple[Sequence[int], FeatureSet]],
        site: Site,
        n_changed: int,
    ) -> None:
        self._subject, self._site = subject, site
        self._targets = torch.tensor(subject.target_token_ids, device=subject.device)
        sets, self._n = [held for _, held in asked], n_changed
        every = sorted({n for held in sets for n in held.saes})
        self._start, again = _resumed_at(site, {n: saes[n] for n in every})
        batch = subject.batch([tokens for tokens, _ in asked])
        before, self._batch = _parted(batch, n_changed)
        self._kept = DynamicCache(config=subject.model.config)
        with _interventions(subject, slices, sets, before).at_work(before):
            subject.forward(before, self._kept)
        self._from_btd = self._read_from(_interventions(subject, slices, sets, self._batch))
        self._sets = [_of_saes(held, again) for held in sets]
        self._hold = partial(_interventions, subject, slices)
        self._held = self._hold(self._sets, self._batch)
        features = [n for n in every if saes[n].reads.depth >= site.depth]
        self._watched = {n: _watched(saes[n], sets, n, subject.device) for n in features}
        self._reads = {n: saes[n].reads for n in features}
        self.left_btd = self._left()
        self.before = self.said(None)
        both_bm = torch.cat([self.before.readings_bm, self._unmodified(batch)], dim=1).abs()
        self._largest_b = both_bm.amax(1).clamp(min=LEAST) if features else None

    def of(self, rows: Tensor) -> "Passes":
        """The passes of some rows; what is kept is not computed again."""
        some = copy(self)
        some._sets = [self._sets[row] for row in rows.tolist()]
        some._batch = Batch(*(part[rows] for part in self._batch))
        some._held = self._hold(some._sets, some._batch)
        some._kept = self._cache()
        some._kept.batch_select_indices(rows)
        some._from_btd = self._from_btd if self._start < 0 else self._from_btd[rows]
        watched = {n: one.of(rows) for n, one in self._watched.items()}
        some._watched = {n: one for n, one in watched.items() if one.where_bu.shape[1]}
        some._reads = {n: self._reads[n] for n in some._watched}
        some._largest_b = self._largest_b[rows] if self._largest_b is not None and some._watched else None
        some.left_btd = self.left_btd[rows]
        some.before = some.said(None)
        return some

    @property
    def bends(self) -> bool:
        """Whether a watched feature reads behind the site, where a change reaches it through the model."""
        return any(site != self._site for site in self._reads.values())

    def own_rows(self) -> Tensor | None:
        """(b, u, d): encoder rows of the held features that read at the site itself, zeros for places that a row does not use."""
        here = [self._watched[n] for n, site in self._reads.items() if site == self._site]
        return torch.cat([one.encoder_bud * one.where_bu[..., None] for one in here], dim=1) if here else None

    def said(self, change_btd: Tensor | None) -> Said:
        """What follows a change, or none."""
        with torch.no_grad():
            return self._pass(change_btd)

    def uphill(self, change_btd: Tensor, watch: bool) -> tuple[Said, Tensor, Tensor | None]:
        """What follows a change, the gap's gradient (b, t, d), and where asked the readings' (b, m, t, d)."""
        change_btd = change_btd.detach().requires_grad_()
        with torch.enable_grad():
            found = self._pass(change_btd)
            (gradient_btd,) = torch.autograd.grad(found.gap_b.sum(), change_btd, retain_graph=watch)
            if not watch:
                return _detached(found), gradient_btd, None
            rows = []
            for column_b in found.readings_bm.unbind(1):
                (row_btd,) = torch.autograd.grad(column_b.sum(), change_btd, retain_graph=True)
                rows.append(row_btd)
        return _detached(found), gradient_btd, torch.stack(rows, dim=1)

    def drift(self, said: Said) -> Tensor:
        """(b,) how far readings are from those without a change, as a share of the largest without it and in the clean pass.

        NaN where nothing is watched.
        """
        if self._largest_b is None:
            return torch.full_like(said.gap_b, torch.nan)
        moved_b = (said.readings_bm - self.before.readings_bm).abs().amax(1)
        used_b = torch.cat([one.where_bu for one in self._watched.values()], dim=1).any(1)
        return torch.where(used_b, moved_b / self._largest_b, torch.nan)

    def _pass(self, change_btd: Tensor | None) -> Said:
        readings: list[Tensor] = []
        with ExitStack() as hooks:
            hooks.enter_context(resumed(self._subject, self._start, self._from_btd))
            # Readings behind the site are of what comes there, before the set is taken out of it.
            for n, site in self._reads.items():
                if site != self._site:
                    hooks.enter_context(self._at(site, partial(self._see, readings, n)))
            hooks.enter_context(self._held.at_work(self._batch))
            if change_btd is not None:
                hooks.enter_context(self._at(self._site, partial(self._changed, change_btd)))
            for n, site in self._reads.items():
                if site == self._site:
                    hooks.enter_context(self._at(site, partial(self._see, readings, n)))
            logits_bv = self._subject.forward_with_gradient(self._batch, self._cache())
        gap_b = logits_bv[:, self._targets].amax(-1) - logits_bv.index_fill(1, self._targets, -torch.inf).amax(-1)
        return Said(gap_b, _joined(readings, logits_bv))

    def _see(self, readings: list[Tensor], n: int, x_btd: Tensor) -> None:
        readings.append(self._watched[n].read(x_btd[:, -self._n :]))

    def _changed(self, change_btd: Tensor, x_btd: Tensor) -> Tensor:
        return x_btd + change_btd.to(x_btd.dtype)

    def _at(self, site: Site, fn: Callable[[Tensor], Tensor | None]) -> AbstractContextManager[None]:
        return self._subject.at(site, fn, len(self._batch.input_ids_bt))

    def _cache(self) -> DynamicCache:
        """What is kept of the tokens before: a pass puts its own behind them, in new tensors."""
        cache = copy(self._kept)
        cache.layers = [copy(layer) for layer in self._kept.layers]
        return cache

    def _read_from(self, held: Interventions) -> Tensor:
        """resid_btd of the changed tokens after block `_start`, as the sets below it leave it; of layer -1 nothing."""
        found = [torch.empty(0)]
        if self._start >= 0:

            def keep(x_btd: Tensor) -> None:
                found[0] = x_btd.clone()
                raise StopForward

            # Hooked before the sets: what they do behind this block is every pass's own.
            with self._at(Site(self._start), keep), held.at_work(self._batch), suppress(StopForward):
                self._subject.forward(self._batch, self._cache())
        return found[0]

    def _unmodified(self, batch: Batch) -> Tensor:
        """(b, m): the readings where nothing is held."""
        readings: list[Tensor] = []
        with ExitStack() as hooks:
            for n, site in self._reads.items():
                hooks.enter_context(self._at(site, partial(self._see, readings, n)))
            logits_bv = self._subject.forward(batch)
        return _joined(readings, logits_bv)

    def _left(self) -> Tensor:
        """(b, t, d) float32: what is at the site behind what the set does there."""
        found: list[Tensor] = []

        def keep(x_btd: Tensor) -> None:
            found.append(x_btd.float().clone())

        with ExitStack() as hooks:
            hooks.enter_context(resumed(self._subject, self._start, self._from_btd))
            hooks.enter_context(self._held.at_work(self._batch))
            hooks.enter_context(self._at(self._site, keep))
            self._subject.forward(self._batch, self._cache())
        return found[0]


def _resumed_at(site: Site, held: Mapping[int, Sae]) -> tuple[int, list[int]]:
    """The block behind which passes resume, -1 for none, and the SAEs that act in a pass: all that write from its output on."""
    start = site.below
    while True:
        again = [n for n, sae in held.items() if start < 0 or sae.writes.depth >= Site(start).depth]
        # A transcoder reads before it writes.
        lowest = min([start, *(held[n].reads.below for n in again)])
        if lowest == start:
            return start, again
        start = lowest


def _parted(batch: Batch, n_last: int) -> tuple[Batch, Batch]:
    """The tokens before the last ones, and these, whose mask covers all."""
    ids_bt, mask_bt, positions_bt = batch
    before = Batch(ids_bt[:, :-n_last], mask_bt[:, :-n_last], positions_bt[:, :-n_last])
    return before, Batch(ids_bt[:, -n_last:], mask_bt, positions_bt[:, -n_last:])


def _interventions(subject: Subject, slices: Mapping[int, SliceCache], sets: Sequence[FeatureSet], batch: Batch) -> Interventions:
    return Interventions(subject, slices, [Request(0, held) for held in sets], batch.input_ids_bt.shape[1])


def _of_saes(held: FeatureSet, saes: Sequence[int]) -> FeatureSet:
    """The part of a set that is of some SAEs."""
    return FeatureSet(held.rows[np.isin(held.rows["sae"], saes)])


def _joined(readings: Sequence[Tensor], logits_bv: Tensor) -> Tensor:
    return torch.cat([*readings], dim=1) if readings else logits_bv.new_zeros(len(logits_bv), 0)


def _watched(sae: Sae, sets: Sequence[FeatureSet], number: int, device: torch.device) -> _Watched:
    ids = [held.at(number)["feature_id"].astype(np.int64) for held in sets]
    most = max(map(len, ids))
    places = np.zeros((len(ids), most), dtype=np.int64)
    where = np.zeros((len(ids), most), dtype=np.float32)
    for row, mine in enumerate(ids):
        places[row, : len(mine)], where[row, : len(mine)] = mine, 1
    union, back = np.unique(places, return_inverse=True)
    chosen = torch.from_numpy(union)
    encoder_ud, (bias_u, _) = sae.encoder_rows(chosen, device), sae.gates(chosen, device)
    if sae.apply_b_dec_to_input:
        bias_u = bias_u - encoder_ud @ sae.b_dec.to(device)
    at = torch.from_numpy(back.reshape(places.shape)).to(device)
    return _Watched(encoder_ud[at], bias_u[at], torch.from_numpy(where).to(device))


def _detached(said: Said) -> Said:
    return Said(*(one.detach() for one in said))
