"""The model under study: its template, its padding, its hook points, and the sentence for every mistake."""

import hashlib
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache
from transformers.models.gemma2.modeling_gemma2 import Gemma2PreTrainedModel

from saelake.ingest.recipe import Compute, ModelSpec
from saelake.ingest.subject import Subject
from saelake.ingest.template import ChatTemplate
from saelake.warehouse.errors import UserError
from tests.ingest.tiny import (
    D_MODEL,
    FAMILIES,
    GEMMA_TEMPLATE,
    N_LAYERS,
    TOKENIZERS,
    make_model,
    save_model,
)

CPU = Compute(device="cpu", threads=1)
PROMPTS = ["How do I pick a lock?", "I", "Write a poem about the sea.\nSure?", "日本 é 🙂  two  spaces"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {family: save_model(family, tmp_path_factory.mktemp(family)) for family in FAMILIES}


@pytest.fixture(scope="module")
def subjects(folders: dict[str, Path]) -> dict[str, Subject]:
    return {family: Subject.load(ModelSpec(path=folder), CPU) for family, folder in folders.items()}


@pytest.fixture(params=FAMILIES)
def subject(request: pytest.FixtureRequest, subjects: dict[str, Subject]) -> Subject:
    return subjects[request.param]


def template_of(family: str, **spec: Any) -> ChatTemplate:
    return ChatTemplate.of(TOKENIZERS[family](), ModelSpec.model_validate({"id": "a/b"} | spec))


def test_facts_of_the_model(subject: Subject) -> None:
    assert (subject.n_layers, subject.d_model, subject.dtype) == (N_LAYERS, D_MODEL, torch.float32)
    assert subject.n_vocab == len(subject.tokenizer)
    assert not any(weight.requires_grad for weight in subject.model.parameters())
    assert not subject.model.training


def test_attention_is_sdpa_except_where_it_would_drop_softcapping(subjects: dict[str, Subject]) -> None:
    used = {family: subject.model.config._attn_implementation for family, subject in subjects.items()}
    assert used == {family: "eager" if family == "gemma2" else "sdpa" for family in FAMILIES}


def test_a_soft_cap_is_kept_where_transformers_would_drop_it(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    # As in versions of transformers that compute Gemma 2 by sdpa and leave its soft cap out.
    monkeypatch.setattr(Gemma2PreTrainedModel, "_supports_sdpa", True)
    subject = Subject.load(ModelSpec(path=folders["gemma2"]), CPU)
    assert subject.model.config._attn_implementation == "eager"
    subject.model.set_attn_implementation("sdpa")
    with pytest.raises(UserError, match='attn_implementation="eager"'):
        Subject(subject.model, subject.tokenizer)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_tokens_are_those_of_the_chat_template_with_one_bos(subject: Subject, prompt: str) -> None:
    tokenized = subject.encode(prompt)
    messages = [{"role": "user", "content": prompt}]
    expected = subject.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
    assert tokenized.token_ids == expected["input_ids"]
    assert tokenized.token_ids.count(subject.tokenizer.bos_token_id) == (subject.tokenizer.bos_token_id is not None)
    assert [subject.tokenizer.convert_tokens_to_ids(token) for token in tokenized.tokens] == tokenized.token_ids


@pytest.mark.parametrize("prompt", PROMPTS)
def test_roles_cover_exactly_the_prompt(subject: Subject, prompt: str) -> None:
    token_ids, _, roles = subject.encode(prompt)
    inside = [token_id for token_id, role in zip(token_ids, roles, strict=True) if role == "user"]
    alone = subject.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert inside == alone
    first, last = roles.index("user"), len(roles) - roles[::-1].index("user")
    assert set(roles[first:last]) == {"user"}, "one span"
    assert roles[0] == ("template" if subject.tokenizer.bos_token_id is None else "bos")
    assert set(roles[1:first] + roles[last:]) == {"template"}


BYTE_LEVEL = [template_of("llama"), template_of("qwen2")]


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(codec="utf-8", exclude_characters="\ue000"), min_size=1).filter(str.strip))
def test_user_tokens_spell_the_prompt(text: str) -> None:
    for template in BYTE_LEVEL:
        token_ids, _, roles = template.encode(text)
        inside = [token_id for token_id, role in zip(token_ids, roles, strict=True) if role == "user"]
        spelled = template.tokenizer.decode(inside, clean_up_tokenization_spaces=False)
        assert spelled in (text, text.strip())


def test_trimmed_prompt_has_the_same_tokens() -> None:
    template = template_of("gemma2")
    assert template.encode("  How do I?\n") == template.encode("How do I?")


def test_marks_of_the_template_inside_a_prompt_are_still_the_users() -> None:
    template = template_of("gemma2")
    _, tokens, roles = template.encode("I <end_of_turn> can")
    assert roles[tokens.index("<end_of_turn>")] == "user"


def test_a_system_prompt_has_a_role_of_its_own() -> None:
    _, tokens, roles = template_of("llama", system="Sure the model").encode("I")
    assert roles[tokens.index("Sure")] == "system"
    assert roles.count("user") == 1
    with pytest.raises(UserError, match=r"model\.system: the chat template cannot be rendered \(System role not supported\)"):
        template_of("gemma2", system="x")


def test_pinned_template_is_used_and_hashed(tmp_path: Path) -> None:
    pinned = "{{ bos_token }}{{ messages[0]['content'] }}!{{ note }}"
    template = template_of("gemma2", chat_template=pinned, template_variables={"note": "I"})
    assert template.render("hi") == "<bos>hi!I"
    assert template.sha256 == hashlib.sha256(pinned.encode()).hexdigest()
    (tmp_path / "t.jinja").write_text(pinned)
    assert template_of("gemma2", chat_template_file=tmp_path / "t.jinja").sha256 == template.sha256


def test_asserted_template_hash() -> None:
    right = hashlib.sha256(GEMMA_TEMPLATE.encode()).hexdigest()
    assert template_of("gemma2", template_sha256=right).sha256 == right
    with pytest.raises(UserError, match=rf"model\.template_sha256 is 0{{64}}, but the chat template's sha256 is {right}"):
        template_of("gemma2", template_sha256="0" * 64)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"chat_template": "{{ messages[0]['content'] | upper }}"}, "shows the user's prompt 0 times instead of once"),
        ({"chat_template": "{{ messages[0]['content'] * 2 }}"}, "shows the user's prompt 2 times instead of once"),
        ({"chat_template": "{{ messages[0]['content'] }}{{ strftime_now('%d') }}"}, "writes today's date into every prompt"),
        ({"chat_template": "{% if %}"}, "model.chat_template: the chat template cannot be rendered"),
    ],
)
def test_unusable_templates_are_named(spec: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError) as caught:
        template_of("gemma2", **spec)
    assert expected in str(caught.value)


def test_template_that_rewrites_some_prompts_is_refused_for_these() -> None:
    template = template_of("qwen2", chat_template="{{ messages[0]['content'] | replace('bomb', '***') }}")
    assert template.encode("I").roles == ["user"]
    with pytest.raises(UserError, match="rewrites the prompt 'a bomb'"):
        template.encode("a bomb")


def test_tokenizer_without_chat_template(tmp_path: Path) -> None:
    folder = save_model("llama", tmp_path)
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="the tokenizer has no chat template; pin one with"):
        Subject.load(ModelSpec(path=folder), CPU)


def test_the_first_target_token_is_the_one_that_the_model_would_write(subject: Subject) -> None:
    answered = subject.tokenizer(subject.template.render("x") + "I", add_special_tokens=False)["input_ids"]
    assert answered == [*subject.encode("x").token_ids, subject.target_token_ids[0]]
    assert {text.strip() for text in subject.spelling.texts(subject.target_token_ids)} == {"I"}


def test_prompt_over_the_limit_is_an_error_with_both_numbers(folders: dict[str, Path]) -> None:
    subject = Subject.load(ModelSpec(path=folders["gpt_neox"], max_prompt_tokens=16), CPU)
    subject.encode("I " * 6)
    with pytest.raises(UserError, match=r"the prompt 'I I .*' has 17 tokens, but max_prompt_tokens is 16"):
        subject.encode("I " * 8)


def test_batch_is_left_padded_with_positions_from_the_first_real_token(subject: Subject) -> None:
    ids_bt, mask_bt, positions_bt = subject.batch([[5, 6, 7], [8]])
    assert ids_bt[:, -1].tolist() == [7, 8]
    assert mask_bt.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert positions_bt.tolist() == [[0, 1, 2], [0, 0, 0]]


def test_padding_does_not_change_an_answer(subject: Subject) -> None:
    encoded = [subject.encode(prompt).token_ids for prompt in PROMPTS]
    together_bv = subject.forward(subject.batch(encoded))
    alone_bv = torch.cat([subject.forward(subject.batch([token_ids])) for token_ids in encoded])
    assert together_bv.shape == (len(PROMPTS), subject.n_vocab)
    assert together_bv.dtype == torch.float32
    torch.testing.assert_close(together_bv, alone_bv, atol=1e-4, rtol=0)


def test_forward_gives_all_positions_when_asked(subject: Subject) -> None:
    batch = subject.batch([subject.encode("I").token_ids])
    all_btv = subject.forward(batch, logits_to_keep=0)
    assert all_btv.shape == (1, batch.input_ids_bt.shape[1], subject.n_vocab)
    torch.testing.assert_close(all_btv[:, -1], subject.forward(batch))
    torch.testing.assert_close(all_btv[:, -2:], subject.forward(batch, logits_to_keep=2))


def test_cache_continues_a_padded_batch(subject: Subject) -> None:
    encoded = [subject.encode(prompt).token_ids for prompt in PROMPTS]
    cache = DynamicCache(config=subject.model.config)
    prefix = subject.batch(encoded)
    subject.forward(prefix, cache=cache)
    longer = subject.batch([[*token_ids, 9] for token_ids in encoded])
    step = longer._replace(input_ids_bt=longer.input_ids_bt[:, -1:], position_ids_bt=longer.position_ids_bt[:, -1:])
    torch.testing.assert_close(subject.forward(step, cache=cache), subject.forward(longer), atol=1e-4, rtol=0)


def test_resid_post_is_the_models_hidden_state(subject: Subject) -> None:
    batch = subject.batch([subject.encode(prompt).token_ids for prompt in PROMPTS])
    inputs = {"input_ids": batch.input_ids_bt, "attention_mask": batch.attention_mask_bt}
    hidden = subject.model(**inputs, position_ids=batch.position_ids_bt, output_hidden_states=True).hidden_states
    real = batch.attention_mask_bt.bool()
    read = subject.read_resid_post(batch, range(N_LAYERS))
    for layer in range(N_LAYERS - 1):
        torch.testing.assert_close(read[layer][real], hidden[layer + 1][real], atol=1e-5, rtol=1e-5)
    # The last entry of hidden_states is normalised: the very reason for hooks.
    assert not torch.allclose(read[N_LAYERS - 1][real], hidden[N_LAYERS][real], atol=1e-2)


def test_reading_stops_after_the_last_wanted_block(subject: Subject) -> None:
    batch = subject.batch([subject.encode("I").token_ids])
    before_bv = subject.forward(batch)
    ran: list[int] = []
    handles = [
        block.register_forward_hook(lambda *_, layer=layer: ran.append(layer)) for layer, block in enumerate(subject.blocks)
    ]
    stopped = subject.read_resid_post(batch, [1])
    assert 2 not in ran
    further = subject.read_resid_post(batch, [1, 2])
    assert 2 in ran
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(stopped[1], further[1])
    torch.testing.assert_close(subject.forward(batch), before_bv, msg="a stopped pass leaves nothing behind")


def test_resid_post_hook_replaces_what_the_next_block_reads(subject: Subject) -> None:
    batch = subject.batch([subject.encode(prompt).token_ids for prompt in PROMPTS])
    clean_bv = subject.forward(batch)
    with subject.resid_post(0, lambda resid_btd: None):
        torch.testing.assert_close(subject.forward(batch), clean_bv)
    noise_btd = torch.randn_like(subject.read_resid_post(batch, [1])[1])
    with subject.resid_post(1, lambda resid_btd: noise_btd):
        assert torch.equal(subject.read_resid_post(batch, [1])[1], noise_btd), "a later hook sees what an earlier one wrote"
        noisy_bv = subject.forward(batch)
    assert not torch.allclose(noisy_bv, clean_bv)
    torch.testing.assert_close(subject.forward(batch), clean_bv, msg="the hook is gone")


def test_a_forward_that_another_library_gave_to_the_unembedding_is_put_back() -> None:
    tokenizer = TOKENIZERS["llama"]()
    model = make_model("llama", tokenizer).bfloat16()
    head = model.get_output_embeddings()
    subject = Subject(model, tokenizer)
    batch = subject.batch([subject.encode("I").token_ids])
    plain = subject.forward(batch)
    assert "forward" not in vars(head)
    vars(head)["forward"] = theirs = partial(type(head).forward, head)
    assert torch.equal(subject.forward(batch), plain)
    assert vars(head)["forward"] is theirs


def test_a_model_on_several_devices_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = TOKENIZERS["llama"]()
    model = make_model("llama", tokenizer)
    weights = [SimpleNamespace(device=torch.device("cuda", n)) for n in (0, 1, 1)]
    monkeypatch.setattr(model, "parameters", lambda: iter(weights))
    with pytest.raises(
        UserError, match=r"the model lies on several devices \(cuda:0, cuda:1\).*load it on one, such as device_map"
    ):
        Subject(model, tokenizer)


def test_hooks_are_removed_when_the_pass_fails(subject: Subject) -> None:
    def fail(_resid_btd: torch.Tensor) -> None:
        raise RuntimeError("inside")

    batch = subject.batch([subject.encode("I").token_ids])
    with pytest.raises(RuntimeError, match="inside"), subject.resid_post(0, fail):
        subject.forward(batch)
    subject.forward(batch)
