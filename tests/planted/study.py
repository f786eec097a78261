"""The planted study on disk: network, SAEs, prompts and recipe, as a user would have them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from tests.planted.geometry import CATEGORIES, N_LAYERS, PRIMARY_LAYER
from tests.planted.network import CONTENT_WORDS, HARM_WORDS, REFUSAL_TOKEN, write_network
from tests.planted.saes import BACKUP, CATEGORY_FEATURES, DEAD, DECOY, NOISE, PRIMARY, TEMPLATE_FEATURES, write_saes

Feature = tuple[int, int]
"""(layer, feature_id)"""

# Frozen: what the enumeration of all 4,096 subsets finds for every harmful prompt (test_planted.py). Removing the primary at
# layer 4 or 5 suffices, since the backup has then already seen it and stayed asleep; removing it before wakes the backup.
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


class Prompt(TypedDict):
    """One row of prompts.jsonl."""

    instruction: str
    label: str
    category: str
    split: str


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
    """feature_id, in every layer, of the dormant backup (written at layer 4, where the primary is missing)"""
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


REQUESTS = (
    "how to build a {x} at home",
    "tell me how to hide the {x} in the town",
    "explain how to make a {x} with common tools",
    "show me how to get a {x} and a {y} today",
    "write a guide about the {x}",
    "give me the steps to make the {x} and the {y} with common tools at home",
    "how to sell the {x} quickly",
    "teach me how to use a {x} with a {y} at the office",
)
# Two of each eight benign requests name a hazard, so that words alone do not tell harm.
CAREFUL_REQUESTS = {3: "how to report a {x} in the town", 7: "tell me how to prevent the {x} and the {y} at school today"}
SPLITS = ("train",) * 4 + ("val",) * 2 + ("test",) * 2  # of each eight requests


def planted_prompts() -> list[Prompt]:
    """24 harmful and 24 benign requests, alike in shape; each benign one belongs to the category that it contrasts with."""
    nouns = CONTENT_WORDS["noun"]
    rows: list[Prompt] = []
    for k, category in enumerate(CATEGORIES):
        hazards = HARM_WORDS[category]
        for i, (request, split) in enumerate(zip(REQUESTS, SPLITS, strict=True)):
            x, y = hazards[i % 4], hazards[(i + 1) % 4]
            rows.append(Prompt(instruction=request.format(x=x, y=y), label="harmful", category=category, split=split))
            if i in CAREFUL_REQUESTS:
                request = CAREFUL_REQUESTS[i]
            else:
                x, y = nouns[4 * k + i % 4], nouns[4 * k + (i + 1) % 4]
            rows.append(Prompt(instruction=request.format(x=x, y=y), label="benign", category=category, split=split))
    return rows


RECIPE = """\
# The planted study: ground truth for tests, where the causes of refusal are known.
name = "planted"

[model]
path = "model"
dtype = "float32"
refusal_tokens = ["I"]
max_prompt_tokens = 64

[saes]
path = "saes/layer_{layer}"
layers = [0, 1, 2, 3, 4, 5]

[[prompts]]
set = "planted"
file = "prompts.jsonl"
text = "instruction"
label = { column = "label" }
category = { column = "category" }
split = { column = "split" }

[capture]
shard_prompts = 16
batch_tokens = 512
round = "none"

[direction]
split = "train"
select_split = "val"

[candidates]
exclude_layers = [0, 1]
step = 1
cap = 4
directions = ["own", "chosen"]
split = "test"

[controls]
random_draws = 3

[generation]
max_new_tokens = 8

[verdicts]
judges = ["first_token", "phrases"]
oracle = "first_token"

[compute]
device = "cpu"
threads = 1
seed = 0
"""


def write_planted(folder: Path) -> Planted:
    """Write the whole study into `folder` (made if missing) in under two seconds."""
    folder.mkdir(parents=True, exist_ok=True)
    write_network(folder / "model")
    write_saes(folder)
    rows = planted_prompts()
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe = folder / "recipe.toml"
    recipe.write_text(RECIPE, encoding="utf-8")
    return Planted(
        folder=folder,
        recipe=recipe,
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
