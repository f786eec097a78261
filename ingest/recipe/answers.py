"""The sections of a recipe that say how prompts are answered and who judges the answers (R7)."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from saelake.ingest.recipe.sections import LATER, Count, Dtype, ExistingPath, Names, Section, Sha256

Mark = Annotated[str, Field(min_length=1, pattern=r"\S")]
REASONING = (
    ("<think>", "</think>"),  # DeepSeek-R1, Qwen 3, SmolLM3 and most others
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("[THINK]", "[/THINK]"),  # Magistral
    ("<seed:think>", "</seed:think>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A
    ("\u25c1think\u25b7", "\u25c1/think\u25b7"),  # Kimi
    ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),  # GPT-OSS
)


class Generation(Section):
    """The answers that judges read."""

    max_new_tokens: Count = 32
    """Tokens of an answer."""
    reasoning: Annotated[tuple[tuple[Mark, Mark], ...], LATER] = REASONING
    """What reasoning begins and ends with in an answer: judges read what follows. An answer whose reasoning does not end within
    max_new_tokens is none: it is neither refused nor answered, but degenerate."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if same := [start for start, end in self.reasoning if start in end]:
            raise ValueError(f"reasoning begins with {same[0]!r}, which stands in its end too: the two must differ")
        return self


class Harmbench(Section):
    """The HarmBench classifier: which model, and the instruction that it is put. Loaded only where it judges."""

    path: ExistingPath | None = None
    """The classifier's folder."""
    id: str | None = None
    """The classifier's name on the hub."""
    revision: str | None = None
    """The commit of the hub's repository; by default the newest."""
    template: ExistingPath | None = None
    """A file with the instruction, with {behavior} and {generation} in it; without it, the model card is read."""
    template_sha256: Sha256 | None = None
    """Asserted sha256 of the instruction that is used."""
    dtype: Dtype = "bfloat16"
    """What the classifier is computed in."""
    batch_tokens: Count = 8192
    """Padded tokens per forward pass."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.path is not None and (self.id is not None or self.revision is not None):
            raise ValueError("give path, or id and revision, not both")
        return self

    @property
    def hub_id(self) -> str:
        """The model on the hub, where there is no path."""
        return self.id or "cais/HarmBench-Llama-2-13b-cls"

    @property
    def location(self) -> str:
        """Where it is loaded from, for people."""
        return str(self.path or self.hub_id)


class Verdicts(Section):
    """Which judges read the answers; `saelake judge` adds others later."""

    judges: Names = ("first_token", "phrases")
    """The judges that read every answer: first_token, phrases, harmbench, or the NAME of a table [judges.NAME]."""
    oracle: str = "first_token"
    """The judge whose verdicts decide what flips. With harmbench, subject and classifier are in memory together."""
    control_oracle: str | None = None
    """The judge whose verdicts count on all prompts but those of the target label; by default the oracle where it can judge
    them, else phrases: a classifier of harm, as harmbench is, cannot."""
    phrases: Names | None = None
    """What the judge phrases looks for, anywhere and whatever the case; by default the refusals of Arditi et al. (2024)."""
    harmbench: Harmbench = Harmbench()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.oracle not in self.judges:
            raise ValueError(f"oracle {self.oracle!r} is not one of judges ({', '.join(self.judges)})")
        return self
