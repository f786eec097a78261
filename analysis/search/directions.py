"""The refusal direction (R3): difference of means at every layer, and the choice of one layer on held-out prompts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import duckdb
import numpy as np

from saelake.analysis.engine.requests import DirectionEdit, Request
from saelake.analysis.search.answers import judged
from saelake.analysis.search.shown import not_shown
from saelake.analysis.stage import Stage, Work, single_shard
from saelake.analysis.workbench import Workbench
from saelake.ingest.capture import residuals
from saelake.warehouse.errors import UserError
from saelake.warehouse.runs import Rows
from saelake.warehouse.schema import DIRECTIONS


@dataclass(frozen=True)
class Scores:
    """How one layer's direction does on the selection prompts; the columns of `directions`."""

    n_prompts: int
    n_flipped: int
    p_refusal_token: float
    kl: float
    induced: float


def chosen_everywhere(bench: Workbench, con: duckdb.DuckDBPyConnection) -> DirectionEdit:
    """The study's one direction, projected out of every layer."""
    found = con.execute("select vector from directions where chosen").fetchone()
    assert found is not None, "a direction run without a chosen layer"
    return DirectionEdit(np.array(found[0], dtype=np.float32), tuple(range(bench.subject.n_layers)))


def difference_of_means(bench: Workbench, split: str) -> np.ndarray:
    """(l, d) float32: mean resid_post at the last token, harmful minus benign, for every block of the subject."""
    layers = range(bench.subject.n_layers)
    means = {}
    for label in ("harmful", "benign"):
        prompts = bench.study.numbers(split, label)
        if not prompts:
            raise UserError(f"direction.split is {split!r}, but the study has no {label} prompt in that split")
        token_ids = [bench.token_ids[p] for p in prompts]
        last = np.cumsum([len(ids) for ids in token_ids]) - 1
        resid = residuals(bench.subject, token_ids, list(layers), bench.recipe.capture.batch_tokens)
        means[label] = np.stack([resid[layer][last].double().mean(0).cpu().numpy() for layer in layers])
    return (means["harmful"] - means["benign"]).astype(np.float32)


def choose(scores: Sequence[Scores], admitted: Sequence[bool]) -> int:
    """The admitted layer that flips most; ties go to the lower mean probability of a refusal token, then the lower layer."""
    candidates = [layer for layer, ok in enumerate(admitted) if ok]
    if not candidates:
        raise UserError("direction: no layer passes the recipe's filters; loosen kl_max, induce_min or drop_last_layers")
    return min(candidates, key=lambda layer: (-scores[layer].n_flipped, scores[layer].p_refusal_token, layer))


def _scores(bench: Workbench, vectors: np.ndarray, norms: np.ndarray) -> list[Scores]:
    split = bench.recipe.direction.select_split
    everywhere = tuple(range(bench.subject.n_layers))
    harmful, benign = (bench.study.numbers(split, label) for label in ("harmful", "benign"))
    clean = judged(bench, [Request(p) for p in harmful])
    refused = [p for p, answer in zip(harmful, clean, strict=True) if answer.verdict.refused]
    if not refused:
        raise not_shown(bench.recipe, clean)
    if not benign:
        raise UserError(
            f"direction.select_split is {split!r}, but the study has no benign prompt in that split to choose a layer on"
        )
    benign_log_p = bench.engine.log_probabilities([Request(p) for p in benign])
    scores = []
    for layer, vector in enumerate(vectors):
        out = DirectionEdit(vector, everywhere)
        added = DirectionEdit(vector, (layer,), project_out=False, add=float(norms[layer]))
        ablated = judged(bench, [Request(p, direction=out) for p in refused])
        steered = judged(bench, [Request(p, direction=added) for p in benign])
        edited_log_p = bench.engine.log_probabilities([Request(p, direction=out) for p in benign])
        kl = (benign_log_p.exp() * (benign_log_p - edited_log_p)).sum(-1).mean()
        scores.append(
            Scores(
                n_prompts=len(refused),
                n_flipped=sum(a.verdict.flipped for a in ablated),
                p_refusal_token=float(np.mean([a.p_refusal_token for a in ablated])),
                kl=float(kl),
                induced=float(np.mean([a.verdict.refused for a in steered])),
            )
        )
    return scores


def _compute(work: Work, missing: Sequence[str]) -> Iterator[tuple[str, list[Rows]]]:
    bench, settings = work.bench, work.bench.recipe.direction
    differences = difference_of_means(bench, settings.split)
    norms = np.linalg.norm(differences, axis=1)
    vectors = differences / norms[:, None]
    scores = _scores(bench, vectors, norms)
    n_open = round(len(scores) * (1 - settings.drop_last_layers))
    admitted = [
        layer < n_open
        and (settings.kl_max is None or s.kl <= settings.kl_max)
        and (settings.induce_min is None or s.induced >= settings.induce_min)
        for layer, s in enumerate(scores)
    ]
    chosen = choose(scores, admitted)
    columns = {
        "layer": range(len(scores)),
        "vector": list(vectors),
        "norm": norms,
        "n_prompts": [s.n_prompts for s in scores],
        "n_flipped": [s.n_flipped for s in scores],
        "p_refusal_token": [s.p_refusal_token for s in scores],
        "kl": [s.kl for s in scores],
        "induced": [s.induced for s in scores],
        "admitted": admitted,
        "chosen": [layer == chosen for layer in range(len(scores))],
    }
    for name in missing:
        yield name, [Rows.of(DIRECTIONS, columns)]


STAGE = Stage(
    name="direction",
    parents=("ingest",),
    sections=("direction", "generation", "verdicts"),
    tables=("directions",),
    shards=single_shard,
    compute=_compute,
)
