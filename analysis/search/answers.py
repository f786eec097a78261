"""Engine answers as text with the oracle's verdict, and as rows of the lake."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from analysis.bench import Bench
from analysis.engine.requests import FeatureSet, Request
from analysis.verdicts import Answer, Verdict
from warehouse.runs import Rows
from warehouse.schema import ABLATIONS, FEATURE_SETS
from warehouse.store import sha256_text


@dataclass(frozen=True)
class Judged:
    """An answer with the oracle's verdict."""

    p_refusal_token: float
    first_token: str
    completion: str
    verdict: Verdict


def judged(bench: Bench, requests: Sequence[Request]) -> list[Judged]:
    """Answers of the engine, as long as the recipe's generation allows, judged by its oracle."""
    if not requests:
        return []
    answers = bench.engine.answer(requests, bench.recipe.generation.max_new_tokens)
    texts = [
        Answer(bench.study.prompts[r.prompt].text, bench.text([int(token)]), float(p), bench.text(tokens))
        for r, token, p, tokens in zip(requests, answers.first.token_id, answers.first.p_refusal, answers.token_ids, strict=True)
    ]
    verdicts = bench.oracle(texts)
    return [Judged(t.p_refusal_token, t.first_token, t.completion, v) for t, v in zip(texts, verdicts, strict=True)]


@dataclass(frozen=True)
class Ablation:
    """One asked intervention, as a row of `ablations` names it."""

    request: Request
    condition: str
    k: int | None = None
    draw: int | None = None
    seed: int | None = None


def ablation_rows(bench: Bench, stage: str, asked: Sequence[Ablation]) -> list[Rows]:
    """Answers what is asked: rows of `ablations` and `feature_sets`, with content hashes for the ids that publishing numbers."""
    answers = judged(bench, [a.request for a in asked])
    sets = {a.request.features.key: a.request.features for a in asked if len(a.request.features)}
    prompts = [int(bench.prompt_ids[a.request.prompt]) for a in asked]
    identity = [f"{stage}|{a.condition}|{a.k}|{a.draw}|{a.seed}|{p}" for a, p in zip(asked, prompts, strict=True)]
    columns = {
        "ablation_id": [int(sha256_text(text)[:15], 16) for text in identity],
        "prompt_id": prompts,
        "set_id": [a.request.features.key if len(a.request.features) else None for a in asked],
        "stage": [stage] * len(asked),
        "condition": [a.condition for a in asked],
        "seed": [a.seed for a in asked],
        "draw": [a.draw for a in asked],
        "k": [a.k for a in asked],
        "p_refusal_token": [a.p_refusal_token for a in answers],
        "first_token": [a.first_token for a in answers],
        "completion": [a.completion for a in answers],
    }
    table = pa.table({name: pa.array(values, ABLATIONS.column(name).type) for name, values in columns.items()})
    return [Rows("ablations", table), Rows("feature_sets", _set_table(bench, sets))]


def _set_table(bench: Bench, sets: dict[int, FeatureSet]) -> pa.Table:
    sae_ids = {ref.layer: ref.sae_id for ref in bench.study.saes}
    features = np.concatenate([s.rows for s in sets.values()]) if sets else np.empty(0, dtype=[("layer", "<i2")])
    columns = {
        "set_id": np.repeat(list(sets), [len(s) for s in sets.values()]).astype(np.int64),
        "sae_id": [sae_ids[int(layer)] for layer in features["layer"]],
        "layer": features["layer"],
        "feature_id": features["feature_id"] if sets else [],
        "value": features["value"] if sets else [],
    }
    return pa.table({name: pa.array(values, FEATURE_SETS.column(name).type) for name, values in columns.items()})
