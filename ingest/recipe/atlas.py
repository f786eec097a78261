"""The section of a recipe about the atlas: how much of it is computed."""

from typing import Annotated

from pydantic import Field

from saelake.ingest.recipe.sections import LATER, Count, Section


class Atlas(Section):
    """What `saelake atlas` ablates: every active feature of every refused prompt alone, and pairs and triples of some."""

    prompts: Annotated[int, Field(ge=0)] = 24
    """Prompts whose pairs are all ablated, over all families in turn; 0 takes every prompt."""
    last_tokens: Count = 5
    """Pairs are those of the features that fire on this many last tokens."""
    largest: Annotated[int, Field(ge=0)] = 40
    """On every prompt, the pairs of this many features with the largest single effects are ablated too."""
    triples: Annotated[int, Field(ge=0)] = 1000
    """Triples that are drawn on each of `prompts`."""
    steps: Count = 10
    """Gradients that are averaged for integrated gradients."""
    beyond: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """A feature is a cause if P(target) falls by at least this; a pair interacts if its effect is this far from the sum."""
    beyond_log_odds: Annotated[float, Field(gt=0), LATER] = 0.1
    """A pair interacts if its joint effect on the log-odds of P(target) differs by at least this from the sum of the two.
    Pairs with a probability nearer to 0 or 1 than 1e-5 are left out: log-odds there are those of rounding."""
    ks: Annotated[tuple[Count, ...], Field(min_length=1)] = (1, 5, 10, 20)
    """How many features a method may name when its recall is measured."""
    pair_ks: Annotated[tuple[Count, ...], Field(min_length=1)] = (10, 100, 1000)
    """How many pairs."""
