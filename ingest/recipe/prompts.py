"""The [[prompts]] of a recipe: where a set's rows come from, and which columns mean what."""

from collections.abc import Hashable
from typing import Annotated, Any, Self

from pydantic import Discriminator, Field, Tag, model_validator

from saelake.ingest.cells import is_missing, key
from saelake.ingest.recipe.sections import LATER, Count, Scalar, Section, Share
from saelake.ingest.recipe.sources import RowSet, Source


class Column(Section):
    """A value that is read from a column, with its values renamed by `map` where the map has them."""

    column: str
    """The column's name."""
    map: dict[str, str] = Field(default_factory=dict)
    """Value in the column -> value in the lake."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        first: dict[str, str] = {}
        for name in self.map:
            if (other := first.setdefault(key(name), name)) != name:
                raise ValueError(f"map names one value twice, as {other!r} and as {name!r}")
            if is_missing(name):
                raise ValueError(f"map names {name!r}, which is how a missing value is spelt, and has no name")
        return self


class Fractions(Section):
    """Splits drawn at random within every label and category, e.g. { train = 0.4, val = 0.2, test = 0.4, seed = 0 }."""

    shares: dict[str, Share]
    """Split -> its share."""
    seed: int = 0
    """The seed of the draw."""

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

    def at(self, quantile: float) -> str:
        """The split whose share of [0, 1) holds the quantile."""
        bound = 0.0
        for split, share in self.shares.items():
            bound += share
            if quantile < bound:
                return split
        return list(self.shares)[-1]


def _kind(value: Any) -> Hashable:
    if isinstance(value, str):
        return "constant"
    return "column" if isinstance(value, Column) or (isinstance(value, dict) and "column" in value) else "other"


Name = Annotated[str, Field(min_length=1)]
Named = Annotated[
    Annotated[Name, Tag("constant")] | Annotated[Column, Tag("column")] | Annotated[Column, Tag("other")],
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


class PromptSet(RowSet):
    """One set of prompts: where its rows come from, and which columns mean what. `take` is after `where` and `deduplicate`."""

    CALLED = "prompt set"
    sources: Annotated[tuple[Source, ...], Field(min_length=1)] | None = None
    """Several files instead of one: their rows one after another, counted on from file to file."""
    text: str = "instruction"
    """The column of the prompts' texts."""
    messages: Annotated[str | None, LATER] = None
    """The column of chats, in place of `text`: lists of {role, content}, of roles system, user and assistant, of which the last
    is what the user says. In CSV they are JSON."""
    system: Annotated[Named | None, LATER] = None
    """A system message before the prompts, instead of model.system, or the column that it is read from: blank cells have none of
    their own."""
    label: Named
    """The label of all rows, any text, or the column that it is read from; [labels] says which are target and control."""
    category: Category | None = None
    """The category of all rows, or the column that it is read from."""
    family: Column | None = None
    """The column that says which prompts are alike, such as the wording that they share; tests and intervals over families are
    given beside those over prompts. Without it every prompt is a family of its own."""
    split: Split = Fractions(shares={"train": 0.4, "val": 0.2, "test": 0.4})
    """The split of all rows, the column that it is read from, or shares that are drawn."""
    where: dict[str, Scalar | tuple[Scalar, ...]] = Field(default_factory=dict)
    """Keep only the rows whose columns have this value (or one of these)."""
    deduplicate: bool = False
    """Keep the first of equal prompts; otherwise equal prompts are an error."""
    count: Count | None = None
    """Asserted number of prompts, after `where`, `deduplicate` and `take`."""
    overlap: bool = False
    """Its prompts may stand in other splits of other sets too; otherwise that is an error."""
    licence: str | None = None
    """The set's licence, for the card of a shared set."""
    restricted: bool = False
    """Its text is not ours to pass on: `saelake share` leaves it out. Said later, it holds from the next `saelake ingest`
    on, and stays."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.origin("sources") == "sources" and self.sha256 is not None:
            raise ValueError("sha256 belongs to each of the sources")
        if self.messages is not None and self.is_given("text"):
            raise ValueError("give text, or messages, which hold the prompts' texts, not both")
        return self

    @property
    def files(self) -> tuple[Source, ...]:
        return self.sources or super().files
