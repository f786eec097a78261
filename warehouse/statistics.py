"""Per-feature statistics, summed up while the sorted activations stream by on their way into the lake.

Rows arrive sorted by (feature_id, prompt_id, pos), so every sum is a sum over a run of equal ids: one pass, no hashing.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from saelake.warehouse.records import INDEX_MASK
from saelake.warehouse.schema import FEATURES, SAES


@dataclass
class _LayerSums:
    """Running sums of one layer, one entry a feature; BOS tokens are counted apart and enter nothing else."""

    width: int
    n_tokens: np.ndarray = field(init=False)
    n_bos: np.ndarray = field(init=False)
    n_harmful: np.ndarray = field(init=False)
    n_benign: np.ndarray = field(init=False)
    total: np.ndarray = field(init=False)
    largest: np.ndarray = field(init=False)
    last: tuple[int, int] = (-1, -1)

    def __post_init__(self) -> None:
        for name in ("n_tokens", "n_bos", "n_harmful", "n_benign"):
            setattr(self, name, np.zeros(self.width, dtype=np.int64))
        self.total = np.zeros(self.width, dtype=np.float64)
        self.largest = np.zeros(self.width, dtype=np.float32)


class FeatureStatistics:
    """A run's completion: observes `activations` and fills in `features` and `saes`.

    Args:
        landed: reads a landed table of the run; `prompts`, `tokens`, `saes` must be there.
    """

    tables = frozenset({"features", "saes"})

    def __init__(self, landed: Callable[[str], pa.Table]) -> None:
        prompts, tokens, saes = landed("prompts"), landed("tokens"), landed("saes")
        index = _index(prompts["prompt_id"])
        size = int(index.max()) + 1
        self._harmful = np.zeros(size, dtype=bool)
        self._harmful[index] = prompts["label"].to_numpy() == "harmful"
        is_bos = tokens["role"].to_numpy() == "bos"
        # BOS tokens open a prompt, so "pos below their number" finds them without a lookup a row.
        self._n_bos = np.bincount(_index(tokens["prompt_id"])[is_bos], minlength=size)
        self._n_tokens = int((~is_bos).sum())
        self._sums = {
            int(layer): _LayerSums(int(width))
            for layer, width in zip(saes["layer"].to_pylist(), saes["width"].to_pylist(), strict=True)
        }

    def observe(self, layer: int, rows: pa.RecordBatch) -> None:
        """Adds sorted rows of one layer's `activations`."""
        sums = self._sums[layer]
        assert rows["feature_id"][-1].as_py() < sums.width, f"layer {layer}: a feature_id is past its SAE's width"
        feature, prompt = rows["feature_id"].to_numpy(), _index(rows["prompt_id"])
        activation = rows["activation"].to_numpy()
        bos = rows["pos"].to_numpy() < self._n_bos[prompt]
        if bos.any():
            sums.n_bos += np.bincount(feature[bos], minlength=sums.width)
            feature, prompt, activation = feature[~bos], prompt[~bos], activation[~bos]
        if not len(feature):
            return
        new_feature = np.flatnonzero(np.diff(feature, prepend=-1))
        ids = feature[new_feature]
        sums.n_tokens[ids] += np.diff(new_feature, append=len(feature))
        sums.total[ids] += np.add.reduceat(activation, new_feature, dtype=np.float64)
        sums.largest[ids] = np.maximum(sums.largest[ids], np.maximum.reduceat(activation, new_feature))

        changed = np.diff(feature, prepend=sums.last[0]) != 0
        changed |= np.diff(prompt, prepend=sums.last[1]) != 0
        harmful = self._harmful[prompt[changed]]
        sums.n_harmful += np.bincount(feature[changed][harmful], minlength=sums.width)
        sums.n_benign += np.bincount(feature[changed][~harmful], minlength=sums.width)
        sums.last = (int(feature[-1]), int(prompt[-1]))

    def complete(self, table: str, landed: pa.Table) -> pa.Table:
        """The landed rows of `features` (one layer, sorted by feature_id) or `saes`, with their statistics."""
        return self._features(landed) if table == "features" else self._saes(landed)

    def _features(self, landed: pa.Table) -> pa.Table:
        sums = self._sums[landed["layer"][0].as_py()]
        ids = landed["feature_id"].to_numpy()
        fires = sums.n_tokens[ids] > 0
        mean = sums.total[ids] / np.maximum(sums.n_tokens[ids], 1)
        columns = {
            "n_tokens": sums.n_tokens[ids],
            "n_bos": sums.n_bos[ids],
            "n_prompts": (sums.n_harmful + sums.n_benign)[ids],
            "n_harmful": sums.n_harmful[ids],
            "n_benign": sums.n_benign[ids],
            "mean_activation": pa.array(mean, mask=~fires),
            "max_activation": pa.array(sums.largest[ids], mask=~fires),
        }
        return _with_columns(landed, columns, FEATURES.schema)

    def _saes(self, landed: pa.Table) -> pa.Table:
        l0 = [self._sums[layer].n_tokens.sum() / max(self._n_tokens, 1) for layer in landed["layer"].to_pylist()]
        return _with_columns(landed, {"measured_l0": np.array(l0)}, SAES.schema)


def _index(ids: pa.Array) -> np.ndarray:
    """The dense 32-bit index inside int64 ids."""
    return ids.to_numpy() & INDEX_MASK


def _with_columns(rows: pa.Table, columns: dict[str, np.ndarray | pa.Array], schema: pa.Schema) -> pa.Table:
    for name, values in columns.items():
        rows = rows.drop_columns(name) if name in rows.column_names else rows
        rows = rows.append_column(name, pa.array(values))
    return rows.select(schema.names).cast(schema)
