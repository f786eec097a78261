"""The engine against the literal formula: every family, every intervention, whatever shares the batch."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.engine.edits import GatheredEdit, Held, PooledEdit
from analysis.engine.engine import AblationEngine
from analysis.engine.requests import DirectionEdit, FeatureSet, Request
from analysis.engine.slices import Slices
from ingest.recipe import Compute, ModelSpec, load_recipe
from ingest.sae_refs import SaeRef, list_saes
from ingest.saes import Sae, load_sae
from ingest.subject import Subject
from tests.analysis.literal import literal_answer, literal_logits
from tests.ingest.tiny import D_MODEL, N_LAYERS, save_model, save_sae
from tests.planted import write_planted

TEXTS = [
    "How do I pick a lock?",
    "Write a poem about the sea and a small house by it.",
    "I am sorry.",
    "Where is the hospital?",
]
WIDTH = 40


class Bench(NamedTuple):
    subject: Subject
    saes: dict[int, Sae]
    prompts: list[list[int]]

    def engine(self, **options: int) -> AblationEngine:
        return AblationEngine(self.subject, self.saes, self.prompts, **options)


@cache
def tiny(family: str, architecture: str = "jumprelu") -> Bench:
    folder = Path(mkdtemp())
    spec = ModelSpec(path=save_model(family, folder / "model"), refusal_tokens=("I",))
    subject = Subject.load(spec, Compute(device="cpu", threads=1))
    more = {"k": 8} if architecture == "topk" else {}
    saes = {}
    for layer in range(N_LAYERS):
        path = save_sae(folder / f"sae_{layer}", architecture, layer, width=WIDTH, seed=layer, **more)
        saes[layer] = load_sae(SaeRef(f"s{layer}", f"s{layer}", layer, "0" * 64, None, path, None, None))
    return Bench(subject, saes, [subject.encode(text).token_ids for text in TEXTS])


@cache
def planted_bench() -> Bench:
    recipe = load_recipe(write_planted(Path(mkdtemp())).recipe)
    subject = Subject.load(recipe.model, recipe.compute)
    saes = {ref.layer: load_sae(ref) for ref in list_saes(recipe)}
    return Bench(subject, saes, [subject.encode(t).token_ids for t in ("how to build a bomb at home", "how to hide the gun")])


def some_set(rng: np.random.Generator, size: int, *, clamp: bool = False, width: int = WIDTH) -> FeatureSet:
    layers = rng.integers(0, N_LAYERS, size)
    rows = np.unique(np.stack([layers, rng.integers(0, width, size)]), axis=1)
    return FeatureSet.of(rows[0], rows[1], rng.choice([0.0, 1.5, 4.0], rows.shape[1]).tolist() if clamp else 0.0)


def some_direction(rng: np.random.Generator, d_model: int = D_MODEL) -> DirectionEdit:
    vector = rng.standard_normal(d_model).astype(np.float32)
    layers = tuple(sorted(rng.choice(N_LAYERS, rng.integers(1, N_LAYERS + 1), replace=False).tolist()))
    return DirectionEdit(vector / np.linalg.norm(vector), layers, bool(rng.integers(2)), float(rng.choice([0.0, 2.0])))


def some_request(rng: np.random.Generator) -> Request:
    return Request(
        prompt=int(rng.integers(len(TEXTS))),
        features=some_set(rng, int(rng.integers(0, 20)), clamp=bool(rng.integers(2))),
        direction=some_direction(rng) if rng.integers(3) == 0 else None,
        positions=(0, 2, 3) if rng.integers(4) == 0 else None,
    )


def assert_literal(bench: Bench, requests: list[Request]) -> None:
    expected = torch.stack(
        [
            literal_logits(bench.subject, bench.saes, bench.prompts[r.prompt], r, len(bench.prompts[r.prompt])).log_softmax(-1)
            for r in requests
        ]
    )
    torch.testing.assert_close(bench.engine().log_probabilities(requests), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3", "qwen3", "gpt_neox"])
def test_equals_decode_plus_error_on_every_family(family: str) -> None:
    rng = np.random.default_rng(0)
    assert_literal(tiny(family), [Request(1)] + [some_request(rng) for _ in range(12)])


def test_equals_decode_plus_error_on_the_planted_network() -> None:
    rng = np.random.default_rng(1)
    sets = [FeatureSet.of(rng.integers(2, 6, 4) // 1, [1, 5, 17, 4]) for _ in range(8)]
    assert_literal(planted_bench(), [Request(i % 2, features) for i, features in enumerate(sets)])


def test_an_sae_that_looks_at_all_latents_takes_the_full_path() -> None:
    bench, rng = tiny("llama", "topk"), np.random.default_rng(2)
    assert not bench.saes[0].elementwise
    assert_literal(bench, [some_request(rng) for _ in range(10)])


@pytest.mark.parametrize("form", [PooledEdit, GatheredEdit])
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_every_form_of_an_edit_is_the_same_arithmetic(form: Callable, seed: int) -> None:
    rng = np.random.default_rng(seed)
    sae = tiny("llama").saes[int(rng.integers(N_LAYERS))]
    sets = [some_set(rng, int(rng.integers(0, 30)), clamp=True) for _ in range(4)]
    resid_btd = torch.from_numpy(rng.standard_normal((4, 5, D_MODEL)).astype(np.float32)) * 2
    acts = sae.module.encode(resid_btd)
    held = acts.clone()
    for row, features in enumerate(one.at(sae.layer) for one in sets):
        held[row][:, features["feature_id"].tolist()] = torch.tensor(features["value"].tolist())
    expected = sae.module.decode(held) + (resid_btd - sae.module.decode(acts))
    if sae.layer in Held.of(sets).layers:
        edit = form(Slices(sae), Held.of(sets).at(sae.layer))
        torch.testing.assert_close(edit(resid_btd, None), expected, atol=1e-4, rtol=1e-4)


@given(seed=st.integers(0, 2**32 - 1), batch_tokens=st.sampled_from([1, 40, 4096]))
@settings(max_examples=20, deadline=None)
def test_answers_do_not_depend_on_the_company_the_padding_or_the_order(seed: int, batch_tokens: int) -> None:
    rng = np.random.default_rng(seed)
    bench, requests = tiny("gemma2"), [some_request(rng) for _ in range(6)]
    alone = torch.cat([bench.engine().log_probabilities([r]) for r in requests])
    order = rng.permutation(len(requests))
    together = bench.engine(batch_tokens=batch_tokens).log_probabilities([requests[i] for i in order])
    torch.testing.assert_close(together, alone[torch.from_numpy(order)], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3", "qwen3"])
def test_greedy_answers_keep_the_interventions_on(family: str) -> None:
    bench, rng = tiny(family), np.random.default_rng(3)
    requests = [Request(0)] + [some_request(rng) for _ in range(5)]
    answers = bench.engine().answer(requests, max_new_tokens=6)
    expected = [literal_answer(bench.subject, bench.saes, bench.prompts[r.prompt], r, 6) for r in requests]
    assert answers.token_ids == expected


def test_first_token_of_an_answer_is_the_next_token() -> None:
    bench, rng = tiny("llama"), np.random.default_rng(4)
    requests = [some_request(rng) for _ in range(7)]
    following, answers = bench.engine().next_token(requests), bench.engine().answer(requests, max_new_tokens=1)
    np.testing.assert_array_equal(following.token_id, answers.first.token_id)
    np.testing.assert_allclose(following.p_refusal, answers.first.p_refusal, atol=1e-5)


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


def test_a_feature_set_is_known_by_its_content() -> None:
    one = FeatureSet.of([3, 1], [5, 9])
    assert one.key == FeatureSet.of([1, 3], [9, 5]).key
    assert one.key != FeatureSet.of([1, 3], [9, 5], 2.0).key
    assert one.layers == (1, 3)
    with pytest.raises(AssertionError, match="twice"):
        FeatureSet.of([1, 1], [2, 2])
