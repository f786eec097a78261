"""The factorisation machine of the study (R9): one for every embedding length of the recipe, as tables."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from saelake.analysis.interactions.examples import SPLITS, Examples, examples_of, identity
from saelake.analysis.interactions.factorisation_machine import Machine, Settings, Trained, train
from saelake.analysis.stage import Stage, Work
from saelake.analysis.study_context import StudyContext
from saelake.ingest.study import Study
from saelake.warehouse.runs import Rows
from saelake.warehouse.schema import FM_EMBEDDINGS, FM_METRICS, FM_PAIRS, MODELS, PREDICTIONS

PAIRED = 2048
"""Pairs are looked for among so many features, those with the longest embeddings, weighed by how often and strongly they fire."""
PAIRS_AMONG = 4096
"""Sizes of cosines are averaged over the pairs of so many features at most."""


class Spread(NamedTuple):
    """How many directions embeddings use; what their cosines can tell apart."""

    mean_cosine: float
    """Mean cosine of two rows, signed: two opposite clusters cancel in it."""
    mean_abs_cosine: float
    """Mean size of the cosine of two rows: 1 if they lie on one line, whatever their signs."""
    effective_rank: float
    """exp(entropy) of the shares of energy of the singular directions: 1 to k."""
    first_direction: float
    """Share of the energy (sum of squares) in the first singular direction."""


def spread(embeddings: np.ndarray, seed: int = 0) -> Spread:
    """Of rows (m, k); NaN for fewer than two. The mean size is over the pairs of PAIRS_AMONG rows at most, drawn by the seed."""
    vectors = embeddings.astype(np.float64)
    if len(vectors) < 2 or not vectors.any():
        return Spread(*(float("nan"),) * 4)
    energy = np.maximum(np.linalg.eigvalsh(vectors.T @ vectors), 0)
    shares = energy[energy > 0] / energy.sum()
    drawn = _unit(vectors)
    if len(drawn) > PAIRS_AMONG:
        drawn = drawn[np.random.default_rng(seed).choice(len(drawn), PAIRS_AMONG, replace=False)]
    cosines = np.abs(drawn @ drawn.T)
    n = len(drawn)
    return Spread(
        mean_pairwise_cosine(vectors),
        float((cosines.sum() - np.trace(cosines)) / (n * (n - 1))),
        float(np.exp(-(shares * np.log(shares)).sum())),
        float(shares.max()),
    )


def mean_pairwise_cosine(embeddings: np.ndarray) -> float:
    """Mean cosine of two rows of (m, k), over all pairs of distinct rows, without forming the pairs; NaN for fewer than two."""
    unit = _unit(embeddings.astype(np.float64))
    n = len(unit)
    return float((np.square(unit.sum(0)).sum() - np.square(unit).sum()) / (n * (n - 1))) if n > 1 else float("nan")


def strongest_pairs(examples: Examples, embeddings: np.ndarray, n_pairs: int) -> dict[str, np.ndarray]:
    """The pairs that add most to the logit on average: columns a, b (places), dot, cofiring, contribution, cosine; best first.

    contribution = <v_a, v_b> mean(x_a x_b) over the training prompts. Looked for among the PAIRED features of the largest
    |v| mean(x^2)^0.5, which bounds their contributions.
    """
    x = examples.x[examples.places["train"]]
    reach = np.linalg.norm(embeddings, axis=1) * np.sqrt(np.asarray(x.multiply(x).mean(axis=0)).ravel())
    among = np.sort(np.argsort(-reach, kind="stable")[:PAIRED])
    mine = x[:, among]
    cofiring = np.asarray((mine.T @ mine).todense(), dtype=np.float32) / x.shape[0]
    vectors = embeddings[among]
    dots = vectors @ vectors.T
    a, b = np.triu_indices(len(among), k=1)
    contribution = (dots * cofiring)[a, b]
    n_found = min(n_pairs, int(np.count_nonzero(contribution)))
    best = np.argsort(-np.abs(contribution), kind="stable")[:n_found]
    a, b = a[best], b[best]
    unit = _unit(vectors)
    return {
        "a": among[a],
        "b": among[b],
        "dot": dots[a, b],
        "cofiring": cofiring[a, b],
        "contribution": contribution[best],
        "cosine": (unit[a] * unit[b]).sum(1),
    }


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny)


def model_rows(model: str, size: int, examples: Examples, trained: Trained) -> list[Rows]:
    """Rows of models, fm_metrics and predictions: what a machine and a probe have in common."""
    machine, n_train = trained.machine, examples.places["train"]
    found = spread(machine.embeddings) if size else Spread(*(float("nan"),) * 4)
    epochs = [(number, split, getattr(epoch, split)) for number, epoch in enumerate(trained.epochs, 1) for split in SPLITS]
    n_prompts = {name: len(rows) for name, rows in examples.places.items()}
    logits = machine.logits(examples.x)
    return [
        Rows.of(
            MODELS,
            {
                "model": [model],
                "size": [size],
                "bias": [machine.bias],
                "best_epoch": [trained.best_epoch],
                "n_features": [examples.x.shape[1]],
                "n_untrained": [examples.n_untrained],
                "n_nonzeros": [examples.x[n_train].nnz],
            }
            | {name: [None if np.isnan(value) else value] for name, value in found._asdict().items()},
        ),
        Rows.of(
            FM_METRICS,
            {
                "model": [model] * len(epochs),
                "epoch": [number for number, *_ in epochs],
                "split": [split for _, split, _ in epochs],
                "n_prompts": [n_prompts[split] for _, split, _ in epochs],
                "loss": [score.loss if n_prompts[split] else None for _, split, score in epochs],
                "accuracy": [score.accuracy if n_prompts[split] else None for _, split, score in epochs],
            },
        ),
        Rows.of(
            PREDICTIONS,
            {
                "model": [model] * len(logits),
                "prompt_id": examples.prompt_ids,
                "split": examples.split,
                "label": examples.labels,
                "p_target": 1 / (1 + np.exp(-logits.astype(np.float64))),
                "correct": (logits > 0) == (examples.y > 0.5),
            },
        ),
    ]


def weight_columns(examples: Examples, machine: Machine) -> dict[str, object]:
    """The columns that say which feature has which weight."""
    return {
        "sae_id": examples.sae_ids,
        "layer": examples.layers,
        "feature_id": examples.feature_ids,
        "n_train": examples.n_train,
        "scale": examples.scale,
        "weight": machine.weights,
    }


def _embedding_rows(model: str, examples: Examples, machine: Machine) -> Rows:
    vectors = machine.embeddings
    offsets = np.arange(len(vectors) + 1, dtype=np.int32) * vectors.shape[1]
    columns = {"model": [model] * len(vectors)} | weight_columns(examples, machine)
    return Rows.of(FM_EMBEDDINGS, columns | {"vector": pa.ListArray.from_arrays(offsets, vectors.ravel())})


def _pair_rows(context: StudyContext, model: str, examples: Examples, machine: Machine) -> Rows:
    pairs = strongest_pairs(examples, machine.embeddings, context.recipe.fm.pairs)
    features = weight_columns(examples, machine)
    columns: dict[str, object] = {"model": [model] * len(pairs["a"]), "rank": np.arange(1, len(pairs["a"]) + 1)}
    for name in ("sae_id", "layer", "feature_id"):
        for side in ("a", "b"):
            columns[f"{name}_{side}"] = np.asarray(features[name])[pairs[side]]
    return Rows.of(FM_PAIRS, columns | {name: pairs[name] for name in ("dot", "cosine", "cofiring", "contribution")})


def held_out(study: Study) -> str | None:
    """The machine that ranks new features and learned from none of the ablated prompts; None where there are no others."""
    recipe, sets = study.recipe, study.recipe.interactions.sets
    others = [n for n, p in enumerate(study.prompts) if p.split != recipe.candidates.split and (not sets or p.set in sets)]
    return f"fm_{recipe.stage3.size}_held_out" if {"target", "control"} <= {study.role(n) for n in others} else None


def _shards(study: Study) -> dict[str, int]:
    """Shard, which is a machine's name -> embedding length."""
    sizes = {f"fm_{size}": size for size in sorted(set(study.recipe.fm.sizes))}
    own = held_out(study)
    return sizes if own is None else sizes | {own: study.recipe.stage3.size}


def _identity(study: Study) -> Mapping[str, object]:
    return {**identity(study), "held_out": [held_out(study), study.recipe.candidates.split]}


def _compute(work: Work, missing: Sequence[str]) -> Iterator[tuple[str, list[Rows]]]:
    context, settings = work.context, work.context.recipe.fm
    sizes, own = _shards(context.study), held_out(context.study)
    for name in missing:
        examples = examples_of(work, context.recipe.candidates.split if name == own else None)
        fitting = Settings(
            sizes[name], settings.learning_rate, settings.epochs, settings.batch_size, settings.init_sd, work.spec.seed
        )
        trained = train(examples.x, examples.y, examples.places, fitting)
        yield (
            name,
            [
                *model_rows(name, sizes[name], examples, trained),
                _embedding_rows(name, examples, trained.machine),
                _pair_rows(context, name, examples, trained.machine),
            ],
        )


STAGE = Stage(
    name="fm",
    parents=("direction", "prompts", "activations"),
    sets=lambda recipe: recipe.interactions.sets,
    sections=("interactions", "fm"),
    tables=("models", "fm_metrics", "fm_embeddings", "fm_pairs", "predictions"),
    shards=lambda study: list(_shards(study)),
    compute=_compute,
    unit="machines",
    identity=_identity,
    code_version=3,
)
