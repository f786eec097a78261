"""Directions in the residual stream: what refusal_direction saves, and plain vectors.

refusal_direction counts layers by what a block reads: its layer L is resid_post of block L - 1 here, and its layer 0, what the
embedding gives, belongs to no block.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from saelake.formats.joined import Joined
from saelake.formats.models import known_shape
from saelake.formats.registry import Asked, Format, Found
from saelake.ingest.inputs import read_text
from saelake.ingest.vectors import read_array, read_vector
from saelake.warehouse.errors import UserError
from saelake.warehouse.runs import Rows
from saelake.warehouse.schema import DIRECTIONS

if TYPE_CHECKING:
    from saelake.lake import OpenLake

OWNER = "import direction"
DIRECTION, METADATA, MEAN_DIFFS = "direction.pt", "direction_metadata.json", "mean_diffs.pt"
TOLERANCE = 1e-3
"""How far the chosen direction may be from the difference of means that it is: it is saved in half precision by some."""


def _read(files: Sequence[Path], joined: Joined, asked: Asked) -> Found:
    by_name = {file.name: file for file in files}
    if len(files) == 1 and not by_name.keys() & {METADATA, MEAN_DIFFS}:
        if asked.layer is None:
            raise UserError(f"{OWNER}: {files[0].name} does not say its layer: --layer N, whose resid_post it is a direction of")
        vectors = {asked.layer: read_vector(files[0], OWNER)}
        about: dict[str, Any] = {}
    else:
        if asked.layer is not None:
            raise UserError(f"--layer says nothing here: {METADATA} does: leave it out")
        vectors, about = _of_pipeline(by_name)
    _check(vectors, joined, files[0].name)
    norms = {layer: float(np.linalg.norm(vector)) for layer, vector in vectors.items()}
    if flat := [layer for layer, norm in norms.items() if not norm]:
        raise UserError(f"{OWNER}: the vector of layer {flat[0]} is 0, which is not a direction")
    n = len(vectors)
    columns = {
        "layer": list(vectors),
        "vector": [vector / norms[layer] for layer, vector in vectors.items()],
        "norm": list(norms.values()),
        **{name: [None] * n for name in ("n_prompts", "n_flipped", "p_refusal_token", "kl", "induced")},
        "admitted": [False] * n,
        "chosen": [False] * n,
        "left_out": ["imported"] * n,
    }
    return Found(lambda _: [Rows.of(DIRECTIONS, columns)], about=about)


def _of_pipeline(files: Mapping[str, Path]) -> tuple[dict[int, np.ndarray], dict[str, Any]]:
    """layer -> vector of a folder that refusal_direction's pipeline has written."""
    for name in (DIRECTION, METADATA):
        if name not in files:
            raise UserError(f"{OWNER}: {name} is missing: give the folder that holds {DIRECTION} and {METADATA}")
    try:
        told = json.loads(read_text(files[METADATA], OWNER))
    except (ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        told = None
    pos, layer = (told.get("pos"), told.get("layer")) if isinstance(told, dict) else (None, None)
    if type(pos) is not int or type(layer) is not int:
        raise UserError(f'{OWNER}: {METADATA} is not {{"pos": ..., "layer": ...}} of whole numbers')
    chosen = read_vector(files[DIRECTION], OWNER)
    about = {"pos": pos, "layer": layer, "chosen": layer - 1}
    if layer < 1:
        raise UserError(f"{OWNER}: its layer is {layer}, what the embedding gives: no block's resid_post")
    if MEAN_DIFFS not in files:
        return {layer - 1: chosen}, about
    means = read_array(files[MEAN_DIFFS], OWNER)
    if (
        means.ndim != 3
        or means.shape[2] != len(chosen)
        or not layer < means.shape[1]
        or not -means.shape[0] <= pos < means.shape[0]
    ):
        raise UserError(f"{OWNER}: {MEAN_DIFFS} has the shape {means.shape}, which has no place for {METADATA}'s direction")
    own = means[pos, layer]
    if np.linalg.norm(own - chosen) > TOLERANCE * np.linalg.norm(own):
        raise UserError(f"{OWNER}: {DIRECTION} is not what {MEAN_DIFFS} holds at pos {pos}, layer {layer}: they are of two runs")
    return {n - 1: means[pos, n] for n in range(1, means.shape[1]) if means[pos, n].any()}, about


def _check(vectors: Mapping[int, np.ndarray], joined: Joined, name: str) -> None:
    """Raises UserError for vectors of another width than the model's, as far as the lake knows it, and layers that it lacks."""
    ((width,),) = joined.ask("select max(len(vector)) from directions")
    shape = known_shape(joined)
    width = width or (shape.d_model if shape else None)
    for layer, vector in vectors.items():
        if width and len(vector) != width:
            raise UserError(
                f"{OWNER}: {name} has {len(vector)} numbers, the model of {joined.name} is {width} wide: it is another model's"
            )
        if layer < 0 or (shape and layer >= shape.n_layers):
            raise UserError(f"{OWNER}: the model of {joined.name} has no layer {layer}")


def _write(opened: "OpenLake", folder: Path, _asked: Asked) -> Mapping[str, int]:
    import torch

    rows = opened.sql(
        "select layer, any_value(vector order by chosen desc), any_value(norm order by chosen desc), bool_or(chosen) "
        "from directions where left_out is distinct from 'imported' group by layer order by layer"
    ).fetchall()
    if not rows:
        return {}
    width = len(rows[0][1])
    means = torch.zeros(1, max(layer for layer, *_ in rows) + 2, width, dtype=torch.float64)
    for layer, vector, norm, _ in rows:
        means[0, layer + 1] = torch.tensor(vector, dtype=torch.float64) * norm
    chosen = next((layer for layer, *_, is_chosen in rows if is_chosen), None)
    (folder / "generate_directions").mkdir()
    torch.save(means, folder / "generate_directions" / MEAN_DIFFS)
    if chosen is not None:
        torch.save(means[0, chosen + 1].float(), folder / DIRECTION)
        (folder / METADATA).write_text(json.dumps({"pos": -1, "layer": chosen + 1}) + "\n", encoding="utf-8")
    for at, vector, *_ in rows:
        np.save(folder / f"layer_{at:02d}.npy", np.array(vector, dtype=np.float32), allow_pickle=False)
    one = {} if chosen is None else {DIRECTION: 1}
    return {f"generate_directions/{MEAN_DIFFS}": len(rows), **one, "layer_NN.npy": len(rows)}


FORMAT = Format(
    what="directions: refusal_direction's direction.pt and mean_diffs.pt, or a vector as .pt, .safetensors or .npy",
    read=_read,
    write=_write,
    files=(DIRECTION, METADATA, f"generate_directions/{MEAN_DIFFS}", MEAN_DIFFS),
    reads=frozenset({"layer"}),
)
