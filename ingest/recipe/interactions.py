"""The sections of a recipe about interactions between features: factorisation machine, probe and Stage 3."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from saelake.ingest.recipe.sections import Count, Section, Share

Counts = Annotated[tuple[Count, ...], Field(min_length=1)]


class Interactions(Section):
    """What the factorisation machine and the probe learn from (R9)."""

    sets: tuple[str, ...] = ()
    """Prompt sets to learn from; all if none are named."""
    tokens: Count = 4
    """How many of a prompt's last tokens count."""
    aggregate: Literal["max", "mean", "sum"] = "max"
    """How these tokens' activations become one value."""
    balanced: bool = True
    """As many prompts of one label as of the other, drawn by the seed."""
    val: Share = 0.1
    """Share of the prompts that chooses the epoch, drawn as those of `test`."""
    test: Share = 0.1
    """Share of the prompts on which the result is tested, drawn by the seed within each label; what remains after `val` and
    `test` is trained on."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.val + self.test >= 1:
            raise ValueError("val and test leave nothing to train on")
        return self


class Training(Section):
    """Adam on the logistic loss; the best epoch on validation counts."""

    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """The optimiser's step."""
    epochs: Count = 20
    """Passes over the training prompts; the one that validation finds best is kept."""
    batch_size: Count = 64
    """Prompts per step."""


class FactorisationMachine(Training):
    """The second-order factorisation machine (R9)."""

    sizes: Counts = (5, 20, 50)
    """Lengths of the embeddings; each is a machine of its own."""
    init_sd: Annotated[float, Field(gt=0)] = 0.001
    """Standard deviation that embeddings are drawn with; ten times as much drowns what 4,000 non-zeros per prompt can teach."""
    pairs: Count = 1000
    """Strongest pairs that are kept of each machine."""


class Probe(Section):
    """The logistic probe (R12), fitted until it has converged."""

    penalties: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] = (1e-1, 1e-2, 1e-3, 1e-4)
    """Strengths of the ridge on its weights; the one that does best on validation is kept."""
    ks: Counts = (100, 500, 1000, 2000)
    """How many features, by weight, are ablated in place of Stage 3's."""


class Stage3(Section):
    """New features by the cosine of their embedding with those of the critical ones (R10, R11)."""

    size: Count = 20
    """Which machine's embeddings."""
    similarity: Literal["maximum", "mean"] = "maximum"
    """Over the cosines with the prompt's critical features."""
    critical: Literal["minimal", "algorithm1"] = "minimal"
    """Which sets of Stage 2 it starts from: the first minimal set, or that of Algorithm 1 at the smallest tau that flips."""
    active: Literal["last_tokens", "prompt"] = "last_tokens"
    """Where a feature must fire to be ranked: on the tokens that count, or anywhere but on BOS."""
    ks: Counts = tuple(range(100, 2001, 100))
    """How many new features are ablated."""
    random_draws: Annotated[int, Field(ge=0)] = 1
    """Draws of as many random active features of each SAE, for every K."""
