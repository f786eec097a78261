"""The search for changes that bring a behaviour back, of every kind and budget, for a batch of rows at one site.

A row is a prompt under a held set. Its change climbs the gap between the target tokens' logit and all others' by projected
gradient steps (room.py). Smaller budgets come first: what has brought the behaviour back stands for the larger ones too, and what
has not goes on from there. A beginning is the best of some: nothing, a draw by chance, and the removal of an active feature,
because a gate that is shut has no gradient. "free" begins with what the other kinds have found, since it contains each of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from saelake.analysis.audit.passes import Passes, Said
from saelake.analysis.audit.room import Room, Tangent, lengths, orthonormal, shortened, step, stretched
from saelake.analysis.engine.requests import FeatureSet
from saelake.analysis.engine.slices import SliceCache
from saelake.ingest.recipe.audit import Audit
from saelake.ingest.saes.sae import Sae
from saelake.ingest.subject import Subject
from saelake.warehouse.schema.audit import KINDS

SHARE = 0.25
"""Of the radius that one step takes."""
SURE = 0.05
"""A gap of logits that rounding does not close."""
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}
"""How far an orthogonal change may move a reading, relative to the largest: a little more than what rounding leaves."""
WITHIN = 0.98
"""Of the budget, so that the corrections of readings fit into it."""
CORRECTIONS = 3
"""Newton's steps back to the readings, at most."""
RELINED = 4
"""Steps for which one Jacobian of the readings stands."""


class Row(NamedTuple):
    """A prompt under a held set."""

    tokens: Sequence[int]
    held: FeatureSet
    seed: Sequence[int]
    """Of what is drawn by chance for it."""


class Found(NamedTuple):
    """The changes of one kind and budget, row by row."""

    kind: str
    budget: float
    change_btd: Tensor
    """On the CPU; t counts from the end of the prompt."""
    gap_b: Tensor
    """The target tokens' logit less that of all others, with the change."""
    norm_b: Tensor
    """Relative to the residual stream under the set."""
    drift_b: Tensor
    """NaN where nothing is watched."""
    in_features_b: Tensor
    in_error_b: Tensor
    n_evaluations_b: np.ndarray


class _Best(NamedTuple):
    """The best changes so far of one kind."""

    change_btd: Tensor
    gap_b: Tensor

    def or_this(self, other: "_Best") -> "_Best":
        """The better of both, row by row."""
        better_b = other.gap_b > self.gap_b
        return _Best(
            torch.where(better_b[:, None, None], other.change_btd, self.change_btd),
            torch.where(better_b, other.gap_b, self.gap_b),
        )

    def put(self, rows: Tensor, some: "_Best") -> "_Best":
        return _Best(self.change_btd.index_copy(0, rows, some.change_btd), self.gap_b.index_copy(0, rows, some.gap_b))

    def of(self, rows: Tensor) -> "_Best":
        return _Best(self.change_btd[rows], self.gap_b[rows])


@dataclass
class _Climb:
    """The moves of one batch of changes within a radius."""

    passes: Passes
    room: Room
    radius_b: Tensor
    keeps_readings: bool
    """Whether readings are to stay as they are without a change."""
    tolerance: float
    n_evaluations: int = 0
    """Passes a row, a backward pass counts as two."""
    _tangent: Tangent | None = None

    def admits(self, said: Said) -> Tensor:
        """(b,) whether a change does not move what is to stay."""
        if not self.keeps_readings:
            return torch.ones_like(said.gap_b, dtype=torch.bool)
        return ~(self.passes.drift(said) > self.tolerance)

    def climbed(self, best: _Best, starts: Sequence[Tensor], n_steps: int) -> _Best:
        """The best that is found uphill from the best of some changes."""
        for start in (stretched(best.change_btd, self.radius_b), *starts):
            if start.any():
                best = self._better(best, *self.put_right(start))
        change_btd = best.change_btd
        for at in range(n_steps):
            moved_btd, said = self.moved(change_btd, again=at % RELINED == 0)
            best = self._better(best, change_btd, said)
            moved_btd = torch.where((best.gap_b <= SURE)[:, None, None], moved_btd, change_btd)
            if torch.equal(moved_btd, change_btd):  # nothing leads uphill, or all is found
                return best
            change_btd = moved_btd
        return self._better(best, *self.put_right(change_btd))

    def _better(self, best: _Best, change_btd: Tensor, said: Said) -> _Best:
        better_b = self.admits(said) & (said.gap_b > best.gap_b)
        return best.or_this(_Best(change_btd, torch.where(better_b, said.gap_b, -torch.inf)))

    def moved(self, change_btd: Tensor, again: bool, share: float = SHARE) -> tuple[Tensor, Said]:
        """The change after a step, and what the model says before it; with share 0 only readings are put right.

        Args:
            again: the readings' Jacobian is taken anew.
        """
        bends = self.keeps_readings and self.passes.bends
        said, gradient_btd, jacobian_bmtd = self.passes.uphill(change_btd, bends and again)
        self.n_evaluations += 3 + (2 * said.readings_bm.shape[1] if bends and again else 0)
        if jacobian_bmtd is not None:
            self._tangent = Tangent.of(jacobian_bmtd, self.room)
        moved_btd = step(change_btd, gradient_btd, self.room, self.radius_b, share, self._tangent)
        if self._tangent is not None:
            put_right_bx = self._tangent.moving(said.readings_bm - self.passes.before.readings_bm)
            moved_btd = shortened(moved_btd - put_right_bx.view_as(moved_btd), self.radius_b)
        return moved_btd, said

    def put_right(self, change_btd: Tensor) -> tuple[Tensor, Said]:
        """A change with its readings put right, as far as some of Newton's steps go, and what the model says then."""
        for at in range(CORRECTIONS if self.keeps_readings and self.passes.bends else 0):
            said = self.passes.said(change_btd)
            self.n_evaluations += 1
            if self.admits(said).all():
                return change_btd, said
            change_btd, _ = self.moved(change_btd, again=at == 0, share=0.0)
        self.n_evaluations += 1
        return change_btd, self.passes.said(change_btd)


@dataclass
class Searched:
    """One batch at one site.

    Args:
        sae: whose site is changed.
        slices: as of `Passes`.
        n_changed: how many last tokens of each row are changed.
    """

    subject: Subject
    saes: Mapping[int, Sae]
    slices: Mapping[int, SliceCache]
    sae: Sae
    rows: Sequence[Row]
    n_changed: int
    settings: Audit

    def found(self) -> list[Found]:
        """Of every kind and budget."""
        every = torch.arange(len(self.rows), device=self.subject.device)
        asked = [(row.tokens, row.held) for row in self.rows]
        passes = Passes(self.subject, self.saes, self.slices, asked, self.sae.reads, self.n_changed)
        size_b = lengths(passes.left_btd)
        acts_btf = self._others(passes)
        rooms = self._rooms(passes, acts_btf)
        spent = {kind: np.zeros(len(self.rows), dtype=np.int64) for kind in KINDS}
        probe_btd = self._probe(passes, acts_btf, spent)
        chance_btd = self._chance(passes)
        best = dict.fromkeys(KINDS, _Best(torch.zeros_like(passes.left_btd), passes.before.gap_b))
        found = []
        for budget in sorted(self.settings.budgets):
            for kind in KINDS:
                if kind == "random":
                    change_btd = stretched(chance_btd, budget * size_b)
                    best[kind] = _Best(change_btd, passes.said(change_btd).gap_b)
                    spent[kind] += 1
                elif kind == "free":
                    for other in ("features", "error", "orthogonal"):
                        best[kind] = best[kind].or_this(best[other])
                open_rows = every[best[kind].gap_b <= SURE]
                if kind != "random" and len(open_rows):
                    room, radius_b = rooms[kind].of(open_rows), WITHIN * budget * size_b[open_rows]
                    starts = [shortened(room.project(probe_btd[open_rows]), radius_b)]
                    if kind != "orthogonal":  # whose readings a draw by chance would move beyond repair
                        starts.append(stretched(room.project(chance_btd[open_rows]), radius_b))
                    climb = _Climb(passes.of(open_rows), room, radius_b, kind == "orthogonal", TOLERANCE[self.subject.dtype])
                    some = climb.climbed(best[kind].of(open_rows), starts, self.settings.steps)
                    best[kind] = best[kind].put(open_rows, some)
                    spent[kind][open_rows.cpu().numpy()] += climb.n_evaluations
                found.append(self._described(kind, budget, best[kind].change_btd, passes, rooms, size_b, spent[kind]))
        return found

    def _others(self, passes: Passes) -> Tensor:
        """(b, t, f): what fires in the stream as the set leaves it, the set's own features left out."""
        with torch.no_grad():
            acts_btf = self.sae.on(self.subject.device).encode(passes.left_btd)
        for row, ids in enumerate(self._own_ids()):
            acts_btf[row, :, torch.from_numpy(ids).to(acts_btf.device)] = 0
        return acts_btf

    def _own_ids(self) -> list[np.ndarray]:
        """Each row's held features of the SAE whose site is changed."""
        number = next(n for n, sae in self.saes.items() if sae.sae_id == self.sae.sae_id)
        return [row.held.at(number)["feature_id"].astype(np.int64) for row in self.rows]

    def _rooms(self, passes: Passes, acts_btf: Tensor) -> dict[str, Room]:
        device = self.subject.device
        fires = acts_btf > 0
        others = self._rows_of(fires)
        for row, ids in enumerate(self._own_ids()):
            fires[row, :, torch.from_numpy(ids).to(device)] = True
        own = passes.own_rows()
        held = None if own is None else orthonormal(own[:, None].expand(-1, passes.left_btd.shape[1], -1, -1))
        return {
            "features": Room(orthonormal(others), inside=True),
            "error": Room(orthonormal(self._rows_of(fires))),
            "orthogonal": Room(held),
            "free": Room(),
        }

    def _rows_of(self, fires_btf: Tensor) -> Tensor:
        """(b, t, n, d): the decoder rows of what fires at each token, zeros behind them."""
        n_bt = fires_btf.sum(-1)
        ids_btn = fires_btf.float().topk(int(n_bt.max()), dim=-1).indices
        there_btn = fires_btf.gather(-1, ids_btn)
        union, back = ids_btn.flatten().unique(return_inverse=True)
        rows_ud = self.sae.decoder_rows(union.cpu(), self.subject.device).float()
        return rows_ud[back].view(*ids_btn.shape, -1) * there_btn[..., None]

    def _probe(self, passes: Passes, acts_btf: Tensor, spent: Mapping[str, np.ndarray]) -> Tensor:
        """(b, t, d): the removal of the one active feature, of the largest, that widens the gap most."""
        best = _Best(torch.zeros_like(passes.left_btd), torch.full_like(passes.before.gap_b, -torch.inf))
        sizes_bf = acts_btf.norm(dim=1)
        n = min(self.settings.probes, int((sizes_bf > 0).sum(-1).max()))
        for ids_b in sizes_bf.topk(n, dim=-1).indices.unbind(1):
            rows_bd = self.sae.decoder_rows(ids_b.cpu(), self.subject.device).float()
            acts_bt = acts_btf.gather(-1, ids_b[:, None, None].expand(-1, acts_btf.shape[1], -1))[..., 0]
            removed_btd = -acts_bt[..., None] * rows_bd[:, None]
            best = best.or_this(_Best(removed_btd, passes.said(removed_btd).gap_b))
            spent["features"] += 1
        return best.change_btd

    def _chance(self, passes: Passes) -> Tensor:
        """(b, t, d): one draw a row, which no other row's moves."""
        _, t, d = passes.left_btd.shape
        drawn = [np.random.default_rng(row.seed).standard_normal((t, d), dtype=np.float32) for row in self.rows]
        return torch.from_numpy(np.stack(drawn)).to(self.subject.device)

    def _described(
        self,
        kind: str,
        budget: float,
        change_btd: Tensor,
        passes: Passes,
        rooms: Mapping[str, Room],
        size_b: Tensor,
        spent: np.ndarray,
    ) -> Found:
        said, whole_b = passes.said(change_btd), lengths(change_btd)
        share_b = whole_b.square().clamp(min=1e-30)
        return Found(
            kind,
            budget,
            change_btd.cpu(),
            said.gap_b.cpu(),
            (whole_b / size_b).cpu(),
            passes.drift(said).cpu(),
            (lengths(rooms["features"].project(change_btd)).square() / share_b).cpu(),
            (lengths(rooms["error"].project(change_btd)).square() / share_b).cpu(),
            spent.copy(),
        )
