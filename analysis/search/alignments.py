"""Cosine of every decoder row with the refusal directions (R5): its own layer's, and the study's one chosen direction."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from saelake.analysis.stage import Stage, Work, direction_splits
from saelake.analysis.study_context import StudyContext
from saelake.ingest.saes.sae import Sae
from saelake.warehouse.landing import repeated
from saelake.warehouse.runs import Rows

ROWS = 1 << 15
"""Of a decoder, that are looked at together: it is read once, where it lies."""


def cosines(sae: Sae, direction: np.ndarray, to_residual: torch.Tensor | None = None) -> np.ndarray:
    """(f,) float32: signed cosine of each decoder row with a unit direction (d,); 0 for a row of zeros.

    Args:
        to_residual: (d_z, d) by which rows that do not lie in the residual stream come to it.
    """
    return np.concatenate([_cosines(rows_fd, direction, to_residual) for rows_fd in sae.W_dec.split(ROWS)])


def _cosines(rows_fd: torch.Tensor, direction: np.ndarray, to_residual: torch.Tensor | None) -> np.ndarray:
    W_dec = rows_fd.float() if to_residual is None else rows_fd.float().to(to_residual.device) @ to_residual
    along = W_dec @ torch.from_numpy(direction).to(W_dec)
    return (along / W_dec.norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny)).cpu().numpy()


def _compute(work: Work, missing: Sequence[str]) -> Iterator[tuple[str, list[Rows]]]:
    with work.sql("direction") as con:
        found = con.execute("select layer, vector, chosen from directions").fetchall()
    own = {layer: np.array(vector, dtype=np.float32) for layer, vector, _ in found}
    chosen = next(own[layer] for layer, _, is_chosen in found if is_chosen)
    for name in missing:
        sae = work.context.saes[work.context.study.sae_shards[name]]
        yield name, [_rows(sae, {"own": own[sae.layer], "chosen": chosen}, to_residual(work.context, sae))]


def to_residual(context: StudyContext, sae: Sae) -> torch.Tensor | None:
    """The heads' common projection, for an SAE of what comes before it; None for the others."""
    if sae.writes.kind != "z":
        return None
    projection: Any = context.subject.sites.places[sae.writes].module
    weight: torch.Tensor = projection.weight.detach().float()
    return weight.T if isinstance(projection, torch.nn.Linear) else weight  # GPT-2's Conv1D lies the other way


def residual_rows(context: StudyContext, sae: Sae, feature_ids: np.ndarray) -> torch.Tensor:
    """(k, d) float32, on the CPU: the decoder rows of some features, as they lie in the residual stream."""
    rows = sae.decoder_rows(torch.from_numpy(feature_ids.astype(np.int64)), torch.device("cpu")).float()
    projection = to_residual(context, sae)
    return rows if projection is None else rows @ projection.cpu()


def _rows(sae: Sae, directions: dict[str, np.ndarray], to_residual: torch.Tensor | None) -> Rows:
    tables = [
        pa.table(
            {
                "direction": repeated(name, sae.width).cast(pa.string()),
                "sae_id": [sae.ref.sae_id] * sae.width,
                "layer": np.full(sae.width, sae.layer, dtype=np.int16),
                "feature_id": np.arange(sae.width, dtype=np.int32),
                "cosine": cosines(sae, direction, to_residual),
            }
        )
        for name, direction in directions.items()
    ]
    return Rows("alignments", pa.concat_tables(tables), sae.layer)


STAGE = Stage(
    name="alignments",
    parents=("direction", "activations"),
    splits=direction_splits,
    sections=(),
    tables=("alignments",),
    shards=lambda study: list(study.sae_shards),
    compute=_compute,
    unit="SAEs",
)
