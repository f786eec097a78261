"""Target tokens: every token that is the word, found behind the template, each once."""

from typing import Any

import pytest

from saelake.ingest.recipe import ModelSpec
from saelake.ingest.targets import find_targets, targets_of
from saelake.ingest.template import ChatTemplate
from saelake.warehouse.errors import UserError
from tests.ingest.tiny import TOKENIZERS, gemma_tokenizer, llama3_tokenizer, qwen_tokenizer, word_tokenizer


def specified(**spec: Any) -> ModelSpec:
    return ModelSpec.model_validate({"path": "."} | spec)


def template_of(family: str, **spec: Any) -> ChatTemplate:
    return ChatTemplate.of(TOKENIZERS[family](), specified(**spec))


@pytest.mark.parametrize("make", [llama3_tokenizer, qwen_tokenizer, gemma_tokenizer, word_tokenizer])
def test_a_token_counts_if_and_only_if_it_is_the_word_as_text(make: Any) -> None:
    tokenizer = make()
    found = {target.token_id for target in find_targets(tokenizer, ["I"])}
    from saelake.ingest.spelling import Spelling

    texts = Spelling(tokenizer).texts(range(len(tokenizer)))
    assert found == {token_id for token_id, text in enumerate(texts) if text.strip() == "I"}, "what the judge first_token reads"


@pytest.mark.parametrize("written", [["I"], [" I"], ["\u2581I"], ["\u0120I"], ["I", " I"], ["I\n"]])
def test_however_it_is_written_a_word_is_one_word(written: list[str]) -> None:
    model = specified(target_tokens=written)
    assert model.target_words == ("I",)
    targets = targets_of(template_of("qwen2"), model)
    assert sorted(target.text for target in targets) == [" I", "I"], "and no probability counts twice"
    assert [str(target) for target in targets] == [f"'I' ({targets[0].token_id})", f"' I' ({targets[1].token_id}, \u0120I)"]


@pytest.mark.parametrize(
    ("end", "first"),
    [(" model", "I"), (" model\n", "I"), (" [/INST] ", "I"), (" [/INST]", "I")],
    ids=["word", "line", "space", "tag"],
)
@pytest.mark.parametrize("family", ["qwen2", "gemma2"])
def test_both_forms_count_however_the_template_ends(family: str, end: str, first: str) -> None:
    template = template_of(family, chat_template="{{ bos_token }}{{ messages[0]['content'] }}" + end)
    texts = [target.text for target in targets_of(template, specified(target_tokens=["I"]))]
    assert first in [text.strip() for text in texts[:1]]
    assert {text.strip() for text in texts} == {first}


def test_a_template_that_would_swallow_the_token() -> None:
    template = template_of("gpt_neox", chat_template="{{ bos_token }}{{ messages[0]['content'] }} model")
    (target,) = targets_of(template, specified(target_tokens=["I"]))
    assert target.token_id == template.tokenizer.convert_tokens_to_ids("I"), '"modelI" is not a word'


def test_what_is_no_token_is_told() -> None:
    with pytest.raises(UserError, match=r"the target token 'Sorry!' is not one token of this model: it splits into \['"):
        find_targets(llama3_tokenizer(), ["I", "Sorry!"])
    for unknown in ("Sorry", "<unk>"):
        with pytest.raises(UserError, match=rf"the target token '{unknown}' is not in this model's vocabulary"):
            find_targets(word_tokenizer(), [unknown])
    with pytest.raises(ValueError, match="a target token is white space"):
        specified(target_tokens=[" "])


def test_a_special_token_may_be_one() -> None:
    tokenizer = qwen_tokenizer()
    special = tokenizer.eos_token
    assert [target.text for target in find_targets(tokenizer, [special])] == [special]
