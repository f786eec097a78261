"""The chat template: a prompt as tokens, with the role of every token.

Which characters of the rendered text are the user's is found by rendering the template once with a sentinel in place of the
prompt: what stands before and after the sentinel is template. The tokenizer's offsets then say which tokens hold user text.
A token that holds both (a merged space, say) counts as the user's. The token ids are those of `tokenizer.apply_chat_template`.
"""

import hashlib
from dataclasses import dataclass
from typing import NamedTuple

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from saelake.ingest.recipe import ModelSpec
from saelake.warehouse.errors import UserError

SENTINEL = "saelake\ue000sentinel"


class Tokenized(NamedTuple):
    """A prompt as the model reads it."""

    token_ids: list[int]
    tokens: list[str]
    """The vocabulary's own spelling (with its marks for spaces), so that a token can be looked up again."""
    roles: list[str]
    """bos | template | user"""


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

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, model: ModelSpec) -> "ChatTemplate":
        """The recipe's pinned template, else the tokenizer's own.

        Raises UserError for none of both, another hash than asserted, a template that depends on today's date, fails, or does not
        show the prompt exactly once, a tokenizer without offsets.
        """
        text = model.pinned_template() or _own_template(tokenizer)
        found = hashlib.sha256(text.encode()).hexdigest()
        if model.template_sha256 not in (None, found):
            raise UserError(f"model.template_sha256 is {model.template_sha256}, but the chat template's sha256 is {found}")
        if "strftime_now" in text and "date_string" not in model.template_variables:
            raise UserError(
                "the chat template writes today's date into every prompt: fix it with model.template_variables = "
                '{ date_string = "26 Jul 2024" } so that runs can be repeated'
            )
        if not tokenizer.is_fast:
            raise UserError(
                "model: the tokenizer has no fast version (tokenizer.json), which is needed to find the user's tokens"
            )
        bare = cls(tokenizer, text, dict(model.template_variables), model.system, "", "")
        parts = bare.render(SENTINEL).split(SENTINEL)
        if len(parts) != 2:
            raise UserError(
                f"the chat template shows the user's prompt {len(parts) - 1} times instead of once: "
                f"pin another with model.chat_template"
            )
        return cls(tokenizer, text, bare.variables, model.system, *parts)

    @property
    def sha256(self) -> str:
        """Hash of the template's text, in hex."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def render(self, prompt: str) -> str:
        """The whole text that the model reads before it answers."""
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        messages = [*system, {"role": "user", "content": prompt}]
        try:
            rendered = self.tokenizer.apply_chat_template(
                messages, chat_template=self.text, tokenize=False, add_generation_prompt=True, **self.variables
            )
        except TemplateError as error:
            what = "model.system" if self.system is not None else "model.chat_template"
            raise UserError(f"{what}: the chat template cannot be rendered ({error})") from error
        assert isinstance(rendered, str), "one conversation gives one text"
        return rendered

    def encode(self, prompt: str) -> Tokenized:
        """A prompt through the template. Raises UserError when the template changes the prompt by more than trimming it."""
        rendered = self.render(prompt)
        start, end = len(self.before), len(rendered) - len(self.after)
        framed = rendered.startswith(self.before) and rendered.endswith(self.after) and start <= end
        if not framed or rendered[start:end] not in (prompt, prompt.strip()):
            raise UserError(
                f"the chat template rewrites the prompt {prompt[:60]!r}, so its tokens cannot be told apart: "
                f"pin another with model.chat_template"
            )
        # The template writes the special tokens itself: adding them again would double BOS.
        encoding = self.tokenizer(rendered, add_special_tokens=False, return_offsets_mapping=True)
        token_ids: list[int] = encoding["input_ids"]
        holds_user = [first < end and last > start for first, last in encoding["offset_mapping"]]
        roles = ["user" if inside else "template" for inside in _filled(holds_user)]
        if token_ids and token_ids[0] == self.tokenizer.bos_token_id:
            roles[0] = "bos"
        return Tokenized(token_ids, self.tokenizer.convert_ids_to_tokens(token_ids), roles)


def _own_template(tokenizer: PreTrainedTokenizerBase) -> str:
    try:
        return str(tokenizer.get_chat_template())
    except ValueError as error:
        raise UserError(
            "model: the tokenizer has no chat template; pin one with model.chat_template or model.chat_template_file, for a base "
            "model chat_template = \"{{ bos_token }}{{ messages[0]['content'] }}\", which is the bare prompt"
        ) from error


def _filled(flags: list[bool]) -> list[bool]:
    """True from the first to the last true flag: tokens of empty width inside the user's text are the user's."""
    if True not in flags:
        return flags
    first, last = flags.index(True), len(flags) - flags[::-1].index(True)
    return [first <= index < last for index in range(len(flags))]
