"""The forms that a prompt may have from Python: text, a chat, token ids."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from saelake.ingest.rendering import render
from saelake.ingest.subject import Subject, Tokenized
from saelake.ingest.template import SENTINEL
from saelake.warehouse import arguments
from saelake.warehouse.errors import UserError

Prompt = str | Sequence[Mapping[str, str]] | Sequence[int]
"""A text, which goes through the template; a chat, a list of {"role": ..., "content": ...}; or token ids as they are read."""
ROLES = ("system", "user", "assistant")
MARK = re.compile(rf"{SENTINEL}(\d+)\ue001")
"""Stands for a message where it is asked where the template shows it."""
Span = tuple[int, int, str]
"""Where a message begins and ends in a rendered text, and its role."""


def read_prompts(subject: Subject, prompts: Sequence[Prompt]) -> list[Tokenized]:
    """Every prompt as tokens with their roles; raises UserError for what is no prompt, by its place."""
    given = [prompts] if isinstance(prompts, str) else arguments.listed("prompts", prompts, "a list of prompts")
    if isinstance(prompts, str) or (given and isinstance(given[0], Mapping)):
        raise UserError("prompts is a list of prompts: put this one into a list")
    with arguments.without_recipe():
        return [_read(subject, prompt, place) for place, prompt in enumerate(given)]


def _read(subject: Subject, prompt: Any, place: int) -> Tokenized:
    if isinstance(prompt, str):
        found = subject.encode(arguments.text(f"prompt {place}", prompt))
        if not found.token_ids:
            raise UserError(f"prompt {place} is empty: without a template it has no token to read")
        return found
    items = prompt.tolist() if hasattr(prompt, "tolist") else prompt
    items = list(items) if isinstance(items, Iterable) and not isinstance(items, Mapping | bytes | set | frozenset) else []
    items = [item.item() if isinstance(item, np.integer) else item for item in items]
    if items and all(isinstance(item, Mapping) for item in items):
        found = _chat(subject, items, place)
    elif items and all(isinstance(item, int) and not isinstance(item, bool) for item in items):
        if not all(0 <= token < subject.n_vocab for token in items):
            raise UserError(f"prompt {place} has token ids outside of the model's 0 to {subject.n_vocab - 1}")
        roles = ["bos" if n == 0 and token == subject.tokenizer.bos_token_id else "user" for n, token in enumerate(items)]
        found = Tokenized(items, subject.tokenizer.convert_ids_to_tokens(items), roles)
    else:
        raise UserError(f"prompt {place} is neither a text, nor a list of messages, nor a list of token ids, or it is empty")
    subject.check_length(found, f"prompt {place}")
    return found


def _chat(subject: Subject, messages: list[Mapping[str, str]], place: int) -> Tokenized:
    """A chat through the template, up to the next answer; a token that holds some of a message has the message's role."""
    for message in messages:
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str) or role not in ROLES or not isinstance(content, str):
            raise UserError(f"prompt {place}: a message is {{'role': one of {', '.join(ROLES)}, 'content': text}}")
        arguments.text(f"prompt {place}", content)
    template, tokenizer = subject.template, subject.tokenizer
    if template.is_plain:
        text = "".join(message["content"] for message in messages)
        plain = _with_roles(tokenizer, text, _found(text, messages))
        return template.behind_bos(plain.token_ids, plain.roles)
    marks = [dict(message) | {"content": f"{SENTINEL}{n}\ue001"} for n, message in enumerate(messages)]
    shown = [[dict(message) for message in messages], marks]
    rendered, marked = render(template.text, [template.context("", messages=some) for some in shown])
    if rendered.text is None:
        raise UserError(f"prompt {place}: the chat template cannot be rendered ({rendered.error})")
    spans = _framed(rendered.text, marked.text or "", messages)
    return _with_roles(tokenizer, rendered.text, _found(rendered.text, messages) if spans is None else spans)


def _framed(text: str, marked: str, messages: list[Mapping[str, str]]) -> list[Span] | None:
    """The messages between what the template shows around them; None where that depends on what they say."""
    first, *parts = MARK.split(marked)
    if not text.startswith(first):
        return None
    spans, cursor = [], len(first)
    for number, behind in zip(parts[::2], parts[1::2], strict=True):
        message = messages[int(number)]
        forms = (message["content"], message["content"].strip())
        content = next((form for form in forms if text.startswith(form + behind, cursor)), None)
        if content is None:
            return None
        spans.append((cursor, cursor + len(content), message["role"]))
        cursor += len(content) + len(behind)
    return spans if cursor == len(text) else None


def _found(text: str, messages: list[Mapping[str, str]]) -> list[Span]:
    """The messages where their texts are found one after the other."""
    spans, cursor = [], 0
    for message in messages:
        content = message["content"] if text.find(message["content"], cursor) >= 0 else message["content"].strip()
        start = text.find(content, cursor)
        if start >= 0 and content:
            cursor = start + len(content)
            spans.append((start, cursor, message["role"]))
    return spans


def _with_roles(tokenizer: PreTrainedTokenizerBase, text: str, spans: list[Span]) -> Tokenized:
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    token_ids: list[int] = encoding["input_ids"]
    roles = [
        next((role for start, end, role in spans if first < end and last > start), "template")
        for first, last in encoding["offset_mapping"]
    ]
    if token_ids and token_ids[0] == tokenizer.bos_token_id:
        roles[0] = "bos"
    return Tokenized(token_ids, tokenizer.convert_ids_to_tokens(token_ids), roles)
