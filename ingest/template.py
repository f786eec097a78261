"""The chat template: a prompt as tokens, with the role of every token.

Which characters of the rendered text are the user's is found by rendering the template once with a sentinel in place of the
prompt: what stands before and after the sentinel is template. The tokenizer's offsets then say which tokens hold user text.
A token that holds both (a merged space, say) counts as the user's. The token ids are those of `tokenizer.apply_chat_template`.

A base model has no template (`model.template = "none"`): a prompt is then what the tokenizer makes of the plain text, behind the
BOS token where it puts one by itself, and all of it is the user's.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from saelake.ingest.chats import marked_chat, spans_of, with_roles
from saelake.ingest.messages import Asked, Chat, as_messages
from saelake.ingest.recipe import ModelSpec
from saelake.ingest.rendering import render
from saelake.ingest.tokenized import SENTINEL, Tokenized
from saelake.warehouse.durable import sha256_text
from saelake.warehouse.errors import UserError

CLOCKS = ("2001-01-31T01:02:03", "2034-12-25T23:49:58")
"""Two times that differ in every part: what is rendered may not depend on which of them a template is given."""
GIVEN = {"messages", "add_generation_prompt", "clock", "strftime_now", "raise_exception"}
"""Names that a recipe may not give to variables."""


@dataclass(frozen=True)
class ChatTemplate:
    """A tokenizer with the template text and variables that a recipe gives."""

    tokenizer: PreTrainedTokenizerBase
    text: str
    variables: dict[str, str | int | float | bool]
    system: str | None
    before: str
    """What is rendered before the prompt."""
    after: str
    """What is rendered after it, up to the answer."""

    owner: str
    """Where the template stands: how sentences about it begin."""
    is_plain: bool = False
    """There is no template: prompts are read as they are."""
    without_bos: bool = False
    """The model was trained without the BOS that the tokenizer has."""

    @classmethod
    def plain(cls, tokenizer: PreTrainedTokenizerBase) -> "ChatTemplate":
        """No template; its text shows messages as they are, one behind the other.

        Raises UserError for a tokenizer without offsets.
        """
        _require_offsets(tokenizer)
        bos = "{{ bos_token }}" if _adds_bos(tokenizer) else ""
        text = bos + "{% for message in messages %}{{ message['content'] }}{% endfor %}"
        return cls(tokenizer, text, {}, None, str(tokenizer.bos_token) if bos else "", "", "model.template", is_plain=True)

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, model: ModelSpec) -> "ChatTemplate":
        """The recipe's pinned template, else the tokenizer's own.

        Raises UserError for none of both, another hash than asserted, a template that depends on today's date, fails, takes too
        long, or does not show the prompt exactly once; for settings that change nothing; for BOS that is missing or doubled; for
        a tokenizer without offsets.
        """
        if model.template == "none":
            return cls.plain(tokenizer)
        text = model.pinned_template() or _own_template(tokenizer)
        found = sha256_text(text)
        if model.template_sha256 not in (None, found):
            raise UserError(f"model.template_sha256 is {model.template_sha256}, but the chat template's sha256 is {found}")
        _require_offsets(tokenizer)
        bare = cls(
            tokenizer, text, dict(model.template_variables), model.system, "", "", _owner(model), without_bos=model.without_bos
        )
        rendered = _checked(bare)
        parts = rendered.split(SENTINEL)
        if len(parts) != 2:
            raise UserError(
                f"the chat template shows the user's prompt {len(parts) - 1} times instead of once: "
                f"pin another with model.chat_template"
            )
        _check_bos(tokenizer, rendered, model.without_bos)
        return replace(bare, before=parts[0], after=parts[1])

    @property
    def sha256(self) -> str:
        """Hash of the template's text, in hex."""
        return sha256_text(self.text)

    def context(self, prompt: str, **changed: Any) -> dict[str, Any]:
        """What the template is given, with some of it changed; None takes the system's text away."""
        system = changed.pop("system", self.system)
        messages = [{"role": "user", "content": prompt}]
        if system is not None:
            messages.insert(0, {"role": "system", "content": system})
        given = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": True, "clock": CLOCKS[0]}
        return {**self.tokenizer.special_tokens_map, **given, **self.variables, **changed}

    def render(self, prompt: str) -> str:
        """The whole text that the model reads before it answers."""
        return self.render_all([prompt])[0]

    def render_all(self, prompts: Sequence[str]) -> list[str]:
        """Many prompts at once, as `render` does one."""
        if self.is_plain:
            return [self.before + prompt for prompt in prompts]
        texts = []
        for one in render(self.text, [self.context(prompt) for prompt in prompts]):
            if one.text is None:
                raise UserError(f"{self.owner}: the chat template cannot be rendered ({one.error})")
            texts.append(one.text)
        return texts

    def encode(self, prompt: Asked) -> Tokenized:
        """A prompt through the template. Raises UserError when the template changes the prompt by more than trimming it."""
        return self.encode_all([prompt])[0]

    def identities(self, prompts: Sequence[Asked]) -> list[tuple[int | str, ...]]:
        """What tells prompts apart: the token ids that the model reads, with the text of a token that the vocabulary has not."""
        if not prompts:
            return []
        rendered = self._rendered(prompts)
        encoding = self.tokenizer(rendered, add_special_tokens=False, return_offsets_mapping=True)
        unknown = self.tokenizer.unk_token_id
        found = zip(rendered, encoding["input_ids"], encoding["offset_mapping"], strict=True)
        return [
            tuple(text[slice(*span)] if one == unknown else one for one, span in zip(token_ids, spans, strict=True))
            for text, token_ids, spans in found
        ]

    def _rendered(self, prompts: Sequence[Asked]) -> list[str]:
        """What the model reads of each; of plain text without BOS."""
        if self.is_plain:
            return [one if isinstance(one, str) else "".join(content for _, content in one) for one in prompts]
        texts = iter(self.render_all([one for one in prompts if isinstance(one, str)]))
        chats = iter(self._render_chats([one for one in prompts if not isinstance(one, str)]))
        return [next(texts) if isinstance(one, str) else next(chats) for one in prompts]

    def _render_chats(self, chats: Sequence[Chat]) -> list[str]:
        found = render(self.text, [self.context("", messages=as_messages(chat)) for chat in chats]) if chats else []
        wrong = next((i for i, one in enumerate(found) if one.text is None), None)
        if wrong is not None:
            raise self._unrendered(chats[wrong], found[wrong].error)
        return [one.text or "" for one in found]

    def _unrendered(self, chat: Chat, error: str | None) -> UserError:
        roles = ", ".join(role for role, _ in chat)
        return UserError(
            f"{self.owner}: the chat template cannot render the messages ({roles}) that end in {chat[-1][1][:60]!r} ({error})"
        )

    def encode_chat(self, chat: Chat) -> Tokenized:
        """A chat up to the next answer; a token that holds some of a message has the message's role."""
        if self.is_plain:
            text = "".join(content for _, content in chat)
            plain = with_roles(self.tokenizer, text, spans_of(chat, text))
            return self.behind_bos(plain.token_ids, plain.roles)
        rendered, marked = render(
            self.text, [self.context("", messages=some) for some in (as_messages(chat), as_messages(marked_chat(chat)))]
        )
        if rendered.text is None:
            raise self._unrendered(chat, rendered.error)
        return with_roles(self.tokenizer, rendered.text, spans_of(chat, rendered.text, marked.text))

    def encode_all(self, prompts: Sequence[Asked]) -> list[Tokenized]:
        """Many prompts at once, as `encode` does one."""
        texts = iter(self._encode_texts([one for one in prompts if isinstance(one, str)]))
        return [next(texts) if isinstance(one, str) else self.encode_chat(one) for one in prompts]

    def _encode_texts(self, prompts: Sequence[str]) -> list[Tokenized]:
        if not prompts:
            return []
        if self.is_plain:
            # Not the text behind BOS: some vocabularies write the first word otherwise there than at the beginning of a text.
            plain: list[list[int]] = self.tokenizer(list(prompts), add_special_tokens=False)["input_ids"]
            return [self.behind_bos(token_ids, ["user"] * len(token_ids)) for token_ids in plain]
        rendered = self.render_all(prompts)
        spans = [self._span(prompt, text) for prompt, text in zip(prompts, rendered, strict=True)]
        # The template writes the special tokens itself: adding them again would double BOS.
        encoding = self.tokenizer(rendered, add_special_tokens=False, return_offsets_mapping=True)
        found = zip(encoding["input_ids"], encoding["offset_mapping"], spans, strict=True)
        return [self._tokenized(token_ids, offsets, *span) for token_ids, offsets, span in found]

    def _span(self, prompt: str, rendered: str) -> tuple[int, int]:
        """Where the prompt begins and ends in the rendered text."""
        start, end = len(self.before), len(rendered) - len(self.after)
        framed = rendered.startswith(self.before) and rendered.endswith(self.after) and start <= end
        if not framed or rendered[start:end] not in (prompt, prompt.strip()):
            raise UserError(
                f"the chat template rewrites the prompt {prompt[:60]!r}, so its tokens cannot be told apart: "
                f"pin another with model.chat_template"
            )
        return start, end

    def _system_span(self) -> tuple[int, int]:
        """Where the system's text begins and ends in the rendered text, before the prompt; nowhere without one."""
        text = (self.system or "").strip()
        start = self.before.find(text) if text else -1
        return (start, start + len(text)) if start >= 0 else (-1, -1)

    def _tokenized(self, token_ids: list[int], offsets: list[tuple[int, int]], start: int, end: int) -> Tokenized:
        holds_user = [first < end and last > start for first, last in offsets]
        of_system = self._system_span()
        roles = [
            "user" if inside else "system" if first < of_system[1] and last > of_system[0] else "template"
            for inside, (first, last) in zip(_filled(holds_user), offsets, strict=True)
        ]
        if token_ids and token_ids[0] == self.tokenizer.bos_token_id:
            roles[0] = "bos"
        return Tokenized(token_ids, self.tokenizer.convert_ids_to_tokens(token_ids), roles)

    def behind_bos(self, token_ids: list[int], roles: list[str]) -> Tokenized:
        """Plain text behind the BOS token that the tokenizer puts before it, if it does."""
        bos = self.tokenizer.bos_token_id
        token_ids, roles = ([bos, *token_ids], ["bos", *roles]) if self.before else (token_ids, roles)
        if token_ids and token_ids[0] == bos:
            roles = ["bos", *roles[1:]]
        return Tokenized(token_ids, self.tokenizer.convert_ids_to_tokens(token_ids), roles)


def _checked(template: ChatTemplate) -> str:
    """The rendered sentinel; raises UserError for a template that fails or says the time, or a setting that changes nothing.

    The template is rendered once more for every setting, with another value in its place: a setting that is read shows.
    """
    if taken := sorted(GIVEN & set(template.variables)):
        raise UserError(f"model.template_variables.{taken[0]} is not to be set: the template is given it already")
    asked: dict[str, list[dict[str, Any]]] = {"": [{}], "clock": [{"clock": CLOCKS[1]}]}
    if template.system is not None:
        asked["system"] = [{"system": template.system + " saelake"}, {"system": None}]
    for name, value in template.variables.items():
        asked[f"template_variables.{name}"] = [{name: _another(value)}, {name: None}]
    contexts = [template.context(SENTINEL, **changed) for changes in asked.values() for changed in changes]
    replies = iter(render(template.text, contexts))
    found = {name: [next(replies) for _ in changes] for name, changes in asked.items()}
    plain, clock = found.pop("")[0], found.pop("clock")[0]
    if plain.text is None:
        by_system = "system" in found and found["system"][1].text is not None
        what = "model.system" if by_system else template.owner
        raise UserError(f"{what}: the chat template cannot be rendered ({plain.error})")
    if clock != plain:
        pin = (
            'fix it with model.template_variables = { date_string = "26 Jul 2024" }'
            if "date_string" in template.text and "date_string" not in template.variables
            else "it reads no date_string, so write the date out in a copy of it and pin that with model.chat_template_file"
        )
        raise UserError(f"the chat template writes today's date into every prompt: {pin} so that runs can be repeated")
    for name, (changed, without) in found.items():
        # A value may be what the template would say anyway; then it is read if another one shows.
        is_blank = name == "system" and not (template.system or "").strip()
        if (changed == plain and (without == plain or name == "system")) or (is_blank and without == plain):
            raise UserError(f"model.{name} changes nothing: the chat template renders the same with another, so take it out")
    return plain.text


def _another(value: str | int | float | bool) -> str | int | float | bool:
    if isinstance(value, bool):
        return not value
    return f"{value} saelake" if isinstance(value, str) else value + 1


def _check_bos(tokenizer: PreTrainedTokenizerBase, rendered: str, without: bool) -> None:
    """BOS is the first token once, if the tokenizer has one: models are trained on it, and nothing else activates like it."""
    bos = tokenizer.bos_token_id
    token_ids = tokenizer(rendered, add_special_tokens=False)["input_ids"]
    has = bos is not None and token_ids[:1] == [bos]
    if without and (has or bos is None):
        why = "the chat template writes BOS" if has else "the tokenizer has no BOS"
        raise UserError(f"model.without_bos changes nothing: {why}, so take it out")
    if has and token_ids[1:2] == [bos]:
        raise UserError(
            f"every prompt begins with BOS ({tokenizer.bos_token}) twice, which the model never read: "
            "pin a template that writes one in model.chat_template"
        )
    if bos is not None and not has and not without:
        raise UserError(
            f"the chat template writes no BOS, though the tokenizer has one ({tokenizer.bos_token}): begin it with "
            "{{ bos_token }} in model.chat_template, or say model.without_bos = true where the model was trained without"
        )


def _owner(model: ModelSpec) -> str:
    if model.chat_template_file is not None:
        return f"model.chat_template_file {model.chat_template_file}"
    return "model.chat_template" if model.chat_template is not None else f"model {model.name}"


def _own_template(tokenizer: PreTrainedTokenizerBase) -> str:
    try:
        return str(tokenizer.get_chat_template())
    except ValueError as error:
        raise UserError(
            "model: the tokenizer has no chat template; pin one with model.chat_template or model.chat_template_file, or write "
            'model.template = "none", by which the prompts of a base model are read as they are'
        ) from error


def _require_offsets(tokenizer: PreTrainedTokenizerBase) -> None:
    if not tokenizer.is_fast:
        raise UserError("model: the tokenizer has no fast version (tokenizer.json), which is needed to find the user's tokens")


def _adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    ids: list[int] = tokenizer("x")["input_ids"]
    return tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]


def _filled(flags: list[bool]) -> list[bool]:
    """True from the first to the last true flag: tokens of empty width inside the user's text are the user's."""
    if True not in flags:
        return flags
    first, last = flags.index(True), len(flags) - flags[::-1].index(True)
    return [first <= index < last for index in range(len(flags))]
