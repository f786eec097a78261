"""What the factorisation machines and the probe have learned of a prompt's features.

    y = w0 + sum_i w_i x_i + sum_{i<j} <v_i, v_j> x_i x_j

Weights w_i and products <v_i, v_j> are the same on every prompt, whatever fires there and however strongly. What a feature adds
to y on one prompt, x_i (w_i + <v_i, sum_{j!=i} v_j x_j>), and what a pair adds, <v_i, v_j> x_i x_j, are to a machine what
attribution is to the model. The probe is a machine without vectors.
"""

from collections.abc import Mapping
from typing import NamedTuple

import duckdb
import numpy as np

from saelake import queries
from saelake.analysis.engine.requests import codes_of
from saelake.analysis.interactions.examples import cells_of
from saelake.analysis.stage import Work

NOT_NAMED = -np.inf
"""The score of what a method says nothing of."""


class OnPrompt(NamedTuple):
    """What one machine has learned of the n active features of a prompt; zeros for those that it has not seen."""

    values: np.ndarray
    """(n,) x of each: 0 too for those that do not fire where it looks."""
    weights: np.ndarray
    """(n,)"""
    vectors: np.ndarray
    """(n, length)"""

    @property
    def has_pairs(self) -> bool:
        return self.vectors.shape[1] > 0

    def contributions(self) -> np.ndarray:
        """(n,) what y falls by without each; NOT_NAMED for those without a value."""
        added_nk = self.vectors * self.values[:, None]
        others_nk = added_nk.sum(axis=0) - added_nk
        falls = self.values * self.weights + (added_nk * others_nk).sum(axis=1)
        return np.where(self.values > 0, falls, NOT_NAMED)

    def dots(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """<v_a, v_b> of pairs of places among the active features."""
        return np.asarray((self.vectors[a] * self.vectors[b]).sum(axis=1))

    def pair_contributions(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """What pairs add to y."""
        return np.asarray(self.dots(a, b) * self.values[a] * self.values[b])


class _Machine(NamedTuple):
    """The parameters of one machine, feature by feature."""

    codes: np.ndarray
    """(f,) `codes_of` its features, rising."""
    weights: np.ndarray
    scale: np.ndarray
    """Values are divided by it."""
    vectors: np.ndarray
    """(f, length)"""

    def on(self, codes: np.ndarray, values: np.ndarray) -> OnPrompt:
        """Of a prompt's active features, with their values before they are divided."""
        place = np.searchsorted(self.codes, codes).clip(max=len(self.codes) - 1)
        seen = self.codes[place] == codes
        scaled = np.where(seen, values / self.scale[place], 0.0)
        return OnPrompt(scaled, np.where(seen, self.weights[place], 0.0), np.where(seen[:, None], self.vectors[place], 0.0))


class Learned(NamedTuple):
    """All machines of a study, and what they look at."""

    machines: Mapping[str, _Machine]
    cells: Mapping[int, tuple[np.ndarray, np.ndarray]]
    """prompt_id -> `codes_of` the features that have a value there, rising, and the values."""

    @classmethod
    def of(cls, work: Work, con: duckdb.DuckDBPyConnection) -> "Learned":
        rows = con.execute(queries.step("machines")).fetchnumpy()
        codes = codes_of(work.context.sae_numbers(rows["sae_id"]), rows["feature_id"])
        machines = {}
        for model in dict.fromkeys(rows["model"].tolist()):
            mine = np.flatnonzero(rows["model"] == model)
            mine = mine[np.argsort(codes[mine])]
            vectors = np.stack([np.asarray(one, dtype=np.float64) for one in rows["vector"][mine]])
            machines[model] = _Machine(codes[mine], rows["weight"][mine].astype(np.float64), rows["scale"][mine], vectors)
        return cls(machines, _by_prompt(work, cells_of(con, work)))

    def on(self, prompt_id: int, codes: np.ndarray) -> dict[str, OnPrompt]:
        """Model -> what it has learned of a prompt's active features."""
        known, value = self.cells.get(prompt_id, (np.empty(0, dtype=np.int64), np.empty(0)))
        values = np.zeros(len(codes))
        _, mine, theirs = np.intersect1d(codes, known, assume_unique=True, return_indices=True)
        values[mine] = value[theirs]
        return {model: machine.on(codes, values) for model, machine in self.machines.items()}


def _by_prompt(work: Work, cells: Mapping[str, np.ndarray]) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    codes, prompts = codes_of(work.context.sae_numbers(cells["sae_id"]), cells["feature_id"]), cells["prompt_id"]
    order = np.lexsort((codes, prompts))
    ids, starts = np.unique(prompts[order], return_index=True)
    parts = np.split(order, starts[1:])
    return {int(one): (codes[mine], cells["value"][mine]) for one, mine in zip(ids, parts, strict=True)}
