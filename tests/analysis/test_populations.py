"""The groups of features that the stages found, on the planted network, and the questions that show one feature."""

from collections import Counter
from pathlib import Path

from saelake import queries
from saelake.warehouse.catalog import connect
from saelake.warehouse.lake import Lake
from tests.analysis.effects import Analysed
from tests.meaning import build_meaning_lake
from tests.planted import Feature


def population(study: Analysed, name: str) -> dict[Feature, int]:
    rows = study.sql(f"select layer, feature_id, n_prompts from populations where population = '{name}'")
    return {(layer, feature): n for layer, feature, n in rows}


def test_candidates_are_the_top_features_at_each_prompts_first_flip(study: Analysed) -> None:
    direction = study.recipe.minimal.direction
    flips = study.ask("first_flip", "label, first_k", condition=f"top_k_{direction}", judge="first_token")
    ranked = study.ask("candidates", "layer, feature_id, rank", k=99, direction=direction, exclude_layers=[0, 1])
    expected = Counter(
        (layer, feature)
        for label, first_k in flips
        for layer, feature, rank in ranked
        if label == "harmful" and first_k is not None and rank <= first_k
    )
    assert population(study, "candidates") == expected != {}


def test_critical_and_redundant_features_are_the_planted_ones(study: Analysed) -> None:
    primary, backup = study.planted.primary, study.planted.backup
    planted = {feature for features in study.planted.minimal_sets for feature in features}
    assert set(population(study, "critical")) == planted == {*((n, primary) for n in range(2, 6)), (4, backup), (5, backup)}
    assert set(population(study, "redundant")) == {(4, backup), (5, backup)}


def test_stage3_s_features_are_those_of_its_sets_that_flip(organism_lake: Path) -> None:
    with connect(Lake.existing(organism_lake), "organism") as con:
        groups = con.sql("select population, list((layer, feature_id)) from populations group by population").fetchall()
        flipped = con.sql(
            "select distinct s.layer, s.feature_id from feature_sets as s join ablations as a using (set_id) "
            "join verdicts using (ablation_id) join prompts using (prompt_id) "
            "where a.condition = 'stage3' and flipped and judge = 'first_token' and label = 'harmful'"
        ).fetchall()
    found = {name: set(features) for name, features in groups}
    assert found["stage3"] == set(flipped) != set()
    assert found["stage3_new"] == found["stage3"] - found["critical"] - found["candidates"] != found["stage3"]


def test_neighbours_are_the_sure_edges_of_one_feature_both_ways(study: Analysed) -> None:
    edges = study.sql(
        "select source_layer, source_feature_id, layer, feature_id from waking_edges "
        "where source_feature_id is not null and q_value <= 0.05"
    )
    assert edges
    for feature in {edge[:2] for edge in edges} | {edge[2:] for edge in edges}:
        found = study.ask("neighbours", "way, other_layer, other_feature_id", layer=feature[0], feature_id=feature[1], n=99)
        assert set(found) == {
            *(("wakes", *edge[2:]) for edge in edges if edge[:2] == feature),
            *(("woken", *edge[:2]) for edge in edges if edge[2:] == feature),
        }
        roles = study.ask("causal_roles", "population, n_prompts, is_current", layer=feature[0], feature_id=feature[1])
        assert {role for role, _, _ in roles} == {
            name for name in ("candidates", "critical", "redundant", "stage3", "stage3_new") if feature in population(study, name)
        }


def test_a_search_by_category_finds_the_planted_category_features(study: Analysed) -> None:
    for category, feature_id in study.planted.categories.items():
        found = study.ask("feature_search", "layer, feature_id", category=category)
        assert set(found) == {(layer, feature_id) for layer in range(6)}


def test_histograms_and_searches_by_hand(tmp_path: Path) -> None:
    """Feature 0:1 fires at 1, 3, 2 and 3, feature 0:0 on BOS alone (tests/lakes.py)."""
    lake: Lake = build_meaning_lake(tmp_path / "lake")
    with connect(lake) as con:
        bins = queries.run(con, "histogram", features="0:1,0:0", bins=3).project("feature_id, low, high, n_tokens").fetchall()
        assert bins == [(1, 0.0, 1.0, 1), (1, 1.0, 2.0, 1), (1, 2.0, 3.0, 2)]

        def search(**values: object) -> list[Feature]:
            return queries.run(con, "feature_search", **values).project("layer, feature_id").fetchall()

        assert search(words="BOMBS makers") == [(0, 1)]
        assert search(words="bombs periods") == []
        assert search(population="candidates") == [(0, 1), (0, 2)]
        assert search(layer=1, limit=2) == [(1, 0), (1, 3)]
        assert search(feature_id=3) == [(1, 3), (0, 3)]
        assert search(category="bombs") == [], "it fires on bombs, but two prompts are too few to be sure"
