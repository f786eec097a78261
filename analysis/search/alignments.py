"""Cosine of every decoder row with the refusal directions (R5): its own layer's, and the study's one chosen direction."""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import torch

from saelake.analysis.stage import Stage, Work
from saelake.ingest.job import Study
from saelake.ingest.saes.sae import Sae
from saelake.warehouse.runs import Rows


def cosines(sae: Sae, direction: np.ndarray) -> np.ndarray:
    """(f,) float32: signed cosine of each decoder row with a unit direction (d,); 0 for a row of zeros."""
    W_dec = sae.W_dec.float()
    along = W_dec @ torch.from_numpy(direction).to(W_dec)
    return (along / W_dec.norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny)).cpu().numpy()


def _shards(study: Study) -> Sequence[str]:
    return [f"layer-{layer:02d}" for layer in study.recipe.saes.layers]


def _compute(work: Work, missing: Sequence[str]) -> Iterator[tuple[str, list[Rows]]]:
    with work.bench.sql([work.parents["direction"]]) as con:
        found = con.execute("select layer, vector, chosen from directions").fetchall()
    own = {layer: np.array(vector, dtype=np.float32) for layer, vector, _ in found}
    chosen = next(own[layer] for layer, _, is_chosen in found if is_chosen)
    for name in missing:
        layer = int(name.removeprefix("layer-"))
        yield name, [_rows(work.bench.saes[layer], {"own": own[layer], "chosen": chosen})]


def _rows(sae: Sae, directions: dict[str, np.ndarray]) -> Rows:
    tables = [
        pa.table(
            {
                "direction": pa.DictionaryArray.from_arrays(np.zeros(sae.width, dtype=np.int8), [name]).cast(pa.string()),
                "sae_id": [sae.ref.sae_id] * sae.width,
                "layer": np.full(sae.width, sae.layer, dtype=np.int16),
                "feature_id": np.arange(sae.width, dtype=np.int32),
                "cosine": cosines(sae, direction),
            }
        )
        for name, direction in directions.items()
    ]
    return Rows("alignments", pa.concat_tables(tables), sae.layer)


STAGE = Stage(
    name="alignments",
    parents=("direction", "ingest"),
    sections=(),
    tables=("alignments",),
    shards=_shards,
    compute=_compute,
    unit="layers",
)
