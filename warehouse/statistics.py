"""Per-feature statistics, summed up while the sorted activations stream by on their way into the lake.

Rows arrive sorted by (feature_id, prompt_id, pos), so every sum is a sum over a run of equal ids: one pass, no hashing.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from saelake.warehouse.records import INDEX_MASK
from saelake.warehouse.schema import FEATURES, SAES

COUNTS = ("n_tokens", "n_bos", "n_prompts", "n_target", "n_control")
TARGET, CONTROL = 1, 2


@dataclass
class _Sums:
    """Running sums of one SAE, one entry a feature; BOS tokens are counted apart and enter nothing else."""

    width: int
    n_tokens: np.ndarray = field(init=False)
    n_bos: np.ndarray = field(init=False)
    n_target: np.ndarray = field(init=False)
    n_control: np.ndarray = field(init=False)
    n_prompts: np.ndarray = field(init=False)
    total: np.ndarray = field(init=False)
    largest: np.ndarray = field(init=False)
    last: tuple[int, int] = (-1, -1)

    def __post_init__(self) -> None:
        for name in COUNTS:
            setattr(self, name, np.zeros(self.width, dtype=np.int64))
        self.total = np.zeros(self.width, dtype=np.float64)
        self.largest = np.zeros(self.width, dtype=np.float32)


class FeatureStatistics:
    """A run's summary: observes `activations` and fills in `features` and `saes`.

    Args:
        landed: reads a landed table of the run; `prompts`, `tokens`, `saes` must be there.
    """

    tables = frozenset({"features", "saes"})

    def __init__(self, landed: Callable[[str], pa.Table]) -> None:
        prompts, tokens, saes = landed("prompts"), landed("tokens"), landed("saes")
        index = _index(prompts["prompt_id"])
        size = int(index.max()) + 1
        self._role = np.zeros(size, dtype=np.int8)
        for name, number in (("target", TARGET), ("control", CONTROL)):
            self._role[index[prompts["label_role"].to_numpy() == name]] = number
        is_bos = tokens["role"].to_numpy() == "bos"
        # BOS tokens open a prompt, so "pos below their number" finds them, and few rows have to be looked up.
        self._n_bos = np.bincount(_index(tokens["prompt_id"])[is_bos], minlength=size)
        self._most_bos = int(self._n_bos.max(initial=0))
        self._n_tokens = int((~is_bos).sum())
        self._sums = {
            sae_id: _Sums(int(width)) for sae_id, width in zip(saes["sae_id"].to_pylist(), saes["width"].to_pylist(), strict=True)
        }

    def observe(self, layer: int, rows: pa.RecordBatch) -> None:
        """Adds sorted rows of one layer's `activations`, of one SAE or of several."""
        for sae_id, mine in _by_sae(rows["sae_id"]):
            assert sae_id in self._sums, f"layer {layer}: activations of {sae_id}, which is not in saes"
            self._observe(self._sums[sae_id], layer, rows if mine is None else rows.filter(pa.array(mine)))

    def _observe(self, sums: _Sums, layer: int, rows: pa.RecordBatch) -> None:
        feature, prompt_id, pos = (rows[name].to_numpy() for name in ("feature_id", "prompt_id", "pos"))
        activation, n_rows = rows["activation"].to_numpy(), len(feature)
        assert feature[-1] < sums.width, f"layer {layer}: a feature_id is past its SAE's width"
        is_new = np.empty(n_rows, dtype=bool)
        is_new[0], is_new[1:] = True, feature[1:] != feature[:-1]
        starts = np.flatnonzero(is_new)
        ids = feature[starts]
        bos = np.flatnonzero(pos < self._most_bos)
        bos = bos[pos[bos] < self._n_bos[prompt_id[bos] & INDEX_MASK]]

        # From here on it is new where a feature fires on another prompt: of what it fires on there, BOS tokens come first.
        is_new[1:] |= prompt_id[1:] != prompt_id[:-1]
        is_new[0] = (int(feature[0]), int(prompt_id[0])) != sums.last
        is_new[bos[bos < n_rows - 1] + 1] = True
        is_new[bos] = False
        sums.last = (-1, -1) if len(bos) and bos[-1] == n_rows - 1 else (int(feature[-1]), int(prompt_id[-1]))
        fired = np.flatnonzero(is_new)
        bounds = np.append(np.searchsorted(fired, starts), len(fired))
        role = self._role[prompt_id[fired] & INDEX_MASK]
        sums.n_prompts[ids] += np.diff(bounds)
        for counts, wanted in ((sums.n_target, TARGET), (sums.n_control, CONTROL)):
            counts[ids] += np.diff(np.append(0, np.cumsum(role == wanted))[bounds])

        if len(bos):
            activation = activation.copy()
            activation[bos] = 0  # all others are above it
        n_bos = np.bincount(np.searchsorted(starts, bos, "right") - 1, minlength=len(starts))
        sums.n_bos[ids] += n_bos
        sums.n_tokens[ids] += np.diff(starts, append=n_rows) - n_bos
        sums.total[ids] += np.add.reduceat(activation, starts, dtype=np.float64)
        sums.largest[ids] = np.maximum(sums.largest[ids], np.maximum.reduceat(activation, starts))

    def complete(self, table: str, landed: pa.Table) -> pa.Table:
        """The landed rows of `features` (one layer, sorted by feature_id) or `saes`, with their statistics."""
        return self._features(landed) if table == "features" else self._saes(landed)

    def _features(self, landed: pa.Table) -> pa.Table:
        ids = landed["feature_id"].to_numpy()
        counts = {name: np.zeros(len(ids), dtype=np.int64) for name in COUNTS}
        total, largest = np.zeros(len(ids)), np.zeros(len(ids), dtype=np.float32)
        for sae_id, mine in _by_sae(landed["sae_id"].combine_chunks()):
            sums, rows = self._sums[sae_id], slice(None) if mine is None else mine
            for name, column in counts.items():
                column[rows] = getattr(sums, name)[ids[rows]]
            total[rows], largest[rows] = sums.total[ids[rows]], sums.largest[ids[rows]]
        silent = counts["n_tokens"] == 0
        columns = counts | {
            "mean_activation": pa.array(total / np.maximum(counts["n_tokens"], 1), mask=silent),
            "max_activation": pa.array(largest, mask=silent),
        }
        return _with_columns(landed, columns, FEATURES.schema)

    def _saes(self, landed: pa.Table) -> pa.Table:
        l0 = [self._sums[sae_id].n_tokens.sum() / max(self._n_tokens, 1) for sae_id in landed["sae_id"].to_pylist()]
        seen = {"n_tokens": self._n_tokens}
        seen |= {
            f"n_{name}_prompts": int((self._role == role).sum()) for name, role in (("target", TARGET), ("control", CONTROL))
        }
        columns = {"measured_l0": np.array(l0)} | {name: np.full(len(l0), n) for name, n in seen.items()}
        return _with_columns(landed, columns, SAES.schema)


def _by_sae(sae_ids: pa.Array) -> Iterator[tuple[str, np.ndarray | None]]:
    """Every SAE of a column of ids, which may be dictionary-coded, with a mask of its rows; None where all are."""
    coded = sae_ids if pa.types.is_dictionary(sae_ids.type) else sae_ids.dictionary_encode()
    if len(coded) and len(coded.dictionary) == 1:
        yield coded.dictionary[0].as_py(), None
        return
    places = coded.indices.to_numpy()
    for place in np.unique(places).tolist():
        yield coded.dictionary[place].as_py(), places == place


def _index(ids: pa.Array) -> np.ndarray:
    """The dense 32-bit index inside int64 ids."""
    return ids.to_numpy() & INDEX_MASK


def _with_columns(rows: pa.Table, columns: dict[str, np.ndarray | pa.Array], schema: pa.Schema) -> pa.Table:
    for name, values in columns.items():
        rows = rows.drop_columns(name) if name in rows.column_names else rows
        rows = rows.append_column(name, pa.array(values))
    return rows.select(schema.names).cast(schema)
