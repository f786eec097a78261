"""The atlas of the planted study against the literal passes, and its scores against what is known to be true there."""

import shutil
import subprocess
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import duckdb
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit

from saelake import cli
from saelake.analysis import stage_list, verbs
from saelake.analysis.atlas.learned import NOT_NAMED, OnPrompt
from saelake.analysis.atlas.scores import (
    _Active,
    _scored_pairs,
    _spent,
    as_it_is,
    log_odds,
    rank_correlation,
    recall,
    sizes_of_interactions,
)
from saelake.ingest.recipe import load_recipe
from saelake.ingest.recipe.atlas import Atlas
from saelake.warehouse.errors import UserError
from saelake.warehouse.lake import Lake
from tests.analysis.effects import Analysed
from tests.conftest import ROOT
from tests.planted import ablate, prompt_ids

ATLAS = """
[atlas]
prompts = 2
last_tokens = 2
largest = 4
triples = 30
pair_ks = [2, 20]
"""
EXACT = 1e-5


@pytest.fixture(scope="module")
def atlas(study: Analysed, tmp_path_factory: pytest.TempPathFactory) -> Analysed:
    """The atlas of a copy of the analysed study, of two prompts in full."""
    folder = tmp_path_factory.mktemp("atlas")
    shutil.copytree(study.lake.root, folder / "lake")
    recipe = study.planted.folder / "atlas.toml"
    recipe.write_text(study.planted.recipe.read_text() + ATLAS)
    lake = Lake.existing(str(folder / "lake"))
    verbs.atlas_study(verbs.open_analysis(load_recipe(recipe)), lake)
    return study._replace(lake=lake)


def literal(study: Analysed, text: str, *sets: tuple[tuple[int, int], ...]) -> list[tuple[float, bool]]:
    """P(target) and whether the answer flips, clean and under each set, by the literal pass."""
    found = ablate(study.loaded, prompt_ids(study.loaded, text), [(), *sets])
    return list(zip(found.p_refusal_b.tolist(), found.flipped_b.tolist(), strict=True))


def test_every_active_feature_of_every_refused_prompt_is_ablated_alone(atlas: Analysed) -> None:
    rows = atlas.sql(
        "select text, layer, feature_id, e.n_tokens, max_activation, p_clean, p_target, flipped "
        "from single_effects as e join prompts using (prompt_id) order by all"
    )
    texts = {p["instruction"] for p in atlas.planted.prompts("harmful") if p["split"] == "test"}
    assert {row[0] for row in rows} == texts
    for text in texts:
        mine = [row for row in rows if row[0] == text]
        acts = ablate(atlas.loaded, prompt_ids(atlas.loaded, text), [()]).acts_bltf[0, :, 1:]  # without BOS
        fires = (acts > 0).sum(1)
        assert [(row[1], row[2], row[3]) for row in mine] == [(*at, int(fires[tuple(at)])) for at in fires.nonzero().tolist()]
        assert [row[4] for row in mine] == pytest.approx([float(acts[row[1], :, row[2]].max()) for row in mine], rel=1e-4)
        (p_clean, _), *found = literal(atlas, text, *(((row[1], row[2]),) for row in mine))
        assert [row[5] for row in mine] == pytest.approx([p_clean] * len(mine), abs=EXACT)
        assert [row[6] for row in mine] == pytest.approx([p for p, _ in found], abs=EXACT)
        assert [row[7] for row in mine] == [flipped for _, flipped in found]


def test_pairs_and_triples_are_those_that_were_asked_for_and_do_what_the_literal_pass_does(atlas: Analysed) -> None:
    sae = dict(atlas.sql("select sae_id, layer from saes"))
    members = "[(sae_id, feature_id), (sae_id_2, feature_id_2), (sae_id_3, feature_id_3)]"
    rows = atlas.sql(
        f"select drawn, text, list_filter({members}, lambda m: m[1] is not null), p_target, flipped "
        "from joint_effects join prompts using (prompt_id)"
    )
    alone = "select text, layer, feature_id from single_effects join prompts using (prompt_id) where {} order by {}"
    by_drawn: dict[tuple[str, str], list[Any]] = {}
    for drawn, text, named, p_target, flipped in rows:
        features = tuple((sae[sae_id], feature_id) for sae_id, feature_id in named)
        by_drawn.setdefault((drawn, text), []).append((features, p_target, flipped))
    assert {drawn: len({text for one, text in by_drawn if one == drawn}) for drawn, _ in by_drawn} == {
        "largest": 6,
        "last_tokens": 2,
        "triples": 2,
    }
    for (drawn, text), found in by_drawn.items():
        near = [(layer, i) for t, layer, i in atlas.sql(alone.format("n_last_tokens > 0", "all")) if t == text]
        order = "abs(p_target - p_clean) desc, layer, sae_id, feature_id"
        largest = [(layer, i) for t, layer, i in atlas.sql(alone.format("true", order)) if t == text][:4]
        sets = [frozenset(features) for features, *_ in found]
        assert len(set(sets)) == len(sets)
        if drawn == "triples":
            assert len(sets) == 30
            assert all(len(one) == 3 and one <= set(near) for one in sets)
        else:
            pairs = combinations(near if drawn == "last_tokens" else largest, 2)
            assert set(sets) == {frozenset(pair) for pair in pairs}
        _, *truth = literal(atlas, text, *(features for features, *_ in found))
        assert [p for _, p, _ in found] == pytest.approx([p for p, _ in truth], abs=EXACT)
        assert [flipped for *_, flipped in found] == [flipped for _, flipped in truth]


def test_scores_know_what_is_planted(atlas: Analysed) -> None:
    """The causes that act alone are the primary at the last two layers; ablating one after the other changes nothing more."""
    found = {
        row[:4]: row[4:]
        for row in atlas.sql("select finds, method, measure, k, n_prompts, mean, low, high, n_evaluations from method_scores")
    }
    assert found["causes", "gradient", "recall", 5][:4] == (6, 1.0, 1.0, 1.0)
    assert found["causes", "cosine_own", "recall", 5][1] == 1.0
    assert found["causes", "random", "recall", 1][1] < 0.5
    assert found["causes", "gradient", "recall", 5][4] == 3
    assert found["causes", "integrated_gradients", "recall", 5][4] == 3 * (1 + 6 * 10)
    spent = atlas.sql("select sum(n_evaluations) / count(distinct prompt_id) from searches where method = 'minimal'")
    assert found["causes", "minimal", "recall", 1][4] == pytest.approx(spent[0][0])
    assert found["interactions", "gradient_product", "recall", 2][0] == 2  # the prompts of which every pair was ablated
    assert {method for finds, method, *_ in found if finds == "causes"} > {
        "fm_2",
        "fm_4_size",
        "probe",
        "algorithm1",
        "activation",
    }
    assert all(0 <= low <= mean <= high <= 1 for _, mean, low, high, _ in (v for k, v in found.items() if k[2] == "recall"))


def test_pairs_interact_where_effects_on_p_do_not_add_up(atlas: Analysed) -> None:
    """Recall of the product of the single effects."""
    rows = atlas.sql(
        "select j.prompt_id, j.p_clean, a.p_target, b.p_target, j.p_target from joint_effects as j "
        "join single_effects as a using (prompt_id, sae_id, feature_id) "
        "join single_effects as b on (b.prompt_id, b.sae_id, b.feature_id) = (j.prompt_id, j.sae_id_2, j.feature_id_2) "
        "where drawn = 'last_tokens'"
    )
    for k in (2, 20):
        expected = []
        for prompt_id in dict.fromkeys(row[0] for row in rows):
            clean, a, b, both = np.array([row[1:] for row in rows if row[0] == prompt_id]).T
            interacts = np.abs((both - clean) - (a - clean) - (b - clean)) >= 0.01
            expected.append(recall(interacts, np.abs((a - clean) * (b - clean)), k))
        where = f"finds = 'interactions' and method = 'single_effects_product' and k = {k}"
        ((mean, n_prompts, spent),) = atlas.sql(f"select mean, n_prompts, n_evaluations from method_scores where {where}")
        assert (n_prompts, mean) == (len(expected), pytest.approx(np.mean(expected), abs=1e-3))
        assert spent > 0


def test_algorithm1_spends_what_its_own_blocks_ask_not_those_of_other_sizes() -> None:
    with duckdb.connect() as con:
        con.execute(
            "create table searches as from (values ('algorithm1', 1, 4), ('algorithm1_n9', 1, 90), ('minimal', 1, 7)) "
            "as s (method, prompt_id, n_evaluations)"
        )
        con.execute("create table single_effects as select 1 as prompt_id")
        context = SimpleNamespace(study=SimpleNamespace(numbered_saes={}), recipe=SimpleNamespace(atlas=Atlas()))
        spent = _spent(cast("Any", SimpleNamespace(context=context)), con)
    assert (spent["causes", "algorithm1"], spent["causes", "minimal"]) == (4, 7)


@pytest.mark.parametrize("model", ["fm_4", "probe"])
def test_a_machine_is_asked_too_what_a_feature_adds_to_its_logit_on_the_prompt(atlas: Analysed, model: str) -> None:
    """Against the machine's logit of rows that lack one feature after another."""
    learned = "from probe_weights" if model == "probe" else f"from fm_embeddings where model = '{model}'"
    vector = "[]" if model == "probe" else "vector"
    rows = atlas.sql(f"select sae_id, feature_id, weight, scale, {vector} {learned} order by all")
    place = {row[:2]: i for i, row in enumerate(rows)}
    weights, vectors = np.array([row[2] for row in rows]), np.array([row[4] for row in rows], dtype=np.float64)
    values: dict[int, np.ndarray] = {}
    for prompt_id, sae_id, feature_id, value in atlas.ask(
        "fm_input", "prompt_id, sae_id, feature_id, value", exclude_layers=[0, 1]
    ):
        if (at := place.get((sae_id, feature_id))) is not None:
            values.setdefault(prompt_id, np.zeros(len(rows)))[at] = value / rows[at][3]
    effects: dict[int, list[Any]] = {}
    for prompt_id, *row in atlas.sql("select prompt_id, sae_id, feature_id, p_clean - p_target from single_effects order by all"):
        effects.setdefault(prompt_id, []).append(row)

    def logit(x: np.ndarray) -> float:
        pairs = (vectors * x[:, None]) @ (vectors * x[:, None]).T
        return float(weights @ x + np.triu(pairs, 1).sum())

    correlations, recalls = [], []
    for prompt_id, found in effects.items():
        x = values[prompt_id]
        without = [np.where(np.arange(len(x)) == i, 0.0, x) for i in range(len(x))]
        added = [logit(x) - logit(one) if x[i] else NOT_NAMED for i, one in enumerate(without)]
        scores = np.array([added[place[sae, i]] if (sae, i) in place else NOT_NAMED for sae, i, _ in found])
        falls = np.array([fall for *_, fall in found])
        correlations.append(rank_correlation(falls, scores))
        recalls.append(recall(falls >= 0.01, scores, 5))
    assert any(correlations), "else nothing would be told apart"
    by_method = (
        "select mean from method_scores where finds = 'causes' and method = '{}' and measure = '{}' and k is not distinct from {}"
    )
    for measure, k, expected in (("rank_correlation", "null", correlations), ("recall", "5", recalls)):
        (mean,) = atlas.sql(by_method.format(f"{model}_contribution", measure, k))
        assert mean == (pytest.approx(np.mean(expected), abs=2e-3),)


def test_what_a_pair_adds_to_a_machines_logit_goes_by_the_values_of_both() -> None:
    """Three features of two dimensions: y = <v_0, v_1> x_0 x_1 + ...; the third does not fire."""
    machine = OnPrompt(np.array([2.0, 0.5, 0.0]), np.array([1.0, -1.0, 5.0]), np.array([[1.0, 0.0], [2.0, 1.0], [9.0, 9.0]]))
    assert machine.contributions().tolist() == [2 * (1 + 0.5 * 2), 0.5 * (-1 + 2 * 2), NOT_NAMED]
    a, b = np.array([0, 0, 1]), np.array([1, 2, 2])
    assert machine.pair_contributions(a, b).tolist() == [2.0 * 2.0 * 0.5, 0.0, 0.0]


def test_where_refusal_is_sure_no_interaction_is_measured_in_log_odds(atlas: Analysed) -> None:
    assert atlas.sql("select min(p_clean) > 1 - 1e-5 from joint_effects") == [(True,)]
    assert atlas.sql("select count(*) from method_scores where finds = 'interactions_log_odds'") == [(0,)]


def test_methods_are_asked_for_the_pairs_that_have_log_odds_alone() -> None:
    """Of three pairs the second takes two nats more than the two alone, the third begins and ends where there are none."""
    p = expit(np.array([6.0, 4.0, 4.0, 4.0, 13.0, 2.0, 0.0, 11.5]))
    n = np.arange(3)
    active = _Active(n, n, p[[0, 0, 0]], p[1:4], {}, {})
    pairs = {"a": np.array([0, 0, 1]), "b": np.array([1, 2, 2]), "p_clean": p[[0, 0, 4]], "p_target": p[[5, 6, 7]]}
    found = _scored_pairs("interactions_log_odds", Atlas(pair_ks=(1,)), active, pairs, {"method": np.array([1.0, 2.0, 3.0])})
    assert {one.method: one.value for one in found if one.measure == "recall"} == {"method": 1.0, "single_effects_product": 0.5}


@pytest.mark.parametrize(("nats", "measured"), [(6.0, True), (11.0, True), (12.0, False), (13.0, False), (-8.0, False)])
def test_effects_that_add_up_in_log_odds_are_no_interaction_there(nats: float, measured: bool) -> None:
    """Two features that take two nats each. Where one of the four probabilities is too near to 0 or 1, nothing is measured."""
    clean, alone, both = (1 / (1 + np.exp(-np.array([odds]))) for odds in (nats, nats - 2, nats - 4))
    size = sizes_of_interactions(log_odds, clean, alone, alone, both)
    assert size == pytest.approx(0.0, abs=1e-9) if measured else np.isnan(size)


def test_effects_that_add_up_in_log_odds_do_not_in_p() -> None:
    """Two features that take two nats each, of six: no interaction but the curve of a softmax."""
    clean, alone, both = (1 / (1 + np.exp(-np.array([odds]))) for odds in (6.0, 4.0, 2.0))
    assert sizes_of_interactions(as_it_is, clean, alone, alone, both) > 0.01


def test_a_probability_that_rounds_to_1_has_no_log_odds() -> None:
    assert np.isnan(log_odds(np.array([0.0, 1.0]))).all()


def test_all_pairs_of_every_prompt_are_ablated_when_asked_for(atlas: Analysed, tmp_path: Path) -> None:
    """Beside what the recipe asks for, which is kept."""
    shutil.copytree(atlas.lake.root, tmp_path / "lake")
    recipe = str(atlas.planted.folder / "atlas.toml")
    done = CliRunner().invoke(cli.main, ["atlas", recipe, "--full", "--lake", str(tmp_path / "lake")])
    assert done.exit_code == 0, done.output
    assert "Interactions in the log-odds of P(target): the share that each method finds" in done.stdout
    n_pairs = "select count(distinct prompt_id) from joint_effects where drawn = 'last_tokens'"
    assert atlas._replace(lake=Lake.existing(str(tmp_path / "lake"))).sql(n_pairs) == [(6,)]


@pytest.mark.parametrize(("settings", "full"), [([], ""), (["FULL=1"], " --full")])
def test_make_asks_for_every_prompt(settings: list[str], full: str) -> None:
    words = ["make", "-n", "atlas", *settings]
    lines = subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    assert [line.partition(" ")[2].strip() for line in lines if "/saelake atlas " in line] == [
        f"atlas recipes/organism.toml --lake lake{full}"
    ]


def test_make_benchmarks_an_atlas_that_is_shared_already() -> None:
    lines = subprocess.run(["make", "-n", "bench-atlas"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert "/saelake atlas " in lines
    assert "/saelake share " not in lines  # which refuses a folder that has a set


def test_a_study_that_is_not_analysed_has_no_atlas(study: Analysed, tmp_path: Path) -> None:
    lake = Lake.create(tmp_path / "lake")
    with pytest.raises(UserError, match="run `saelake analyze` first"):
        verbs.atlas_study(verbs.open_analysis(study.recipe), lake)


def test_workers_find_the_stages_of_an_atlas_by_their_names(study: Analysed) -> None:
    assert [stage_list.stage_named(study.recipe, one.name) for one in stage_list.ATLAS] == list(stage_list.ATLAS)


SCORES = st.lists(st.tuples(st.booleans(), st.integers(-2, 2) | st.just(NOT_NAMED)), min_size=1, max_size=7)


@given(SCORES, st.integers(1, 8))
def test_recall_is_what_picking_among_equals_by_chance_gives(rows: list[tuple[bool, float]], k: int) -> None:
    true, scores = np.array([t for t, _ in rows]), np.array([s for _, s in rows], dtype=np.float64)
    if not true.any():
        return
    named = [i for i in range(len(rows)) if scores[i] > NOT_NAMED]
    picks = list(combinations(named, min(k, len(named))))
    best = max(sum(scores[i] for i in pick) for pick in picks)
    hits = [true[list(pick)].sum() for pick in picks if sum(scores[i] for i in pick) == best]
    assert recall(true, scores, k) == pytest.approx(np.mean(hits) / min(k, true.sum()))


def test_scores_that_differ_by_rounding_are_equal() -> None:
    """One feature in several layers has one cosine, whose last bits are the batch's."""
    true, scores = np.array([True, False, False]), np.array([0.7, 0.7 + 1e-8, -1.0])
    assert recall(true, scores, 1) == recall(true[[1, 0, 2]], scores, 1) == 0.5
    assert rank_correlation(np.array([1.0, 1.0, 0.0]), scores) == pytest.approx(1)


def test_a_ranking_is_correlated_with_itself_and_what_is_not_named_comes_last() -> None:
    effects = np.array([0.1, 0.5, 0.3, 0.0])
    assert rank_correlation(effects, effects) == pytest.approx(1)
    assert rank_correlation(effects, -effects) == pytest.approx(-1)
    assert rank_correlation(effects, np.array([1.0, 3.0, 2.0, NOT_NAMED])) == pytest.approx(1)
    assert rank_correlation(effects, np.zeros(4)) == 0
