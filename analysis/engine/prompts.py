"""The forms that a prompt may have from Python: text, a chat, token ids."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from saelake.ingest.messages import CHAT_ROLES
from saelake.ingest.subject import Subject
from saelake.ingest.tokenized import Tokenized
from saelake.warehouse import arguments
from saelake.warehouse.errors import UserError

Prompt = str | Sequence[Mapping[str, str]] | Sequence[int]
"""A text, which goes through the template; a chat, a list of {"role": ..., "content": ...}; or token ids as they are read."""


def read_prompts(subject: Subject, prompts: Sequence[Prompt]) -> list[Tokenized]:
    """Every prompt as tokens with their roles; raises UserError for what is not a prompt, by its place."""
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
        if not isinstance(role, str) or role not in CHAT_ROLES or not isinstance(content, str):
            raise UserError(f"prompt {place}: a message is {{'role': one of {', '.join(CHAT_ROLES)}, 'content': text}}")
        arguments.text(f"prompt {place}", content)
    try:
        return subject.template.encode_chat(tuple((message["role"], message["content"]) for message in messages))
    except UserError as error:
        raise UserError(f"prompt {place}: {error}") from error
