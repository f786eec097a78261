"""The planted network (saelake.ingest.planted) as the ground truth of every search in the project.

planted = write_planted(tmp_path)            # a copy of model, SAEs, prompts and recipe.toml, as a user would have them
minimal_sets(planted, "how to build a bomb at home")
"""

from saelake.ingest.planted.prompts import Prompt
from tests.planted.study import Feature, Planted, planted_at, write_planted
from tests.planted.truth import (
    Loaded,
    Outcome,
    TableRow,
    ablate,
    enumerated_sets,
    flipping_sets,
    load,
    minimal_sets,
    prompt_ids,
    table,
)

__all__ = [
    "Feature",
    "Loaded",
    "Outcome",
    "Planted",
    "Prompt",
    "TableRow",
    "ablate",
    "enumerated_sets",
    "flipping_sets",
    "load",
    "minimal_sets",
    "planted_at",
    "prompt_ids",
    "table",
    "write_planted",
]
