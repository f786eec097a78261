"""The explorer's first page, a list of features in an order of one's choice, and the card of each."""

from collections.abc import Sequence
from typing import Any

import duckdb
from fastapi import FastAPI
from fastapi.responses import Response

from saelake import queries
from saelake.analysis.explorer.charts import CHART, SMALL, Bar, histogram
from saelake.analysis.explorer.orders import ORDERS
from saelake.analysis.explorer.study import Missing, ShownStudy, listed
from saelake.analysis.served.cards import quantiles_of, samples_of, visible
from saelake.queries import QueryError
from saelake.queries.rows import Row, rows, selected

Key = tuple[int | str, int]
"""Layer or sae_id, and feature_id."""
FIELDS = {
    "feature_id": "Number",
    "min_auroc": "AUROC at least",
    "min_effect": "Effect at least",
    "min_critical": "Critical for at least",
}
"""Parameters of the list whose fields are called otherwise."""


def add_features(app: FastAPI, shown: ShownStudy) -> None:
    """Adds the list of features and their cards."""
    parameters = {p.name: p for p in queries.load("feature_list").parameters}
    populations, limit = parameters["population"].type.split("|"), int(parameters["limit"].default or 0)
    categories = shown.choices("category", "taxonomy")
    with shown.cursor() as con:
        layers = [row | {"bars": _separation(row)} for row in rows(con, "feature_layers")]
        for layer, sae_id in shown.saes:  # what the first card of a layer would wait for: its files are opened
            card_of(con, layer, 0, sae_id)

    @app.get("/b/{token}")
    def features(
        token: str,
        layer: str = "",
        feature_id: str = "",
        sae_id: str = "",
        words: str = "",
        category: str = "",
        population: str = "",
        min_auroc: str = "",
        min_effect: str = "",
        min_critical: str = "",
        order: str = "",
    ) -> Response:
        shown.check(token)
        asked = {
            "layer": layer,
            "feature_id": feature_id,
            "sae_id": sae_id,
            "words": words,
            "category": category,
            "population": population,
            "min_auroc": min_auroc,
            "min_effect": min_effect,
            "min_critical": min_critical,
            "order": order,
        }
        with shown.cursor() as con:
            those, problem = listed(con, "feature_list", asked, FIELDS)
        return shown.page(
            "features.html",
            "features",
            422 if problem else 200,
            asked=asked,
            fields=FIELDS,
            layers=layers,
            small=SMALL,
            orders=ORDERS,
            categories=categories,
            populations=populations,
            found=those,
            known={name for name in ("auroc", "n_critical", "effect", "recovered", "q", "explanation") if _is_known(those, name)},
            limit=limit,
            problem=problem,
        )

    @app.get("/b/{token}/{layer}/{feature_id}")
    def card(token: str, layer: int, feature_id: int, sae_id: str | None = None) -> Response:
        shown.check(token)
        with shown.cursor() as con:
            try:
                told = card_of(con, layer, feature_id, sae_id)
            except QueryError as error:
                raise Missing(404, str(error).removeprefix("features: ")) from error
        page = shown.public.get(told["feature"]["sae_id"])
        public = page and f"{page}/{feature_id}"
        return shown.page("card.html", "features", chart=CHART, public=public, **told)


def _is_known(listed: Sequence[Row], name: str) -> bool:
    return any(row[name] is not None for row in listed)


def _separation(row: Row) -> list[Bar]:
    """How many features of an SAE have which AUROC."""
    n = len(row["counts"])
    titles = [f"AUROC {place / n:.2f} to {(place + 1) / n:.2f}: {count:,} features" for place, count in enumerate(row["counts"])]
    return histogram(row["counts"], titles, SMALL, by_root=True)


def card_of(con: duckdb.DuckDBPyConnection, layer: int, feature_id: int, sae_id: str | None = None) -> dict[str, Any]:
    """What the card of a feature shows; raises QueryError where the study has no such feature, and where the layer has several
    SAEs and none is named.
    """
    key: Key = (layer if sae_id is None else sae_id, feature_id)
    one = {"layer": layer, "feature_id": feature_id, "sae_id": sae_id}
    bins = rows(con, "histogram", features=[key])
    feature = rows(con, "feature_facts", **one)[0]
    explained = "select description, explainer, source from explanations where sae_id = ? and feature_id = ? order by number"
    densities = rows(con, "densities", sae_id=feature["sae_id"], feature_id=feature_id)
    (width,) = con.execute("select width from saes where sae_id = ?", [feature["sae_id"]]).fetchall()[0]
    return {
        "feature": feature,
        "is_last": feature_id == width - 1,
        "explanations": con.execute(explained, [feature["sae_id"], feature_id]).fetchall(),
        "values": _activations(bins),
        "densities": _densities(densities) if any(row["is_here"] for row in densities) else [],
        "samples": next(iter(samples_of(con, [key]).values()), []),
        "quantiles": quantiles_of(con, key),
        "categories": _categories(con, feature["sae_id"], feature_id),
        "roles": rows(con, "causal_roles", **one),
        "logits": _logits(con, key),
        "neighbours": rows(con, "neighbours", **one),
        "effects": rows(con, "feature_effects", **one),
        "in_sets": rows(con, "feature_in_sets", **one),
        "backups": rows(con, "feature_backups", **one),
        "nearest": rows(con, "nearest_rows", **one),
    }


def _logits(con: duckdb.DuckDBPyConnection, key: Key) -> list[Row]:
    told = rows(con, "logits", features=[key])
    return [row | {side: visible(row[side]) for side in ("promoted", "suppressed")} for row in told]


def _categories(con: duckdb.DuckDBPyConnection, sae_id: str, feature_id: int) -> list[Row]:
    asked = "select category, n_prompts, n_literal, n_user, q_value from taxonomy where sae_id = ? and feature_id = ? order by 1"
    return selected(con, asked, sae_id, feature_id)


def _activations(bins: Sequence[Row]) -> list[Bar]:
    titles = [f"{one['low']:.2f} to {one['high']:.2f}: {one['n_tokens']:,} tokens" for one in bins]
    return histogram([one["n_tokens"] for one in bins], titles)


def _densities(bins: Sequence[Row]) -> list[Bar]:
    titles = [f"10^{one['low']:.2f} to 10^{one['high']:.2f} of the tokens: {one['n_features']:,} features" for one in bins]
    here = next(place for place, one in enumerate(bins) if one["is_here"])
    return histogram([one["n_features"] for one in bins], titles, marked=here, by_root=True)
