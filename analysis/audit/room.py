"""Where a change may lie, and how it is moved there: the arithmetic of a projected gradient step, for a batch of changes.

A change is added to the last tokens of a prompt at one site, so it is (t, d); its length is over all of them. A kind of changes
is a linear space: the span of some rows at each token, or what is orthogonal to it, and beyond that what leaves watched readings
as they are, for which their Jacobian stands to first order.

Letters of shapes: b batch, t changed tokens, d width of the site, r rows of a basis, m watched readings, x = t d.
"""

from typing import NamedTuple

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

RANK = 1e-5
"""Singular values below this share of the largest are rounding."""
TINY = 1e-20


class Room(NamedTuple):
    """The changes of one kind."""

    basis_btrd: Tensor | None = None
    """Orthonormal rows, or zeros; None: there are none."""
    inside: bool = False
    """Whether a change lies in their span; else it is orthogonal to them."""

    def project(self, change_btd: Tensor) -> Tensor:
        """The nearest change in the room."""
        if self.basis_btrd is None:
            return torch.zeros_like(change_btd) if self.inside else change_btd
        along_btr = torch.einsum("btrd,btd->btr", self.basis_btrd, change_btd)
        along_btd = torch.einsum("btrd,btr->btd", self.basis_btrd, along_btr)
        return beyond_rounding(along_btd if self.inside else change_btd - along_btd, change_btd)

    def of(self, rows: Tensor) -> "Room":
        """That of some rows of the batch."""
        return Room(None if self.basis_btrd is None else self.basis_btrd[rows], self.inside)


class Tangent(NamedTuple):
    """Changes in a room that leave readings as they are, to first order."""

    jacobian_bmx: Tensor
    """What each reading gains by a change in the room."""
    inverse_bmm: Tensor
    """The pseudo-inverse of J J'."""

    @classmethod
    def of(cls, jacobian_bmtd: Tensor, room: Room) -> "Tangent":
        """From the readings' Jacobian, whichever way it points."""
        within = [room.project(row_btd).flatten(1) for row_btd in jacobian_bmtd.unbind(1)]
        wide = torch.stack(within, dim=1).double()  # J J' squares what is small of J already
        return cls(wide.to(jacobian_bmtd.dtype), _inverse(wide @ wide.mT).to(jacobian_bmtd.dtype))

    def project(self, change_btd: Tensor) -> Tensor:
        """The nearest change that moves no reading."""
        gained_bm = (self.jacobian_bmx @ change_btd.flatten(1)[..., None])[..., 0]
        return beyond_rounding(change_btd - self.moving(gained_bm).view_as(change_btd), change_btd)

    def moving(self, by_bm: Tensor) -> Tensor:
        """(b, x): the shortest change that moves the readings by so much."""
        return (self.jacobian_bmx.mT @ (self.inverse_bmm @ by_bm[..., None]))[..., 0]


def _inverse(squares_bmm: Tensor) -> Tensor:
    """The pseudo-inverse of symmetric matrices."""
    try:
        return torch.linalg.pinv(squares_bmm, rtol=RANK**2, hermitian=True)
    except torch.linalg.LinAlgError:
        # Divide and conquer, all that torch has, fails now and then where most values are rounding; slow QR iteration does not.
        return torch.from_numpy(np.stack([_by_qr_iteration(one_mm) for one_mm in squares_bmm.cpu().numpy()])).to(squares_bmm)


def _by_qr_iteration(square_mm: np.ndarray) -> np.ndarray:
    value_r, basis_mr = scipy.linalg.eigh(square_mm, driver="ev")
    kept_r = np.abs(value_r) > RANK**2 * np.abs(value_r).max()
    inverse: np.ndarray = (basis_mr[:, kept_r] / value_r[kept_r]) @ basis_mr[:, kept_r].T
    return inverse


def beyond_rounding(part_btd: Tensor, whole_btd: Tensor) -> Tensor:
    """A part of some changes, zero where it is what rounding leaves of them: its direction would be noise."""
    return part_btd * (lengths(part_btd) > RANK * lengths(whole_btd))[:, None, None]


def orthonormal(rows_btnd: Tensor) -> Tensor | None:
    """Orthonormal rows (b, t, r, d) of the same span, zeros where a token has fewer than others; None if there is no row."""
    if not rows_btnd.shape[-2]:
        return None
    _, size_btr, basis_btrd = torch.linalg.svd(rows_btnd, full_matrices=False)
    return basis_btrd * (size_btr > RANK * size_btr[..., :1].clamp(min=TINY))[..., None]


def lengths(change_btd: Tensor) -> Tensor:
    """(b,)"""
    return change_btd.flatten(1).norm(dim=1)


def shortened(change_btd: Tensor, radius_b: Tensor) -> Tensor:
    """No longer than a radius."""
    return change_btd * (radius_b / lengths(change_btd).clamp(min=TINY)).clamp(max=1.0)[:, None, None]


def stretched(change_btd: Tensor, radius_b: Tensor) -> Tensor:
    """As long as a radius; what has no length keeps none."""
    length_b = lengths(change_btd)
    return change_btd * torch.where(length_b > TINY, radius_b / length_b.clamp(min=TINY), 0.0)[:, None, None]


def step(
    change_btd: Tensor, gradient_btd: Tensor, room: Room, radius_b: Tensor, share: float, tangent: Tangent | None = None
) -> Tensor:
    """One step uphill: along the gradient in the room, by a share of the radius, then back to the radius if it is past it."""
    uphill_btd = room.project(gradient_btd)
    if tangent is not None:
        uphill_btd = tangent.project(uphill_btd)
    return shortened(change_btd + stretched(uphill_btd, share * radius_b), radius_b)
