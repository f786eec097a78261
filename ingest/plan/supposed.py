"""What a search finds, for the estimate of what it and all after it cost: as a rule, and if much is found. Nobody knows."""

import math
from typing import NamedTuple

from saelake.ingest.recipe import Recipe

POOL_SHARE, SIZE_SHARE = 0.1, 0.2
"""Of the largest K, the one at which a prompt flips; of a pool, what a minimal set has of it. Found so, or nearly, in the studies
of the organism (8 and 2 features) and of smollm2-refusal (40 and 8)."""
LARGEST_SIZE = 16
"""Features that no minimal set is supposed to exceed, by either guess: not a bound on what a search finds."""
WAKING_SHARE = 0.25
"""Of the critical features, those that wake others: a sixth to a quarter in the same studies."""


class Supposed(NamedTuple):
    """What the search finds, on which its own work depends and that of the stages after it. Nobody knows it before."""

    n_pool: int
    """Candidates that are searched, of a prompt."""
    size: int
    """Features of a minimal set."""
    matched: int
    """Controls that a critical feature has in the stage waking."""
    waking: float
    """Of the critical features, the share that wakes others."""

    @property
    def evaluations(self) -> float:
        """Of one search for a minimal set."""
        return 2 * self.size * math.log2(max(self.n_pool / self.size, 2)) + self.size


def usual(recipe: Recipe) -> Supposed:
    """What the studies that are known found."""
    candidates = recipe.candidates
    k = max(candidates.step, math.floor(candidates.cap * POOL_SHARE))
    n_pool = k * len(searched_layers(recipe))
    size = min(LARGEST_SIZE, max(1, round(n_pool * SIZE_SHARE)))
    return Supposed(n_pool, size, min(recipe.waking.controls, 1), WAKING_SHARE)


def much(recipe: Recipe) -> Supposed:
    """Every pool at its cap, sets of LARGEST_SIZE, everything with as many controls as the recipe allows."""
    return Supposed(recipe.candidates.cap * len(searched_layers(recipe)), LARGEST_SIZE, recipe.waking.controls, 1.0)


def searched_layers(recipe: Recipe) -> list[int]:
    """Layers whose features are candidates."""
    return sorted(set(recipe.sae_layers) - set(recipe.candidates.exclude_layers))
