"""The pages of the feature browser: a search, and a card for every feature."""

from collections.abc import Sequence
from contextlib import closing
from threading import Lock
from typing import Any, NamedTuple

import duckdb
from fastapi import FastAPI, HTTPException
from fastapi.responses import Response

from saelake import queries
from saelake.analysis.meaning.cards import samples_of, visible
from saelake.analysis.meaning.server import check_secret, render
from saelake.queries import QueryError
from saelake.warehouse.catalog import connect, cursor_of
from saelake.warehouse.records import Lake

CHART = (480, 96)
"""Width and height of a histogram, in pixels."""


class Bar(NamedTuple):
    """One bin of a histogram, as a rectangle."""

    x: float
    y: float
    width: float
    height: float
    title: str


def add_browser(app: FastAPI, lake: Lake, recipe: str, secret: str) -> duckdb.DuckDBPyConnection:
    """Adds the pages below /b/<secret>, about one study of the lake; returns their connection, to be closed at the end."""
    con = connect(lake, recipe, alone=True)
    opening = Lock()
    populations = next(p.type.split("|") for p in queries.load("feature_search").parameters if p.name == "population")
    limit = int(next(p.default or 0 for p in queries.load("feature_search").parameters if p.name == "limit"))
    saes = con.execute("select layer, sae_id from saes order by layer, sae_id").fetchall()
    layers = list(dict.fromkeys(layer for layer, _ in saes))
    shared = {layer for layer in layers if sum(layer == other for other, _ in saes) > 1}
    """Layers of several SAEs, whose features are told apart by their SAE."""
    categories = [category for (category,) in con.execute("select distinct category from taxonomy order by all").fetchall()]

    for layer, sae_id in saes:  # what the first card of a layer would wait for: its files are opened
        card_of(con, layer, 0, sae_id)

    def cursor() -> duckdb.DuckDBPyConnection:
        with opening:  # requests are answered side by side, each on a cursor of its own
            return cursor_of(con, lake)

    @app.get("/b/{token}")
    def search(
        token: str, layer: str = "", feature_id: str = "", words: str = "", category: str = "", population: str = ""
    ) -> Response:
        check_secret(secret, token)
        asked = {"layer": layer, "feature_id": feature_id, "words": words, "category": category, "population": population}
        given = {name: " ".join(value.split()) for name, value in asked.items() if value.strip()}
        problem, found = "", []
        with closing(cursor()) as own:
            try:
                found = _rows(own, "feature_search", **given)
            except QueryError as error:
                problem = str(error)
        return render(
            "search.html",
            422 if problem else 200,
            base=f"/b/{token}",
            recipe=recipe,
            asked=asked,
            layers=layers,
            shared=shared,
            categories=categories,
            populations=populations,
            found=found,
            limit=limit,
            problem=problem,
        )

    @app.get("/b/{token}/{layer}/{feature_id}")
    def card(token: str, layer: int, feature_id: int, sae_id: str | None = None) -> Response:
        check_secret(secret, token)
        with closing(cursor()) as own:
            try:
                shown = card_of(own, layer, feature_id, sae_id)
            except QueryError as error:
                raise HTTPException(404, str(error)) from error
        return render("card.html", base=f"/b/{token}", recipe=recipe, chart=CHART, shared=shared, **shown)

    return con


def card_of(con: duckdb.DuckDBPyConnection, layer: int, feature_id: int, sae_id: str | None = None) -> dict[str, Any]:
    """What the card of a feature shows; raises QueryError where the study has no such feature, and where the layer has several
    SAEs and none is named.
    """
    key: tuple[int | str, int] = (layer if sae_id is None else sae_id, feature_id)
    one = {"layer": layer, "feature_id": feature_id, "sae_id": sae_id}
    bars = histogram(_rows(con, "histogram", features=[key]))
    feature = _rows(con, "feature_search", **one)[0]
    explained = "select description, explainer, source from explanations where sae_id = ? and feature_id = ? order by number"
    return {
        "feature": feature,
        "explanations": con.execute(explained, [feature["sae_id"], feature_id]).fetchall(),
        "bars": bars,
        "samples": next(iter(samples_of(con, [key]).values()), []),
        "categories": _categories(con, feature["sae_id"], feature_id),
        "roles": _rows(con, "causal_roles", **one),
        "logits": _logits(con, key),
        "neighbours": _rows(con, "neighbours", **one),
    }


def _rows(con: duckdb.DuckDBPyConnection, name: str, **values: Any) -> list[dict[str, Any]]:
    relation = queries.run(con, name, **values)
    return [dict(zip(relation.columns, row, strict=True)) for row in relation.fetchall()]


def _logits(con: duckdb.DuckDBPyConnection, key: tuple[int | str, int]) -> list[dict[str, Any]]:
    rows = _rows(con, "logits", features=[key])
    return [row | {side: visible(row[side]) for side in ("promoted", "suppressed")} for row in rows]


def _categories(con: duckdb.DuckDBPyConnection, sae_id: str, feature_id: int) -> list[dict[str, Any]]:
    columns = ("category", "n_prompts", "n_literal", "n_user", "q_value")
    found = f"select {', '.join(columns)} from taxonomy where sae_id = ? and feature_id = ? order by category"
    return [dict(zip(columns, row, strict=True)) for row in con.execute(found, [sae_id, feature_id]).fetchall()]


def histogram(bins: Sequence[dict[str, Any]]) -> list[Bar]:
    """Bars whose areas grow with the number of tokens; the fullest bin has the chart's height."""
    width, height = CHART
    fullest = max((one["n_tokens"] for one in bins), default=0)
    step = width / max(len(bins), 1)
    return [
        Bar(
            number * step,
            height - height * one["n_tokens"] / fullest,
            step - 2,
            height * one["n_tokens"] / fullest,
            f"{one['low']:.2f} to {one['high']:.2f}: {one['n_tokens']:,} tokens",
        )
        for number, one in enumerate(bins)
    ]
