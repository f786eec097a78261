"""Questions about tokens, samples, SAEs, prompts and doses, against answers computed by hand from tests/lakes.py."""

from collections.abc import Iterator
from math import log10
from typing import Any

import duckdb
import pytest

from saelake import queries
from saelake.warehouse.catalog import connect
from saelake.warehouse.lake import Lake
from tests.lakes import build_lake, prompt_id


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    return build_lake(tmp_path_factory.mktemp("lake"))


@pytest.fixture(scope="module")
def con(lake: Lake) -> Iterator[duckdb.DuckDBPyConnection]:
    with connect(lake) as con:
        yield con


def ask(con: duckdb.DuckDBPyConnection, name: str, columns: str, **values: Any) -> list[Any]:
    return queries.run(con, name, **values).project(columns).fetchall()


def test_features_on_a_token_by_how_it_is_matched(con: duckdb.DuckDBPyConnection) -> None:
    columns = "layer, feature_id, n_fired, n_places, share, of_feature, n_prompts, max_activation"
    # a0 stands once, at position 2 of prompt 0, where feature 1 of layer 0 fires 1.0 and feature 0 of layer 1 fires 4.0.
    exact = [(1, 0, 1, 1, 1.0, 1 / 3, 1, 4.0), (0, 1, 1, 1, 1.0, 1 / 4, 1, 1.0)]
    assert ask(con, "features_on_token", columns, token="a0", match="exact") == exact
    assert ask(con, "features_on_token", columns, token=" A0 ") == exact
    assert ask(con, "features_on_token", columns, token="A0", match="exact") == []
    # a0 to a5 are six places; layer 0 feature 1 fires on two of them, layer 1 feature 0 on one, feature 3 on one.
    assert ask(con, "features_on_token", "layer, feature_id, n_fired, n_places", token="a", match="contains", layer=1) == [
        (1, 3, 1, 6),
        (1, 0, 1, 6),
    ]
    assert ask(con, "features_on_token", "feature_id", token="a", match="contains", min_fired=2) == [(1,)]


def test_features_on_bos_are_those_that_fire_there(con: duckdb.DuckDBPyConnection) -> None:
    found = ask(con, "features_on_token", "layer, feature_id, n_fired, n_places, of_feature", token="<bos>")
    assert found == [(0, 0, 6, 6, 1.0), (1, 3, 1, 6, 1 / 2)]
    assert ask(con, "features_on_token", "1", token="bos", match="contains") == []


def test_a_feature_that_fires_on_bos_too_has_the_density_of_its_other_tokens(con: duckdb.DuckDBPyConnection) -> None:
    ((sae_id, n),) = con.execute("select sae_id, n_tokens from saes where layer = 1").fetchall()
    bins = ask(con, "densities", "low, high, is_here", sae_id=sae_id, feature_id=3)
    ((low, high),) = [(low, high) for low, high, is_here in bins if is_here]
    assert low <= log10(1 / n) <= high, "one token beside a BOS token"


def test_cofiring_on_tokens_needs_the_same_place(con: duckdb.DuckDBPyConnection) -> None:
    columns = "layer_a, feature_id_a, layer_b, feature_id_b, n_a, n_b, n_both"
    features = "0:1,1:0,1:3"
    # Prompt 0: feature 1 of layer 0 fires at 2 and 3, feature 0 of layer 1 at 2. Prompt 2: 1:0 at 3, 1:3 at 2.
    assert ask(con, "cofiring", columns, features=features, unit="token") == [(0, 1, 1, 0, 4, 3, 1)]
    together = ask(con, "cofiring", columns, features=features)
    assert sorted(together) == [(0, 1, 1, 0, 3, 3, 2), (1, 0, 1, 3, 3, 1, 1)]


def test_health_of_each_sae(con: duckdb.DuckDBPyConnection) -> None:
    columns = "layer, width, n_dead, dead, n_dense, max_rate, l0, declared_l0, l0_ratio, active_share"
    # 18 tokens are not BOS. Layer 0: feature 1 fires 4 times, 2 once, 0 on BOS alone. Layer 1: feature 0 three times, 3 once.
    assert ask(con, "sae_health", columns, dense_rate=0.2) == [
        (0, 4, 2, 0.5, 1, 4 / 18, 5 / 18, None, None, 1 / 2),
        (1, 4, 2, 0.5, 0, 3 / 18, 4 / 18, 1.0, pytest.approx(4 / 18), 1 / 2),
    ]


def test_quantile_samples_go_from_weak_to_strong_and_are_drawn_by_seed(con: duckdb.DuckDBPyConnection, lake: Lake) -> None:
    first = prompt_id(lake, 0)
    columns = f"quantile, activation, prompt_id - {first}, pos, context"
    found = ask(con, "quantile_samples", columns, features="0:1", quantiles=2, window=0)
    # 1.0 and 2.0 are the weak half, 3.0 and 3.0 the strong one.
    assert found == [
        (1, 1.0, 0, 2, "[[a0]]"), (1, 2.0, 1, 2, "[[a1]]"), (2, 3.0, 0, 3, "[[b0]]"), (2, 3.0, 4, 3, "[[b4]]"),
    ]  # fmt: skip
    one = {
        tuple(ask(con, "quantile_samples", "prompt_id, pos", features="0:1", quantiles=1, n=1, seed=seed)) for seed in range(20)
    }
    assert len(one) == 4, "each of the four is drawn by some seed"
    assert ask(con, "quantile_samples", "quantile", features="0:0") == [], "it fires on BOS alone"


def test_prompts_by_words(con: duckdb.DuckDBPyConnection, lake: Lake) -> None:
    first = prompt_id(lake, 0)
    columns = f"prompt_id - {first}, refused"
    assert ask(con, "find_prompts", columns, words="TEXT", label="benign") == [(4, False), (5, True)]
    assert ask(con, "find_prompts", columns, words="1 text") == [(1, True)]
    assert ask(con, "find_prompts", columns, words="tex") == []
    assert len(ask(con, "find_prompts", columns, words="tex", part=True)) == 5
    assert ask(con, "find_prompts", columns, words="quoted drop") == [(3, False)]
    assert ask(con, "find_prompts", columns, words="1 -- text") == [(1, True)]
    assert ask(con, "find_prompts", columns, words="-- ...") == [], "prompt 3 ends in signs"


def test_two_runs_side_by_side(tmp_path_factory: pytest.TempPathFactory) -> None:
    lake = build_lake(tmp_path_factory.mktemp("two"))
    build_lake(lake.root, "other", variant=1)
    a, b = (lake.current()[recipe, "candidates"][0] for recipe in ("small", "other"))
    with connect(lake) as con:
        assert ask(con, "compare_runs", "*", a=a, b=b) == []
        everything = ask(con, "compare_runs", "condition, difference, answer_a = answer_b", a=a, b=b, differing=False, limit=None)
        assert len(everything) == 9 * 6
        assert {row[1:] for row in everything} == {(0.0, True)}
        con.execute("create temp table told as select * from all_runs.ablations")
        con.execute(f"update told set p_refusal_token = 0.75 where run_id = '{b}' and condition = 'none'")
        statement = queries.load("compare_runs").statement(con, {"a": a, "b": b}).replace("all_runs.ablations", "told")
        assert con.sql(statement).project("condition, p_a, p_b, difference").fetchall() == [("none", 0.5, 0.75, 0.25)] * 6


def test_answers_of_one_condition_are_matched_by_the_features_that_are_held() -> None:
    """As stages waking and backups ask: one prompt many times, by nothing told apart but the set, which two sources may share."""
    sets = {"a": (5, 6, 5), "b": (6, 5)}
    with duckdb.connect() as con:
        con.execute("create schema all_runs")
        con.execute("create table all_runs.runs as select unnest(['a', 'b']) as run_id")
        con.execute(
            "create table all_runs.prompts as select 1 as prompt_id, 'h' as prompt_hash, 'harmful' as label, 'text' as text"
        )
        con.execute(
            "create table all_runs.ablations (run_id text, ablation_id int, prompt_id int, set_id int, condition text, k int, "
            "tau float, seed int, draw int, p_refusal_token float, first_token text, completion text)"
        )
        con.execute(
            "create table all_runs.feature_sets "
            "(run_id text, set_id int, sae_id text, feature_id int, value float, positions text)"
        )
        for run, features in sets.items():
            for i, feature in enumerate(features):
                con.execute("insert into all_runs.feature_sets values (?, ?, 'sae', ?, 0, null)", [run, i, feature])
                con.execute(
                    "insert into all_runs.ablations values (?, ?, 1, ?, 'waking_one', null, null, null, null, ?, 'I', '')",
                    [run, i, i, feature / 10],
                )
        found = ask(con, "compare_runs", "p_a, p_b", a="a", b="b", differing=False)
        assert found == [(pytest.approx(p), pytest.approx(p)) for p in (0.5, 0.6)], "the second 5 of a has none in b"
