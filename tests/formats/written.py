"""What is asked of the hand-made lake in every format that is written, and the rows that come out."""

from collections.abc import Mapping
from pathlib import Path

import saelake
from saelake.formats.registry import Asked
from saelake.warehouse.lake import Lake
from saelake.warehouse.schema import TABLES
from tests.formats.samples import D
from tests.lakes import build_lake

OWN_DIRECTIONS = [
    {
        "layer": layer,
        "vector": [1.0] + [0.0] * (D - 1),
        "norm": 2.0 + layer,
        "n_prompts": 4,
        "n_flipped": 3,
        "p_refusal_token": 0.1,
        "kl": 0.01,
        "induced": 0.9,
        "admitted": True,
        "chosen": layer == 1,
    }
    for layer in (0, 1)
]
"""The study's own; layer 1's is the chosen one."""
OUTPUTS: dict[str, tuple[Asked, Mapping[str, int]]] = {
    "features": (Asked(features="0:2,1:3"), {"features.json": 2, "features.txt": 2, "features.csv": 2}),
    "direction": (Asked(), {"generate_directions/mean_diffs.pt": 2, "direction.pt": 1, "layer_NN.npy": 2}),
    "delphi": (Asked(), {"layers.0": 11, "layers.1": 5}),
    "neuronpedia": (
        Asked(),
        {
            f"v1/small/sae{n}/{kind}/batch-0.jsonl.gz": rows
            for n in (0, 1)
            for kind, rows in (("activations", 4), ("features", 4))
        },
    ),
    "catalog": (Asked(), {"catalog.sql": len(TABLES), "dataset_info.json": 9}),
    "saedashboard": (
        Asked(),
        {f"sae{n}/{file}": rows for n in (0, 1) for file, rows in (("batch-0.json", 2), ("columnar/feature_batch_0", 5 * 2 + 4))},
    ),
    "top_activations": (Asked(), {"data/sae0.parquet": 4, "data/sae1.parquet": 4}),
}
"""format -> what is asked of the lake that `written_lake` makes, and the rows of the files that are written"""


def written_lake(folder: Path) -> Lake:
    """The hand-made lake with directions of its own."""
    lake = build_lake(folder)
    with saelake.open(lake.root) as opened:
        opened.write("directions", OWN_DIRECTIONS)
    return lake
