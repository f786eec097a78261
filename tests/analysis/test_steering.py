"""R14: clamping on benign prompts, the value sweep, and continuations side by side."""

import pytest

from tests.analysis.effects import Analysed


def test_the_redundant_features_are_clamped(study: Analysed) -> None:
    rows = study.sql(
        "select distinct layer, feature_id, value, condition from ablations join feature_sets using (set_id) "
        "where condition like 'clamp_%_token%'"
    )
    backup = study.planted.backup
    assert set(rows) == {
        (layer, backup, value, condition)
        for layer in (4, 5)
        for value in (2.0, 10.0)
        for condition in ("clamp_first_token", "clamp_all_tokens")
    }
    ranked = study.ask("steering_features", "layer, feature_id, n_prompts")
    assert {row[:2] for row in ranked} == {(4, backup), (5, backup)}
    assert ranked[0][2] >= ranked[1][2] >= 4
    assert study.ask("steering_features", "layer, feature_id, n_prompts", n=1) == ranked[:1]
    of_all = study.ask("steering_features", "layer, feature_id", features_are="critical")
    assert set(of_all) == {(2, 5), (3, 5), (4, 5), (5, 5), (4, backup), (5, backup)}


def test_the_first_token_alone_changes_nothing_and_all_tokens_do(study: Analysed) -> None:
    """Attention after layer 0 is uniform and reads no refusal, so a clamp at BOS cannot reach the answer."""
    columns = "prompt_id, value, refused_clean, refused_first_token, refused_all_tokens, clean, first_token, all_tokens, text"
    rows = study.ask("steering", columns)
    assert len(rows) == 6 * 2
    for _, value, refused_clean, refused_first, refused_all, clean, first, every, _ in rows:
        assert not refused_clean
        assert not refused_first
        assert first == clean == "Sure , here it is ."
        assert refused_all
        assert every.startswith("I cannot help" if value == 2 else "I")
    assert {row[-1] for row in rows} == {p["instruction"] for p in study.planted.prompts("benign") if p["split"] == "test"}
    assert len(study.ask("steering", changed=True)) == len(rows)


def test_probabilities_stand_beside_the_answers(study: Analysed) -> None:
    rows = study.ask("steering", "p_clean, p_first_token, p_all_tokens")
    assert len(rows) == 6 * 2
    for clean, first, every in rows:
        assert clean == pytest.approx(first, abs=1e-6)
        assert every > 0.99
