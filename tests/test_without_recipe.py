"""Who has no recipe is told by the names of arguments, and before anything is computed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import saelake
from saelake.ingest.recipe import Compute, ModelSpec
from tests.analysis.library_model import TEXTS, engine, sae, subject
from tests.ingest.tiny import save_model
from tests.test_arguments import RECIPES


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ({"saes": [sae(0, hook="hook_resid_post")], "at": 7}, "saes: layer 7 does not exist|layer 7 does not exist"),
        ({"max_prompt_tokens": 3}, "but max_prompt_tokens is 3: raise it"),
        ({"template_variables": {"nothing": 1}}, r"template_variables\['nothing'\] changes nothing"),
        ({"chat_template": "{{ messages[0]['content'] }}"}, "begin it with .* in chat_template, or say without_bos = true"),
    ],
)
def test_sentences_are_about_arguments_where_there_is_no_recipe(call: dict[str, Any], expected: str) -> None:
    options = {name: value for name, value in call.items() if name not in ("saes", "at")}

    def asked() -> None:
        made = saelake.Subject(subject().model, subject().tokenizer, **options)
        saelake.Engine(made, {call.get("at", 0): sae(0)}).answer(TEXTS)

    with pytest.raises(saelake.UserError, match=expected) as raised:
        asked()
    assert not RECIPES.search(str(raised.value)), raised.value


@pytest.mark.parametrize(
    "call",
    [
        lambda: engine().answer(TEXTS),
        lambda: engine().next_token(TEXTS),
        lambda: engine().activations(TEXTS),
        lambda: engine().activations(TEXTS, max_new_tokens=2),
        lambda: engine().means(TEXTS, 1),
        lambda: engine().next_token(TEXTS, edits=[saelake.MeanAblate(1, [3], TEXTS)]),
    ],
)
def test_short_memory_is_told_without_a_recipe(call: Callable[[], object]) -> None:
    def no_memory(_resid_btd: torch.Tensor) -> None:
        raise torch.OutOfMemoryError

    with subject().resid_post(0, no_memory), pytest.raises(saelake.UserError, match=r"set dtype = .* another device") as raised:
        call()
    assert not RECIPES.search(str(raised.value)), raised.value


@pytest.mark.parametrize(
    ("edits", "expected"),
    [
        ([saelake.MeanAblate(1, [3], TEXTS), saelake.Ablate(1, [10**9])], "has no feature"),
        ([saelake.MeanAblate(1, [3], TEXTS), saelake.Ablate(1, [3])], "hold the same feature"),
        ([saelake.MeanAblate(1, [3], TEXTS), saelake.MeanAblate(1, [4], ["a", []])], "prompt 1 is neither"),
        ([saelake.MeanAblate(1, [3], TEXTS, positions=[99])], "positions"),
    ],
)
def test_edits_are_checked_before_a_mean_is_computed(edits: list[Any], expected: str) -> None:
    def computed(_resid_btd: torch.Tensor) -> None:
        pytest.fail("computed already")

    with subject().resid_post(0, computed), pytest.raises(saelake.UserError, match=expected):
        engine().answer(TEXTS, edits=edits)


@pytest.mark.parametrize(
    ("words", "expected"),
    [(["two words"], "target_tokens: the target token 'two words'"), ([" "], "a target token is white space")],
)
def test_target_tokens_are_named_as_the_argument_is(words: list[str], expected: str, tmp_path: Path) -> None:
    with pytest.raises(saelake.UserError, match=expected) as raised:
        saelake.Subject.load(save_model("llama", tmp_path), target_tokens=words)
    assert "refusal_tokens" not in str(raised.value)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"id": "other/x"}, "^id names a model beside .*: give only one of them, as the first argument$"),
        ({"path": "."}, "^path names a model beside"),
        ({"package": "json"}, "^package names a model beside"),
        ({"target_token": ["I"]}, r"^there is no field target_token \(did you mean 'target_tokens'\?\)$"),
        ({"refusal_tokens": ["Sure"], "target_tokens": ["I"]}, "^refusal_tokens and target_tokens are two names of one field"),
        ({"device": "gpu"}, "^device: Input should be 'auto', 'cpu', 'cuda' or 'mps', not 'gpu'$"),
        ({"device": "cpu", "compute": Compute()}, "^compute and device both say where the model runs: give one$"),
        ({"compute": "cpu"}, "^compute is 'cpu': give a Compute, or only a device, such as device=\"cpu\"$"),
    ],
)
def test_what_names_a_model_its_tokens_or_a_device_twice_or_wrongly_is_told(
    more: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    with pytest.raises(saelake.UserError, match=expected):
        saelake.Subject.load(tmp_path, **more)


@pytest.mark.parametrize("more", [{"target_tokens": ["I"]}, {"dtype": "float32"}, {"id": "a/b"}, {"nonsense": 3}])
def test_what_a_whole_spec_says_already_is_refused_beside_it(more: dict[str, Any], tmp_path: Path) -> None:
    spec = ModelSpec(path=save_model("llama", tmp_path))
    with pytest.raises(
        saelake.UserError, match=f"^{next(iter(more))} has no effect: the ModelSpec says it already; leave it out$"
    ):
        saelake.Subject.load(spec, **more)


def test_a_device_is_an_argument(tmp_path: Path) -> None:
    folder = save_model("llama", tmp_path)
    assert saelake.Subject.load(folder, device="cpu").device == torch.device("cpu")
    for kind in ("cuda", "mps"):
        if not getattr(torch, kind).is_available():
            with pytest.raises(saelake.UserError, match=f'^device is {kind!r}, which .*: use device = "auto"$'):
                saelake.Subject.load(folder, device=kind)
