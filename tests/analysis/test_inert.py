"""R8: which critical features are inert on their own prompt, and what is lost without them, against the literal passes."""

from itertools import groupby

import pytest

from tests.analysis.effects import Analysed
from tests.planted import Feature, ablate, prompt_ids


def sets_of(study: Analysed) -> dict[tuple[str, int], frozenset[Feature]]:
    """(text, start) -> minimal set"""
    rows = study.sql(
        "select text, draw, layer, feature_id from ablations join feature_sets using (set_id) join prompts using (prompt_id) "
        "where condition = 'minimal' and label = 'harmful' order by all"
    )
    return {key: frozenset((row[2], row[3]) for row in mine) for key, mine in groupby(rows, lambda row: (row[0], row[1]))}


def test_every_set_is_listed_with_what_fires(study: Analysed) -> None:
    found = study.sql(
        "select text, start, layer, feature_id, c.n_tokens, max_activation "
        "from critical_features as c join prompts using (prompt_id) where method = 'minimal'"
    )
    expected = sets_of(study)
    assert {(text, start): None for text, start, *_ in found}.keys() == expected.keys()
    assert len(found) == sum(map(len, expected.values()))
    for text, start, layer, feature_id, n_tokens, max_activation in found:
        assert (layer, feature_id) in expected[text, start]
        acts = ablate(study.loaded, prompt_ids(study.loaded, text), [()]).acts_bltf[0, layer, :, feature_id]
        assert n_tokens == int((acts > 0).sum())
        assert max_activation == (pytest.approx(float(acts.max()), rel=1e-4) if n_tokens else None)
        assert (n_tokens == 0) == (feature_id == study.planted.backup)


def test_counts_match_the_literal_passes(study: Analysed) -> None:
    n_inert, flips = 0, {"full": 0, "active": 0, "silent": 0}
    for (text, _), members in sets_of(study).items():
        silent = {f for f in members if f[1] == study.planted.backup}
        n_inert += len(silent)
        flipped = ablate(study.loaded, prompt_ids(study.loaded, text), [members, members - silent, silent]).flipped_b.tolist()
        for part, flip in zip(flips, flipped, strict=True):
            flips[part] += flip
    columns = "n_prompts, n_inert, unique_inert, flipped_full, flipped_active, flipped_silent, answer_changed"
    (row,) = [r[1:] for r in study.ask("inert", f"method, {columns}", judge="first_token", start=None) if r[0] == "minimal"]
    assert row == (6 * 12, n_inert, 2, flips["full"], flips["active"], flips["silent"], 0)
    assert flips["full"] == 72
    assert 0 < flips["active"] < 72
    assert flips["silent"] == 0


def test_ablating_what_is_zero_everywhere_leaves_the_prompts_pass_unchanged(study: Analysed) -> None:
    """The identity behind R13's second step, which taken literally drops every prompt."""
    rows = study.sql(
        "select s.p_refusal_token, n.p_refusal_token, s.first_token, n.first_token from ablations as s "
        "join ablations as n using (prompt_id) where s.condition = 'minimal_silent' and n.condition = 'none'"
    )
    assert len(rows) == 72
    for p_silent, p_none, first_silent, first_none in rows:
        assert p_silent == pytest.approx(p_none, abs=1e-6)
        assert first_silent == first_none
