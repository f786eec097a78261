"""The target tokens: which first tokens of an answer count as the behaviour under study. The one definition of them.

A recipe names words; a token counts if it is one of these words as text, but for white space around it. So "I" stands for every
token that a vocabulary has for it, with a space before it and without: which of them a model writes depends on how its template
ends ("...[/INST]" is answered with a space, "...model\\n" without), and on the model. The probability of a target token
(`p_refusal_token`), the judge first_token, Algorithm 1 and the choice of a direction all go by these tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from saelake.ingest.recipe import ModelSpec
from saelake.ingest.spelling import Spelling
from saelake.ingest.template import ChatTemplate
from saelake.warehouse.errors import UserError


@dataclass(frozen=True)
class Target:
    """A target token."""

    token_id: int
    piece: str
    """as the vocabulary spells it"""
    text: str

    def __str__(self) -> str:
        spelt = "" if self.piece == self.text else f", {self.piece}"
        return f"{self.text!r} ({self.token_id}{spelt})"


def find_targets(tokenizer: PreTrainedTokenizerBase, words: Sequence[str], context: str = "") -> tuple[Target, ...]:
    """The tokens of some words, each once; first those that the tokenizer writes behind `context`, which an answer follows.

    Raises UserError for a word that is not a single token there, or that the vocabulary does not know.
    """
    if isinstance(words, str) or not all(isinstance(word, str) for word in words):
        raise UserError(f"the target tokens are a list of texts, such as ['I'], not {words!r}")
    spelling = Spelling(tokenizer)
    first: dict[int, None] = {}
    others: dict[int, None] = {}
    for word in words:
        written = [_behind(tokenizer, context, spelt) for spelt in (word, " " + word)]
        known = [i for i in spelling.spelled(word) if i != tokenizer.unk_token_id]
        here = [ids[0] for ids in written if len(ids) == 1 and ids[0] in known]
        if not here:
            if tokenizer.unk_token_id in written[0]:
                raise UserError(f"the target token {word!r} is not in this model's vocabulary")
            raise UserError(
                f"the target token {word!r} is not one token of this model: it splits into {spelling.texts(written[0])}; "
                f"name the first of them, if that alone shows the behaviour"
            )
        first |= dict.fromkeys(here)
        others |= dict.fromkeys(known)
    token_ids = list(first | others)
    return tuple(map(Target, token_ids, spelling.pieces(token_ids), spelling.texts(token_ids)))


def targets_of(template: ChatTemplate, model: ModelSpec) -> tuple[Target, ...]:
    """The target tokens of a recipe's model, behind its template; raises UserError as `find_targets` does."""
    try:
        return find_targets(template.tokenizer, model.target_words, template.before + "x" + template.after)
    except UserError as error:
        raise UserError(f"model.refusal_tokens (or target_tokens): {error}") from error


def _behind(tokenizer: PreTrainedTokenizerBase, context: str, word: str) -> list[int]:
    """The tokens of a word behind some text, which is read already: the model cannot merge the word with it."""
    head, joined, alone = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (context, context + word, word))
    tail: list[int] = joined[len(head) :] if joined[: len(head)] == head else alone
    return tail
