"""Prompt sets: rows of a file, URL or hub data set become labelled prompts. No torch.

    prompts = load_prompts(load_recipe("organism"))

Order: sets as in the recipe, rows as in the file. Rows are counted from 1 (a CSV header is not counted).
"""

import hashlib
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, NamedTuple

from saelake.ingest.cells import as_text, entry, is_missing, is_value, key, matches, same
from saelake.ingest.messages import Asked, Chat, chat_json, read_chat
from saelake.ingest.recipe import Column, Fractions, PromptSet, Recipe
from saelake.ingest.recipe.sections import Scalar
from saelake.ingest.rows import Row
from saelake.ingest.sources import rows_of
from saelake.warehouse.durable import sha256_text
from saelake.warehouse.errors import UserError
from saelake.warehouse.literals import is_unicode

CHUNK = 256
"""Prompts that are tokenised at a time."""

LETTERS_A_TOKEN = 100
"""No text has so many letters a token, so that one which is far too long is found without being tokenised."""

Read = Callable[[Sequence[Asked]], Sequence[Hashable]]
"""What the model reads of each of some prompts: their token ids."""


@dataclass(frozen=True)
class Prompt:
    """One prompt of a set, before any template."""

    set: str
    split: str
    label: str
    """any text; the recipe's [labels] say which is the target's and which the control's"""
    category: str | None
    text: str
    prompt_hash: str
    """First 16 hex digits of the sha256 of the text, or of the messages: equal prompts share it across sets and runs."""
    family: str | None = None
    """What it shares with prompts like it, such as a wording; None: it is alone."""
    messages: Chat | None = None
    """The chat that it is, whose last message is the text; None: it is the text alone."""

    @property
    def asked(self) -> Asked:
        """What the template is given."""
        return self.text if self.messages is None else self.messages


def hash_prompt(text: str) -> str:
    """First 16 hex digits of the sha256 of a text."""
    return sha256_text(text)[:16]


def content_hash(prompts: Iterable[Prompt]) -> str:
    """sha256 over all fields of all prompts in order: equal for equal prompts wherever they were read from."""
    total = hashlib.sha256()
    for prompt in prompts:
        for value in (prompt.set, prompt.split, prompt.label, prompt.category, prompt.text):
            encoded = b"" if value is None else value.encode()
            total.update(f"{'-' if value is None else len(encoded)}:".encode() + encoded)
        if prompt.messages is not None:  # studies without chats keep the hashes that they had, as do those without families
            chat = chat_json(prompt.messages).encode()
            total.update(f"messages {len(chat)}:".encode() + chat)
        if prompt.family is not None:
            total.update(f"family {len(prompt.family.encode())}:{prompt.family}".encode())
    return total.hexdigest()


def load_prompts(recipe: Recipe, read: Read | None = None) -> list[Prompt]:
    """All prompts of a recipe, checked.

    Raises UserError, which names the set, and the row where there is one: unreadable source, wrong hash, missing column, empty or
    non-text value, labels of which none is the study's, equal prompts, no prompts, a count other than the asserted one, one
    prompt with two labels or in two splits.

    Args:
        read: what the model reads of prompts, by which they are the same or not; their texts, where it is not known.
    """
    found = [one for spec in recipe.prompts for one in _load_set(spec, read or _texts, recipe.model.max_prompt_tokens)]
    _check_places_agree(found, {spec.set for spec in recipe.prompts if spec.overlap})
    prompts = [one.prompt for one in found]
    _check_labels(recipe, {prompt.label for prompt in prompts})
    return prompts if recipe.prompts_per_group is None else _first_of_each_group(prompts, recipe.prompts_per_group)


def _texts(prompts: Sequence[Asked]) -> Sequence[Asked]:
    return prompts


class Placed(NamedTuple):
    """A prompt with where it stands and what it is to the model."""

    prompt: Prompt
    number: int
    """Its row, from 1."""
    identity: Hashable


def _check_labels(recipe: Recipe, present: set[str]) -> None:
    """Labels that no prompt has are misspelt, or those of other prompts."""
    labels, shown = recipe.labels, ", ".join(sorted(map(repr, present)))
    for field in ("target", "control"):
        if labels.is_given(field) and getattr(labels, field) not in present:
            raise UserError(f"labels.{field} is {getattr(labels, field)!r}, but no prompt has that label: the labels are {shown}")
    if not present & {labels.target, labels.control}:
        raise UserError(
            f"no prompt is labelled {labels.target} or {labels.control}: the labels are {shown}; say which is which with "
            f"[labels] target = ..., control = ..., or rename them with label = {{ column = ..., map = {{ ... }} }}"
        )


def _load_set(spec: PromptSet, read: Read, max_tokens: int) -> list[Placed]:
    """The prompts of one set, in file order."""
    kept = _deduplicated(spec, _kept_rows(spec, max_tokens), read)
    found = list(kept if spec.take is None else islice(kept, spec.take))
    if not found:
        raise UserError(_empty(spec))
    if spec.take is not None and len(found) < spec.take:
        raise UserError(
            f"{spec.owner} has only {len(found)} prompts, but its take says {spec.take}: lower it, or leave it out for all"
        )
    if spec.count is not None and len(found) != spec.count:
        raise UserError(f"{spec.owner} has {len(found)} prompts, but its count says {spec.count}")
    if not isinstance(spec.split, Fractions):
        return found
    drawn = _draw_splits([one.prompt for one in found], spec.split)
    if spec.is_given("split") and (without := [name for name in spec.split.shares if name not in {p.split for p in drawn}]):
        raise UserError(
            f"{spec.owner}: no prompt falls into split {without[0]!r}, whose share is {spec.split.shares[without[0]]:g} of "
            f"{len(drawn)} prompts, drawn within every label and category: raise it, or leave the split out"
        )
    return [one._replace(prompt=prompt) for one, prompt in zip(found, drawn, strict=True)]


def _kept_rows(spec: PromptSet, max_tokens: int) -> Iterator[tuple[int, Row]]:
    """(row number, row) of the rows that `where` keeps; columns and cells are checked on the way.

    Raises UserError at the end of the rows for a value of `where`, or a name in a map, that none of them has.
    """
    columns, n_kept = _columns(spec), 0
    seen: dict[str, set[str]] = {column: set() for column in {*spec.where, *(one.column for one in _mapped(spec).values())}}
    for number, row in enumerate(rows_of(spec, columns), start=1):
        for column in columns:
            if column not in row:
                raise UserError(f"{spec.owner} has no column {column!r} in row {number}: the columns are {', '.join(row)}")
            _check_cell(spec, number, column, row[column])
        for column, keys in seen.items():
            keys.add(key(row[column]))
        if all(any(matches(row[column], value) for value in _several(values)) for column, values in spec.where.items()):
            text = _said(spec, number, row)
            if len(text) > LETTERS_A_TOKEN * max_tokens:
                raise UserError(
                    f"{spec.owner}, row {number}: the prompt has {len(text):,} letters, more than model.max_prompt_tokens = "
                    f"{max_tokens} tokens have: leave it out, or raise the limit"
                )
            n_kept += 1
            yield number, row
    _check_all_occur(spec, seen, n_kept)


def _said(spec: PromptSet, number: int, row: Row) -> str:
    """All that a row asks, to see that it is text and how long it is."""
    if spec.messages is not None:
        return "".join(content for _, content in _chat(spec, number, row) or ())
    text = row[spec.text]
    if not isinstance(text, str) or is_missing(text):
        raise UserError(f"{spec.owner}, row {number}: column {spec.text!r} holds {_shown(text)} instead of a text")
    return text


def _chat(spec: PromptSet, number: int, row: Row) -> Chat | None:
    """The messages of a row; None where it is a text alone."""
    chat: Chat = () if spec.messages is not None else (("user", row[spec.text]),)
    if spec.messages is not None:
        try:
            chat = read_chat(row[spec.messages])
        except ValueError as error:
            raise UserError(f"{spec.owner}, row {number}: column {spec.messages!r} holds no chat: {error}") from error
    if spec.system is None or (isinstance(spec.system, Column) and is_missing(row[spec.system.column])):
        return chat if spec.messages is not None else None
    if chat[0][0] == "system":
        raise UserError(f"{spec.owner}, row {number}: the chat has a system message, and system gives it another")
    return (("system", _value(spec, "system", spec.system, number, row)), *chat)


def _empty(spec: PromptSet) -> str:
    return f"{spec.owner} is empty: no row is left{' after where' if spec.where else ''}"


def _check_cell(spec: PromptSet, number: int, column: str, cell: object) -> None:
    if isinstance(cell, str) and not is_unicode(cell):
        raise UserError(
            f"{spec.owner}, row {number}: column {column!r} holds half of a character instead of a text: {_shown(cell)}"
        )
    if column not in (spec.text, spec.messages) and not is_missing(cell) and not is_value(cell):
        raise UserError(f"{spec.owner}, row {number}: column {column!r} holds {_shown(cell)} instead of one value")


def _check_all_occur(spec: PromptSet, seen: Mapping[str, set[str]], n_kept: int) -> None:
    """Values that no row has are misspelt, or belong to another file."""
    asked = [(f"where.{column}", column, value) for column, values in spec.where.items() for value in _several(values)]
    asked += [(f"{field}.map", one.column, name) for field, one in _mapped(spec).items() for name in one.map]
    for field, column, value in asked:
        found = seen[column]
        if found and not any(same(value, one) for one in found):
            shown = ", ".join(repr(one) for one in sorted(found)[:5]) + (", ..." if len(found) > 5 else "")
            start = spec.owner if n_kept else _empty(spec)
            raise UserError(f"{start}: {field} names {value!r}, but no row has it: column {column!r} holds {shown}")


def _several(values: Scalar | tuple[Scalar, ...]) -> tuple[Scalar, ...]:
    return values if isinstance(values, tuple) else (values,)


def _mapped(spec: PromptSet) -> dict[str, Column]:
    """The fields of a set that are read from a column."""
    fields = {"label": spec.label, "category": spec.category, "family": spec.family, "split": spec.split, "system": spec.system}
    return {name: value for name, value in fields.items() if isinstance(value, Column)}


def _columns(spec: PromptSet) -> list[str]:
    """The columns that are read, each once."""
    return list(dict.fromkeys([spec.messages or spec.text, *(one.column for one in _mapped(spec).values()), *spec.where]))


def _deduplicated(spec: PromptSet, rows: Iterator[tuple[int, Row]], read: Read) -> Iterator[Placed]:
    """The first of equal prompts when the set says so; otherwise, and where they differ in label or split, they are an error."""
    seen: dict[Hashable, Placed] = {}
    # No more rows are looked at than may be taken: those behind them need not be sound.
    while chunk := list(islice(rows, CHUNK if spec.take is None else min(CHUNK, spec.take - len(seen)))):
        prompts = [_prompt(spec, number, row) for number, row in chunk]
        asked = list(dict.fromkeys(prompt.asked for prompt in prompts))
        identities = dict(zip(asked, read(asked), strict=True))
        for (number, _), prompt in zip(chunk, prompts, strict=True):
            one = Placed(prompt, number, identity := identities[prompt.asked])
            first = seen.setdefault(identity, one)
            if first is one:
                yield one
                continue
            _check_agree(first, one, may_overlap=False)
            if not spec.deduplicate:
                raise UserError(
                    f"{spec.owner}: rows {first.number} and {number} are the same prompt{_variants(first, one)}; "
                    f"deduplicate = true keeps the first"
                )


def _prompt(spec: PromptSet, number: int, row: Row) -> Prompt:
    label = _value(spec, "label", spec.label, number, row)
    # A drawn split is filled in when all rows of the set are known.
    split = "" if isinstance(spec.split, Fractions) else _value(spec, "split", spec.split, number, row)
    category = None
    if spec.category is not None:
        blank = isinstance(spec.category, Column) and is_missing(row[spec.category.column])
        category = None if blank else _value(spec, "category", spec.category, number, row)
    family = None
    if spec.family is not None and not is_missing(row[spec.family.column]):
        family = _value(spec, "family", spec.family, number, row)
    chat = _chat(spec, number, row)
    text = row[spec.text] if chat is None else chat[-1][1]
    return Prompt(spec.set, split, label, category, text, hash_prompt(text if chat is None else chat_json(chat)), family, chat)


def _value(spec: PromptSet, field: str, source: str | Column, number: int, row: Row) -> str:
    """A constant, or the (renamed) value of a column."""
    if isinstance(source, str):
        return source
    cell = row[source.column]
    if is_missing(cell):
        raise UserError(f"{spec.owner}, row {number}: column {source.column!r} ({field}) is empty")
    name = entry(cell, source.map)
    return as_text(cell) if name is None else source.map[name]


def _shown(value: Any) -> str:
    return "nothing" if value is None else repr(value)[:60]


def _draw_splits(prompts: list[Prompt], fractions: Fractions) -> list[Prompt]:
    """Splits with the asked shares inside every (label, category), drawn by seed and text: row order does not matter."""
    groups: dict[tuple[str, str | None], list[Prompt]] = {}
    for prompt in prompts:
        groups.setdefault((prompt.label, prompt.category), []).append(prompt)
    split_of: dict[Asked, str] = {}
    for group in groups.values():
        drawn = sorted(group, key=lambda prompt: hashlib.sha256(f"{fractions.seed}\0{_content(prompt)}".encode()).digest())
        for rank, prompt in enumerate(drawn):
            split_of[prompt.asked] = fractions.at((rank + 0.5) / len(drawn))
    return [replace(prompt, split=split_of[prompt.asked]) for prompt in prompts]


def _content(prompt: Prompt) -> str:
    return prompt.text if prompt.messages is None else chat_json(prompt.messages)


def _check_places_agree(found: Iterable[Placed], overlapping: Collection[str]) -> None:
    """A prompt may stand in two sets, but not with two labels, nor in two splits unless one of the sets may overlap."""
    places: dict[Hashable, list[Placed]] = {}
    for one in found:
        before = places.setdefault(one.identity, [])
        for other in before:
            may_overlap = one.prompt.set in overlapping or other.prompt.set in overlapping
            _check_agree(other, one, may_overlap=may_overlap)
        before.append(one)


def _check_agree(first: Placed, second: Placed, *, may_overlap: bool) -> None:
    one, other = first.prompt, second.prompt
    rows = f"(rows {first.number} and {second.number}){_variants(first, second)}"
    if one.label != other.label:
        raise UserError(
            f"the prompt {one.text[:60]!r} is {one.label} in set {one.set!r}, but {other.label} in set {other.set!r} {rows}: "
            f"one prompt has one label, so take it out of one of them"
        )
    if one.split != other.split and not may_overlap:
        raise UserError(
            f"the prompt {one.text[:60]!r} is in split {one.split!r} of set {one.set!r}, but in split {other.split!r} of set "
            f"{other.set!r} {rows}: take it out of one of them, or say overlap = true in one of two sets if that is meant"
        )


def _variants(first: Placed, second: Placed) -> str:
    same_text = first.prompt.asked == second.prompt.asked
    return "" if same_text else ", whose texts differ but give the same tokens"


def _first_of_each_group(prompts: Iterable[Prompt], n: int) -> list[Prompt]:
    kept: list[Prompt] = []
    counts: dict[tuple[str, str, str], int] = {}
    for prompt in prompts:
        group = (prompt.set, prompt.label, prompt.split)
        counts[group] = counts.get(group, 0) + 1
        if counts[group] <= n:
            kept.append(prompt)
    return kept
