"""Does the direction tell target from control, and from which layer on (R4): its cosine with every prompt's last token."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from saelake.analysis.search.answers import Columns
from saelake.analysis.stage import Stage, Work
from saelake.ingest.capture import last_residuals
from saelake.ingest.runs import prompt_shards
from saelake.ingest.study import Study
from saelake.warehouse.errors import UserError
from saelake.warehouse.runs import Rows
from saelake.warehouse.schema import LAYER_COSINES


def last_token_cosines(resid_ld: torch.Tensor, own_ld: np.ndarray, chosen: int) -> dict[str, np.ndarray]:
    """Cosine (l,) of one residual a layer with that layer's own unit direction, and with the chosen layer's."""
    unit_ld = torch.nn.functional.normalize(resid_ld.double(), dim=-1).cpu().numpy()
    return {"own": (unit_ld * own_ld).sum(-1), "chosen": unit_ld @ own_ld[chosen]}


def _shards(study: Study) -> dict[str, Sequence[int]]:
    return prompt_shards(study.prompts_of(study.recipe.diagnostic.split), study.recipe.capture.shard_prompts)


def _compute(work: Work, missing: Sequence[str]) -> Iterator[tuple[str, list[Rows]]]:
    context, shards = work.context, _shards(work.context.study)
    if not shards:
        raise UserError(f"diagnostic.split is {context.recipe.diagnostic.split!r}, but no prompt is in that split")
    with work.sql("direction") as con:
        found = con.execute("select layer, vector, chosen from directions order by layer").fetchall()
    layers = [layer for layer, _, _ in found]
    own_ld = np.array([vector for _, vector, _ in found], dtype=np.float64)
    chosen = next(i for i, (_, _, is_chosen) in enumerate(found) if is_chosen)
    for name in missing:
        token_ids = [context.token_ids[p] for p in shards[name]]
        resid_bld = last_residuals(context.subject, token_ids, layers, context.recipe.capture.batch_tokens)
        rows = [last_token_cosines(resid_ld, own_ld, chosen) for resid_ld in resid_bld]
        n_layers, n_rows = len(layers), len(rows) * len(layers)
        columns: Columns = {
            "prompt_id": np.tile(np.repeat(context.prompt_ids[list(shards[name])], n_layers), 2),
            "direction": ["own"] * n_rows + ["chosen"] * n_rows,
            "layer": np.tile(layers, 2 * len(rows)),
            "cosine": np.concatenate([row[direction] for direction in ("own", "chosen") for row in rows]),
        }
        yield name, [Rows.of(LAYER_COSINES, columns)]


STAGE = Stage(
    name="layer_diagnostic",
    parents=("direction", "prompts"),
    splits=lambda recipe: [recipe.diagnostic.split],
    sections=("diagnostic", "capture"),
    tables=("layer_cosines",),
    shards=lambda study: list(_shards(study)),
    compute=_compute,
)
