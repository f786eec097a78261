"""A recipe is one TOML file that says everything about a study: model, SAEs, prompt sets, and the parameters of every stage.

    recipe = load_recipe("organism")            # shipped in recipes/, or load_recipe("my/study.toml")
    recipe.model.dtype, recipe.saes.layers, recipe.section("capture")

A minimal recipe gives name, [model], [saes] and one [[prompts]]; all else has a default, given beside each field. Paths are
relative to the recipe's folder. This package knows the format only: no torch, no network, no model.
"""

from saelake.ingest.recipe.prompts import Column, Fractions, PromptSet
from saelake.ingest.recipe.search import Candidates
from saelake.ingest.recipe.sections import Compute, ModelSpec, SaesSpec
from saelake.ingest.recipe.study import RECIPES, Recipe, load_recipe

__all__ = [
    "RECIPES",
    "Candidates",
    "Column",
    "Compute",
    "Fractions",
    "ModelSpec",
    "PromptSet",
    "Recipe",
    "SaesSpec",
    "load_recipe",
]
