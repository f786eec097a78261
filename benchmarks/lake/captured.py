"""What a capture hands over, in memory: the same rows for every contender, each in the form that it takes them in."""

from dataclasses import dataclass, field
from functools import cached_property

import duckdb
import numpy as np

from saelake.warehouse.landing import Rows
from saelake.warehouse.records import RunSpec
from saelake.warehouse.synth import CODE_VERSION, Shape, plan

Shards = list[tuple[str, list[Rows]]]


@dataclass(frozen=True)
class LayerRows:
    """The non-zeros of one layer in the order of the capture: by token, then feature."""

    token: np.ndarray
    """(nnz,) int32: prompt * tokens_per_prompt + pos"""
    feature_id: np.ndarray
    """(nnz,) int32"""
    activation: np.ndarray
    """(nnz,) float32"""


@dataclass(frozen=True)
class Captured:
    """A synthetic capture; prompts are called by their number, and all have the same length."""

    shape: Shape
    spec: RunSpec
    shards: Shards = field(repr=False)

    @property
    def n_tokens(self) -> int:
        return self.shape.n_prompts * self.shape.tokens_per_prompt

    @cached_property
    def layers(self) -> list[LayerRows]:
        """For the contenders that take arrays."""
        return [self._layer(number) for number in range(self.shape.n_layers)]

    @cached_property
    def n_rows(self) -> int:
        return sum(r.rows.num_rows for _, shard in self.shards for r in shard if r.table == "activations")

    @cached_property
    def harmful(self) -> np.ndarray:
        """(n_prompts,) bool"""
        found = [r.rows["label"].to_numpy() == "harmful" for _, shard in self.shards for r in shard if r.table == "prompts"]
        return np.concatenate(found)

    def _layer(self, number: int) -> LayerRows:
        parts = [r.rows for _, shard in self.shards for r in shard if r.table == "activations" and r.layer == number]
        first, length = self.spec.tag << 32, self.shape.tokens_per_prompt
        token = np.concatenate([(p["prompt_id"].to_numpy() - first) * length + p["pos"].to_numpy() for p in parts])
        columns = (np.concatenate([p[name].to_numpy() for p in parts]) for name in ("feature_id", "activation"))
        return LayerRows(token.astype(np.int32), *columns)


def synthetic(n_rows: int, rounding: str, seed: int = 0) -> Captured:
    """About `n_rows` non-zeros; `rounding` is bfloat16 or float32."""
    shape = Shape.of_rows(n_rows, round=rounding, prompt_major=True)
    spec = RunSpec("ingest", f"bench_{rounding}", {"code": CODE_VERSION, "device": "cpu", "n_rows": n_rows}, seed=seed)
    shards = plan(shape, spec)
    return Captured(shape, spec, list(shards.compute(shards.shards)))


@dataclass(frozen=True)
class Asked:
    """What the contenders are asked about."""

    few: dict[int, np.ndarray]
    """layer -> feature ids: 200 features in all"""
    many: dict[int, np.ndarray]
    """layer -> feature ids: 200 features a layer"""
    prompt: int

    @staticmethod
    def listed(features: dict[int, np.ndarray]) -> str:
        """As the questions take them: layer:feature_id,..."""
        return ",".join(f"{layer}:{feature}" for layer, ids in features.items() for feature in ids)


def asked(con: duckdb.DuckDBPyConnection, shape: Shape, n: int = 200, min_tokens: int = 5, seed: int = 1) -> Asked:
    """Features drawn evenly among those that fire on at least `min_tokens` tokens, and a prompt in the middle."""
    random = np.random.default_rng(seed)
    found = con.execute(f"select layer, feature_id from features where n_tokens >= {min_tokens} order by all").fetchnumpy()
    alive = [found["feature_id"][found["layer"] == layer] for layer in range(shape.n_layers)]
    shares = [len(part) for part in np.array_split(np.arange(n), shape.n_layers)]
    few = {layer: np.sort(random.choice(ids, k, replace=False)) for layer, (ids, k) in enumerate(zip(alive, shares, strict=True))}
    many = {layer: np.sort(random.choice(ids, n, replace=False)) for layer, ids in enumerate(alive)}
    return Asked(few, many, shape.n_prompts // 2)
