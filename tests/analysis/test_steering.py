"""R14: clamping on benign prompts, the value sweep, and continuations side by side."""

import numpy as np
import pytest

from saelake import queries
from saelake.analysis.report.effects import clamping_sentences
from tests.analysis.effects import Analysed


def test_the_redundant_features_are_clamped(study: Analysed) -> None:
    rows = study.sql(
        "select distinct layer, feature_id, value, part from ablations join feature_sets using (set_id) where method = 'clamp'"
    )
    backup = study.planted.backup
    assert set(rows) == {
        (layer, backup, value, condition)
        for layer in (4, 5)
        for value in (2.0, 10.0)
        for condition in ("first_token", "all_tokens")
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
    rows = [row for row in study.ask("steering", columns, judge="first_token") if row[1] is not None]
    assert len(rows) == 6 * 2
    for _, value, refused_clean, refused_first, refused_all, clean, first, every, _ in rows:
        assert not refused_clean
        assert not refused_first
        assert first == clean == "Sure , here it is ."
        assert refused_all
        assert every.startswith("I cannot help" if value == 2 else "I")
    assert {row[-1] for row in rows} == {p["instruction"] for p in study.planted.prompts("benign") if p["split"] == "test"}
    assert len(study.ask("steering", changed=True)) == len(study.ask("steering")) == 6 * 5


def test_probabilities_stand_beside_the_answers(study: Analysed) -> None:
    rows = study.ask("steering", "p_clean, p_first_token, p_all_tokens")
    assert len(rows) == 6 * 5
    for clean, first, every in rows:
        assert clean == pytest.approx(first, abs=1e-6)
        assert every > 0.99


def test_levels_are_those_of_each_features_own_activations(study: Analysed) -> None:
    """The backup is silent on every clean prompt: its own activations are those with which it wakes."""
    backup = study.planted.backup
    woken = {
        layer: [
            a
            for (a,) in study.sql(
                "select activation from reactivations join waking_passes using (ablation_id) "
                f"where control is null and layer = {layer} and feature_id = {backup}"
            )
        ]
        for layer in (4, 5)
    }
    rows = study.sql(
        "select distinct level, layer, value from clamps join ablations using (ablation_id) join feature_sets using (set_id)"
    )
    assert len(rows) == 2 * 3
    for level, layer, value in rows:
        assert value == pytest.approx(np.quantile(woken[layer], min(level, 1)) * max(level, 1), rel=5e-4), "four digits"
    (held,) = study.sql(
        "select distinct value from feature_sets where value > 0 and value in (select value from feature_sets "
        "join ablations using (set_id) where method = 'clamp_scaled') order by value limit 1"
    )
    assert 0 < held[0] <= 2 * max(max(values) for values in woken.values())


def test_a_feature_that_fires_has_the_quantiles_of_what_it_does_off_bos(study: Analysed) -> None:
    (row,) = study.sql(
        "select sae_id, feature_id from critical_features where n_tokens > 0 "
        "group by all order by count(*) desc, sae_id, feature_id limit 1"
    )
    with study.connect() as con:
        fired = con.execute(
            "select activation from activations join tokens using (prompt_id, pos) where sae_id = ? and feature_id = ? "
            "and role <> 'bos'",
            list(row),
        ).fetchnumpy()["activation"]
        for level in (0.25, 1.0, 1.5):
            asked = {"sae_ids": [row[0]], "feature_ids": [row[1]], "level": level}
            ((*_, value),) = con.execute(queries.step("own_levels"), asked).fetchall()
            assert value == pytest.approx(np.quantile(fired, min(level, 1)) * max(level, 1), rel=5e-4), "four digits"
        assert not con.execute(
            queries.step("own_levels"), {"sae_ids": [row[0]], "feature_ids": [study.planted.dead[0]], "level": 1.0}
        ).fetchall()


def test_answers_are_read_whole_where_the_oracle_goes_by_the_first_token(study: Analysed) -> None:
    """A "Sure, but I cannot" is refused by phrases and answered by first_token; the question shows the former."""
    with study.connect() as con:
        con.execute("create temp table said as from ablations")
        con.execute("create temp table real as from verdicts")
        con.execute(
            "create temp view verdicts as select * replace (if(judge = 'first_token', false, true) as refused) from real "
            "where ablation_id in (select ablation_id from said where method <> 'none')  or judge = 'first_token'"
        )
        assert set(queries.run(con, "steering").project("refused_first_token").fetchall()) == {(True,)}
        rows = queries.run(con, "steering_rates").project("n_prompts, n_refused, n_first").fetchall()
        assert set(rows) == {(6, 6, 0)}
        assert set(queries.run(con, "steering", judge="first_token").project("refused_first_token").fetchall()) == {(False,)}


def test_a_prompt_that_stops_makes_up_for_none_that_begins(study: Analysed) -> None:
    """Half of the control prompts are refused unmodified, and the other half while features are held."""
    with study.connect() as con:
        con.execute(
            "create temp table said as "
            "select ablation_id, (prompt_id // 2) % 2 = if(method = 'none', 0, 1) as begins from ablations"
        )
        con.execute("create temp table real as from verdicts")
        con.execute(
            "create temp view verdicts as select v.* replace (begins as refused) from real as v join said using (ablation_id)"
        )
        rows = queries.run(con, "steering_rates").project("n_clean, n_refused, n_begun").fetchall()
        assert set(rows) == {(3, 3, 3)}


def test_nothing_is_a_finding_in_words(study: Analysed) -> None:
    with study.connect() as con:
        relation = queries.run(con, "steering_rates")
        rows = [dict(zip(relation.columns, row, strict=True)) for row in relation.fetchall()]
    assert len(rows) == 2 * 5
    at_first, at_all = clamping_sentences(rows)
    assert (
        "at the first token, at up to 2 times their largest activation, 2 features make no {control} prompt {shown}" in at_first
    )
    assert "at every token" in at_all
    assert "at most 6 of 6" in at_all
    assert clamping_sentences([]) == []
