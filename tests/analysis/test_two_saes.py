"""A feature is an SAE's, never a layer's: with the SAEs of two layers on one, every question answers as before.

And however the rows of its tables lie, a question answers with the same rows in the same order.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import duckdb
import pytest

from saelake import queries
from saelake.queries import QueryError
from saelake.warehouse.catalog import connect
from saelake.warehouse.schema import TABLES
from tests.analysis.effects import Analysed

BY_ORDER = {"causal_link"}
"""It asks which of two layers lies above the other."""
OF_LAYERS = {"directions", "direction_by_layer", "waking_controls"}
"""They are about whole layers, and no SAE."""
ABOUT_RUNS = {"run", "runs", "causal_roles", "compare_runs", "study_scores"}
OF_OTHER_COMMANDS = {
    "atlas_pairs",
    "atlas_prompts",
    "atlas_rankings",
    "atlas_scores",
    "audit_sets",
    "backends",
    "recoveries",
    "recovery_sites",
    "single_effects",
    "sweeps",
}
"""About what `saelake atlas`, `audit`, `compare` and `steer` compute, which is not here."""
OF_OTHER_TESTS = OF_OTHER_COMMANDS | {
    "dose_response",
    "features_on_token",
    "find_prompts",
    "quantile_samples",
    "sae_health",
    "uncertain",
    "uncertain_verdicts",
    "first_tokens",
    "label_peaks",
    "label_separation",
}
"""They need values, or tables, that this study does not have."""
DRAWN = {"matched_active": {"cost"}, "concepts": {"examples"}}
"""Columns that are drawn by the layer's number, or show it."""
WITHOUT_ROWS = {"word_counts", "dormant", "study_sample", "answer_features"}
"""Nobody has explained or annotated features here, nor captured answers (tests/analysis/test_answer_tokens.py)."""
FEATURES = "select sae_id, feature_id from features where n_tokens > 0"
VALUES: dict[str, dict[str, Any]] = {
    "features": {"limit": None},
    "feature_search": {"limit": 10_000},
    "fm_partners": {"n": 10_000, "model": "fm_4"},
    "new_features": {"model": "fm_4"},
    "stage3_coverage": {"model": "fm_4"},
    "fm_input": {"tokens": 9},
    "near_duplicates": {"min_cosine": 0.2},
    "prompt": {"n": 10_000},
    "steering_features": {"n": 10_000, "features_are": "critical"},
    "top_samples": {"n": 10_000},
    "random_active": {"pool": 2, "draws": 2},
    "matched_active": {"pool": 2, "min_overlap": 0.05},
    "features_on_token": {"token": "bomb"},
    "promoting": {"token": "I", "limit": None},
    "find_prompts": {"words": "how to"},
    "condition_answers": {"condition": "top_k_own"},
    "study_sample": {"n_random": 10_000, "n_silent": 10_000, "per_group": 10_000},
}
"""Values with which no tie is cut off, and with which there is something to answer."""


@pytest.fixture(scope="module")
def apart(study: Analysed) -> Iterator[duckdb.DuckDBPyConnection]:
    """The planted study's tables, one SAE a layer."""
    with study.connect() as con:
        yield _copy(con, "{}")


@pytest.fixture(scope="module")
def together(study: Analysed) -> Iterator[duckdb.DuckDBPyConnection]:
    """The same with two SAEs on every second layer, and none on the others."""
    with study.connect() as con:
        yield _copy(con, "({} - {} % 2)::smallint")


@pytest.fixture(scope="module")
def shuffled(study: Analysed) -> Iterator[duckdb.DuckDBPyConnection]:
    """The planted study's tables with their rows in another order."""
    with study.connect() as con:
        yield _copy(con, "{}", "order by md5(rows::varchar)")


def _copy(lake: duckdb.DuckDBPyConnection, layer: str, order: str = "") -> duckdb.DuckDBPyConnection:
    con = duckdb.connect()
    views = {name for (name,) in lake.execute("select view_name from duckdb_views() where not internal").fetchall()}
    for name in sorted(views & {*TABLES, "runs"}):
        con.register("rows", lake.sql(f"from {name}").to_arrow_table())
        moved = (
            [c.name for c in TABLES[name].columns if c.name.endswith("layer")] if name in TABLES and name != "directions" else []
        )
        replaced = ", ".join(f"{layer.format(column, column)} as {column}" for column in moved)
        con.execute(f"create table {name} as select * {f'replace ({replaced})' if replaced else ''} from rows {order}")
    con.execute("update directions set chosen = layer = 5")  # so that no layer lies above it
    con.execute("create schema all_runs")
    con.execute("create view all_runs.saes as from main.saes")
    return con


@pytest.mark.parametrize(
    "name", sorted({*queries.names(), *queries.names_of_stages()} - BY_ORDER - OF_LAYERS - ABOUT_RUNS - OF_OTHER_TESTS)
)
def test_a_question_answers_alike(name: str, apart: duckdb.DuckDBPyConnection, together: duckdb.DuckDBPyConnection) -> None:
    one, other = (_answer(con, name) for con in (apart, together))
    assert one == other
    assert one or name in WITHOUT_ROWS


@pytest.mark.parametrize(
    "name",
    sorted({*queries.names(), *queries.names_of_stages(), *queries.names_of_pages()} - ABOUT_RUNS - OF_OTHER_COMMANDS),
)
def test_a_question_answers_in_one_order(
    name: str, apart: duckdb.DuckDBPyConnection, shuffled: duckdb.DuckDBPyConnection
) -> None:
    """Rows that tie on what a question orders by would make its answer depend on how files lie, and on threads."""
    one, other = (queries.run(con, name, **_values(con, name)).fetchall() for con in (apart, shuffled))
    assert [tuple(map(_plain, row)) for row in one] == [tuple(map(_plain, row)) for row in other]
    assert one or name in WITHOUT_ROWS, "nothing is compared"


def _answer(con: duckdb.DuckDBPyConnection, name: str) -> Counter[Any]:
    """Rows without layers, and without places in an order that goes by layer first."""
    found = queries.run(con, name, **_values(con, name))
    left_out = {"number", "row_index", "column_index", "item", "rank"} if name != "candidates" else set()
    kept = [c for c in found.columns if "layer" not in c and c not in left_out | DRAWN.get(name, set())]
    return Counter(tuple(_plain(value) for value in row) for row in found.project(", ".join(f'"{c}"' for c in kept)).fetchall())


def _values(con: duckdb.DuckDBPyConnection, name: str) -> dict[str, Any]:
    """Values with which a question has an answer here."""
    values = dict(VALUES.get(name, {}))
    for parameter in queries.load(name).parameters:
        if parameter.type == "features":
            values[parameter.name] = FEATURES
        elif parameter.name == "prompts" and parameter.required:
            values["prompts"] = [row[0] for row in con.execute("select prompt_id from critical_features group by all").fetchall()]
        elif parameter.name == "prompt_id" and parameter.required:
            values["prompt_id"] = con.execute("select min(prompt_id) from critical_features").fetchall()[0][0]
        elif parameter.name == "sae_id" and parameter.required:
            values["sae_id"] = con.execute("select max(sae_id) from saes").fetchall()[0][0]
        elif parameter.name in ("layer", "feature_id") and parameter.required:
            sae_id, layer, feature = con.execute(
                "select source_sae_id, source_layer, source_feature_id from waking_edges "
                "where source_sae_id is not null order by q_value, source_sae_id, source_feature_id limit 1"
            ).fetchall()[0]
            values |= {"layer": layer, "feature_id": feature, "sae_id": sae_id, "max_q": 1.0}
    declared = {parameter.name for parameter in queries.load(name).parameters}
    return {parameter: value for parameter, value in values.items() if parameter in declared}


def _plain(value: Any) -> Any:
    return round(value, 5) if isinstance(value, float) else tuple(value) if isinstance(value, list) else value


def test_features_of_a_layer_with_two_saes_are_named_by_the_sae(together: duckdb.DuckDBPyConnection) -> None:
    (sae_ids,) = together.execute("select list(sae_id order by sae_id) from saes where layer = 2").fetchall()[0]
    with pytest.raises(QueryError, match=f"layer 2 has several SAEs: give the sae_id, as {sae_ids[0]}:3"):
        queries.run(together, "histogram", features="2:3")
    answers = [
        queries.run(together, "histogram", features=features).fetchall()
        for features in (f"{sae_ids[1]}:3", [(sae_ids[1], 3)], f"select '{sae_ids[1]}' as sae_id, 3 as feature_id")
    ]
    assert answers[0] == answers[1] == answers[2] != []


def test_the_lake_itself_still_goes_by_layer(study: Analysed) -> None:
    with connect(study.lake) as con:
        sae_id = con.execute("select sae_id from saes where layer = 2").fetchall()[0][0]
        listed = [queries.run(con, "top_samples", features=f).fetchall() for f in ("2:3, 4:3", f"{sae_id}:3, 4:3")]
    assert listed[0] == listed[1] != []
