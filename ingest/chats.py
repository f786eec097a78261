"""Where a chat template shows each message of a chat, so that every token has the role of the message that it is of."""

import re

from transformers import PreTrainedTokenizerBase

from saelake.ingest.messages import Chat
from saelake.ingest.tokenized import SENTINEL, Tokenized

MARK = re.compile(rf"{SENTINEL}(\d+)\ue001")
"""Stands for a message where it is asked where the template shows it."""
Span = tuple[int, int, str]
"""Where a message begins and ends in a rendered text, and its role."""


def marked_chat(chat: Chat) -> Chat:
    """The same messages with a mark for the text of each."""
    return tuple((role, f"{SENTINEL}{n}\ue001") for n, (role, _) in enumerate(chat))


def spans_of(chat: Chat, text: str, marked: str | None = None) -> list[Span]:
    """Where the messages stand in a rendered text.

    Args:
        marked: the text that is rendered of `marked_chat`, where it can be.
    """
    framed = _framed(text, marked or "", chat)
    return _found(text, chat) if framed is None else framed


def _framed(text: str, marked: str, chat: Chat) -> list[Span] | None:
    """The messages between what the template shows around them; None where that depends on what they say."""
    first, *parts = MARK.split(marked)
    if not text.startswith(first):
        return None
    spans, cursor = [], len(first)
    for number, behind in zip(parts[::2], parts[1::2], strict=True):
        role, said = chat[int(number)]
        forms = (said, said.strip())
        content = next((form for form in forms if text.startswith(form + behind, cursor)), None)
        if content is None:
            return None
        spans.append((cursor, cursor + len(content), role))
        cursor += len(content) + len(behind)
    return spans if cursor == len(text) else None


def _found(text: str, chat: Chat) -> list[Span]:
    """The messages where their texts are found one after the other."""
    spans, cursor = [], 0
    for role, said in chat:
        content = said if text.find(said, cursor) >= 0 else said.strip()
        start = text.find(content, cursor)
        if start >= 0 and content:
            cursor = start + len(content)
            spans.append((start, cursor, role))
    return spans


def with_roles(tokenizer: PreTrainedTokenizerBase, text: str, spans: list[Span]) -> Tokenized:
    """A rendered text as tokens; what is of no message is the template's."""
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    token_ids: list[int] = encoding["input_ids"]
    roles = [
        next((role for start, end, role in spans if first < end and last > start), "template")
        for first, last in encoding["offset_mapping"]
    ]
    if token_ids and token_ids[0] == tokenizer.bos_token_id:
        roles[0] = "bos"
    return Tokenized(token_ids, tokenizer.convert_ids_to_tokens(token_ids), roles)
