"""What all pages of the explorer share: the study that they show, and how they ask it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from threading import Lock
from types import MappingProxyType
from typing import Any, Self

import duckdb
from fastapi import HTTPException
from fastapi.responses import Response

from saelake import queries
from saelake.analysis.explorer.public import public_pages
from saelake.analysis.served.server import check_secret, render
from saelake.queries import QueryError
from saelake.queries.rows import Row, rows
from saelake.warehouse.catalog import connect, cursor_of
from saelake.warehouse.lake import Lake


class Missing(HTTPException):
    """What the study does not have, on a page of the explorer: those who know the secret can go on from there."""


@dataclass
class ShownStudy:
    """One study of a lake, on a connection that can read nothing else; its pages lie below the secret."""

    lake: Lake
    recipe: str
    secret: str
    con: duckdb.DuckDBPyConnection
    is_live: bool = False
    """Whether edits can be tried."""
    _opening: Lock = field(default_factory=Lock)

    @classmethod
    def open(cls, lake: Lake, recipe: str, secret: str, is_live: bool = False) -> Self:
        return cls(lake, recipe, secret, connect(lake, recipe, alone=True), is_live)

    def show_again(self) -> None:
        """Shows runs that came since; requests that are being answered go on with what there was."""
        con = connect(self.lake, self.recipe, alone=True)
        with self._opening:
            self.con = con

    def close(self) -> None:
        self.con.close()

    @property
    def base(self) -> str:
        """What the paths of all pages begin with."""
        return f"/b/{self.secret}"

    @contextmanager
    def cursor(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection for one request: requests are answered side by side."""
        with self._opening:
            own = cursor_of(self.con, self.lake)
        try:
            yield own
        finally:
            own.close()

    @cached_property
    def saes(self) -> Sequence[tuple[int, str]]:
        """(layer, sae_id) of every SAE"""
        return self.con.execute("select layer, sae_id from saes order by layer, sae_id").fetchall()

    @cached_property
    def layers(self) -> list[int]:
        return list(dict.fromkeys(layer for layer, _ in self.saes))

    @cached_property
    def shared(self) -> set[int]:
        """Layers of several SAEs, whose features are told apart by their SAE."""
        return {layer for layer in self.layers if sum(layer == other for other, _ in self.saes) > 1}

    @cached_property
    def labels(self) -> dict[str, str]:
        """Role of a label -> the label, as the study calls it."""
        return {"target": "target", "control": "control"} | queries.labels(self.con)

    @cached_property
    def public(self) -> dict[str, str]:
        """`public_pages` of the study."""
        return public_pages(self.con)

    def choices(self, column: str, table: str) -> list[str]:
        """What a column of a table holds, for a list to choose from."""
        asked = f"select distinct {column} from {table} where {column} is not null order by all"
        return [one for (one,) in self.con.execute(asked).fetchall()]

    def page(self, template: str, here: str, status: int = 200, **values: Any) -> Response:
        """A page; `here` is its part of the explorer, which the navigation marks."""
        return render(
            template,
            status,
            base=self.base,
            recipe=self.recipe,
            shared=self.shared,
            labels=self.labels,
            is_live=self.is_live,
            here=here,
            **values,
        )

    def check(self, token: str) -> None:
        """404 unless the secret of a link is right."""
        check_secret(self.secret, token)


def found(con: duckdb.DuckDBPyConnection, name: str, **values: Any) -> list[Row]:
    """`rows`, of something that an address names: 404 where there is no such thing."""
    try:
        queries.check_choices(con, name, values)
        return rows(con, name, **values)
    except QueryError as error:
        raise Missing(404, str(error)) from error


def listed(
    con: duckdb.DuckDBPyConnection,
    name: str,
    asked: Mapping[str, str],
    fields: Mapping[str, str] = MappingProxyType({}),
    **values: Any,
) -> tuple[list[Row], str]:
    """The rows of a question under what a form asks, and an empty sentence; or none, and what is wrong with the form.

    Args:
        fields: parameters of the question -> what the form calls them, where that is another word.
    """
    try:
        return rows(con, name, **given(asked), **values), ""
    except QueryError as error:
        parameter, _, rest = str(error).partition(" ")
        return [], f"{fields.get(parameter, parameter)} {rest}"


def page_length(name: str) -> int:
    """Rows that a question gives at the most where it is not said: those of one page."""
    return int(next(p.default or 0 for p in queries.load(name).parameters if p.name == "limit"))


def given(asked: Mapping[str, str]) -> dict[str, str]:
    """The fields of a form that say something."""
    return {name: " ".join(value.split()) for name, value in asked.items() if value.strip()}
