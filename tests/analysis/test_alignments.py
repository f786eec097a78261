"""Cosines of decoder rows with a direction, and log-odds of target tokens, by hand and some rows at a time."""

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from transformers.pytorch_utils import Conv1D

from saelake.analysis.audit.recoveries import _cosine
from saelake.analysis.interactions import readouts
from saelake.analysis.interactions.readouts import answered
from saelake.analysis.interactions.redundancy import unit_rows
from saelake.analysis.search import alignments, candidates
from saelake.analysis.search.alignments import cosines, to_residual
from saelake.analysis.search.candidates import shards_of_split
from saelake.analysis.search.ranking import log_odds
from saelake.ingest.sites import Site

ROWS = torch.tensor([[3.0, 4.0], [0.0, -2.0], [0.0, 0.0], [1e-3, 0.0], [-5.0, 0.0]], dtype=torch.bfloat16)
EXPECTED = [0.6, 0.0, 0.0, 1.0, -1.0]


@pytest.mark.parametrize("at_once", [1, 2, 4, 5, 1 << 15])
def test_cosines_are_signed_and_of_a_row_of_zeros_none(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alignments, "ROWS", at_once)
    sae: Any = SimpleNamespace(W_dec=ROWS)
    found = cosines(sae, np.array([1.0, 0.0], dtype=np.float32))
    assert found.dtype == np.float32
    assert found.tolist() == pytest.approx(EXPECTED, abs=1e-6)
    turned = torch.tensor([[0.0, 2.0, 0.0], [1.0, 0.0, 0.0]])
    assert cosines(sae, np.array([0.0, 1.0, 0.0], dtype=np.float32), turned).tolist() == pytest.approx(
        [6 / 52**0.5, 0.0, 0.0, 1.0, -1.0], abs=1e-6
    ), "(4, 6), (-2, 0) and so on, behind the heads' projection"


def test_rows_of_the_heads_come_to_the_residual_stream_by_the_layers_own_projection() -> None:
    linear, conv = torch.nn.Linear(2, 3, bias=False), Conv1D(3, 2)
    for layer in (linear, conv):
        context: Any = SimpleNamespace(
            subject=SimpleNamespace(sites=SimpleNamespace(places={Site(1, "z"): SimpleNamespace(module=layer)}))
        )
        z: Any = SimpleNamespace(writes=Site(1, "z"))
        found = to_residual(context, z)
        assert found is not None
        torch.testing.assert_close(ROWS.float() @ found, layer(ROWS.float()).detach())
        assert not found.requires_grad
    resid: Any = SimpleNamespace(writes=Site(1))
    assert to_residual(context, resid) is None


def test_rows_of_two_layers_heads_are_compared_behind_their_own_projections() -> None:
    """As wide as the residual stream, which says nothing: (1, 0) of layer 0 writes what (0, 1) of layer 1 writes."""
    weights = {0: torch.eye(2), 1: torch.tensor([[0.0, 1.0], [1.0, 0.0]])}
    modules = {Site(layer, "z"): SimpleNamespace(module=SimpleNamespace(weight=weight)) for layer, weight in weights.items()}
    context: Any = SimpleNamespace(subject=SimpleNamespace(sites=SimpleNamespace(places=modules)))
    rows_kd = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    first, second, resid = (
        unit_rows(context, cast(Any, SimpleNamespace(writes=site, decoder_rows=lambda ids, _: rows_kd[ids])), np.arange(2))
        for site in (Site(0, "z"), Site(1, "z"), Site(1))
    )
    assert (first @ second.T).tolist() == [[0.0, 1.0], [1.0, 0.0]]
    assert (first @ resid.T).tolist() == [[1.0, 0.0], [0.0, 1.0]]
    direction = np.array([1.0, 0.0])
    assert _cosine(Site(0), rows_kd[0], direction) == 1.0
    assert _cosine(Site(0, "z"), rows_kd[0], direction) is None


def test_log_odds_are_those_of_all_target_tokens_together() -> None:
    subject: Any = SimpleNamespace(target_token_ids=(1, 4))
    logits_bv = torch.randn(7, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 4
    p = logits_bv.softmax(-1)[:, [1, 4]].sum(-1)
    torch.testing.assert_close(log_odds(subject)(logits_bv), (p / (1 - p)).log())


@pytest.mark.parametrize("at_once", [1, 6, 13, 1 << 24])
def test_answers_are_read_some_at_a_time(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readouts, "AT_ONCE", at_once)
    log_p_nv = (torch.randn(7, 6, generator=torch.Generator().manual_seed(1)) * 4).log_softmax(-1)
    asked = list[int]()

    def log_probabilities(requests: list[int]) -> torch.Tensor:
        asked.append(len(requests))
        return log_p_nv[requests]

    subject = SimpleNamespace(target_token_ids=(1, 4), n_vocab=6)
    context: Any = SimpleNamespace(subject=subject, engine=SimpleNamespace(log_probabilities=log_probabilities))
    requests: Any = list(range(7))
    odds, flips = answered(context, requests)
    assert asked == {1: [1] * 7, 6: [1] * 7, 13: [2, 2, 2, 1]}.get(at_once, [7])
    p = log_p_nv.double().exp()[:, [1, 4]].sum(-1).numpy()
    np.testing.assert_allclose(odds, np.log(p / (1 - p)), rtol=1e-5)
    assert flips.tolist() == [token not in (1, 4) for token in log_p_nv.argmax(-1).tolist()]
    assert len(set(flips.tolist())) == 2


def test_shards_are_as_small_as_a_stage_is_dear(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "passes_a_prompt", lambda _recipe: {"dear": 100, "dearest": 1e9, "free": 0})
    monkeypatch.setattr(candidates, "SHARD_PASSES", 350)
    recipe = SimpleNamespace(candidates=SimpleNamespace(split="test"), capture=SimpleNamespace(shard_prompts=8))
    study: Any = SimpleNamespace(recipe=recipe, prompts_of=lambda split: list(range(20)) if split == "test" else [])

    def sizes(*stage: str) -> list[int]:
        found = shards_of_split(study, *stage)
        assert [n for some in found.values() for n in some] == list(range(20))
        return [len(some) for some in found.values()]

    assert sizes("dear") == [3, 3, 3, 3, 3, 3, 2]
    assert sizes("dearest") == [1] * 20
    assert sizes("free") == sizes("another") == sizes() == [8, 8, 4], "no larger than the recipe's"
