"""Tokens as readable text.

A vocabulary spells its tokens in its own way: byte-level ones write every byte as a letter (a space is \u0120), SentencePiece
marks spaces (\u2581) and writes rare bytes as <0xE2>. What the tokenizer's decoder says of that is applied to single tokens. A
token may hold a part of a letter only: bytes that are not text by themselves are written \\xe2, as are control characters.
"""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

BYTE = re.compile("<0x([0-9A-F]{2})>")
SEEN = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
LETTERS = {byte: chr(byte) for byte in SEEN} | {
    byte: chr(0x100 + n) for n, byte in enumerate(byte for byte in range(256) if byte not in SEEN)
}
"""byte -> the letter that byte-level vocabularies write for it (GPT-2's): itself where it can be seen, else from U+0100 on."""
BYTES = {letter: byte for byte, letter in LETTERS.items()}
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


class Spelling:
    """How a tokenizer's vocabulary spells."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._added = {token_id: str(token) for token_id, token in tokenizer.added_tokens_decoder.items()}
        self._special = {token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}
        steps = list(_steps(tokenizer))
        self._is_byte_level = any(step["type"] == "ByteLevel" for step in steps)
        model = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
        self._has_bytes = any(step["type"] == "ByteFallback" for step in steps) or getattr(model, "byte_fallback", False)
        self._spaces = [mark for step in steps if (mark := _space(step))]

    def pieces(self, token_ids: Sequence[int]) -> list[str]:
        """Tokens as the vocabulary spells them, so that they can be looked up again."""
        found: list[str] = self._tokenizer.convert_ids_to_tokens(list(token_ids))
        return found

    def texts(self, token_ids: Sequence[int]) -> list[str]:
        """Tokens as text."""
        pairs = zip(token_ids, self.pieces(token_ids), strict=True)
        return [self._text(token_id, piece) for token_id, piece in pairs]

    def _text(self, token_id: int, piece: str | None) -> str:
        if piece is None:  # embedded by the model, unknown to the tokenizer
            return ""
        if self._has_bytes and (byte := BYTE.fullmatch(piece)):
            return _decoded(bytes([int(byte[1], 16)]))
        if token_id in self._special or (self._is_byte_level and token_id in self._added):
            return piece
        if self._is_byte_level:
            known = all(letter in BYTES for letter in piece)
            return _decoded(bytes(BYTES[letter] for letter in piece)) if known else piece
        for mark in self._spaces:
            piece = piece.replace(mark, " ")
        return piece

    def spelled(self, word: str) -> list[int]:
        """Ids of all tokens that are the word, but for white space around it: with a space before it and without, say.

        In the order of the vocabulary.
        """
        if self._is_byte_level:
            inner = {word, "".join(LETTERS[byte] for byte in word.encode())}
        else:
            inner = {word, *(word.replace(" ", mark) for mark in self._spaces)}
        if self._has_bytes and len(word.encode()) == 1:
            inner.add(f"<0x{ord(word):02X}>")
        vocabulary: dict[str, int] = self._tokenizer.get_vocab()
        near = [token_id for piece, token_id in vocabulary.items() if any(part in piece for part in inner)]
        return sorted(i for i, text in zip(near, self.texts(near), strict=True) if text.strip() == word)


def _steps(tokenizer: PreTrainedTokenizerBase) -> Iterator[dict[str, Any]]:
    """The steps of the tokenizer's decoder; none where it has none."""
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    if decoder is None:
        return
    state = json.loads(decoder.__getstate__())
    waiting = [state]
    while waiting:
        step = waiting.pop(0)
        waiting[:0] = step.get("decoders", [])
        yield step


def _space(step: dict[str, Any]) -> str | None:
    """The mark that a step of a decoder turns into a space, if it does."""
    if step["type"] == "Replace" and step["content"] == " ":
        return step["pattern"].get("String")
    return step["replacement"] if step["type"] == "Metaspace" else None


def _decoded(spelt: bytes) -> str:
    return CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", spelt.decode("utf-8", "backslashreplace"))
