"""The engine against the literal formula: every family, every intervention, whatever shares the batch."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from saelake.analysis.engine.edits import GatheredEdit, PooledEdit, RowFeatures, at_one_site
from saelake.analysis.engine.engine import AblationEngine, NotFinite
from saelake.analysis.engine.requests import (
    NO_FEATURES,
    DirectionEdit,
    FeatureSet,
    Intervention,
    Request,
    request_of,
    with_answer,
)
from saelake.analysis.engine.slices import SliceCache
from saelake.ingest.saes.sae import Sae
from saelake.ingest.sites import Site
from saelake.warehouse.errors import UserError
from tests.analysis.engines import TEXTS, WIDTH, Bench, assert_literal, planted_bench, some_request, some_set, tiny, tiny_subject
from tests.analysis.literal import literal_answer, literal_logits
from tests.ingest.tiny import D_MODEL, N_LAYERS


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3", "qwen3", "gpt_neox"])
def test_equals_decode_plus_error_on_every_family(family: str) -> None:
    rng = np.random.default_rng(0)
    assert_literal(tiny(family), [Request(1)] + [some_request(rng) for _ in range(12)])


@pytest.mark.parametrize("architecture", ["standard", "gated"])
def test_equals_decode_plus_error_with_every_kind_of_sae(architecture: str) -> None:
    rng = np.random.default_rng(5)
    assert_literal(tiny("llama", architecture), [some_request(rng) for _ in range(8)])


def test_equals_decode_plus_error_on_the_planted_network(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    sets = [FeatureSet.of(rng.integers(2, 6, 4), [1, 5, 17, 4]) for _ in range(8)]
    assert_literal(planted_bench(tmp_path), [Request(i % 2, features) for i, features in enumerate(sets)])


def test_an_sae_that_looks_at_all_latents_takes_the_full_path() -> None:
    bench, rng = tiny("llama", "topk"), np.random.default_rng(2)
    assert not bench.saes[0].elementwise
    with pytest.warns(UserWarning, match="TopK"):
        bench.engine()
    assert_literal(bench, [some_request(rng) for _ in range(10)])


@pytest.mark.parametrize("form", [PooledEdit, GatheredEdit])
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_every_form_of_an_edit_is_the_same_arithmetic(form: type[PooledEdit | GatheredEdit], seed: int) -> None:
    rng = np.random.default_rng(seed)
    sae = tiny("llama").saes[int(rng.integers(N_LAYERS))]
    sets = [some_set(rng, int(rng.integers(0, 30)), clamp=True) for _ in range(4)]
    resid_btd = torch.from_numpy(rng.standard_normal((4, 5, D_MODEL)).astype(np.float32)) * 2
    acts = sae.module.encode(resid_btd)
    held = acts.clone()
    for row, features in enumerate(one.at(sae.layer) for one in sets):
        held[row][:, features["feature_id"].tolist()] = torch.tensor(features["value"].tolist())
    expected = sae.module.decode(held) + (resid_btd - sae.module.decode(acts))
    assume(sae.layer in RowFeatures.of(sets).saes)
    edit = form(SliceCache(sae), RowFeatures.of(sets).at(sae.layer))
    torch.testing.assert_close(at_one_site(edit, resid_btd, None), expected, atol=1e-4, rtol=1e-4)


@given(seed=st.integers(0, 2**32 - 1), batch_tokens=st.sampled_from([1, 40, 4096]))
@settings(max_examples=20, deadline=None)
def test_answers_do_not_depend_on_the_company_the_padding_or_the_order(seed: int, batch_tokens: int) -> None:
    rng = np.random.default_rng(seed)
    bench, requests = tiny("gemma2"), [some_request(rng) for _ in range(6)]
    alone = torch.cat([bench.engine().log_probabilities([r]) for r in requests])
    order = rng.permutation(len(requests))
    together = bench.engine(batch_tokens=batch_tokens).log_probabilities([requests[i] for i in order])
    torch.testing.assert_close(together, alone[torch.from_numpy(order)], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3", "qwen3", "gpt_neox"])
def test_greedy_answers_keep_the_interventions_on(family: str) -> None:
    bench, rng = tiny(family), np.random.default_rng(3)
    requests = [Request(0)] + [some_request(rng) for _ in range(5)]
    answers = bench.engine().answer(requests, max_new_tokens=6)
    expected = [literal_answer(bench.subject, bench.saes, bench.prompts[r.prompt], r, 6) for r in requests]
    assert answers.token_ids == expected


def test_answers_longer_than_a_sliding_window_in_padded_batches() -> None:
    for family in ("gemma2", "gemma3"):
        bench, rng = tiny(family), np.random.default_rng(8)
        window = bench.subject.model.config.sliding_window
        lengths = sorted(map(len, bench.prompts))
        assert lengths[0] < lengths[-1], "rows of one length are not padded"
        assert lengths[0] > window, "prompts do not pass the window"
        requests = [Request(i % len(TEXTS), some_set(rng, 6)) for i in range(8)]
        answers = bench.engine().answer(requests, max_new_tokens=window + 2)
        expected = [literal_answer(bench.subject, bench.saes, bench.prompts[r.prompt], r, window + 2) for r in requests]
        assert answers.token_ids == expected


def test_first_token_of_an_answer_is_the_next_token() -> None:
    bench, rng = tiny("llama"), np.random.default_rng(4)
    requests = [some_request(rng) for _ in range(7)]
    following, answers = bench.engine().next_token(requests), bench.engine().answer(requests, max_new_tokens=1)
    np.testing.assert_array_equal(following.token_id, answers.first.token_id)
    np.testing.assert_allclose(following.p_target, answers.first.p_target, atol=1e-5)


@pytest.mark.parametrize("positions", [None, (0,), (1, 4, 5)])
@pytest.mark.parametrize("value", [0.0, 3.0])
def test_held_features_at_chosen_positions(value: float, positions: tuple[int, ...] | None) -> None:
    sets = [FeatureSet.of([0, 1, 1], [i, 2, 3 + i], value) for i in range(4)]
    assert_literal(tiny("gemma2"), [Request(i, one, positions=positions) for i, one in enumerate(sets)])


@pytest.mark.parametrize("positions", [None, (2, 3)])
@pytest.mark.parametrize(("project_out", "add"), [(True, 0.0), (False, 2.0), (True, 1.5)])
def test_a_direction_is_taken_out_or_put_in(project_out: bool, add: float, positions: tuple[int, ...] | None) -> None:
    vector = np.full(D_MODEL, D_MODEL**-0.5, dtype=np.float32)
    direction = DirectionEdit(vector, (Site(0), Site(2)), project_out, add)
    assert_literal(tiny("gemma2"), [Request(i, direction=direction, positions=positions) for i in range(4)])


def test_positions_beyond_the_prompt_mean_nothing() -> None:
    bench = tiny("llama")
    n = len(bench.prompts[0])
    held = FeatureSet.of([0, 1, 2], [1, 2, 3], 4.0)
    answers = bench.engine().answer([Request(0, held, positions=(n, n + 1)), Request(0)], 5)
    assert answers.token_ids[0] == answers.token_ids[1]


@pytest.mark.parametrize("architecture", ["jumprelu", "standard", "topk"])
def test_watched_activations_are_those_of_the_ablated_pass(architecture: str) -> None:
    bench, rng = tiny("gemma2", architecture), np.random.default_rng(6)
    requests = [Request(2), *(some_request(rng) for _ in range(8)), Request(2)]
    watched = {0: None, 1: np.array([3, 30, 4]), 2: np.arange(0, WIDTH, 2)}
    seen = bench.engine(batch_tokens=60).activations(requests, watched)
    for i, request in enumerate(requests):
        acts_tf: dict[int, torch.Tensor] = {}
        prompt = bench.prompts[request.prompt]
        literal_logits(bench.subject, bench.saes, prompt, request, len(prompt), acts_tf)
        for layer, ids in watched.items():
            ids = np.arange(WIDTH) if ids is None else ids
            mine = (seen.request == i) & (seen.sae == layer)
            dense_tf = torch.zeros(len(prompt), WIDTH)
            dense_tf[seen.pos[mine], seen.feature_id[mine]] = torch.from_numpy(seen.activation[mine])
            torch.testing.assert_close(dense_tf[:, ids], acts_tf[layer][:, ids].detach(), atol=1e-4, rtol=1e-4)
            assert set(seen.feature_id[mine].tolist()) <= set(ids.tolist())
    order = np.lexsort((seen.pos, seen.feature_id, seen.sae, seen.request))
    np.testing.assert_array_equal(order, np.arange(len(order)))


@pytest.mark.parametrize("wanted", [None, np.arange(0, WIDTH, 2)], ids=["all", "some"])
def test_a_value_that_no_residual_bears_is_said_whatever_is_watched(wanted: np.ndarray | None) -> None:
    held = Request(0, FeatureSet.of([0] * 8, list(range(8)), 3e38))
    with pytest.raises(
        UserError, match=r"the SAE \S+ gives activations that are not finite numbers: weights are damaged, or they or an edit"
    ):
        tiny("llama").engine().activations([held], {2: wanted})


def test_of_a_model_that_gives_no_probabilities_no_token_is_told(tmp_path: Path) -> None:
    subject, bench, told = tiny_subject("llama", tmp_path), tiny("llama"), list[object]()
    subject.model.model.norm.weight.data.fill_(torch.nan)
    engine = AblationEngine(subject, bench.saes, bench.prompts)
    with pytest.raises(NotFinite):
        engine.answer([Request(i) for i in range(len(bench.prompts))], 4, lambda *said: bool(told.append(said)))
    assert not told
    with pytest.raises(NotFinite):
        engine.next_token([Request(0)])


def test_watching_nothing_gives_no_rows() -> None:
    assert len(tiny("llama").engine().activations([Request(0)], {}).request) == 0
    assert len(tiny("llama").engine().activations([Request(0)], {1: np.array([], dtype=np.int64)}).request) == 0


@pytest.mark.parametrize("form", [PooledEdit, GatheredEdit])
def test_a_bfloat16_model_keeps_gates_in_float32(form: type[PooledEdit | GatheredEdit]) -> None:
    sae = tiny("llama").saes[1]
    resid_btd = torch.randn(3, 5, D_MODEL, generator=torch.Generator().manual_seed(0)).bfloat16() * 2
    acts = sae.module.encode(resid_btd.float())
    # Thresholds that bfloat16 cannot tell from the activations that they let through.
    threshold = acts.amax((0, 1)) * (1 - 2**-12)
    close = Sae.of(sae.description, sae.load()._replace(threshold=threshold))
    expected = (resid_btd.float() - (acts * (acts > threshold)) @ sae.W_dec).bfloat16()
    held = RowFeatures.of([FeatureSet.of([1] * WIDTH, range(WIDTH))] * 3).at(1)
    edited = at_one_site(form(SliceCache(close), held), resid_btd, None)
    assert edited.dtype == torch.bfloat16
    torch.testing.assert_close(edited, expected)
    assert not torch.equal(edited, resid_btd)


def test_a_bfloat16_model_answers(tmp_path: Path) -> None:
    bench = Bench(tiny_subject("gemma2", tmp_path, "bfloat16"), tiny("gemma2").saes, tiny("gemma2").prompts)
    rng = np.random.default_rng(9)
    requests = [some_request(rng) for _ in range(6)]
    half, full = bench.engine().log_probabilities(requests), tiny("gemma2").engine().log_probabilities(requests)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half.exp(), full.exp(), atol=0.05, rtol=0.2)
    answers = bench.engine().answer(requests, 4)
    np.testing.assert_allclose(answers.first.p_target, bench.engine().next_token(requests).p_target, atol=0.02)


def test_a_feature_set_is_known_by_its_content() -> None:
    one = FeatureSet.of([3, 1], [5, 9])
    assert one.key == FeatureSet.of([1, 3], [9, 5]).key
    assert one.key != FeatureSet.of([1, 3], [9, 5], 2.0).key
    assert one.saes == (1, 3)
    with pytest.raises(AssertionError, match="twice"):
        FeatureSet.of([1, 1], [2, 2])


def test_a_feature_set_by_hand() -> None:
    held = FeatureSet.of([2, 0, 2, 2], [9, 70_000, 1, 5], [0.0, 1.5, 2.0, 0.0])
    assert held.rows.tolist() == [(0, 70_000, 1.5), (2, 1, 2.0), (2, 5, 0.0), (2, 9, 0.0)]
    assert held.saes == (0, 2)
    assert held.widest == 3
    assert held.at(2)["feature_id"].tolist() == [1, 5, 9]
    assert (len(held.at(1)), NO_FEATURES.widest, NO_FEATURES.saes) == (0, 0, ())
    digest = hashlib.blake2b(held.rows.tobytes(), digest_size=8).digest()
    assert held.key == int.from_bytes(digest, "little") // 2


def test_an_intervention_stays_on_for_answers_if_it_acts_on_all_of_the_prompt_or_is_told_to() -> None:
    cases = {(None, None): True, (None, False): False, ((0,), None): False, ((0,), True): True}
    for (positions, answering), on_answers in cases.items():
        assert Intervention(positions=positions, answering=answering).on_answers == on_answers


def test_a_prompt_with_its_answer_is_asked_what_the_prompt_was() -> None:
    """Three tokens and two of an answer: where interventions acted on either, they act on these positions now."""
    some = FeatureSet.of([0], [1])
    cases = {(None, None): None, (None, False): (0, 1, 2), ((1,), None): (1,), ((0, 2), True): (0, 2, 3, 4), ((), True): (3, 4)}
    for (positions, answering), expected in cases.items():
        request = with_answer(Request(5, then=(Intervention(some, None, positions, answering),)), 9, 3, [7, 7])
        acting = [one for one in request.interventions if len(one.features)]
        assert [(one.positions, one.on_answers) for one in acting] == [(expected, False)]
        assert request.prompt == 9
    plain = request_of(4, (Intervention(some), Intervention(some, positions=(1,))))
    assert (plain.features, plain.positions, len(plain.then)) == (NO_FEATURES, None, 2), "what is told by nothing stays beside"
    first = request_of(4, (Intervention(some, None, (0,), False), Intervention(positions=(1,))))
    assert (first.features, first.positions, len(first.then)) == (some, (0,), 1), "the plain form, where it says the same"


def test_a_pass_resumes_below_the_lowest_site_that_is_touched() -> None:
    saes = tiny("llama").saes
    low, high = FeatureSet.of([0], [1]), FeatureSet.of([2], [1])
    along = DirectionEdit(np.zeros(D_MODEL, np.float32), (Site(1), Site(2)))
    asked = [Request(0, high), Request(0, high, along), Request(0, high, then=(Intervention(low),)), Request(0)]
    assert [one.below(saes) for one in asked] == [2, 1, 0, None]
