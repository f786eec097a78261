"""Where rows come from, of prompts and of texts alike: a file, a URL pinned by its hash, or a data set on the hub."""

from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from saelake.ingest.recipe.sections import Count, ExistingPath, Section, Sha256

Url = Annotated[str, Field(pattern="^https?://")]


class Source(Section):
    """One file of rows."""

    file: ExistingPath | None = None
    """A file of this machine; its suffix says the format, .jsonl, .json, .csv, .tsv or .parquet."""
    url: Url | None = None
    """An address, with the hash of what is there."""
    sha256: Sha256 | None = None
    """The file's sha256: asserted of a file, needed for a url."""
    count: Count | None = None
    """Asserted number of rows in the file."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        require_pin(self.one_of("file", "url"), self.sha256)
        return self


class RowSet(Section):
    """A named set of rows: the base of prompt sets and of sets of texts."""

    CALLED: ClassVar[str]
    """What sentences call it."""
    set: Annotated[str, Field(min_length=1)]
    """The set's name."""
    file: ExistingPath | None = None
    """A file of this machine; its suffix says the format, .jsonl, .json, .csv, .tsv or .parquet."""
    url: Url | None = None
    """An address, with the hash of what is there."""
    sha256: Sha256 | None = None
    """The file's sha256: asserted of a file, needed for a url."""
    hub: str | None = None
    """A data set on the hub."""
    config: str | None = None
    """The configuration of the hub's data set."""
    hub_split: str | None = None
    """The split of the hub's data set; by default train."""
    revision: str | None = None
    """The commit of the hub's repository; by default the newest."""
    take: Count | None = None
    """How many rows to keep, the first ones; a hub data set is then streamed."""

    def origin(self, *more: str) -> str:
        """Which field says where the rows are: file, url, hub, or one of `more`; raises ValueError where that is not clear."""
        found = self.one_of("file", "url", "hub", *more)
        self.only_with("hub", "config", "hub_split", "revision")
        require_pin(found, self.sha256)
        if found == "hub" and self.sha256 is not None:
            raise ValueError("sha256 belongs to a file or url; pin a hub data set with revision")
        return found

    @property
    def files(self) -> tuple[Source, ...]:
        """The files that it is read from; none for a hub data set."""
        return () if self.hub else (Source.model_construct(file=self.file, url=self.url, sha256=self.sha256),)

    @property
    def owner(self) -> str:
        """How a sentence about one of its rows begins."""
        return f"{self.CALLED} {self.set!r}"


def require_pin(origin: str, sha256: str | None) -> None:
    """Raises ValueError for a url without the hash of its file."""
    if origin == "url" and sha256 is None:
        raise ValueError("url needs sha256, the hash of the file, so that everyone reads the same rows")
