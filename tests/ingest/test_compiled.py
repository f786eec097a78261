"""Compiled blocks: the same numbers as plain ones, and whoever looks inside a block, or keeps a cache, has the plain one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from saelake.analysis.engine.engine import AblationEngine
from saelake.analysis.engine.requests import FeatureSet, Request
from saelake.ingest.compiled import compile_blocks
from saelake.ingest.recipe import Compute, ModelSpec
from saelake.ingest.sites import Site
from saelake.ingest.subject import Subject
from saelake.warehouse.errors import UserError
from tests.analysis.engines import TEXTS, tiny, tiny_subject
from tests.ingest.families import make_family
from tests.ingest.tiny import save_model, word_tokenizer

FAMILY = "gemma2"
RUNS: list[int] = []
"""One entry for each run of something compiled."""


def backend(graph: torch.fx.GraphModule, _inputs: list[Tensor]) -> Callable[..., Any]:
    """A backend of torch.compile that counts, and computes what it was given."""

    def run(*args: Any) -> Any:
        RUNS.append(1)
        return graph.forward(*args)

    return run


@pytest.fixture
def subject(tmp_path: Path) -> Subject:
    return tiny_subject(FAMILY, tmp_path / "model")


def test_an_ablated_pass_is_the_same_and_leaves_the_blocks_compiled(subject: Subject) -> None:
    bench = tiny(FAMILY)
    requests = [Request(i, FeatureSet.of([layer, layer], [3, 5])) for i in range(len(bench.prompts)) for layer in bench.saes]
    engine = AblationEngine(subject, bench.saes, bench.prompts)
    plain = engine.next_token(requests)
    compile_blocks(subject.blocks, backend)
    compiled = [block.forward for block in subject.blocks]
    RUNS.clear()
    for one, other in zip(plain, engine.next_token(requests), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
    assert RUNS
    assert [block.forward for block in subject.blocks] == compiled


def test_what_is_read_inside_a_block_a_cache_and_gradients_take_the_plain_one(subject: Subject) -> None:
    bench, inside, last = tiny(FAMILY), Site(1, "mlp_out"), Site(subject.n_layers - 1)
    batch = subject.batch([subject.encode(text).token_ids for text in TEXTS])
    engine = AblationEngine(subject, bench.saes, bench.prompts)
    read, said = subject.read(batch, [inside, last])[inside], engine.answer([Request(0)], 4)
    compile_blocks(subject.blocks, backend)
    RUNS.clear()
    subject.forward(batch)  # compiled, before anybody looks inside
    n_graphs = len(RUNS)
    RUNS.clear()
    torch.testing.assert_close(subject.read(batch, [inside, last])[inside], read)
    assert 0 < len(RUNS) < n_graphs  # those of the other blocks
    RUNS.clear()
    subject.forward_with_gradient(batch)
    assert not RUNS
    assert engine.answer([Request(0)], 4).token_ids == said.token_ids
    subject.read_resid_post(batch, [subject.n_layers - 1])
    assert RUNS


@pytest.mark.parametrize("family", ["Llama", "GPT-2", "Falcon", "GPT-NeoX", "OPT"])
def test_a_cache_is_seen_by_whatever_name_or_place_a_block_takes_it(family: str) -> None:
    subject = Subject(make_family(family), word_tokenizer())
    batch = subject.batch([subject.encode(text).token_ids for text in TEXTS])
    compile_blocks(subject.blocks, backend)
    RUNS.clear()
    subject.forward(batch, DynamicCache())
    assert not RUNS
    subject.forward(batch)
    assert RUNS


def test_the_ninth_model_of_a_process_is_compiled_as_the_first_is() -> None:
    kept = [Subject(make_family("Llama" if i % 2 else "GPT-NeoX"), word_tokenizer()) for i in range(10)]
    for subject in kept:
        compile_blocks(subject.blocks, backend)
        RUNS.clear()
        subject.forward(subject.batch([subject.encode(TEXTS[0]).token_ids]))
        assert RUNS


def test_where_nothing_is_compiled_a_recipe_that_asks_for_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"compute\.compile is for a CUDA device, and this study computes on cpu"):
        Subject.load(ModelSpec(path=save_model(FAMILY, tmp_path)), Compute(device="cpu", compile=True))


def test_a_machine_that_cannot_compile_is_one_sentence(subject: Subject) -> None:
    def lacking(_graph: torch.fx.GraphModule, _inputs: list[Tensor]) -> Callable[..., Any]:
        raise RuntimeError("Cannot find a working triton installation.\nMore of it")

    batch = subject.batch([subject.encode(text).token_ids for text in TEXTS])
    compile_blocks(subject.blocks, lacking)
    with pytest.raises(
        UserError, match=r"^compute\.compile: torch cannot compile here \(.*working triton installation.*\): it needs"
    ):
        subject.forward(batch)
