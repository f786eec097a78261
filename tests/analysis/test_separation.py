"""How well features tell two labels apart: against SciPy's Mann-Whitney test, and on the planted network."""

from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import false_discovery_control, mannwhitneyu

from saelake import queries
from saelake.analysis.meaning.separation import separation, separations
from saelake.ingest.job import ingest
from saelake.ingest.recipe import load_recipe
from saelake.warehouse.catalog import connect
from saelake.warehouse.lake import Lake
from tests.lakes import build_lake
from tests.planted import write_planted


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 25), st.integers(2, 25), st.integers(0, 2**32 - 1))
def test_auroc_and_p_are_scipys(n_target: int, n_control: int, seed: int) -> None:
    """Scores with many silent prompts and many ties, as features have."""
    random = np.random.default_rng(seed)
    is_target = np.arange(n_target + n_control) < n_target
    peaks_fp = random.integers(0, 6, (8, len(is_target))) * (random.random((8, len(is_target))) < random.random((8, 1)))
    feature, prompt = np.nonzero(peaks_fp)
    order = np.lexsort((is_target[prompt], peaks_fp[feature, prompt], feature))
    feature, prompt = feature[order], prompt[order]
    found = separation(feature, is_target[prompt], peaks_fp[feature, prompt].astype(float), n_target, n_control)
    fires = peaks_fp.any(axis=1)
    assert found["feature_id"].tolist() == np.flatnonzero(fires).tolist()
    for row, scores in enumerate(peaks_fp[fires]):
        there, here = scores[~is_target], scores[is_target]
        expected = mannwhitneyu(here, there, method="asymptotic")
        assert np.isclose(found["auroc"][row], expected.statistic / (n_target * n_control))
        p = 1.0 if np.ptp(scores) == 0 else expected.pvalue
        assert np.isclose(found["p_value"][row], p), (scores, is_target)
        assert (found["n_fired_target"][row], found["n_fired_control"][row]) == ((here > 0).sum(), (there > 0).sum())


def test_rounding_ranks_nothing() -> None:
    """Equal activations that differ in their last bits, as they do between batches, are ties."""
    random = np.random.default_rng(0)
    feature, peak = np.repeat([3, 8], 20), np.tile(np.repeat([1.0, 2.5], 10), 2)
    is_target = random.random(40) < 0.5
    exact = separation(feature, is_target, peak, 30, 30)
    shaken = peak * (1 + random.normal(0, 2e-7, 40))
    order = np.lexsort((shaken, feature))
    rounded = separation(feature, is_target[order], shaken[order], 30, 30)
    for name, values in exact.items():
        np.testing.assert_array_equal(rounded[name], values, err_msg=name)


def test_the_hand_made_lake_by_hand(tmp_path: Path) -> None:
    """Peaks without BOS. Prompts 0 to 3 are harmful, 4 and 5 benign."""
    with connect(build_lake(tmp_path / "lake")) as con:
        rows = {(row["layer"], row["feature_id"]): row for row in separations(con).to_pylist()}
    # 0:1 is 3, 2, 0, 0 on harmful and 3, 0 on benign prompts: of the 8 pairs 2 are won, 3 tied and 3 lost.
    assert {key: row["auroc"] for key, row in rows.items()} == {
        (0, 1): (2 + 3 / 2) / 8,
        (0, 2): (2 + 6 / 2) / 8,
        (1, 0): (6 + 2 / 2) / 8,
        (1, 3): (2 + 6 / 2) / 8,
    }
    p = [row["p_value"] for row in rows.values()]
    assert [row["q_value"] for row in rows.values()] == false_discovery_control(p).tolist()
    assert (rows[1, 0]["n_fired_target"], rows[1, 0]["n_target"], rows[1, 0]["n_control"]) == (3, 4, 2)


def test_a_label_without_prompts_has_no_rows(tmp_path: Path) -> None:
    with connect(build_lake(tmp_path / "lake")) as con:
        con.execute("create temp table prompts as select * replace ('other' as label_role) from main.prompts")
        assert len(separations(con)) == 0


def test_the_planted_refusal_feature_separates_and_noise_does_not(tmp_path: Path) -> None:
    planted = write_planted(tmp_path)
    recipe = load_recipe(planted.recipe)
    lake = Lake.create(tmp_path / "lake")
    ingest(recipe, lake)
    with connect(lake) as con:
        rows = {(row["layer"], row["feature_id"]): row for row in separations(con).to_pylist()}
        con.register("found", separations(con))
        best = queries.load("label_separation").statement(con, {"max_q": 1e-6, "fires_on": "target", "limit": None})
        told = con.sql(best.replace("from separations", "from found")).project("layer, feature_id, auroc").fetchall()
    assert rows[2, planted.primary]["auroc"] == 1
    assert (2, planted.primary, 1.0) in told
    assert [row for row in told if row[2] == 1] == told[: sum(row[2] == 1 for row in told)], "the best come first"
    assert {(layer, feature) for layer, feature, _ in told} == {
        key for key, row in rows.items() if row["q_value"] <= 1e-6 and row["auroc"] > 0.5
    }
