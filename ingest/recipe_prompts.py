"""The [[prompts]] of a recipe: where a set's rows come from, and which columns mean what."""

from collections.abc import Hashable
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from ingest.recipe_sections import Count, ExistingPath, Scalar, Section, Sha256, Share


class Column(Section):
    """A value that is read from a column, with its values renamed by `map` where the map has them."""

    column: str
    map: dict[str, str] = Field(default_factory=dict)


class Fractions(Section):
    """Splits drawn at random within every label and category, e.g. { train = 0.4, val = 0.2, test = 0.4, seed = 0 }."""

    shares: dict[str, Share]
    seed: int = 0

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, value: Any) -> Any:
        if not isinstance(value, dict) or "shares" in value:
            return value
        shares = {key: share for key, share in value.items() if key != "seed"}
        return {"shares": shares, "seed": value.get("seed", 0)}

    @model_validator(mode="after")
    def _check(self) -> Self:
        if abs(sum(self.shares.values()) - 1) > 1e-6:
            raise ValueError(f"the shares add up to {sum(self.shares.values()):g}, not to 1")
        return self


def _kind(value: Any) -> Hashable:
    if isinstance(value, str):
        return "constant"
    return "column" if isinstance(value, Column) or (isinstance(value, dict) and "column" in value) else "other"


Label = Annotated[
    Annotated[Literal["harmful", "benign"], Tag("constant")] | Annotated[Column, Tag("column")] | Annotated[Column, Tag("other")],
    Discriminator(_kind),
]
Category = Annotated[
    Annotated[str, Tag("constant")] | Annotated[Column, Tag("column")] | Annotated[Column, Tag("other")],
    Discriminator(_kind),
]
Split = Annotated[
    Annotated[str, Tag("constant")] | Annotated[Column, Tag("column")] | Annotated[Fractions, Tag("other")],
    Discriminator(_kind),
]


class Source(Section):
    """One of several files that a set is read from, in the order given."""

    file: ExistingPath | None = None
    url: Annotated[str, Field(pattern="^https?://")] | None = None
    sha256: Sha256 | None = None
    count: Count | None = None
    """Asserted number of rows in the file."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.one_of("file", "url") == "url" and self.sha256 is None:
            raise ValueError("url needs sha256, the hash of the file, so that everyone reads the same prompts")
        return self


class PromptSet(Section):
    """One set of prompts: where its rows come from, and which columns mean what."""

    set: Annotated[str, Field(min_length=1)]
    file: ExistingPath | None = None
    url: Annotated[str, Field(pattern="^https?://")] | None = None
    sha256: Sha256 | None = None
    hub: str | None = None
    config: str | None = None
    hub_split: str | None = None
    revision: str | None = None
    sources: Annotated[tuple[Source, ...], Field(min_length=1)] | None = None
    """Several files instead of one: their rows one after another, counted on from file to file."""
    text: str = "instruction"
    label: Label
    category: Category | None = None
    split: Split = Fractions(shares={"train": 0.4, "val": 0.2, "test": 0.4})
    where: dict[str, Scalar | tuple[Scalar, ...]] = Field(default_factory=dict)
    """Keep only the rows whose columns have this value (or one of these)."""
    deduplicate: bool = False
    """Keep the first of equal prompts; otherwise equal prompts are an error."""
    take: Count | None = None
    """Keep the first so many rows, after `where` and `deduplicate`; a hub data set is then streamed."""
    count: Count | None = None
    """Asserted number of prompts, after `where`, `deduplicate` and `take`."""
    licence: str | None = None
    restricted: bool = False
    """Its text is not ours to pass on: `saelake share` leaves it out."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        source = self.one_of("file", "url", "hub", "sources")
        self.only_with("hub", "config", "hub_split", "revision")
        if source == "url" and self.sha256 is None:
            raise ValueError("url needs sha256, the hash of the file, so that everyone reads the same prompts")
        if source == "hub" and self.sha256 is not None:
            raise ValueError("sha256 belongs to a file or url; pin a hub data set with revision")
        if source == "sources" and self.sha256 is not None:
            raise ValueError("sha256 belongs to each of the sources")
        return self

    @property
    def files(self) -> tuple[Source, ...]:
        """The files that it is read from; none for a hub data set."""
        return self.sources or (() if self.hub else (Source.model_construct(file=self.file, url=self.url, sha256=self.sha256),))
