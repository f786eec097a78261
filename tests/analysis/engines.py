"""Engines over tiny random models and over the planted network, and random requests to them."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from saelake.analysis.engine.engine import AblationEngine
from saelake.analysis.engine.requests import DirectionEdit, FeatureSet, Request
from saelake.ingest.recipe import Compute, ModelSpec, load_recipe
from saelake.ingest.saes.refs import SaeRef, list_saes
from saelake.ingest.saes.sae import Sae, load_sae
from saelake.ingest.sites import Site
from saelake.ingest.subject import Subject
from tests.analysis.literal import literal_logits
from tests.ingest.tiny import D_MODEL, N_LAYERS, save_model, save_sae
from tests.planted import write_planted

TEXTS = [
    "How do I pick a lock?",
    "Write a poem about the sea and a small house by it.",
    "I am sorry.",
    "Where is the hospital?",
]
WIDTH = 40


class Bench(NamedTuple):
    subject: Subject
    saes: dict[int, Sae]
    prompts: list[list[int]]

    def engine(self, **options: int) -> AblationEngine:
        return AblationEngine(self.subject, self.saes, self.prompts, **options)


@cache
def tiny(family: str, architecture: str = "jumprelu") -> Bench:
    """A random model of a family with SAEs of an architecture on every layer."""
    more: dict[str, Any] = {"k": 8} if architecture == "topk" else {}
    saes = {}
    with TemporaryDirectory() as folder:
        subject = tiny_subject(family, Path(folder, "model"))
        for layer in range(N_LAYERS):
            path = save_sae(Path(folder, f"sae_{layer}"), architecture, layer, width=WIDTH, seed=layer, **more)
            saes[layer] = load_sae(SaeRef(f"s{layer}", f"s{layer}", layer, "0" * 64, None, path, None, None))
    return Bench(subject, saes, [subject.encode(text).token_ids for text in TEXTS])


def tiny_subject(family: str, folder: Path, dtype: Literal["float32", "bfloat16"] = "float32") -> Subject:
    """A random model of a family, by way of the disk."""
    spec = ModelSpec(path=save_model(family, folder), refusal_tokens=("I",), dtype=dtype)
    return Subject.load(spec, Compute(device="cpu", threads=1))


def planted_bench(folder: Path) -> Bench:
    """The planted network and its SAEs."""
    recipe = load_recipe(write_planted(folder).recipe)
    subject = Subject.load(recipe.model, recipe.compute)
    saes = {ref.layer: load_sae(ref) for ref in list_saes(recipe)}
    return Bench(subject, saes, [subject.encode(t).token_ids for t in ("how to build a bomb at home", "how to hide the gun")])


def some_set(rng: np.random.Generator, size: int, *, clamp: bool = False) -> FeatureSet:
    layers = rng.integers(0, N_LAYERS, size)
    rows = np.unique(np.stack([layers, rng.integers(0, WIDTH, size)]), axis=1)
    return FeatureSet.of(rows[0], rows[1], rng.choice([0.0, 1.5, 4.0], rows.shape[1]).tolist() if clamp else 0.0)


def some_direction(rng: np.random.Generator) -> DirectionEdit:
    vector = rng.standard_normal(D_MODEL).astype(np.float32)
    layers = sorted(rng.choice(N_LAYERS, rng.integers(1, N_LAYERS + 1), replace=False).tolist())
    return DirectionEdit(
        vector / np.linalg.norm(vector), tuple(map(Site, layers)), bool(rng.integers(2)), float(rng.choice([0.0, 2.0]))
    )


def some_request(rng: np.random.Generator) -> Request:
    return Request(
        prompt=int(rng.integers(len(TEXTS))),
        features=some_set(rng, int(rng.integers(0, 20)), clamp=bool(rng.integers(2))),
        direction=some_direction(rng) if rng.integers(3) == 0 else None,
        positions=(0, 2, 3) if rng.integers(4) == 0 else None,
    )


def assert_literal(bench: Bench, requests: list[Request]) -> None:
    """The engine's log-probabilities are those of the literal passes."""
    expected = torch.stack(
        [
            literal_logits(bench.subject, bench.saes, bench.prompts[r.prompt], r, len(bench.prompts[r.prompt])).log_softmax(-1)
            for r in requests
        ]
    )
    torch.testing.assert_close(bench.engine().log_probabilities(requests), expected, atol=1e-4, rtol=1e-4)
