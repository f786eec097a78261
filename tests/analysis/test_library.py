"""The engine from Python: every edit against passes hooked by hand, positions, forms of prompts, sentences for mistakes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import saelake
from saelake.analysis.engine.prompts import read_prompts
from saelake.ingest.template import ChatTemplate
from tests.analysis.library_model import TEXTS, WIDTH, engine, held, ids_of, p_by_hand, p_of, sae, subject
from tests.ingest.tiny import D_MODEL, LLAMA3_TEMPLATE, make_model, save_model
from tests.ingest.tiny import llama3_tokenizer as tokenizer_of


@pytest.mark.parametrize("text", TEXTS)
def test_edits_by_name_are_the_literal_passes(text: str) -> None:
    ids, v = ids_of(text), torch.randn(D_MODEL, generator=torch.Generator().manual_seed(1)) * 3
    unit = v / v.norm()
    features = list(range(0, WIDTH, 3))
    zero = dict.fromkeys(features, 0.0)
    assert p_of(text) == pytest.approx(p_by_hand(ids, {}), abs=1e-5)
    assert p_of(text, ablate={1: features}) == pytest.approx(p_by_hand(ids, {1: held(sae(1), zero)}), abs=1e-5)
    assert p_of(text, clamp={1: {4: 3.0, 9: 0.5}}) == pytest.approx(p_by_hand(ids, {1: held(sae(1), {4: 3.0, 9: 0.5})}), abs=1e-5)
    assert p_of(text, add={1: (v, -2.0)}) == pytest.approx(p_by_hand(ids, {1: lambda h: h - 2 * v}), abs=1e-5)
    out = {layer: lambda h: h - (h @ unit)[..., None] * unit for layer in range(3)}
    assert p_of(text, project_out=v) == pytest.approx(p_by_hand(ids, out), abs=1e-5)
    assert p_of(text, project_out={2: v.numpy()}) == pytest.approx(p_by_hand(ids, {2: out[2]}), abs=1e-5)
    for size in (1e-300, 3e38, 1e300):
        whole = v.double() * (size / v.abs().max().item())
        assert p_of(text, project_out=whole) == pytest.approx(p_by_hand(ids, out), abs=1e-5), size
    mean = engine().means(TEXTS, 1)[5]
    expected = p_by_hand(ids, {1: held(sae(1), {5: float(mean)})})
    assert p_of(text, edits=[saelake.MeanAblate(1, [5], TEXTS)]) == pytest.approx(expected, abs=1e-5)


def test_the_mean_of_a_feature_leaves_bos_out() -> None:
    read = [subject().read_resid_post(subject().batch([ids_of(text)]), [1])[1][0, 1:] for text in TEXTS]
    np.testing.assert_allclose(engine().means(TEXTS, 1), sae(1).encode(torch.cat(read)).mean(0).detach(), atol=1e-5)


def test_features_of_one_sae_are_taken_from_one_reading_whatever_edit_and_position_they_have() -> None:
    text = TEXTS[0]
    ids = ids_of(text)
    edits = [
        saelake.Ablate(1, [0, 3, 6]),
        saelake.Clamp(1, [4, 9], [3.0, 1.0], positions=[1, 2]),
        saelake.Ablate(1, [12], positions=2),
    ]

    def literal(resid_btd: Tensor) -> Tensor:
        acts = sae(1).encode(resid_btd)
        changed = acts.clone()
        changed[..., [0, 3, 6]] = 0
        for pos in (1, 2):
            changed[0, pos, 4], changed[0, pos, 9] = 3.0, 1.0
        changed[0, 2, 12] = 0
        return sae(1).decode(changed) + (resid_btd - sae(1).decode(acts))

    expected = p_by_hand(ids, {1: literal})
    assert p_of(text, edits=edits) == pytest.approx(expected, abs=1e-5)
    assert p_of(text, edits=edits[::-1]) == pytest.approx(expected, abs=1e-5)


def test_every_prompt_may_have_edits_of_its_own_in_one_batch() -> None:
    own: list[list[Any]] = [
        [saelake.Ablate(0, [1, 2, 3])],
        [],
        [saelake.Add(2, torch.ones(D_MODEL), 1.5), saelake.Ablate("blocks.1.hook_resid_post", range(9))],
    ]
    prompts = [TEXTS[0], TEXTS[1], TEXTS[1]]
    together = engine().answer(prompts, edits=own, max_new_tokens=5)
    for place, (text, edits) in enumerate(zip(prompts, own, strict=True)):
        alone = engine().answer([text], edits=edits, max_new_tokens=5)
        assert alone.token_ids == [together.token_ids[place]]
        assert alone.p_target[0] == pytest.approx(together.p_target[place], abs=1e-5)


def test_positions_count_from_either_end_or_go_by_role() -> None:
    text = TEXTS[0]
    ids, roles, features = ids_of(text), subject().encode(text).roles, range(20)
    for positions, places in (
        ([0, 3], [0, 3]),
        (-1, [len(ids) - 1]),
        ("user", [i for i, role in enumerate(roles) if role == "user"]),
        (["bos", -2], [0, len(ids) - 2]),
    ):
        edit = held(sae(1), dict.fromkeys(features, 0.0), places)
        assert p_of(text, ablate={1: features}, positions=positions) == pytest.approx(p_by_hand(ids, {1: edit}), abs=1e-5)


@pytest.mark.parametrize("positions", [10_000, -10_000, [0, 99], "system", "nowhere", 1.5, True])
def test_a_position_that_does_not_exist_is_an_error(positions: Any) -> None:
    with pytest.raises(saelake.UserError, match=r"positions: prompt 0 has no (position|token of the role)"):
        engine().answer(TEXTS[:1], ablate={1: [3]}, positions=positions)


def test_edits_stay_on_while_answering_unless_positions_are_given_or_as_they_are_told() -> None:
    def greedy(at_prompt: bool, at_answer: bool) -> list[int]:
        ids = ids_of(TEXTS[1])
        n = len(ids)
        for _ in range(6):
            places = [*(range(n) if at_prompt else ()), *(range(n, len(ids)) if at_answer else ())]
            edit = held(sae(0), dict.fromkeys(range(30), 2.0), places)
            with torch.no_grad(), subject().resid_post(0, edit):
                token = int(subject().model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
            if token == subject().tokenizer.eos_token_id:
                break
            ids.append(token)
        return ids[n:]

    clamp: Any = {0: dict.fromkeys(range(30), 2.0)}

    def answer(**where: Any) -> list[int]:
        return engine().answer([TEXTS[1]], clamp=clamp, max_new_tokens=6, **where).token_ids[0]

    assert answer() == greedy(True, True)
    assert answer(answering=False) == greedy(True, False)
    assert answer(answering=np.False_) == greedy(True, False)
    with pytest.raises(saelake.UserError, match="a list: a set has no order"):
        engine().answer([TEXTS[0]], edits=[[saelake.Clamp(1, {0, 3}, [1.0, 2.0])]])  # type: ignore[arg-type]
    assert answer(positions="answer") == greedy(False, True)
    assert answer(positions=range(len(ids_of(TEXTS[1])))) == greedy(True, False)
    assert len({tuple(greedy(*at)) for at in ((True, True), (True, False), (False, True), (False, False))}) > 2


def test_chats_and_token_ids_are_prompts_too() -> None:
    text = TEXTS[0]
    chat = [{"role": "user", "content": text}]
    forms: list[Any] = [text, chat, ids_of(text), np.array(ids_of(text)), torch.tensor(ids_of(text))]
    p = engine().next_token(forms, ablate={1: range(20)}).p_target
    np.testing.assert_allclose(p, p[0], atol=1e-6)
    longer = [
        {"role": "system", "content": "I am sorry."},
        *chat,
        {"role": "assistant", "content": "Sure"},
        {"role": "user", "content": "I"},
    ]
    ids = subject().tokenizer.apply_chat_template(longer, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert engine().next_token([longer]).p_target[0] == pytest.approx(p_by_hand(ids, {}), abs=1e-5)
    by_role = engine().next_token([longer], ablate={0: range(20)}, positions=["assistant", "system"]).p_target[0]
    assert by_role != pytest.approx(engine().next_token([longer]).p_target[0], abs=1e-6)


def test_a_model_without_its_head_is_told_where_blocks_were_looked_for() -> None:
    with pytest.raises(saelake.UserError, match=r"blocks of a LlamaModel were not found; looked for model\.layers, "):
        saelake.Subject(subject().model.model, subject().tokenizer)


@pytest.mark.parametrize("text", ["a", "user", "assistant", "id", "  I \n"])
def test_a_message_that_says_what_the_template_says_has_its_role_where_it_stands(text: str) -> None:
    (by_chat,) = read_prompts(subject(), [[{"role": "user", "content": text}]])
    assert by_chat == subject().encode(text)
    chat = [{"role": "user", "content": text}, {"role": "assistant", "content": text}, {"role": "user", "content": "I"}]
    (longer,) = read_prompts(subject(), [chat])
    ids, n = subject().encode(text).token_ids, subject().encode(text).roles.count("user")
    assert longer.token_ids[: len(ids)] == ids
    assert longer.roles[: len(ids) + n] == [*subject().encode(text).roles, *["assistant"] * n]


def test_messages_that_the_template_changes_are_found_by_their_texts() -> None:
    tokenizer = tokenizer_of()
    shows = LLAMA3_TEMPLATE.replace("message['content'] | trim", "message['content'].split('</think>')[-1]")
    shy = saelake.Subject(make_model("llama", tokenizer), tokenizer, chat_template=shows)
    chat = [{"role": "assistant", "content": "x</think>Sure"}, {"role": "user", "content": "cannot"}]
    (read,) = read_prompts(shy, [chat])
    assert "".join(token for token, role in zip(read.tokens, read.roles, strict=True) if role == "user") == "cannot"


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        ("a text", "prompts is a list of prompts"),
        ([{"role": "user", "content": "x"}], "prompts is a list of prompts"),
        ([[]], "prompt 0 is neither a text, nor"),
        (["I", [1, 10_000]], "prompt 1 has token ids outside"),
        ([[{"role": "x", "content": "y"}]], "prompt 0: a message is"),
    ],
)
def test_what_is_no_prompt_is_told(prompts: Any, expected: str) -> None:
    with pytest.raises(saelake.UserError, match=expected):
        engine().answer(prompts)


@pytest.mark.parametrize(
    ("edits", "expected"),
    [
        ({"ablate": {7: [1]}}, r"there is no SAE 7: the engine's are layer_00-"),
        ({"ablate": {"layer_99": [1]}}, "'layer_99' is not an SAE of the engine"),
        ({"ablate": {1: [WIDTH]}}, rf"has no feature {WIDTH}: its features are 0 to {WIDTH - 1}"),
        ({"ablate": {1: [-1]}}, "has no feature -1"),
        ({"ablate": {1: [1, 1]}}, "is named twice in one edit"),
        ({"ablate": {1: [0.5]}}, "are a list of numbers"),
        ({"ablate": {1: [3]}, "clamp": {1: {3: 2.0}}}, "two edits hold the same feature at the same position"),
        ({"clamp": {1: {3: float("nan")}}}, "is to be held at is nan: give a finite number"),
        (
            {"add": {1: (torch.ones(3), 1.0)}},
            rf"a vector of shape \(3,\) does not fit resid_post of layer 1, which is {D_MODEL} wide",
        ),
        ({"clamp": {1: {3: 1e39}}}, r"is to be held at is 1e\+39: give a number of float32, at most 3\.4e\+38"),
        ({"add": {1: (torch.ones(D_MODEL), -1e39)}}, r"the scale of a vector is -1e\+39: give a number of float32"),
        ({"add": {1: (torch.full((D_MODEL,), 1e20), 1e20)}}, r"the largest entry of a vector, times its scale, is 1\.0.*e\+40"),
        (
            {"add": {1: (torch.full((D_MODEL,), 1e40, dtype=torch.float64), 0.5)}},
            r"the largest entry of a vector is 1e\+40: give",
        ),
        ({"ablate": {1: [3]}, "positions": b"\x01"}, r"has no position b'\\x01'"),
        ({"ablate": {1: [3]}, "positions": {0: 1}}, r"has no position {0: 1}"),
        ({"project_out": torch.zeros(D_MODEL)}, "a vector of zeros has no direction"),
        ({"add": {9: torch.ones(D_MODEL)}}, "layer 9 does not exist: the model has 3 layers"),
        ({"positions": [0]}, "none is given"),
        ({"ablate": {1: [3]}, "positions": []}, "positions and answering leave an edit no position: it would act nowhere"),
        ({"ablate": {1: [3]}, "positions": "answer", "answering": False}, "positions and answering leave an edit no position"),
        ({"ablate": {1: 3}}, "are a list of numbers"),
        ({"edits": [saelake.Clamp(1, [3, 4], [1.0])]}, "2 features of .* are to be held at 1 values"),
        ({"edits": [[]]}, "edits has 1 lists for 2 prompts"),
        ({"edits": [saelake.MeanAblate(1, [WIDTH], over=TEXTS)]}, f"has no feature {WIDTH}"),
        ({"add": {1: torch.ones(D_MODEL, dtype=torch.complex64)}}, "a vector is an array of numbers"),
        ({"add": {1: [torch.ones(D_MODEL, requires_grad=True), -5.0]}}, "a vector is an array of numbers"),
        ({"add": {1: torch.ones(D_MODEL, dtype=torch.bool)}}, "a vector is an array of numbers"),
        ({"edits": [saelake.ProjectOut(np.ones(D_MODEL), "all")]}, "names no SAE"),  # type: ignore[arg-type]
        ({"max_new_tokens": 0}, "max_new_tokens is 0: give a whole number from 1 up"),
    ],
)
def test_an_edit_that_means_nothing_is_told(edits: dict[str, Any], expected: str) -> None:
    with pytest.raises(saelake.UserError, match=expected):
        engine().answer(TEXTS, **edits)


def test_what_overflows_is_told_as_what_it_may_be() -> None:
    sentence = "activations that are not finite numbers: weights are damaged, or they or an edit are too large for the dtype"
    with pytest.raises(saelake.UserError, match=sentence):
        engine().activations(TEXTS, add={0: (torch.ones(D_MODEL), 3e38)})


def test_without_saes_there_is_nothing_to_attribute_to() -> None:
    bare = saelake.Engine(subject(), [])
    for ask in (lambda: saelake.attribution(bare, TEXTS), lambda: saelake.minimal_set(bare, TEXTS[0], None, lambda _: True)):
        with pytest.raises(saelake.UserError, match=r"^the engine has no SAE, and so no feature to attribute to"):
            ask()


def test_one_edit_may_act_on_the_whole_prompt_alone_beside_one_that_acts_everywhere() -> None:
    edits = [saelake.Ablate(1, [0, 3]), saelake.Ablate(2, [1], answering=False), saelake.Ablate(1, [6], answering=False)]
    together = engine().next_token(TEXTS, ablate={1: [0, 3, 6], 2: [1]}).p_target
    np.testing.assert_allclose(engine().next_token(TEXTS, edits=edits).p_target, together, atol=1e-6)
    np.testing.assert_allclose(engine().answer(TEXTS, edits=edits, max_new_tokens=1).p_target, together, atol=1e-6)
    for nowhere in (
        saelake.Ablate(1, [4], positions="answer"),
        saelake.ProjectOut("all", np.ones(D_MODEL), positions=["answer"]),
    ):
        with pytest.raises(saelake.UserError, match="an edit of prompt 0 acts on its answer alone, and no token of that is read"):
            engine().next_token(TEXTS, edits=[saelake.Ablate(1, [0]), nowhere])


def test_iterators_in_edits_are_read_once_for_all_prompts_and_calls() -> None:
    lists: list[Any] = [
        saelake.Ablate(1, [0, 3, 6], positions=[1, -1], answering=True),
        saelake.Clamp(0, [4, 9], [3.0, 1.0]),
        saelake.MeanAblate(2, [1, 2], over=TEXTS),
    ]
    each: Any = iter
    iterators: list[Any] = [
        saelake.Ablate(1, each([0, 3, 6]), positions=each([1, -1]), answering=True),
        saelake.Clamp(0, each([4, 9]), each([3.0, 1.0])),
        saelake.MeanAblate(2, each([1, 2]), over=each(TEXTS)),
    ]
    for _ in range(2):
        expected, found = (engine().answer(TEXTS, edits=edits, max_new_tokens=4) for edits in (lists, iterators))
        assert found.token_ids == expected.token_ids
        np.testing.assert_array_equal(found.p_target, expected.p_target)


def test_no_prompts_are_no_answers() -> None:
    assert engine().answer([], ablate={1: [3]}).texts == []
    assert engine().activations([]).num_rows == 0
    assert saelake.attribution(engine(), []).num_rows == 0


def test_a_base_model_without_a_template_reads_prompts_as_they_are() -> None:
    tokenizer = tokenizer_of()
    tokenizer.chat_template = None
    model = make_model("llama", tokenizer)
    with pytest.raises(
        saelake.UserError, match='the tokenizer has no chat template: give one as chat_template, or chat_template="none"'
    ):
        saelake.Subject(model, tokenizer)
    plain = saelake.Subject(model, tokenizer, chat_template="none")
    assert plain.encode("I am").token_ids == tokenizer("I am")["input_ids"]
    assert isinstance(plain.template, ChatTemplate)


def test_the_unembedding_of_a_bfloat16_model_is_computed_in_float32() -> None:
    tokenizer = tokenizer_of()
    model = make_model("gemma2", tokenizer).bfloat16()
    given = saelake.Engine(saelake.Subject(model, tokenizer), [])
    ids = given.subject.encode(TEXTS[0]).token_ids
    read: list[Tensor] = []
    handle = model.model.norm.register_forward_hook(lambda _module, _args, out: read.append(out[:, -1]))
    p = float(given.next_token([TEXTS[0]]).p_target[0])
    handle.remove()
    logits = read[-1].float() @ model.lm_head.weight.float().T
    cap = model.config.final_logit_softcapping
    chosen = list(given.subject.target_token_ids)
    assert p == pytest.approx(float(((logits / cap).tanh() * cap).softmax(-1)[0, chosen].sum()), rel=1e-5)
    with torch.no_grad():
        rounded = model(torch.tensor([ids]), use_cache=False).logits
    assert rounded.dtype == torch.bfloat16, "the model is as it was"


def test_a_subject_is_loaded_by_folder(tmp_path: Path) -> None:
    save_model("llama", tmp_path)
    loaded = saelake.Subject.load(tmp_path, target_tokens=["I"], system="I am sorry.")
    assert loaded.encode("I").roles.count("user") == 1
    assert loaded.target_token_ids == subject().target_token_ids
    with pytest.raises(saelake.UserError, match="cannot be loaded"):
        saelake.Subject.load("org/absent")


@pytest.mark.parametrize("prompt", [None, 3, 2.5, object()])
def test_what_is_no_prompt_is_refused_by_its_place(prompt: Any) -> None:
    with pytest.raises(saelake.UserError, match="prompt 1 is neither a text"):
        engine().next_token([TEXTS[0], prompt])


@pytest.mark.parametrize("over", [[], [[subject().tokenizer.bos_token_id]]])
def test_a_mean_over_no_tokens_is_refused(over: Any) -> None:
    with pytest.raises(saelake.UserError, match="no token to take a mean over"):
        engine().next_token([TEXTS[0]], edits=[saelake.MeanAblate(1, [3], over)])


@pytest.mark.parametrize("words", ["I", [5], [None]])
def test_target_tokens_are_a_list_of_texts(words: Any) -> None:
    with pytest.raises(saelake.UserError, match="a list of texts, such as"):
        saelake.Subject(subject().model, subject().tokenizer, target_tokens=words, chat_template="none")


def test_an_edit_of_an_answer_that_is_not_read_is_refused() -> None:
    where: dict[str, Any] = {"ablate": {1: [3]}, "positions": "answer"}
    for call in (engine().next_token, engine().activations, lambda *a, **k: engine().answer(*a, **k, max_new_tokens=1)):
        with pytest.raises(saelake.UserError, match="it would act nowhere"):
            call([TEXTS[0]], **where)
    with pytest.raises(saelake.UserError, match="would act nowhere"):
        engine().answer([TEXTS[0]], **where, answering=False)
    assert engine().answer([TEXTS[0]], **where, max_new_tokens=2).texts
