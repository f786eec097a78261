"""What the static pages show that is not a row of a shared table, but follows from several: asked once, when the set is written.

Every number is the answer of the explorer's own questions, over what is shared and nothing else.
"""

import json
from collections.abc import Iterator, Sequence

import duckdb
import pyarrow as pa

from saelake import queries
from saelake.analysis.explorer.orders import ORDERS
from saelake.analysis.served.cards import FeatureKey, Sample, quantiles_of, samples_of
from saelake.queries.rows import Row, rows, selected

MOST_FIRINGS = 131_072
"""Activations of a feature that a browser reads, half a mebibyte; of those with more, histogram and samples are written."""
LISTED = 100
"""Features of each order that a list shows, of one SAE and of all."""
AT_ONCE = 50
"""Features whose samples are asked for at once."""
EDGES = 10
"""Features of each kind that a card shows beside its own: what stands in for it, wakes and lies near."""


def make_tables(con: duckdb.DuckDBPyConnection) -> None:
    """Makes the tables that `cards_of` and `lists` read: what the explorer's list tells of every feature, and what holds it."""
    n_features = con.sql("select count(*) from features").fetchall()[0][0]
    queries.run(con, "feature_list", order="feature", limit=max(n_features, 1)).create("static_listed")
    queries.run(con, "feature_sets_held").create("static_held")
    queries.run(con, "feature_effects_held").create("static_effects")
    con.sql(queries.step("static_edges"), params={"n": EDGES}).create("static_edges")
    con.execute("create table static_dense (sae_id varchar, feature_id integer, firing varchar)")
    asked = "select sae_id, feature_id from features where n_tokens > ? order by sae_id, feature_id"
    dense = con.execute(asked, [MOST_FIRINGS]).fetchall()
    for first in range(0, len(dense), AT_ONCE):
        told = [[*key, json.dumps(firing)] for key, firing in _dense(con, dense[first : first + AT_ONCE]).items()]
        con.executemany("insert into static_dense values (?, ?, ?)", told)


def _dense(con: duckdb.DuckDBPyConnection, features: Sequence[FeatureKey]) -> dict[FeatureKey, Row]:
    samples = samples_of(con, features)
    told: dict[FeatureKey, Row] = {}
    for row in rows(con, "histogram", features=list(features)):
        one = told.setdefault((row["sae_id"], row["feature_id"]), {"counts": [], "width": row["high"] - row["low"]})
        one["counts"].append(row["n_tokens"])
    for key, one in told.items():
        one["samples"] = [_sample(sample) for sample in samples.get(key, ())]
        one["quantiles"] = [[quantile, _sample(sample)] for quantile, sample in quantiles_of(con, key)]
    return told


def _sample(sample: Sample) -> Row:
    tokens = [[token.text, token.strength, token.is_template, token.is_top] for token in sample.tokens]
    told = {"activation": sample.activation, "token": sample.token, "label": sample.label, "category": sample.category}
    return told | {"tokens": tokens}


def cards_of(con: duckdb.DuckDBPyConnection, sae_id: str) -> pa.Table:
    """One row for each feature of an SAE, in order."""
    return con.sql(queries.step("static_cards"), params={"sae_id": sae_id}).to_arrow_table()


def lists(con: duckdb.DuckDBPyConnection) -> Iterator[tuple[str | None, Row]]:
    """The features that come first, of each SAE and, under None, of all: what is known of them, and orders as places in that."""
    orders: dict[str | None, dict[str, list[FeatureKey]]] = {}
    for order in ORDERS:
        placed = con.execute(queries.step("static_places"), {"order": order, "n": LISTED}).fetchall()
        for sae_id, feature_id, place, place_in_sae in placed:
            for whose, where in ((None, place), (sae_id, place_in_sae)):
                if where <= LISTED:
                    orders.setdefault(whose, {}).setdefault(order, []).append((sae_id, feature_id))
    for whose, by_order in orders.items():
        known = sorted({key for keys in by_order.values() for key in keys})
        asked = [f"{sae_id}/{feature_id}" for sae_id, feature_id in known]
        statement = "select * from static_listed where list_contains(?, sae_id || '/' || feature_id) order by sae_id, feature_id"
        found = selected(con, statement, asked)
        places = {(row["sae_id"], row["feature_id"]): place for place, row in enumerate(found)}
        yield whose, {"rows": found, "orders": {order: [places[key] for key in keys] for order, keys in by_order.items()}}
