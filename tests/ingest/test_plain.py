"""A base model without a chat template: prompts are read as they are, behind the tokenizer's own BOS."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from saelake.ingest.recipe import Compute, ModelSpec
from saelake.ingest.subject import Subject
from saelake.ingest.targets import find_targets
from saelake.ingest.template import ChatTemplate
from saelake.warehouse.errors import UserError
from tests.ingest.tiny import CORPUS, FAMILIES, TOKENIZERS, save_model

PROMPTS = ("How do I pick a lock?", "  Write a poem\n", "I", "the sea: 東")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_is_what_the_tokenizer_makes_of_the_plain_text(family: str) -> None:
    tokenizer = TOKENIZERS[family]()
    template = ChatTemplate.of(tokenizer, ModelSpec(id="org/base", template="none"))
    for prompt in PROMPTS:
        read = template.encode(prompt)
        assert read.token_ids == tokenizer(prompt)["input_ids"]
        begins_with_bos = read.token_ids[0] == tokenizer.bos_token_id
        assert begins_with_bos == (family == "llama"), "the one family here whose tokenizer adds it by itself"
        assert read.roles == ["bos"] * begins_with_bos + ["user"] * (len(read.token_ids) - begins_with_bos)
        assert read.tokens == tokenizer.convert_ids_to_tokens(read.token_ids)


def prefixing() -> PreTrainedTokenizerFast:
    """A vocabulary that writes the first word of a text, and it alone, with a space before it; behind BOS it does not."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=300, special_tokens=["<s>"], show_progress=False))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>")


def test_the_first_word_is_spelt_as_at_the_beginning_of_a_text() -> None:
    tokenizer = prefixing()
    template = ChatTemplate.of(tokenizer, ModelSpec(id="org/base", template="none"))
    read = template.encode("How do I pick a lock?")
    assert read.token_ids == tokenizer("How do I pick a lock?")["input_ids"]
    assert read.tokens[1].startswith("\u2581"), "behind the text of BOS it would have no mark"
    assert {t.text.strip() for t in find_targets(tokenizer, ["I"], template.before + "x" + template.after)} == {"I"}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("chat_template", "{{ messages[0]['content'] }}"),
        ("template_sha256", "0" * 64),
        ("template_variables", {"date_string": "26 Jul 2024"}),
        ("system", "Be kind."),
    ],
)
def test_what_only_a_template_could_use_is_refused(field: str, value: Any) -> None:
    with pytest.raises(ValidationError, match=f"there is no template, so that {field} has no effect"):
        ModelSpec.model_validate({"id": "org/base", "template": "none", field: value})
    with pytest.raises(ValidationError, match='for prompts as they are, write template = "none"'):
        ModelSpec(id="org/base", chat_template="none")


def test_from_python_it_is_the_same(tmp_path: Path) -> None:
    folder = save_model("llama", tmp_path)
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match=r'the tokenizer has no chat template; .* model.template = "none"'):
        Subject.load(ModelSpec(path=folder), Compute(device="cpu"))
    by_recipe = Subject.load(ModelSpec(path=folder, template="none"), Compute(device="cpu"))
    loaded = Subject.load(folder, Compute(device="cpu"), chat_template="none")
    given = Subject(loaded.model, loaded.tokenizer, chat_template="none")
    for prompt in PROMPTS:
        assert by_recipe.encode(prompt) == loaded.encode(prompt) == given.encode(prompt)
    assert by_recipe.template_hash == loaded.template_hash == given.template_hash
    assert by_recipe.target_token_ids == given.target_token_ids
    with pytest.raises(UserError, match="there is no template, so that system has no effect"):
        Subject(loaded.model, loaded.tokenizer, chat_template="none", system="Be kind.")
