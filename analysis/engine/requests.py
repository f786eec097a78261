"""What can be asked of the engine: a prompt, with features held at values and directions taken out or put in.

SAEs are known by numbers: the engine's caller gives a mapping of number to SAE. Those of a study are `ingest.saes.refs.numbered`.
"""

import hashlib
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from saelake.ingest.saes.sae import Sae
from saelake.ingest.sites import Site

Feature = tuple[int, int]
"""(number of the SAE, feature_id)"""
FEATURE = np.dtype([("sae", "<i2"), ("feature_id", "<i4"), ("value", "<f4")])


def codes_of(saes: Sequence[int] | np.ndarray, feature_ids: np.ndarray) -> np.ndarray:
    """(n,) int64: one number for each feature, in the order of SAEs and ids."""
    return np.asarray(saes, dtype=np.int64) << 32 | feature_ids


def of_codes(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the SAEs and ids, (n,) int64 each, of what `codes_of` made."""
    return codes >> 32, codes & 0xFFFFFFFF


@dataclass(frozen=True, eq=False)
class FeatureSet:
    """Features and the value that each is held at: 0 ablates, another value clamps.

    `rows` is (k,) of dtype FEATURE, sorted by number of the SAE and feature_id, each feature once. Equal sets have equal keys.
    """

    rows: np.ndarray

    @classmethod
    def of(cls, saes: Iterable[int], feature_ids: Iterable[int], value: float | Iterable[float] = 0.0) -> "FeatureSet":
        """The set of the features given as two parallel columns: numbers of SAEs, and ids."""
        columns = [np.asarray(list(saes) if not isinstance(saes, np.ndarray) else saes)]
        columns.append(np.asarray(list(feature_ids) if not isinstance(feature_ids, np.ndarray) else feature_ids))
        rows = np.empty(len(columns[0]), dtype=FEATURE)
        rows["sae"], rows["feature_id"] = columns
        rows["value"] = value if isinstance(value, float | int) else np.fromiter(value, dtype=np.float32)
        codes = codes_of(rows["sae"], rows["feature_id"])
        if not (codes[1:] > codes[:-1]).all():
            order = np.argsort(codes)
            rows, codes = rows[order], codes[order]
            assert (codes[1:] > codes[:-1]).all(), "a feature is in a set twice"
        return cls(rows)

    @classmethod
    def ablating(cls, features: Sequence[Feature]) -> "FeatureSet":
        """The set that ablates some features."""
        return cls.of([sae for sae, _ in features], [feature_id for _, feature_id in features])

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def key(self) -> int:
        """63 bits that stand for the content."""
        digest = hashlib.blake2b(self.rows.tobytes(), digest_size=8).digest()
        return int.from_bytes(digest, "little") >> 1

    @cached_property
    def saes(self) -> tuple[int, ...]:
        """Numbers of the SAEs whose features it holds, rising."""
        return tuple(np.flatnonzero(self._n_by_sae).tolist())

    @property
    def widest(self) -> int:
        """Most features of one SAE."""
        return int(self._n_by_sae.max(initial=0))

    @cached_property
    def _n_by_sae(self) -> np.ndarray:
        return np.bincount(self.rows["sae"])

    def at(self, sae: int) -> np.ndarray:
        """The rows of one SAE, sorted by feature_id."""
        start, stop = np.searchsorted(self.rows["sae"], [sae, sae + 1])
        return self.rows[start:stop]


NO_FEATURES = FeatureSet(np.empty(0, dtype=FEATURE))


@dataclass(frozen=True, eq=False)
class DirectionEdit:
    """A vector r at some sites: h' = h - (h.r) r if `project_out` (r then has length 1), then h' + add * r."""

    vector: np.ndarray
    """(d,) float32"""
    sites: tuple[Site, ...]
    project_out: bool = True
    add: float = 0.0


@dataclass(frozen=True, eq=False)
class Intervention:
    """Features held and a direction, at the same positions."""

    features: FeatureSet = NO_FEATURES
    direction: DirectionEdit | None = None
    positions: tuple[int, ...] | None = None
    """Positions of the prompt at which it acts; None: all of them."""
    answering: bool | None = None
    """Whether it acts on every generated token too; None: if it acts on all positions of the prompt."""

    @property
    def on_answers(self) -> bool:
        return self.positions is None if self.answering is None else self.answering

    @property
    def state(self) -> tuple[int, DirectionEdit | None, tuple[int, ...] | None, bool]:
        """What it does: equal states do the same."""
        return self.features.key, self.direction, self.positions, self.on_answers


@dataclass(frozen=True, eq=False)
class Request:
    """One question to the engine: prompt number `prompt` of its prompts, answered under interventions."""

    prompt: int
    features: FeatureSet = NO_FEATURES
    direction: DirectionEdit | None = None
    positions: tuple[int, ...] | None = None
    """Positions of the prompt at which these act; None: all of them, and every generated token."""
    then: tuple[Intervention, ...] = ()
    """What acts beside them, at each site after them and in this order."""

    @cached_property
    def interventions(self) -> tuple[Intervention, ...]:
        """All of them, in the order in which they act at a site."""
        return (Intervention(self.features, self.direction, self.positions), *self.then)

    @property
    def state(self) -> tuple[Hashable, ...]:
        """What determines the answer: equal states need one pass."""
        return (self.prompt, *(one.state for one in self.interventions))

    def below(self, saes: Mapping[int, Sae]) -> int | None:
        """The highest block that may be left out of its passes, -1 for none; None: the model is not modified.

        A transcoder reads before it writes, in the same block or an earlier one.
        """
        held = (site for one in self.interventions for n in one.features.saes for site in (saes[n].reads, saes[n].writes))
        along = (site for one in self.interventions if one.direction for site in one.direction.sites)
        return min((site.below for site in (*held, *along)), default=None)


def request_of(number: int, acting: tuple[Intervention, ...]) -> Request:
    """The request of a prompt: in the plain form where it is of one, since equal requests are asked once."""
    first = acting[0] if acting else None
    if first is not None and first.answering == (first.positions is None):
        return Request(number, first.features, first.direction, first.positions, acting[1:])
    return Request(number, then=acting)


def with_answer(request: Request, number: int, n: int, answer: Sequence[int]) -> Request:
    """The same request of the prompt with its answer, whose tokens, generated under it, are then positions like others.

    Args:
        number: of the prompt with its answer.
        n: tokens of the prompt alone.
    """
    acting, n_all = [], n + len(answer)
    for one in request.interventions:
        positions = range(n) if one.positions is None else one.positions
        whole = (*positions, *(range(n, n_all) if one.on_answers else ()))
        acting.append(Intervention(one.features, one.direction, None if len(whole) == n_all else whole, answering=False))
    return request_of(number, tuple(acting))
