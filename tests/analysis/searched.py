"""The planted study searched in every way, with conditions that a researcher would choose by SQL."""

from pathlib import Path
from typing import Any

import saelake
from saelake.analysis import verbs
from saelake.ingest.recipe import load_recipe
from saelake.warehouse.lake import Lake
from tests.planted import Feature, write_planted

STARTS = 48
SEEDS = 3
BLOCK_SIZE = 2
TAUS = [0.1, 0.4, 0.8]
CLAMPED = [2.0, 5.0]
SEARCHES = f"""
[algorithm1]
direction = "own"
block_size = {BLOCK_SIZE}
other_block_sizes = [9, "auto"]
taus = {TAUS}
seeds = {SEEDS}

[minimal]
direction = "own"
starts = {STARTS}
"""
SETS = """
select
    a.condition, a.prompt_id, a.draw, a.seed, a.tau,
    list(struct_pack(layer := f.layer, feature_id := f.feature_id) order by f.layer, f.feature_id)
        filter (where f.set_id is not null) as features
from ablations as a
join prompts as p on p.prompt_id = a.prompt_id
left join feature_sets as f on f.set_id = a.set_id
where p.label = 'harmful'
group by a.ablation_id, a.condition, a.prompt_id, a.draw, a.seed, a.tau
order by all
"""


class Analysed:
    """The planted study in a lake, analysed, with SQL over it."""

    def __init__(self, folder: Path) -> None:
        self.planted = write_planted(folder / "study")
        text = self.planted.recipe.read_text().replace("random_draws = 3", f"random_draws = 3\nclamp_values = {CLAMPED}")
        self.planted.recipe.write_text(text + SEARCHES)
        self.recipe = load_recipe(self.planted.recipe)
        self.lake = Lake.create(folder / "lake")
        self.records = verbs.analyze(self.recipe, self.lake)
        # Condition -> a select that a researcher would write: the rows of the table that defines the network.
        harmless = (*self.planted.noise, *self.planted.categories.values())
        for condition, feature_ids in {
            "primary": (self.planted.primary,),
            "backup_only": (self.planted.backup,),
            "primary_and_backup": (self.planted.primary, self.planted.backup),
            "noise": harmless,
        }.items():
            listed = f"select layer, feature_id from features where layer between 2 and 5 and feature_id in {(*feature_ids, -1)}"
            verbs.ablate(self.recipe, self.lake, condition, listed)
        self.opened = saelake.open(self.lake.root)

    def rows(self, statement: str) -> list[tuple[Any, ...]]:
        return self.opened.sql(statement).fetchall()

    def sets(self, condition: str) -> dict[tuple[int, Any, Any, Any], frozenset[Feature]]:
        """(prompt_id, draw, seed, tau) -> the features that were ablated on a harmful prompt."""
        found = self.opened.sql(SETS).filter(f"condition = '{condition}'").fetchall()
        return {
            (prompt_id, draw, seed, tau): frozenset((f["layer"], f["feature_id"]) for f in features or ())
            for _, prompt_id, draw, seed, tau, features in found
        }
