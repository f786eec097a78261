"""A copy of the planted study, as a user would have one of their own, and what is true of it."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from saelake.ingest.planted.geometry import N_LAYERS, PRIMARY_LAYER
from saelake.ingest.planted.network import HARM_WORDS, REFUSAL_TOKEN
from saelake.ingest.planted.prompts import Prompt
from saelake.ingest.planted.saes import BACKUP, CATEGORY_FEATURES, DEAD, DECOY, NOISE, PRIMARY, TEMPLATE_FEATURES

ROOT = Path(__file__).resolve().parent.parent.parent
Feature = tuple[int, int]
"""(layer, feature_id)"""

# Frozen: what the enumeration of all 4,096 subsets finds for every harmful prompt (test_planted.py). Removing the primary at
# layer 4 or 5 suffices, since the backup has then already seen it and stayed silent; removing it before wakes the backup.
MINIMAL_SETS: frozenset[frozenset[Feature]] = frozenset(
    {
        frozenset({(4, PRIMARY)}),
        frozenset({(5, PRIMARY)}),
        frozenset({(2, PRIMARY), (4, BACKUP)}),
        frozenset({(2, PRIMARY), (5, BACKUP)}),
        frozenset({(3, PRIMARY), (4, BACKUP)}),
        frozenset({(3, PRIMARY), (5, BACKUP)}),
    }
)


@dataclass(frozen=True)
class Planted:
    """A planted study on disk, and what is true of it."""

    folder: Path
    """holds model/, saes/layer_{0..5}/, prompts.jsonl and recipe.toml"""
    recipe: Path
    """recipe.toml, in the format of recipes/organism.toml"""
    primary: int
    """feature_id, in every layer, of the refusal feature (written at layer 2)"""
    backup: int
    """feature_id, in every layer, of the backup (written at layer 4, where the primary is missing)"""
    decoy: int
    """feature_id, in every layer, of a latent that never fires but aligns third best with the refusal direction"""
    noise: tuple[int, ...]
    """feature_ids that fire on template tokens or classes of words and cause nothing"""
    one_noise: int
    """the noise feature that the enumeration includes: it fires on the prompt's last token"""
    categories: Mapping[str, int]
    """harm category -> feature_id that fires on this category's words only, in every layer, and causes nothing"""
    category_words: Mapping[str, tuple[str, ...]]
    """harm category -> its words"""
    dead: tuple[int, ...]
    """feature_ids that never fire; the first aligns fourth best with the refusal direction, the others do not"""
    layers: tuple[int, ...]
    """layers in which ablations are searched: 2..5"""
    refusal_token: str
    """first token of a refusal"""
    minimal_sets: frozenset[frozenset[Feature]]
    """sets whose ablation flips every harmful prompt while that of no proper subset does"""

    def prompts(self, label: str | None = None) -> list[Prompt]:
        """The rows of prompts.jsonl, in order; of one label if given."""
        rows: list[Prompt] = [json.loads(line) for line in (self.folder / "prompts.jsonl").read_text().splitlines()]
        return [row for row in rows if label in (None, row["label"])]


def write_planted(folder: Path) -> Planted:
    """A copy of the shipped study in `folder`, which is made if missing: tests change its files."""
    folder.mkdir(parents=True, exist_ok=True)
    shipped = ROOT / "ingest" / "planted"
    shutil.copytree(shipped / "model", folder / "model")
    shutil.copytree(shipped / "saes", folder / "saes")
    shutil.copyfile(shipped / "prompts.jsonl", folder / "prompts.jsonl")
    recipe = folder / "recipe.toml"
    text = (ROOT / "recipes" / "planted.toml").read_text(encoding="utf-8")
    recipe.write_text(text.replace("../ingest/planted/", ""), encoding="utf-8")
    return planted_at(folder)


def planted_at(folder: Path) -> Planted:
    """The copy that `write_planted` has written, and what is known of it."""
    return Planted(
        folder=folder,
        recipe=folder / "recipe.toml",
        primary=PRIMARY,
        backup=BACKUP,
        decoy=DECOY,
        noise=NOISE,
        one_noise=TEMPLATE_FEATURES["\n"],
        categories=CATEGORY_FEATURES,
        category_words=HARM_WORDS,
        dead=DEAD,
        layers=tuple(range(PRIMARY_LAYER, N_LAYERS)),
        refusal_token=REFUSAL_TOKEN,
        minimal_sets=MINIMAL_SETS,
    )
