"""Decoder rows that are alike, within a layer and across layers: what the questions about near-duplicates join.

They are compared as they lie in the residual stream: the heads' outputs of two layers are different spaces. The pairs are
candidates only, so that their number stays small whatever the width of the SAEs.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from saelake.analysis.search.alignments import residual_rows
from saelake.analysis.search.candidates import pool_by_sae
from saelake.analysis.stage import Stage, Work, direction_splits
from saelake.analysis.study_context import StudyContext
from saelake.ingest.saes.refs import layer_of
from saelake.ingest.saes.sae import Sae
from saelake.ingest.study import Study
from saelake.warehouse.runs import Rows
from saelake.warehouse.schema import DECODER_COSINES


def unit_rows(context: StudyContext, sae: Sae, feature_ids: np.ndarray) -> torch.Tensor:
    """(k, d) float32: some features' decoder rows as they lie in the residual stream, at length 1; rows of zeros stay zero."""
    return torch.nn.functional.normalize(residual_rows(context, sae, feature_ids), dim=-1)


def pairs_above(unit_kd: torch.Tensor, other_kd: torch.Tensor, least: float, *, same: bool) -> tuple[np.ndarray, ...]:
    """Places in both and cosine of the pairs at or above `least`; of the same rows, each unordered pair once."""
    cosine_kk = unit_kd @ other_kd.T
    wanted_kk = cosine_kk >= least
    if same:
        wanted_kk = wanted_kk.triu(diagonal=1)
    first, second = wanted_kk.nonzero(as_tuple=True)
    return first.cpu().numpy(), second.cpu().numpy(), cosine_kk[first, second].clamp(-1, 1).cpu().numpy()


def _shards(study: Study) -> Sequence[str]:
    return list(_searched(study))


def _searched(study: Study) -> dict[str, int]:
    """Shard -> number of the SAE, of the layers that are searched, from the lowest."""
    excluded = study.recipe.candidates.exclude_layers
    searched = {name: n for name, n in study.sae_shards.items() if layer_of(n) not in excluded}
    return dict(sorted(searched.items(), key=lambda one: _place(one[1])))


def _place(number: int) -> tuple[int, int]:
    return layer_of(number), number


def _compute(work: Work, missing: Sequence[str]) -> Iterator[tuple[str, list[Rows]]]:
    context, recipe, searched = work.context, work.context.recipe, _searched(work.context.study)
    with work.sql("alignments") as con:
        members = pool_by_sae(con, recipe.candidates, {n: context.sae_ids[n] for n in searched.values()})
    for name in missing:
        number = searched[name]
        unit_kd = unit_rows(context, context.saes[number], members[number])
        parts: list[Rows] = []
        for other in [n for n in members if _place(n) >= _place(number)]:
            other_kd = unit_kd if other == number else unit_rows(context, context.saes[other], members[other])
            first, second, cosine = pairs_above(unit_kd, other_kd, recipe.redundancy.min_cosine, same=other == number)
            columns = {
                "sae_id": [context.sae_ids[number]] * len(first),
                "layer": np.full(len(first), layer_of(number)),
                "feature_id": members[number][first],
                "other_sae_id": [context.sae_ids[other]] * len(first),
                "other_layer": np.full(len(first), layer_of(other)),
                "other_feature_id": members[other][second],
                "cosine": cosine,
            }
            parts.append(Rows.of(DECODER_COSINES, columns))
        yield name, parts


STAGE = Stage(
    name="decoder_cosines",
    parents=("alignments", "activations"),
    splits=direction_splits,
    sections=("redundancy", "candidates"),
    tables=("decoder_cosines",),
    shards=_shards,
    compute=_compute,
    code_version=2,
    unit="SAEs",
)
