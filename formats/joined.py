"""The study that an import joins, as its lake has it: its SAEs, its prompts, and the runs that they stand in."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import duckdb

from saelake import queries
from saelake.analysis.meaning.explanations import KnownSae
from saelake.warehouse.catalog import connect, one_study
from saelake.warehouse.errors import UserError
from saelake.warehouse.lake import Lake
from saelake.warehouse.literals import as_id

if TYPE_CHECKING:
    from saelake.lake import OpenLake


@dataclass(frozen=True)
class Joined:
    """A study of a lake."""

    lake: Lake
    name: str
    saes: tuple[KnownSae, ...] = ()
    runs: tuple[str, ...] = ()
    """Of each SAE a run that describes it."""
    con: duckdb.DuckDBPyConnection | None = field(default=None, compare=False)
    """Its tables, if the lake has it already: one connection for all that an import asks, closed at its end."""

    @property
    def is_there(self) -> bool:
        return self.con is not None

    @property
    def tables(self) -> duckdb.DuckDBPyConnection:
        """`con` of a study that must be there."""
        assert self.con is not None, f"the lake has no study {self.name}"
        return self.con

    def ask(self, statement: str) -> list[tuple[Any, ...]]:
        """The rows of a statement over the study's tables, which must be there."""
        return self.tables.execute(statement).fetchall()

    def sae(self, asked: str | None, what: str) -> KnownSae:
        """The SAE that is asked for by its sae_id, name or layer, else the only one; raises UserError if that is not clear."""
        known = ", ".join(sae.sae_id for sae in self.saes) or "none"
        if asked is None:
            if len(self.saes) != 1:
                raise UserError(f"{what} does not say which SAE it is about: name it with --sae (the study has {known})")
            return self.saes[0]
        return self.named(asked, "--sae")

    def named(self, asked: str, where: str) -> KnownSae:
        """The SAE that a text names: its sae_id, its name, or its layer, if that has one only."""
        found = [sae for sae in self.saes if asked in (sae.sae_id, sae.name)]
        found = found or [sae for sae in self.saes if sae.layer == as_id(asked)]
        if len(found) == 1:
            return found[0]
        known = ", ".join(sae.sae_id for sae in found or self.saes) or "none"
        problem = f"layer {asked} has several SAEs" if found else f"the study {self.name} has no SAE {asked[:80]!r}"
        raise UserError(f"{where}: {problem}: name one of {known}")

    def run_of(self, saes: Sequence[KnownSae]) -> tuple[str, ...]:
        """The runs that describe these SAEs."""
        return tuple(sorted({self.runs[self.saes.index(sae)] for sae in saes}))


@contextmanager
def join(lake: Lake, name: str | None, *, needs_study: bool) -> Iterator[Joined]:
    """While open, the study that is named, else the lake's only one.

    Raises UserError where it is not there and must be, or is not said and could be several.
    """
    studies = {study for study, _ in lake.current()} if lake.published.exists("saelake.json") else set()
    if name is None or needs_study:
        if not studies and name is None and not needs_study:
            raise UserError("say which study it is to be: --recipe NAME")
        name = one_study(Lake.existing(lake.remote or lake.root), name)
    if name not in studies:
        yield Joined(lake, name)
        return
    with connect(lake, name) as con:
        rows = con.execute(queries.step("study_saes")).fetchall()
        yield Joined(lake, name, tuple(KnownSae(*row[:4]) for row in rows), tuple(row[4] for row in rows), con)


def saes_of(opened: "OpenLake", asked: str | None = None) -> list[KnownSae]:
    """The SAEs of an open study, or the one that is asked for."""
    rows = opened.sql("select sae_id, name, layer, width from saes order by layer, sae_id").fetchall()
    known = Joined(opened.lake, opened.studies[0], tuple(KnownSae(*row) for row in rows))
    return [known.named(asked, "--sae")] if asked is not None else list(known.saes)


def as_name(told: str) -> str:
    """What the name of an SAE or a model, which a stranger may have chosen, is as that of one file or folder."""
    name = re.sub(r"[/\\\0]", "-", told)
    return name if name.strip(".") else name.replace(".", "-") or "-"


def feature_of(sae: KnownSae, written: str, where: str) -> int:
    """The feature that a text is the number of; raises UserError if it is none, or the SAE does not have it."""
    feature_id = as_id(written)
    if feature_id is None:
        raise UserError(f"{where}: {written[:40]!r} is not a feature")
    return check_feature(sae, feature_id, where)


def check_feature(sae: KnownSae, feature_id: int, where: str) -> int:
    """The feature; raises UserError if the SAE does not have it."""
    if not 0 <= feature_id < sae.width:
        raise UserError(f"{where}: there is no feature {feature_id} in {sae.sae_id}: its features are 0 to {sae.width - 1}")
    return feature_id
