"""What features write: logits of decoder rows, against the final norms and unembeddings of models, by hand."""

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from saelake import Subject, queries
from saelake.analysis.meaning.logits import N_TOKENS, logits_of, moments
from saelake.warehouse.catalog import connect
from tests.analysis.effects import Analysed
from tests.ingest.families import D_MODEL, make_family
from tests.ingest.tiny import word_tokenizer


def rms(rows_nd: torch.Tensor, gain_d: torch.Tensor, eps: float) -> torch.Tensor:
    return gain_d * rows_nd / (rows_nd.pow(2).mean(-1, keepdim=True) + eps).sqrt()


def centred(rows_nd: torch.Tensor, gain_d: torch.Tensor) -> torch.Tensor:
    """LayerNorm without its bias: that comes whatever the row."""
    off = rows_nd - rows_nd.mean(-1, keepdim=True)
    return gain_d * off / (off.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()


def literal(family: str, model: Any, rows_nd: torch.Tensor) -> torch.Tensor:
    head_vd = model.get_output_embeddings().weight
    if family == "GPT-2":
        return centred(rows_nd, model.transformer.ln_f.weight) @ head_vd.T
    if family == "OPT":
        return centred(rows_nd, model.model.decoder.final_layer_norm.weight) @ head_vd.T
    gain_d, eps = model.model.norm.weight, model.config.rms_norm_eps
    if family == "Llama":
        return rms(rows_nd, gain_d, eps) @ head_vd.T
    cap = model.config.final_logit_softcapping
    return cap * torch.tanh(rms(rows_nd, 1 + gain_d, eps) @ head_vd.T / cap)


@pytest.mark.parametrize("family", ["Llama", "Gemma 2", "GPT-2", "OPT"])
def test_logits_are_the_final_norm_and_the_unembedding_by_hand(family: str) -> None:
    model, tokenizer = make_family(family), word_tokenizer()
    subject = Subject(model, tokenizer, target_tokens=["I"])
    rows_nd = torch.randn(7, D_MODEL, generator=torch.Generator().manual_seed(1)) * torch.logspace(-2, 2, 7)[:, None]
    with torch.no_grad():
        torch.testing.assert_close(logits_of(subject, rows_nd), literal(family, model, rows_nd), atol=1e-4, rtol=1e-4)


@given(arrays(np.float32, (3, 40), elements=st.floats(-50, 50, width=32)))
def test_moments_are_scipy_s(logits_nv: np.ndarray) -> None:
    if (logits_nv.std(axis=1) < 1e-2).any():
        return
    found, exact = moments(torch.from_numpy(logits_nv)), logits_nv.astype(np.float64)
    np.testing.assert_allclose(found["mean"], exact.mean(axis=1), atol=1e-3)
    np.testing.assert_allclose(found["sd"], exact.std(axis=1), rtol=1e-3)
    np.testing.assert_allclose(found["skewness"], stats.skew(exact, axis=1), atol=1e-2)
    np.testing.assert_allclose(found["kurtosis"], stats.kurtosis(exact, axis=1), atol=1e-2, rtol=1e-2)


def test_every_feature_s_tokens_are_the_highest_and_lowest_of_the_literal_logits(study: Analysed) -> None:
    model, tokenizer = study.loaded.model, study.loaded.tokenizer
    known = len(tokenizer)
    rows = study.sql(
        "select layer, feature_id, promotes, list(token_id order by rank), list(logit order by rank), list(token order by rank) "
        "from feature_logits group by all"
    )
    alive = {(layer, i) for layer, sae in enumerate(study.loaded.saes) for i in sae.W_dec.any(dim=1).nonzero()[:, 0].tolist()}
    assert {row[:3] for row in rows} == {(*at, side) for at, side in product(alive, (True, False))}
    for layer, feature_id, promotes, token_ids, logits, tokens in rows:
        with torch.no_grad():
            literal_v = model.lm_head(model.model.norm(study.loaded.saes[layer].W_dec[feature_id][None]))[0, :known]
        best = literal_v.topk(N_TOKENS, largest=promotes).values
        torch.testing.assert_close(torch.tensor(logits), best, atol=1e-3, rtol=1e-4)
        # Ranked as the literal logits are, but for ties.
        torch.testing.assert_close(literal_v[token_ids], best, atol=1e-3, rtol=1e-4)
        assert tokens == [tokenizer.convert_ids_to_tokens(i) for i in token_ids]


def test_the_primary_and_its_backup_write_the_refusal(study: Analysed) -> None:
    with connect(study.lake) as con:
        rows = queries.run(con, "logits", features="4:5,4:17", top=1).project("feature_id, rank, promoted").fetchall()
        assert rows == [(5, 1, "I"), (17, 1, "I")]
        writers = queries.run(con, "promoting", token="i ", limit=None).filter("rank = 1 and layer = 4").project("feature_id")
        assert {row[0] for row in writers.fetchall()} >= {5, 17}
        assert (
            not queries.run(con, "promoting", token="I", suppressed=True).filter("feature_id in (5, 17) and rank = 1").fetchall()
        )
        critical = queries.run(con, "critical_logits", top=1).project("layer, feature_id, n_prompts, promoted").fetchall()
        found = queries.run(con, "critical_features").filter("method = 'minimal'")
        counted = found.aggregate("layer, feature_id, count(distinct prompt_id) as n").fetchall()
    assert {row[:3] for row in critical} == set(counted)
    assert {row[3] for row in critical} == {"I"}


def test_adding_prompts_does_not_compute_them_again(study: Analysed, tmp_path: Path) -> None:
    with connect(study.lake) as con:
        assert con.execute("select parents from runs where stage = 'logits'").fetchall() == [([],)]
