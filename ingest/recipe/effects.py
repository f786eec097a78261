"""The sections of a recipe about what its direction tells apart, waking, steering and side effects (R4, R13, R14, R16)."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from saelake.ingest.recipe.sections import Count, Section
from saelake.ingest.recipe.sources import RowSet


class Diagnostic(Section):
    """Cosine of the residual stream with the direction, by layer (R4)."""

    split: str = "test"
    """The split whose prompts are measured."""


class Redundancy(Section):
    """Pairs of candidates whose decoder rows are alike."""

    min_cosine: Annotated[float, Field(ge=-1, le=1)] = 0.3
    """Pairs below it are not recorded."""


class Waking(Section):
    """What fires while critical features are ablated (R13), against matched controls."""

    controls: Annotated[int, Field(ge=0)] = 5
    """Other features of its layer that fire where a critical one does and about as strongly: at most this many for each."""
    similarity: Annotated[float, Field(gt=1)] = 2.0
    """The largest factor between a critical feature's largest activation and its control's on the tokens of the former."""
    overlap: Annotated[float, Field(gt=0, le=1)] = 0.5
    """The least share of a critical feature's activation that lies on tokens on which its control fires too. A critical feature
    for which none is left that comes near enough has no control, and is counted as not matched."""
    watched: Literal["candidates", "all"] = "candidates"
    """Which features are recorded: the candidates up to the cap, or all features of the layers above."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for field in ("similarity", "overlap"):
            if self.controls == 0 and self.is_given(field):
                raise ValueError(f"{field} changes nothing: controls is 0, so none are drawn; leave it out")
        return self


class Steering(Section):
    """Features held at positive values on control prompts (R14)."""

    features: Literal["redundant", "critical"] = "redundant"
    """The critical features that wake while others are ablated, or all that are critical."""
    n_features: Count = 10
    """At most this many: those critical for most prompts."""
    values: tuple[Annotated[float, Field(gt=0)], ...] = (2.0, 10.0, 20.0, 30.0)
    """The activations that every feature is clamped to, as in the paper."""
    levels: tuple[Annotated[float, Field(gt=0, le=2)], ...] = (0.5, 1.0, 2.0)
    """Levels of each feature's own activations that it is clamped to as well: up to 1 a quantile of them (1: the largest), above
    1 that many times the largest."""
    prompts: Count | None = None
    """How many control prompts of the split, the first ones; by default all."""


class TextSet(RowSet):
    """Texts whose cross-entropy is measured, or that SAEs are trained on."""

    CALLED = "texts"
    text: str = "text"
    """The column of the texts."""
    prompt: str | None = None
    """The column of what the user says before the text: it goes through the chat template and is context only."""
    take: Count = 100
    """How many rows: the first whose text has a token to predict."""
    max_tokens: Annotated[int, Field(ge=2)] = 256
    """Longer texts are cut here, the context included."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.origin() == "hub" and self.revision is None:
            raise ValueError("hub needs revision, a commit, so that everyone reads the same rows")
        return self


class Losses(Section):
    """Cross-entropy on ordinary text (R16)."""

    texts: tuple[TextSet, ...] = ()
    sets: Count = 10
    """Critical sets of as many prompts, drawn at random, each ablated on every text."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [texts.set for texts in self.texts]
        if len(set(names)) != len(names):
            raise ValueError("two [[losses.texts]] have one name: give every set its own")
        if not names and self.is_given("sets"):
            raise ValueError("sets changes nothing: there are no [[losses.texts]] to ablate them on; leave it out, or name texts")
        return self
