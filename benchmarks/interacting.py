"""Data whose labels depend on known pairs of features, and on no feature by itself.

Every interacting feature has one partner with which it speaks for the label and another with which it speaks against it, as
strongly: its own effect cancels, so a linear model has nothing to find. As many features interact with none.
"""

from typing import NamedTuple

import numpy as np
from scipy import stats
from scipy.sparse import csr_matrix


class Interacting(NamedTuple):
    """n rows of m features."""

    x: csr_matrix
    """(n, m) float32, not negative, half of the entries 0"""
    y: np.ndarray
    """(n,) 0 or 1"""
    partner: np.ndarray
    """(m,): the feature that each speaks for the label with; -1 for those that interact with none"""

    @property
    def splits(self) -> dict[str, np.ndarray]:
        """80/10/10"""
        cut = [int(0.8 * len(self.y)), int(0.9 * len(self.y))]
        return dict(zip(("train", "val", "test"), np.split(np.arange(len(self.y)), cut), strict=True))


def interacting(n_rows: int, n_interacting: int, seed: int) -> Interacting:
    """Draws the data; `n_interacting` is even."""
    rng = np.random.default_rng(seed)
    m = 2 * n_interacting
    values = (rng.random((n_rows, m)) < 0.5) * rng.uniform(0.5, 1.0, (n_rows, m))
    partner, rival = np.full(m, -1), np.full(m, -1)
    places = rng.permutation(m)[:n_interacting]
    partner[places] = np.roll(places.reshape(-1, 2), 1, axis=1).ravel()
    # a ring through all pairs: the second of each is the rival of the first of the next
    seconds = places.reshape(-1, 2)[:, 1]
    firsts = np.roll(places.reshape(-1, 2)[:, 0], -1)
    rival[seconds], rival[firsts] = firsts, seconds
    drive = (values[:, places] * (values[:, partner[places]] - values[:, rival[places]])).sum(1)
    return Interacting(csr_matrix(values.astype(np.float32)), (drive > 0).astype(np.float32), partner)


def partner_auc(likeness: np.ndarray, partner: np.ndarray) -> float:
    """How well a likeness (m, m) of features ranks the partner of each before all others: mean AUC, ties count half."""
    found = []
    for i in np.flatnonzero(partner >= 0):
        others = np.delete(np.arange(len(partner)), [i, partner[i]])
        ranks = stats.rankdata(np.concatenate([[likeness[i, partner[i]]], likeness[i, others]]))
        found.append((ranks[0] - 1) / len(others))
    return float(np.mean(found))


def cosines(embeddings: np.ndarray) -> np.ndarray:
    """(m, m)"""
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    return np.asarray(unit @ unit.T)
