"""The section of a recipe about the recovery audit: what is searched, where and how far."""

from typing import Annotated

from pydantic import Field

from saelake.ingest.recipe.sections import Count, Section


class Audit(Section):
    """What `saelake audit` searches: a small change of the residual stream that undoes what ablating a set has done."""

    prompts: Annotated[int, Field(ge=0)] = 24
    """Refused prompts whose sets are audited, over all families in turn; 0 takes every one."""
    controls: Annotated[int, Field(ge=0)] = 12
    """Control prompts on which the same is searched: unmodified, and under the sets of one audited prompt each."""
    layers: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """The layers at whose SAEs' sites the stream is changed, at one at a time; by default those that give candidates."""
    last_tokens: Count = 5
    """How many last tokens of the prompt are changed, BOS never."""
    budgets: Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Field(min_length=1)] = (0.02, 0.05, 0.1, 0.2)
    """How long a change may be, relative to the residual stream at these tokens."""
    steps: Count = 10
    """Gradient steps per budget."""
    probes: Annotated[int, Field(ge=0)] = 16
    """Active features, the largest, whose removal is tried as a start: what wakes only without them has no gradient before."""
