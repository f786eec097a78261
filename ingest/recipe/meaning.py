"""The sections of a recipe about what features mean: categories, explanations and concepts (R18, R20)."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from saelake.ingest.recipe.sections import Names, Section

Population = Literal["candidates", "critical", "stage3", "stage3_new", "redundant"]
Url = Annotated[str, Field(pattern="^https?://[^?#]+$")]


class Taxonomy(Section):
    """Which prompts show what harm a feature fires on (R18): those of one label that have a category."""

    sets: tuple[str, ...] = ()
    """Prompt sets; all if none are named."""
    label: str | None = None
    """The label of the prompts whose categories are compared; by default the target label."""


class Explanations(Section):
    """Where public explanations of the features are (R20): Neuronpedia's API and its bulk files."""

    base_url: Url = "https://www.neuronpedia.org"
    """Where the API is."""
    bulk_url: Url = "https://neuronpedia-datasets.s3.us-east-1.amazonaws.com"
    """Where the bulk files are."""
    sources: dict[Annotated[int, Field(ge=0)], str] = Field(default_factory=dict)
    """layer -> model/source, e.g. gemma-2-2b/5-gemmascope-res-65k__l0-53; the rest is what SAELens lists for the exact SAE."""
    populations: Annotated[tuple[Population, ...], Field(min_length=1)] = ("candidates", "critical", "stage3")
    """Whose features are asked for one by one; bulk files hold all features of an SAE."""
    requests_per_second: Annotated[float, Field(gt=0, le=1000)] = 2.0
    """The most requests per second to the API; more than a few are impolite."""


class Concepts(Section):
    """Concepts by the patterns that explanations of their features match (R20)."""

    patterns: dict[str, Names] = Field(default_factory=dict)
    """concept -> regular expressions, matched anywhere and in any case."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        import duckdb  # which matches them: its dialect has no lookahead

        with duckdb.connect() as con:
            for concept, patterns in self.patterns.items():
                for pattern in patterns:
                    try:
                        con.execute("select regexp_matches('', ?, 'i')", [pattern])
                    except duckdb.Error as error:
                        raise ValueError(f"the pattern {pattern!r} of {concept} is not a regular expression ({error})") from error
        return self
