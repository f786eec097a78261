"""Chats as prompts: lists of messages, as files hold them and as the lake keeps them. No torch."""

import json
from typing import Any

from saelake.warehouse.literals import is_unicode

Chat = tuple[tuple[str, str], ...]
"""Messages in their order, each a role and a text; the last is what the model answers."""
Asked = str | Chat
"""What a prompt is: a text, which goes through the template as the user's, or a chat."""
CHAT_ROLES = ("system", "user", "assistant")


def as_messages(chat: Chat) -> list[dict[str, str]]:
    """Messages as templates take them."""
    return [{"role": role, "content": content} for role, content in chat]


def chat_json(chat: Chat) -> str:
    """The messages as the lake keeps them."""
    return json.dumps(as_messages(chat), ensure_ascii=False)


def read_chat(cell: object) -> Chat:
    """A chat as files hold it: a list of {role, content}, be it as JSON text.

    Raises ValueError, which says what is wrong, for anything else, and for a chat that does not end with what the user says.
    """
    if isinstance(cell, str):
        try:
            cell = json.loads(cell, object_pairs_hook=tuple)
        except (ValueError, RecursionError) as error:
            raise ValueError("it is not a list of messages") from error
    messages = [_fields(one) for one in cell] if isinstance(cell, list | tuple) else []
    if not messages:
        raise ValueError("it is not a list of messages")
    found: list[tuple[str, str]] = []
    for number, message in enumerate(messages, start=1):
        role, content = message.get("role"), message.get("content")
        if role not in CHAT_ROLES or not isinstance(content, str) or not is_unicode(content):
            raise ValueError(f"message {number} is not {{role: one of {', '.join(CHAT_ROLES)}, content: text}}")
        if not content.strip():
            raise ValueError(f"message {number} is empty")
        found.append((str(role), content))
    if any(role == "system" for role, _ in found[1:]):
        raise ValueError("a system message stands behind others")
    if found[-1][0] != "user":
        raise ValueError(f"its last message is the {found[-1][0]}'s: it is to end with what the user says, which is answered")
    return tuple(found)


def _fields(message: Any) -> dict[str, Any]:
    """The fields of a message; an object in a row of JSON stays pairs of names and values, which may repeat a name."""
    pairs = list(message.items()) if isinstance(message, dict) else list(message) if isinstance(message, tuple) else []
    found = {name: value for name, value in pairs if isinstance(name, str)}
    if len(found) < len(pairs):
        raise ValueError("a message says something twice")
    return found
