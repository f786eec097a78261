"""The [train_saes] of a recipe: how `saelake train-saes` makes SAEs for a model that has no public ones."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from saelake.ingest.recipe.effects import TextSet
from saelake.ingest.recipe.sections import Count, Section


class TrainSaes(Section):
    """BatchTopK SAEs on the prompts of direction.split and on `texts`, saved as JumpReLU where saes.path says."""

    texts: tuple[TextSet, ...] = ()
    """With `prompt`, an exchange in the chat template; without, plain text."""
    width: Count = 4096
    """Latents of every SAE."""
    l0: Count = 32
    """Mean active latents per token that training aims at."""
    steps: Annotated[int, Field(ge=20)] = 2000
    """Training steps."""
    batch_tokens: Count = 2048
    """Tokens per step."""
    lr: Annotated[float, Field(gt=0)] = 1e-3
    """The optimiser's step."""
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of prompts and texts that no SAE sees, on which the gates are measured."""
    min_explained_variance: Annotated[float, Field(gt=0, lt=1)] = 0.8
    """Gate: what every SAE must explain of the held-out residuals."""
    max_l0_factor: Annotated[float, Field(gt=1)] = 1.5
    """Gate: held-out L0 is at most `l0` times this, and at least `l0` divided by it."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.l0 > self.width // 2:
            raise ValueError(f"l0 is {self.l0}, but only {self.width} latents are there: half of them may be active at most")
        return self
