"""What a format is, and finding one by its name."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from saelake.formats.joined import Joined
from saelake.formats.names import names
from saelake.warehouse.errors import UserError
from saelake.warehouse.landing import Rows, Summary

if TYPE_CHECKING:
    from saelake.lake import OpenLake


STAGE_PREFIX = "imported_"
"""What the stages of imports, and so the ids of their runs, begin with."""


@dataclass(frozen=True)
class Asked:
    """What a person says beside the format and the place. Each format has options of its own: others are refused."""

    recipe: str | None = None
    sae: str | None = None
    layer: int | None = None
    judge: str | None = None
    refused: str | None = None
    condition: str | None = None
    label: str | None = None
    features: str | None = None
    weights: str | None = None
    tokenizer: str | None = None
    model: str | None = None

    @property
    def given(self) -> dict[str, Any]:
        """What is said, without the study, which is not a matter of the format."""
        said = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "recipe"}
        return {name: value for name, value in said.items() if value is not None}


@dataclass(frozen=True)
class Found:
    """What a source holds, checked, as rows of the lake."""

    rows: Callable[[int], list[Rows]]
    """Makes the rows, given the id from which the run numbers its own prompts."""
    parents: tuple[str, ...] = ()
    """The runs whose prompts and SAEs they are about."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """What is worth knowing of the source: model, dataset, rows that were left out."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """What else the rows depend on."""
    summary: Callable[[Callable[[str], pa.Table]], Summary] | None = None
    """Fills in the tables that summarise the activations, while these are published."""


Read = Callable[[Sequence[Path], Joined, Asked], Found]
Write = Callable[["OpenLake", Path, Asked], Mapping[str, int]]
"""Fills an empty folder; gives the names of its files, each with how many rows it holds."""


@dataclass(frozen=True)
class Format:
    """One format of another tool."""

    what: str
    """What its files hold, in a line."""
    read: Read | None = None
    write: Write | None = None
    files: tuple[str, ...] = ()
    """Where the source may be a folder: the names of files that are read in it, as patterns."""
    reads: frozenset[str] = frozenset()
    """Options of `import` that it has."""
    writes: frozenset[str] = frozenset()
    """Options of `export` that it has."""
    needs_study: bool = True
    """What it brings belongs to a study that is in the lake already."""
    takes_studies: bool = False
    """What is written may be of several studies at once."""


def load(name: str) -> Format:
    """The format of that name; raises UserError if there is none."""
    wanted = name.replace("-", "_")
    if wanted not in names():
        close = difflib.get_close_matches(wanted, names(), n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(names())}"
        raise UserError(f"there is no format {name!r}: {hint}")
    found: Format = import_module(f"saelake.formats.known.{wanted}").FORMAT
    return found


def check_options(name: str, known: frozenset[str], asked: Asked) -> None:
    """Raises UserError for an option that changes nothing here."""
    if idle := sorted(set(asked.given) - known):
        has = f"has {', '.join(f'--{one}' for one in sorted(known))}" if known else "has none"
        raise UserError(f"--{idle[0]} says nothing about {name}, which {has}: leave it out")
