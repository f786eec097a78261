"""What can be asked of the engine: a prompt, with features held at values and directions taken out or put in."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

FEATURE = np.dtype([("layer", "<i2"), ("feature_id", "<i4"), ("value", "<f4")])


@dataclass(frozen=True, eq=False)
class FeatureSet:
    """Features and the value that each is held at: 0 ablates, another value clamps.

    `rows` is (k,) of dtype FEATURE, sorted by layer and feature_id, each feature once. Equal sets have equal keys.
    """

    rows: np.ndarray

    @classmethod
    def of(cls, layers: Iterable[int], feature_ids: Iterable[int], value: float | Iterable[float] = 0.0) -> "FeatureSet":
        """The set of the features given as two parallel columns."""
        columns = [np.asarray(list(layers) if not isinstance(layers, np.ndarray) else layers)]
        columns.append(np.asarray(list(feature_ids) if not isinstance(feature_ids, np.ndarray) else feature_ids))
        rows = np.empty(len(columns[0]), dtype=FEATURE)
        rows["layer"], rows["feature_id"] = columns
        rows["value"] = value if isinstance(value, float | int) else np.fromiter(value, dtype=np.float32)
        place = rows["layer"].astype(np.int64) << 32 | rows["feature_id"]
        if not (place[1:] > place[:-1]).all():
            order = np.argsort(place)
            rows, place = rows[order], place[order]
            assert (place[1:] > place[:-1]).all(), "a feature is in a set twice"
        return cls(rows)

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def key(self) -> int:
        """63 bits that stand for the content."""
        digest = hashlib.blake2b(self.rows.tobytes(), digest_size=8).digest()
        return int.from_bytes(digest, "little") >> 1

    @cached_property
    def layers(self) -> tuple[int, ...]:
        """The layers that it touches, from the lowest."""
        return tuple(np.flatnonzero(self._n_by_layer).tolist())

    @property
    def widest(self) -> int:
        """Most features in one layer."""
        return int(self._n_by_layer.max(initial=0))

    @cached_property
    def _n_by_layer(self) -> np.ndarray:
        return np.bincount(self.rows["layer"])

    def at(self, layer: int) -> np.ndarray:
        """The rows of one layer, sorted by feature_id."""
        start, stop = np.searchsorted(self.rows["layer"], [layer, layer + 1])
        return self.rows[start:stop]


NO_FEATURES = FeatureSet(np.empty(0, dtype=FEATURE))


@dataclass(frozen=True, eq=False)
class DirectionEdit:
    """A unit direction r at some layers: h' = h - (h.r) r if `project_out`, then h' + add * r."""

    vector: np.ndarray
    """(d,) float32, length 1"""
    layers: tuple[int, ...]
    project_out: bool = True
    add: float = 0.0


@dataclass(frozen=True, eq=False)
class Request:
    """One question to the engine: prompt number `prompt` of its prompts, answered under these interventions."""

    prompt: int
    features: FeatureSet = NO_FEATURES
    direction: DirectionEdit | None = None
    positions: tuple[int, ...] | None = None
    """Positions of the prompt at which the interventions act; None: all of them, and every generated token."""

    @property
    def state(self) -> tuple[int, int, DirectionEdit | None, tuple[int, ...] | None]:
        """What determines the answer: equal states need one pass."""
        return self.prompt, self.features.key, self.direction, self.positions

    @property
    def first_layer(self) -> int | None:
        """The lowest layer that is touched; None for the unmodified model."""
        touched = self.features.layers + (self.direction.layers if self.direction else ())
        return min(touched, default=None)
