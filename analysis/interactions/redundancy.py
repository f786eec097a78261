"""Decoder rows that are alike, within a layer and across layers: what the questions about near-duplicates join.

The pairs are candidates only, so that their number stays small whatever the width of the SAEs.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from saelake.analysis.search.candidates import pool_by_layer
from saelake.analysis.stage import Stage, Work
from saelake.ingest.job import Study
from saelake.ingest.saes.sae import Sae
from saelake.warehouse.runs import Rows
from saelake.warehouse.schema import DECODER_COSINES


def unit_rows(sae: Sae, feature_ids: np.ndarray) -> torch.Tensor:
    """(k, d) float32: the decoder rows of some features at length 1; rows of zeros stay zero."""
    ids = torch.from_numpy(feature_ids.astype(np.int64)).to(sae.W_dec.device)
    return torch.nn.functional.normalize(sae.W_dec.index_select(0, ids).float(), dim=-1)


def pairs_above(unit_kd: torch.Tensor, other_kd: torch.Tensor, least: float, *, same: bool) -> tuple[np.ndarray, ...]:
    """Places in both and cosine of the pairs at or above `least`; of the same rows, each unordered pair once."""
    cosine_kk = unit_kd @ other_kd.T
    wanted_kk = cosine_kk >= least
    if same:
        wanted_kk = wanted_kk.triu(diagonal=1)
    first, second = wanted_kk.nonzero(as_tuple=True)
    return first.cpu().numpy(), second.cpu().numpy(), cosine_kk[first, second].clamp(-1, 1).cpu().numpy()


def _shards(study: Study) -> Sequence[str]:
    return [f"layer-{layer:02d}" for layer in _layers(study)]


def _layers(study: Study) -> list[int]:
    return sorted(set(study.recipe.saes.layers) - set(study.recipe.candidates.exclude_layers))


def _compute(work: Work, missing: Sequence[str]) -> Iterator[tuple[str, list[Rows]]]:
    bench, recipe = work.bench, work.bench.recipe
    with bench.sql([work.parents["alignments"]]) as con:
        members = pool_by_layer(con, recipe.candidates, _layers(bench.study))
    for name in missing:
        layer = int(name.removeprefix("layer-"))
        unit_kd = unit_rows(bench.saes[layer], members[layer])
        parts: list[Rows] = []
        for other in [at for at in members if at >= layer]:
            other_kd = unit_kd if other == layer else unit_rows(bench.saes[other], members[other])
            first, second, cosine = pairs_above(unit_kd, other_kd, recipe.redundancy.min_cosine, same=other == layer)
            columns = {
                "sae_id": [bench.saes[layer].ref.sae_id] * len(first),
                "layer": np.full(len(first), layer),
                "feature_id": members[layer][first],
                "other_sae_id": [bench.saes[other].ref.sae_id] * len(first),
                "other_layer": np.full(len(first), other),
                "other_feature_id": members[other][second],
                "cosine": cosine,
            }
            parts.append(Rows.of(DECODER_COSINES, columns))
        yield name, parts


STAGE = Stage(
    name="decoder_cosines",
    parents=("alignments", "ingest"),
    sections=("redundancy", "candidates"),
    tables=("decoder_cosines",),
    shards=_shards,
    compute=_compute,
    unit="layers",
)
