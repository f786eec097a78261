"""A prompt as the model reads it."""

from typing import NamedTuple

SENTINEL = "saelake\ue000sentinel"
"""Stands for a text where it is asked where a template shows it."""


class Tokenized(NamedTuple):
    """A prompt as the model reads it."""

    token_ids: list[int]
    tokens: list[str]
    """The vocabulary's own spelling (with its marks for spaces), so that a token can be looked up again."""
    roles: list[str]
    """bos | template | system | user; of a chat with answers assistant too"""
