"""A synthetic lake of any size: prompts, tokens, SAEs and activations with the shape of real ones, for benchmarks and planning.

Features fire with Zipf-distributed rates, template tokens fire nearly the same features in every prompt, and an activation is
its feature's threshold times one plus an exponential: what a JumpReLU SAE gives. Same settings and seed, same lake.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa

from saelake.warehouse.durable import sha256_text
from saelake.warehouse.errors import UserError
from saelake.warehouse.lake import Lake
from saelake.warehouse.landing import repeated
from saelake.warehouse.progress import Quiet
from saelake.warehouse.records import RunRecord, RunSpec
from saelake.warehouse.runs import Plan, Rows, ensure_run
from saelake.warehouse.statistics import FeatureStatistics

TABLES = ("prompts", "tokens", "saes", "features", "activations")
CODE_VERSION = 1
MAX_RATE = 0.7
"""The most frequent feature fires on this share of the tokens."""
SHARED = 0.95
"""Chance that a template token of a prompt fires a feature that template tokens at its place fire."""
N_TEMPLATE = 12
"""Template tokens a prompt, the first of them BOS; a shorter prompt has only half of its tokens from the template."""
SAES_SHARD = "saes"


@dataclass(frozen=True)
class Shape:
    """How large a synthetic lake is; the defaults are about those of the paper's study of Gemma-2-2B."""

    n_prompts: int = 1_700
    tokens_per_prompt: int = 34
    n_layers: int = 14
    width: int = 65_536
    l0: float = 73
    """Mean active features a token."""
    zipf: float = 1.0
    """Exponent of the rates at which features fire."""
    round: str = "bfloat16"
    """bfloat16 or float32: what the values are rounded to, as in a recipe."""
    prompt_major: bool = False
    """Whether activations are stored a second time, prompt by prompt."""
    shard_prompts: int = 100

    @classmethod
    def of_rows(cls, n_rows: int, **others: object) -> "Shape":
        """A shape with about `n_rows` activations: as many prompts as that takes."""
        one = cls(n_prompts=1, **others)  # type: ignore[arg-type]
        n_prompts = max(1, round(n_rows / (one.tokens_per_prompt * one.n_layers * one.l0)))
        return cls(n_prompts=n_prompts, **others)  # type: ignore[arg-type]


def synthesize(lake: Lake, shape: Shape, *, recipe: str = "synth", seed: int = 0, progress: Quiet | None = None) -> RunRecord:
    """The ingest run of a synthetic lake, found, resumed or made."""
    spec = RunSpec("ingest", recipe, {"code": CODE_VERSION, "device": "cpu", "synth": asdict(shape)}, seed=seed)
    return ensure_run(lake, spec, plan(shape, spec), progress=progress)


def plan(shape: Shape, spec: RunSpec) -> Plan:
    """How the run is made: one shard for the SAEs, one for every slice of the prompts."""
    starts = {f"prompts-{start:07d}": start for start in range(0, shape.n_prompts, shape.shard_prompts)}

    def compute(missing: Sequence[str]) -> Iterator[tuple[str, list[Rows]]]:
        layers = [_Layer.draw(shape, layer, spec.seed) for layer in range(shape.n_layers)]
        for name in missing:
            if name == SAES_SHARD:
                yield name, [_saes(layers), *(layer.features() for layer in layers)]
            else:
                prompts = np.arange(starts[name], min(starts[name] + shape.shard_prompts, shape.n_prompts))
                texts = [_prompts(shape, spec, prompts), _tokens(shape, spec, prompts)]
                yield name, [*texts, *(layer.activations(spec, prompts) for layer in layers)]

    tables = (*TABLES, "activations_by_prompt") if shape.prompt_major else TABLES
    return Plan([SAES_SHARD, *starts], compute, tables, summary=FeatureStatistics)


@dataclass(frozen=True)
class _Layer:
    """One SAE: how often and how strongly each of its features fires."""

    shape: Shape
    number: int
    seed: int
    rate: np.ndarray
    """(width,) chance that a feature fires on a token."""
    threshold: np.ndarray
    """(width,) float32"""

    @classmethod
    def draw(cls, shape: Shape, number: int, seed: int) -> "_Layer":
        random = np.random.default_rng([seed, number])
        rate = random.permutation(_zipf_rates(shape.width, shape.zipf, shape.l0))
        return cls(shape, number, seed, rate, np.exp(random.normal(0, 0.5, shape.width)).astype(np.float32))

    @property
    def sae_id(self) -> str:
        return f"synth{self.seed}/layer-{self.number:02d}"

    def features(self) -> Rows:
        columns = {
            "sae_id": repeated(self.sae_id, self.shape.width),
            "layer": np.full(self.shape.width, self.number, dtype=np.int16),
            "feature_id": np.arange(self.shape.width, dtype=np.int32),
            "decoder_norm": np.ones(self.shape.width, dtype=np.float32),
            "threshold": self.threshold,
        }
        return Rows("features", pa.table(columns), self.number)

    def activations(self, spec: RunSpec, prompts: np.ndarray) -> Rows:
        """What fires on some prompts, in the order of a capture: by prompt, pos, feature."""
        length, is_template = self.shape.tokens_per_prompt, _is_template(self.shape)
        shared = np.random.default_rng([self.seed, self.number, 0])
        token, feature_id = _firings(self.rate, int(is_template.sum()), shared)
        random = np.random.default_rng([self.seed, self.number, 1 + int(prompts[0])])
        which, firing = np.nonzero(random.random((len(prompts), len(token))) < SHARED)
        own_token, own_feature_id = _firings(self.rate, int((~is_template).sum()) * len(prompts), random)
        own_prompt, own_pos = np.divmod(own_token, max(int((~is_template).sum()), 1))

        cell = np.concatenate(
            [
                (which * length + np.flatnonzero(is_template)[token[firing]]) * self.shape.width + feature_id[firing],
                (own_prompt * length + np.flatnonzero(~is_template)[own_pos]) * self.shape.width + own_feature_id,
            ]
        )
        cell.sort()
        place, feature_id = np.divmod(cell, self.shape.width)
        prompt, pos = np.divmod(place, length)
        activation = self.threshold[feature_id] * (1 + random.standard_exponential(len(cell), dtype=np.float32))
        columns = {
            "sae_id": repeated(self.sae_id, len(cell)),
            "layer": np.full(len(cell), self.number, dtype=np.int16),
            "feature_id": feature_id.astype(np.int32),
            "prompt_id": (spec.tag << 32) + prompts[prompt],
            "pos": pos.astype(np.int16),
            "activation": to_bfloat16(activation) if self.shape.round == "bfloat16" else activation,
        }
        return Rows("activations", pa.table(columns), self.number)


def _zipf_rates(width: int, exponent: float, l0: float) -> np.ndarray:
    """(width,) chances that fall with the rank's power, at most MAX_RATE, with the sum `l0`."""
    if l0 > MAX_RATE * width:
        raise UserError(f"{width:,} features fire on {MAX_RATE * width:g} a token at the most, not on {l0:g}: raise the width")
    shape = np.arange(1, width + 1) ** -float(exponent)
    low, high = 0.0, l0 / shape[-1]
    for _ in range(100):
        scale = (low + high) / 2
        low, high = (scale, high) if np.minimum(scale * shape, MAX_RATE).sum() < l0 else (low, scale)
    return np.minimum(high * shape, MAX_RATE)


def _firings(rate: np.ndarray, n_tokens: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and features of all firings, sorted, each feature firing on each token with its own chance.

    A Poisson number of hits with mean -log(1 - rate) is zero with chance 1 - rate, so hits are drawn at once, repeats dropped.
    """
    mean = np.cumsum(-np.log1p(-rate))
    n_hits = random.poisson(mean[-1] * n_tokens)
    feature_id = np.searchsorted(mean, random.random(n_hits) * mean[-1])
    cell = np.sort(random.integers(0, max(n_tokens, 1), n_hits) * len(rate) + feature_id)
    return np.divmod(cell[np.diff(cell, prepend=-1) != 0], len(rate))


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """float32 values rounded to the nearest bfloat16 (ties to even), still in float32."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)


def _is_template(shape: Shape) -> np.ndarray:
    """(tokens_per_prompt,) bool: the first third of the template's tokens opens a prompt, the rest closes it."""
    n_template = min(N_TEMPLATE, shape.tokens_per_prompt // 2)
    pos = np.arange(shape.tokens_per_prompt)
    return (pos < n_template // 3) | (pos >= shape.tokens_per_prompt - (n_template - n_template // 3))


def _saes(layers: Sequence[_Layer]) -> Rows:
    columns = {
        "sae_id": [layer.sae_id for layer in layers],
        "name": [f"synthetic/{layer.sae_id}" for layer in layers],
        "layer": pa.array([layer.number for layer in layers], pa.int16()),
        "width": pa.array([layer.shape.width for layer in layers], pa.int32()),
        "hook": [f"blocks.{layer.number}.hook_resid_post" for layer in layers],
        "norm": ["none"] * len(layers),
        "declared_l0": pa.array([layer.shape.l0 for layer in layers], pa.float32()),
    }
    return Rows("saes", pa.table(columns))


def _prompts(shape: Shape, spec: RunSpec, prompts: np.ndarray) -> Rows:
    texts = [f"synthetic prompt {number}" for number in prompts]
    columns = {
        "prompt_id": (spec.tag << 32) + prompts.astype(np.int64),
        "prompt_hash": [sha256_text(text)[:16] for text in texts],
        "set": ["synth"] * len(texts),
        "split": [("train", "val", "test")[number % 3] for number in prompts],
        "label": [("harmful", "benign")[number // 3 % 2] for number in prompts],
        "label_role": [("target", "control")[number // 3 % 2] for number in prompts],
        "category": [f"category {number % 7}" for number in prompts],
        "text": texts,
        "n_tokens": np.full(len(texts), shape.tokens_per_prompt, dtype=np.int32),
        "template_hash": ["synth"] * len(texts),
        "family": pa.nulls(len(texts), pa.string()),
    }
    return Rows("prompts", pa.table(columns))


def _tokens(shape: Shape, spec: RunSpec, prompts: np.ndarray) -> Rows:
    length, n_prompts = shape.tokens_per_prompt, len(prompts)
    roles = ["template" if is_template else "user" for is_template in _is_template(shape)]
    roles[0] = "bos"
    words = np.array([f"word{number}" for number in range(1000)])
    word = (np.repeat(prompts, length) * 31 + np.tile(np.arange(length), n_prompts) * 17) % len(words)
    columns = {
        "prompt_id": (spec.tag << 32) + np.repeat(prompts.astype(np.int64), length),
        "pos": np.tile(np.arange(length, dtype=np.int16), n_prompts),
        "token_id": word.astype(np.int32),
        "token": words[word],
        "piece": words[word],
        "role": np.tile(roles, n_prompts),
    }
    return Rows("tokens", pa.table(columns))
