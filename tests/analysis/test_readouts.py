"""Read-outs: the direct effect of critical features on the answer's first token, against the literal network."""

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from saelake.analysis.interactions.readouts import unembedding_cosines
from tests.analysis.effects import Analysed
from tests.planted import Feature, ablate, prompt_ids


def test_cosines_are_the_largest_with_a_target_tokens_row() -> None:
    head = torch.tensor([[9.0, 9.0], [3.0, 4.0], [0.0, -0.5]])
    model = SimpleNamespace(get_output_embeddings=lambda: SimpleNamespace(weight=head))
    context: Any = SimpleNamespace(subject=SimpleNamespace(model=model, target_token_ids=(1, 2)))
    written = {(0, 1): np.array([2.0, 0.0]), (0, 2): np.array([0.0, -7.0]), (1, 1): np.array([-1.0, 0.0]), (1, 2): np.zeros(2)}
    assert unembedding_cosines(context, written) == pytest.approx({(0, 1): 0.6, (0, 2): 1.0, (1, 1): 0.0, (1, 2): 0.0})


def log_odds(study: Analysed, logits_v: torch.Tensor) -> float:
    p = logits_v.double().softmax(-1)[study.loaded.refusal_id]
    return float((p / (1 - p)).log())


def literal_direct(study: Analysed, text: str, members: Sequence[Feature]) -> tuple[float, float]:
    """Log-odds of the refusal token, clean and with what the members add at the last token taken out of the last residual."""
    outcome = ablate(study.loaded, prompt_ids(study.loaded, text), [(), members])
    last_d = outcome.resid_bltd[0, -1, -1].clone()
    model, removed_d = study.loaded.model, torch.zeros_like(last_d)
    for layer, feature_id in members:
        removed_d += outcome.acts_bltf[1, layer, -1, feature_id] * study.loaded.saes[layer].W_dec[feature_id]
    with torch.no_grad():
        clean, direct = (log_odds(study, model.lm_head(model.model.norm(one))) for one in (last_d, last_d - removed_d))
    return clean, direct


def test_direct_effects_are_those_of_the_literal_network(study: Analysed) -> None:
    rows = study.sql(
        "select text, layer, feature_id, clean, ablated, direct, flips, direct_flips from readouts join prompts using (prompt_id)"
    )
    assert (
        len({row[:3] for row in rows})
        == len(rows)
        == len(study.sql("select distinct prompt_id, layer, feature_id from critical_features"))
    )
    for text, layer, feature_id, clean, ablated, direct, flips, direct_flips in rows:
        literal = ablate(study.loaded, prompt_ids(study.loaded, text), [[(layer, feature_id)]])
        assert (clean, direct) == pytest.approx(literal_direct(study, text, [(layer, feature_id)]), abs=2e-3)
        assert 1 / (1 + math.exp(-ablated)) == pytest.approx(float(literal.p_refusal_b[0]), abs=1e-5)
        assert flips == bool(literal.flipped_b[0])
        assert direct_flips == (direct < 0)


def test_direct_effects_of_sets_take_out_what_fires_in_the_ablated_pass(study: Analysed) -> None:
    rows = study.sql(
        "select s.method, s.start, text, clean, direct, flips, list((layer, feature_id)) "
        "from readout_sets as s join prompts using (prompt_id) "
        "join critical_features using (prompt_id, method, start) group by all"
    )
    assert len(rows) > 10
    for *_, text, clean, direct, flips, members in rows:
        assert (clean, direct) == pytest.approx(literal_direct(study, text, members), abs=2e-3)
        assert flips


def test_the_planted_primary_is_a_read_out_and_says_so(study: Analysed) -> None:
    """The unembedding reads the primary itself. Where nothing stands in for it, its whole effect is direct; where a backup does,
    the network works against the direct effect; the backup does nothing while it sleeps.
    """
    primary, backup = study.planted.primary, study.planted.backup
    rows = {
        row[:2]: row[2:]
        for row in study.ask("readouts", "layer, feature_id, n_flip, n_direct_flip, effect, direct, share, is_readout")
    }
    assert set(rows) == {*((layer, primary) for layer in (2, 3, 4, 5)), (4, backup), (5, backup)}
    for layer in (4, 5):
        n_flip, n_direct_flip, *_, share, is_readout = rows[layer, primary]
        assert (n_flip, n_direct_flip) == (6, 6)
        assert share == pytest.approx(1, abs=0.02)
        assert is_readout
        assert rows[layer, backup] == (0, 0, pytest.approx(0, abs=1e-3), pytest.approx(0, abs=1e-3), None, False)
    for layer in (2, 3):
        n_flip, n_direct_flip, effect, direct, _, _ = rows[layer, primary]
        assert (n_flip, n_direct_flip) == (0, 6)
        assert 0 < effect < direct
    ((n_sets, n_flip, n_direct),) = study.ask("readout_sets", "n_sets, n_flip, n_direct_flip")
    assert n_sets == n_flip == n_direct == 72


def test_a_share_needs_an_effect(study: Analysed) -> None:
    shares = dict(study.ask("readouts", "(layer, feature_id), share", least=1e9))
    assert set(shares.values()) == {None}
    assert not any(is_readout for (is_readout,) in study.ask("readouts", "is_readout", share=9.0))
