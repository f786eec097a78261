"""Tokens as text: byte-level and SentencePiece vocabularies, letters in several tokens, specials."""

import pytest
from transformers import PreTrainedTokenizerFast

from saelake.ingest.spelling import BYTES, LETTERS, Spelling
from tests.ingest.tiny import gemma_tokenizer, llama3_tokenizer, qwen_tokenizer, word_tokenizer

BYTE_LEVEL = (llama3_tokenizer, qwen_tokenizer)
TEXT = "How do I\n  bake it? é €"


def read(tokenizer: PreTrainedTokenizerFast, text: str) -> list[str]:
    return Spelling(tokenizer).texts(tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("make", [*BYTE_LEVEL, gemma_tokenizer])
def test_tokens_read_as_the_text_that_they_spell(make: type) -> None:
    tokens = read(make(), TEXT)
    letters = "".join(tokens)
    assert letters == TEXT.replace("é", "\\xc3\\xa9").replace("€", "\\xe2\\x82\\xac"), "parts of letters are escaped bytes"
    assert any(" " in token and token.strip() for token in tokens), "a token keeps its space"


@pytest.mark.parametrize("make", [*BYTE_LEVEL, gemma_tokenizer])
def test_specials_are_as_they_are_and_control_characters_are_escaped(make: type) -> None:
    tokenizer = make()
    special = tokenizer.all_special_tokens
    assert Spelling(tokenizer).texts(tokenizer.convert_tokens_to_ids(special)) == special
    assert read(tokenizer, "a\x00\t")[-2:] == ["\\x00", "\t"]


def test_a_vocabulary_of_words_is_read_as_it_stands() -> None:
    tokenizer = word_tokenizer()
    ids = list(tokenizer.get_vocab().values())
    assert Spelling(tokenizer).texts(ids) == tokenizer.convert_ids_to_tokens(ids)
    assert Spelling(tokenizer).texts([10**6]) == [""], "the model may embed more than the tokenizer knows"


def test_byte_level_letters_are_those_of_gpt2() -> None:
    assert (LETTERS[ord(" ")], LETTERS[ord("\n")], LETTERS[ord("!")], LETTERS[0xE9]) == ("\u0120", "\u010a", "!", "é")
    assert len(BYTES) == 256
