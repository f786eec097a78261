"""Answers with reasoning: what a judge reads is what follows it.

Models that reason write it between two marks before they answer, <think> and </think> say. The marks are the recipe's
(`generation.reasoning`). Some templates open the block themselves, at the end of the prompt: then the answer shows its end only.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from saelake.ingest.recipe import Recipe

Marks = tuple[str, str]
"""What a block of reasoning begins and ends with."""


@dataclass(frozen=True)
class Reasoning:
    """The marks of a study, and whether its template opens a block."""

    marks: tuple[Marks, ...]
    is_open: bool = False
    """An answer begins inside a block, since the prompt's end opened it."""

    @classmethod
    def of(cls, recipe: Recipe) -> "Reasoning":
        """That of a study, from its tokenizer and template; nothing else is loaded."""
        from saelake.ingest.loading import load_tokenizer  # a report reads sentences about answers, and has no GPU stack
        from saelake.ingest.template import ChatTemplate

        template = ChatTemplate.of(load_tokenizer(recipe.model), recipe.model)
        return cls.behind(template.after, recipe.generation.reasoning)

    @classmethod
    def behind(cls, prompt_end: str, marks: Sequence[Marks]) -> "Reasoning":
        """Of answers that follow a template's end (what it writes behind the user's prompt)."""
        return cls(tuple(marks), any(prompt_end.rfind(start) > prompt_end.rfind(end) for start, end in marks))

    def answer(self, text: str) -> str | None:
        """The answer without its reasoning; None if that has not ended: there is no answer then.

        A block ends at its first end mark. An end mark without a start closes what the prompt opened. A start mark that is never
        closed counts only where the text begins with it: elsewhere it is a word of the answer.
        """
        found = False
        for start, end in self.marks:
            before, mark, after = text.partition(end)
            if mark and start not in before:
                text, found = after, True
        if self.is_open and not found:
            return None
        for start, end in self.marks:
            while (opens := text.find(start)) >= 0 and (closes := text.find(end, opens + len(start))) >= 0:
                text, found = text[:opens] + text[closes + len(end) :], True
        if text.lstrip().startswith(tuple(start for start, _ in self.marks)):
            return None
        return text.strip() if found else text

    def keeps(self, special: str) -> bool:
        """Whether a special token is a part of a mark, so that it must stay in an answer's text."""
        return any(special in mark for marks in self.marks for mark in marks)

    def begins_in(self, text: str) -> bool:
        """Whether a text holds a start mark or ends with the first letters of one: what it says may turn out to be reasoning."""
        return any(start in text or text.endswith(tuple(start[:n] for n in range(1, len(start)))) for start, _ in self.marks)

    def may_begin_with(self, words: Sequence[str]) -> bool:
        """Whether an answer whose first token is one of these words may be inside its reasoning there."""
        return self.is_open or any(start.startswith(tuple(words)) for start, _ in self.marks)
