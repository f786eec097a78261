"""What an analysis needs of the splits of its prompts."""

from collections.abc import Iterable

from saelake.ingest.prompts import Prompt
from saelake.ingest.recipe import Recipe
from saelake.warehouse.errors import UserError


def require_splits(recipe: Recipe, prompts: Iterable[Prompt]) -> None:
    """Raises UserError unless the splits that [direction] and [candidates] name hold the prompts that they need.

    The direction is a difference of means, so its splits need target and control; candidates are ablated on target prompts. So
    does [diagnostic], which any prompt will do for.
    """
    present = {(prompt.split, prompt.label) for prompt in prompts}
    splits = ", ".join(sorted({split for split, _ in present}))
    both = (recipe.labels.target, recipe.labels.control)
    needed = [(recipe.direction.split, "direction.split", label) for label in both]
    needed += [(recipe.direction.select_split, "direction.select_split", label) for label in both]
    needed.append((recipe.candidates.split, "candidates.split", recipe.labels.target))
    for split, field, label in needed:
        if (split, label) not in present:
            raise UserError(f"{field} is {split!r}, but no {label} prompt is in that split: the splits are {splits}")
    if recipe.diagnostic.split not in {split for split, _ in present}:
        raise UserError(
            f"diagnostic.split is {recipe.diagnostic.split!r}, but no prompt is in that split: the splits are {splits}"
        )
