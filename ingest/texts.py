"""Texts as tokens: whose cross-entropy is measured, or that SAEs are trained on; which of them are context only."""

from dataclasses import dataclass
from typing import Any, Protocol

from saelake.ingest.cells import is_missing
from saelake.ingest.inputs import hash_input
from saelake.ingest.messages import Asked
from saelake.ingest.prompts import hash_prompt
from saelake.ingest.recipe.effects import TextSet
from saelake.ingest.rows import Row
from saelake.ingest.sources import rows_of
from saelake.ingest.tokenized import Tokenized
from saelake.warehouse.errors import UserError
from saelake.warehouse.literals import is_unicode


class Reader(Protocol):
    """What reads texts: a subject, or its chat template alone."""

    @property
    def tokenizer(self) -> Any: ...

    @property
    def without_bos(self) -> bool: ...

    def encode(self, prompt: Asked) -> Tokenized: ...


@dataclass(frozen=True)
class Text:
    """One text of a set."""

    number: int
    """Its place among the texts of its set, from 0."""
    text_hash: str
    token_ids: list[int]
    n_context: int
    """Tokens at the beginning whose loss does not count: BOS, or without one the text's first token, or the templated prompt."""
    is_cut: bool

    @property
    def n_counted(self) -> int:
        return len(self.token_ids) - self.n_context


def read_texts(spec: TextSet, subject: Reader) -> list[Text]:
    """The first `take` texts with a token to predict.

    Raises UserError for a missing column, no text, fewer than the recipe's `take`, or an unreadable source.
    """
    texts: list[Text] = []
    wanted = [spec.text] if spec.prompt is None else [spec.text, spec.prompt]
    for number, row in enumerate(rows_of(spec, wanted), start=1):
        text = _cell(spec, spec.text, number, row)
        if is_missing(text):
            continue
        prompt = None if spec.prompt is None else _cell(spec, spec.prompt, number, row)
        token_ids, n_context = _tokens(subject, text, prompt)
        cut = token_ids[: spec.max_tokens]
        if len(cut) > n_context:
            hashed = hash_prompt(text if prompt is None else f"{prompt}\0{text}")
            texts.append(Text(len(texts), hashed, cut, n_context, len(cut) < len(token_ids)))
        if len(texts) == spec.take:
            break
    if not texts:
        raise UserError(
            f"{spec.owner}: no row has a token to predict within max_tokens = {spec.max_tokens}: raise it, or take other texts"
        )
    if len(texts) < spec.take and spec.is_given("take"):
        raise UserError(f"{spec.owner} has only {len(texts)} texts, but its take says {spec.take}: lower it, or leave it out")
    return texts


def source_hash(spec: TextSet) -> str:
    """What stands for a set's content in a run's identity; the recipe pins what is not a local file."""
    return hash_input(spec.file, spec.owner) if spec.file is not None else str(spec.sha256 or spec.revision)


def _cell(spec: TextSet, column: str, number: int, row: Row) -> str:
    value = row.get(column)
    if not isinstance(value, str) or (column == spec.prompt and is_missing(value)):
        raise UserError(
            f"{spec.owner}, row {number}: column {column!r} holds no text: the columns are {', '.join(map(str, row))}"
        )
    if not is_unicode(value):
        raise UserError(f"{spec.owner}, row {number}: column {column!r} holds half of a character, which is not Unicode text")
    return value


def _tokens(subject: Reader, text: str, prompt: str | None) -> tuple[list[int], int]:
    """Tokens, and how many at the beginning are context."""
    tokenizer = subject.tokenizer
    if prompt is not None:
        context = subject.encode(prompt).token_ids
        return [*context, *tokenizer(text, add_special_tokens=False)["input_ids"]], len(context)
    token_ids: list[int] = tokenizer(text, add_special_tokens=not subject.without_bos)["input_ids"]
    if subject.without_bos:
        return token_ids, 1
    if tokenizer.bos_token_id is not None and token_ids[:1] != [tokenizer.bos_token_id]:
        token_ids = [tokenizer.bos_token_id, *token_ids]
    return token_ids, 1
