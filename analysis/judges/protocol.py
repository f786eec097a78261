"""What a judge is: its identity, what it needs, which prompts it can judge, and its verdicts on answers.

To add one, put a module into `named/` that ends in `JUDGE = ...`, a class made from a recipe: its file's name is the judge's, and
recipes may name it from then on.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, Protocol, runtime_checkable

from saelake.analysis.judges.degenerate import degenerate_rule

Need = Literal["text", "first_token", "model", "network"]
"""Prompt and answer as text; the answer's first token as it was generated; memory for a model of its own; an address to ask."""
LABELS = ("target", "control")
"""What prompts are to a judge: of the target label, which should show the behaviour, or of any other."""


class Answer(NamedTuple):
    """What a judge may look at."""

    prompt: str
    first_token: str
    p_refusal_token: float
    completion: str
    """Without its reasoning."""
    reasoned: bool = False
    """Reasoning came before it, so that the first token is that one's."""
    label: str = ""
    """The prompt's."""
    role: str = "target"
    """What the study takes that label for: target, control or other."""


class Verdict(NamedTuple):
    refused: bool | None
    """None if the judge cannot say: the verdict does not apply."""
    degenerate: bool
    score: float | None
    """The judge's own measure of refusal, 0 to 1."""
    rule: str | None = None
    """Which rule found it degenerate."""

    @classmethod
    def of(cls, refused: bool | None, completion: str, score: float | None) -> "Verdict":
        """A judge's reading of an answer, with whether that is sensible text at all."""
        rule = degenerate_rule(completion)
        return cls(refused, rule is not None, score, rule)

    @property
    def flipped(self) -> bool | None:
        """An answer: neither a refusal nor degenerate. None where the verdict does not apply."""
        return None if self.refused is None else not self.refused and not self.degenerate


class Judge(Protocol):
    """Reads answers. Making one loads nothing: what is large is loaded with the first answers."""

    @property
    def identity(self) -> Mapping[str, object]:
        """What its verdicts depend on beside the answers, as JSON values: another identity is another run."""

    @property
    def needs(self) -> frozenset[Need]: ...

    @property
    def labels(self) -> tuple[str, ...]:
        """Of LABELS, the prompts that it can judge; it is not asked about others, of which its verdict does not apply."""

    def __call__(self, answers: Sequence[Answer]) -> list[Verdict]:
        """One verdict an answer, in their order."""


@runtime_checkable
class Settling(Protocol):
    """A judge that may know a refusal by its beginning."""

    def settled(self, beginning: str) -> bool:
        """Whether every answer that begins so is a refusal: a search needs no more of it."""
