"""What the engine does once, drops, or does in smaller parts, without a change of its answers."""

from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from saelake.analysis.engine import edits, memory, prefix
from saelake.analysis.engine.edits import GatheredEdit, PooledEdit, RowFeatures, feature_edit
from saelake.analysis.engine.generation import end_token_ids
from saelake.analysis.engine.memory import Batches, Size, free_bytes
from saelake.analysis.engine.requests import FeatureSet, Request
from saelake.analysis.engine.slices import KEPT, SliceCache
from saelake.warehouse.errors import UserError
from tests.analysis.engines import TEXTS, some_request, some_set, tiny
from tests.analysis.literal import literal_answer
from tests.ingest.tiny import D_MODEL, N_LAYERS


def test_rows_that_have_ended_leave_the_batch_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    bench, rng = tiny("llama"), np.random.default_rng(5)
    requests = [Request(i % len(TEXTS), some_set(rng, 20, clamp=True), positions=(1, 2) if i % 3 else None) for i in range(9)]
    free = bench.engine().answer(requests, 8).token_ids
    ends = sorted({tokens[i % 5 + 1] for i, tokens in enumerate(free)})
    monkeypatch.setattr(bench.subject.model.generation_config, "eos_token_id", ends)
    widths = []
    with bench.subject.resid_post(0, lambda resid: widths.append(tuple(resid.shape[:2]))):
        answers = bench.engine().answer(requests, max_new_tokens=8)
    decoding = [rows for rows, tokens in widths if tokens == 1]
    assert decoding[0] > decoding[-1], "no row was dropped"
    assert answers.token_ids == [literal_answer(bench.subject, bench.saes, bench.prompts[r.prompt], r, 8) for r in requests]


def test_what_is_kept_of_prompts_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = tiny("llama")
    requests = [Request(i, FeatureSet.of([2], [3])) for i in range(len(bench.prompts))]
    whole = bench.engine().next_token(requests).p_target
    monkeypatch.setattr(prefix, "MOST_KEPT", 1)
    engine, kept = bench.engine(), []
    for request in requests:
        assert engine.next_token([request]).p_target == pytest.approx(whole[request.prompt], abs=1e-6)
        kept.append(len(engine._prefix._resid_td))
    assert kept == [1] * len(requests)


def test_the_part_below_is_read_once_a_prompt_for_answers_too() -> None:
    bench = tiny("llama")
    requests = [Request(i % 2, FeatureSet.of([2], [i])) for i in range(10)]
    rows = []
    below, above = (bench.subject.blocks[n].get_submodule("self_attn") for n in (0, 2))
    hooks = [m.register_forward_hook(lambda m, _, out: rows.append((m is below, *out[0].shape[:2]))) for m in (below, above)]
    try:
        bench.engine().answer(requests, max_new_tokens=1)
    finally:
        for hook in hooks:
            hook.remove()
    # Nothing is above the resumed layer here: block 2 is touched, so the clean pass through it is the only one.
    assert [n for is_below, n, _ in rows if is_below] == [2]
    assert [n for is_below, n, _ in rows if not is_below] == [2]


def test_the_prefix_is_computed_once_a_prompt() -> None:
    bench, engine = tiny("llama"), tiny("llama").engine()
    requests = [Request(0, FeatureSet.of([2], [i])) for i in range(5)]
    engine.next_token(requests)
    calls = []
    with bench.subject.resid_post(0, lambda resid: calls.append(resid.shape)), bench.subject.resid_post(2, lambda resid: None):
        engine.next_token(requests)
    handed_over = [shape for shape in calls if shape[-1] == D_MODEL]
    # Block 0 is passed through without being computed, and no clean pass is run again.
    assert len(handed_over) == 1


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        MemoryError(),
    ],
)
def test_memory_that_runs_out_makes_batches_smaller(error: Exception) -> None:
    bench, rng = tiny("llama"), np.random.default_rng(7)
    requests = [some_request(rng) for _ in range(12)]
    expected, engine = bench.engine().log_probabilities(requests), bench.engine()
    watched = dict.fromkeys(range(N_LAYERS))
    sizes = []

    def small_memory(resid_btd: torch.Tensor) -> None:
        sizes.append(len(resid_btd))
        if len(resid_btd) > 2:
            raise error

    with bench.subject.resid_post(N_LAYERS - 1, small_memory):
        torch.testing.assert_close(engine.log_probabilities(requests), expected, atol=1e-4, rtol=1e-4)
        n_failed = sum(size > 2 for size in sizes)
        answers, seen = engine.answer(requests, 4), engine.activations(requests, watched)
    assert n_failed > 0
    assert sum(size > 2 for size in sizes) == n_failed, "what did not fit once was tried again"
    assert answers.token_ids == bench.engine().answer(requests, 4).token_ids
    np.testing.assert_allclose(seen.activation, bench.engine().activations(requests, watched).activation, atol=1e-4)


def test_a_prompt_that_does_not_fit_by_itself_is_the_users_error() -> None:
    bench = tiny("llama")

    def no_memory(_resid_btd: torch.Tensor) -> None:
        raise torch.OutOfMemoryError

    with bench.subject.resid_post(0, no_memory), pytest.raises(UserError, match="does not fit"):
        bench.engine().next_token([Request(0), Request(1)])


def test_requests_that_are_answered_share_more_of_a_pass_unless_its_size_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(memory.MOST_TOKENS, "cpu", 20)

    def rows(n_new: int, most_tokens: int | None) -> list[int]:
        batches = Batches(tiny("llama").subject, most_tokens)
        return [part.stop - part.start for part, _ in batches.run([Size(5, n_new)] * 16, lambda part: None)]

    assert rows(0, None) == [4] * 4
    assert rows(3, None) == [8] * 2
    assert rows(3, 20) == [4] * 4


def test_other_errors_of_a_pass_are_not_taken_for_short_memory() -> None:
    bench = tiny("llama")

    def broken(_resid_btd: torch.Tensor) -> None:
        raise RuntimeError("shapes cannot be multiplied")

    with bench.subject.resid_post(0, broken), pytest.raises(RuntimeError, match="shapes"):
        bench.engine().next_token([Request(0)])


def test_batches_grow_with_free_memory_and_shrink_with_what_is_held() -> None:
    subject = tiny("llama").subject
    batches = Batches(subject, most_tokens=10**9)
    small, large = Size(20), Size(20, n_new=50, n_features=900, widest=300)

    def fitting(size: Size, n_bytes: float) -> int:
        return batches._n_fitting([size] * 10_000, n_bytes)

    assert fitting(small, 1) == 1, "one request is always tried"
    assert fitting(small, 10_000_000) < fitting(small, 20_000_000)
    assert fitting(large, 10_000_000) < fitting(small, 10_000_000)
    assert free_bytes(torch.device("cpu")) > 0


def test_a_slice_is_cut_once_for_as_long_as_it_is_asked_for() -> None:
    slices = SliceCache(tiny("llama").saes[0])
    first = slices.of(np.array([1, 5, 7]))
    assert slices.of(np.array([1, 5, 7])) is first
    for i in range(KEPT):
        slices.of(np.array([i]))
    assert slices.of(np.array([1, 5, 7])) is not first


def test_what_a_request_takes_by_hand() -> None:
    """d = 32, an MLP of 48, 3 layers, 4 heads and 2 key heads of 8, all in float32."""
    subject = tiny("llama").subject
    batches = Batches(subject, most_tokens=12)
    pair = 2 * 4 * (4 + 4) if subject.model.config._attn_implementation == "eager" else 4
    layer, cache, logits = 4 * (8 * 32 + 3 * 48), 2 * 4 * (3 + 1) * 2 * 8, 3 * 4 * subject.n_vocab
    edits = 4 * (3 * 10 * 5 + 2 * 10 * 32 + 2 * 32 * 6)
    assert batches._bytes(Size(10, n_features=6, widest=5)) == 10 * layer + 100 * pair + edits + logits
    assert batches._bytes(Size(10, 4, 6, 5)) == 10 * layer + 100 * pair + (10 + 4) * cache + edits + logits
    assert batches._n_fitting([Size(4), Size(5), Size(6)], float("inf")) == 2, "three of six would be 18 padded tokens"
    assert batches._n_fitting([Size(4), Size(6), Size(7)], float("inf")) == 2, "two of six are twelve"
    most = 2 * batches._bytes(Size(5))
    assert batches._n_fitting([Size(1), Size(5)], most) == 2
    assert batches._n_fitting([Size(1), Size(5)], most - 1) == 1


def test_a_pass_in_bfloat16_with_attention_that_is_not_fused_by_hand() -> None:
    """d = 32, an MLP of 48, 3 layers, 4 heads and 2 key heads of 8, in two bytes; scores in two, their softmax in four."""
    subject = tiny("llama").subject
    config = deepcopy(subject.model.config)
    config._attn_implementation = "eager"
    fields = {"d_model": 32, "dtype": torch.bfloat16, "n_layers": 3, "n_vocab": 100, "model": SimpleNamespace(config=config)}
    given: Any = SimpleNamespace(**fields)
    assert memory._Shape.of(given) == (32, 2 * (8 * 32 + 3 * 48), 2 * 4 * (2 + 4), 2 * 2 * (3 + 1) * 2 * 8, 3 * 4 * 100)


def test_parts_that_do_not_fit_are_halved() -> None:
    batches, size = Batches(tiny("llama").subject, most_tokens=40), Size(5)
    tried: list[int] = []

    def compute(part: slice) -> int:
        tried.append(part.stop - part.start)
        if tried[-1] > 2:
            raise MemoryError
        return part.start

    assert [start for _, start in batches.run([size] * 9, compute)] == [0, 2, 4, 6, 8]
    assert tried == [8, 4, 2, 2, 2, 2, 1]


def test_free_memory_is_what_torch_holds_in_reserve_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (100, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _device: 50)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _device: 20)
    assert free_bytes(torch.device("cuda")) == 130
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 100)
    monkeypatch.setattr(torch.mps, "current_allocated_memory", lambda: 30)
    assert free_bytes(torch.device("mps")) == 70


def test_free_memory_of_a_container_is_what_is_left_of_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "Path", lambda name: tmp_path / str(name).lstrip("/"))
    assert free_bytes(torch.device("cpu")) == memory.UNKNOWN, "neither is known"
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9 kB\nMemFree: 8 kB\nMemAvailable:   7 kB\n")
    assert free_bytes(torch.device("cpu")) == 7 * 1024
    folder = tmp_path / "sys/fs/cgroup"
    folder.mkdir(parents=True)
    (folder / "memory.max").write_text("5000\n")
    (folder / "memory.current").write_text("2000\n")
    assert free_bytes(torch.device("cpu")) == 3000
    (folder / "memory.max").write_text("max\n")
    assert free_bytes(torch.device("cpu")) == 7 * 1024


def test_rows_gather_their_own_features_where_that_costs_less(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three rows of two features each, six in all: pooled, six a token; gathered, two a token and themselves."""
    monkeypatch.setattr(edits, "GATHER_TOKENS", 20)
    slices = SliceCache(tiny("llama").saes[0])
    held = RowFeatures.of([FeatureSet.of([0, 0], [i, i + 1]) for i in (0, 2, 4)])
    assert isinstance(feature_edit(slices, held, 10), PooledEdit), "60 of 60"
    assert isinstance(feature_edit(slices, held, 11), GatheredEdit), "66 of 62"
    full = SliceCache(tiny("llama", "topk").saes[0])
    assert isinstance(feature_edit(full, held, 11), PooledEdit), "no latent of a TopK SAE stands alone"


@pytest.mark.parametrize(("declared", "expected"), [(7, [2, 7]), ([9, 7], [2, 7, 9]), (None, [2]), ([2], [2])])
def test_an_answer_ends_with_the_models_tokens_and_the_tokenizers(declared: Any, expected: list[int]) -> None:
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=declared))
    subject: Any = SimpleNamespace(model=model, tokenizer=SimpleNamespace(eos_token_id=2))
    assert end_token_ids(subject) == expected
    subject.tokenizer.eos_token_id = None
    assert end_token_ids(subject) == [i for i in expected if i != 2 or declared == [2]]
