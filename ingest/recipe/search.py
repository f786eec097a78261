"""The sections of a recipe that say how causes are searched for (R3 to R8): directions, candidates, searches, controls."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from saelake.ingest.recipe.sections import LATER, Count, Section, Share


class Direction(Section):
    """The direction of the behaviour, a difference of means for every layer (R3), and which layer is chosen."""

    split: str = "train"
    """The split whose prompts give the mean difference."""
    select_split: str = "val"
    """The split on which a layer is chosen."""
    kl_max: Annotated[float, Field(gt=0)] = 0.1
    """Leave out layers whose removal moves control predictions by more than this KL divergence, in nats (Arditi et al.: 0.1)."""
    induce_min: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Leave out layers whose direction, when added, makes less than this share of the control prompts refused (Arditi et al. ask
    that refusal be the likelier answer)."""
    drop_last_layers: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Share of the last layers that cannot be chosen, since they hold what is about to be said (Arditi et al.: 0.2)."""
    selection: Annotated[Literal["all", "best"], LATER] = "all"
    """all: every layer is measured in full. best: only as far as it takes to find the same one, if no answer that begins with
    a target token flips, by the first tokens of answers before whole ones; the others are then outdone. That costs a small part
    of it where there are many layers."""


class Candidates(Section):
    """The features whose decoder rows are most like the direction, ablated together in growing number (R5)."""

    exclude_layers: tuple[int, ...] = ()
    """Layers that give no candidates."""
    step: Count = 10
    """K, how many features of each SAE are ablated together, grows by this."""
    cap: Count = 200
    """K is at most this."""
    directions: Annotated[tuple[Literal["own", "chosen"], ...], Field(min_length=1)] = ("own", "chosen")
    """Rank by the cosine with each layer's own direction, with the chosen one, or both."""
    attribution: Annotated[bool, LATER] = False
    """Ablate each prompt's own top K of each SAE by attribution too: of what fires on it, those without which the log-odds of its
    target tokens would fall most, to first order (the condition top_k_attribution)."""
    split: str = "test"
    """The split whose prompts are ablated, here and in the stages that follow."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.step > self.cap:
            raise ValueError(f"step is {self.step}, but cap, the largest K, is {self.cap}: no K is left to try")
        return self

    @property
    def rankings(self) -> tuple[str, ...]:
        """All that candidates are ranked by."""
        return (*self.directions, *(("attribution",) if self.attribution else ()))


class Algorithm1(Section):
    """Greedy pruning as published (R6)."""

    direction: Literal["own", "chosen", "first"] = "own"
    """Whose candidates are pruned: ranked by each layer's own direction or by the chosen one; first: of all rankings of
    [candidates] the one by which the prompt flips at the smallest K, prompt by prompt."""
    block_size: Count | Literal["auto"] = 5
    """N: features per block. auto: as many as cut a prompt's candidates into ten blocks, 1 to 5 (the paper's); with a number,
    nothing is tested on prompts that have fewer candidates."""
    other_block_sizes: tuple[Count | Literal["auto"], ...] = ()
    """Further N, each searched beside the first one, as the conditions algorithm1_nN and algorithm1_nN_common."""
    taus: Annotated[tuple[Share, ...], Field(min_length=1)] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
    """Thresholds of the relative change of the refusal token's probability; each gives one set."""
    seeds: Count = 3
    """Draws of the blocks; a feature counts as found if it is found under all of them."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.block_size in self.other_block_sizes:
            raise ValueError(f"other_block_sizes repeats block_size, {self.block_size}")
        return self

    @staticmethod
    def n_of(block_size: int | str, n_candidates: int) -> int:
        """N for a pool of so many candidates."""
        return max(1, min(5, n_candidates // 10)) if block_size == "auto" else int(block_size)


class Minimal(Section):
    """The search for 1-minimal flipping sets."""

    direction: Literal["own", "chosen", "attribution", "first"] = "own"
    """Whose candidates are searched: ranked by each layer's own direction, by the chosen one, or by attribution; first: of all
    rankings of [candidates] the one by which the prompt flips at the smallest K, prompt by prompt."""
    starts: Count = 4
    """Searches per prompt, each with its own order of the candidates, to find alternative sets."""
    order: Annotated[Literal["random", "attribution"], LATER] = "random"
    """Whether candidates are tried in an order that is drawn, or those first that the target tokens depend on most, to first
    order (one backward pass), which asks for fewer evaluations; later starts then draw by that."""
    pool: Annotated[Literal["candidates", "active"], LATER] = "candidates"
    """What is searched: the candidates of the prompt's first flip, or all features of the searched layers that fire on it (with
    order = "attribution": all of them together need not flip it)."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.pool == "active" and self.order == "random":
            raise ValueError('pool = "active" goes by order = "attribution": all active features together need not flip a prompt')
        if self.pool == "active" and self.is_given("direction"):
            raise ValueError('direction changes nothing: pool = "active" has no candidates; leave it out')
        return self


class Controls(Section):
    """Random features that are ablated beside the candidates, to compare with."""

    random_draws: Annotated[int, Field(ge=0)] = 3
    """Draws of random active features, for every set size that they are compared with (R15)."""
    firing_on_tokens: tuple[Count, ...] = ()
    """Ablate the features that fire on at least this many tokens of the prompt (R17)."""
    clamp_values: tuple[Annotated[float, Field(gt=0)], ...] = ()
    """Clamp the first candidate of every SAE to these values on control prompts."""
