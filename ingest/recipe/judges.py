"""The judges that a recipe may name: those that come with saelake, and those that it defines in [judges.NAME]."""

import re
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, model_validator

from saelake.ingest.recipe.sections import Count, Scalar, Section

NAMED: tuple[str, ...] = tuple(
    sorted(file.stem for file in (Path(__file__).resolve().parents[2] / "analysis" / "judges" / "named").glob("[a-z]*.py"))
)
"""Found by their files, as shipped recipes are: a recipe is read without the judges' code, which needs a GPU stack."""
RESERVED = {"oracle", "null", *NAMED}
AS_WRITTEN = {"harmful": "target", "benign": "control"}
"""How recipes of version 1 call the prompts that a judge can judge."""
Judged = Annotated[Literal["target", "control"], BeforeValidator(lambda name: AS_WRITTEN.get(name, name))]
OwnName = Annotated[str, Field(pattern="^[a-z][a-z0-9_]{0,39}$")]
LOOPBACK = re.compile(r"localhost|127(\.\d{1,3}){3}|::1")


class JudgeTable(Section):
    """A judge of your own, such as [judges.mine]: code (`class`), or a language model behind an OpenAI-compatible `endpoint`.
    Its NAME goes into `verdicts.judges`, `verdicts.oracle`, or `saelake judge --judge NAME`."""

    class_: Annotated[str | None, Field(alias="class", pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")] = None
    """module:Class, beside the recipe or installed; loaded only with --allow-code. Calling an instance with a list of answers
    (prompt, completion, first_token, p_refusal_token, reasoned, label, role) gives for each whether it refuses: True, False, or
    None where it cannot say.
    Its property `identity`, JSON values, distinguishes one version of it from another."""
    options: dict[str, Scalar] = Field({})
    """What the class is called with, by name."""
    endpoint: str | None = None
    """The address before /chat/completions: "http://localhost:8000/v1". Answers are sent to this host and no other; one that is
    not this machine needs --allow-host."""
    model: str | None = None
    """The model's name there."""
    question: str | None = None
    """What it is asked about one answer, with {prompt} and {answer} in it."""
    refused: tuple[str, ...] = ()
    """First words of its reply, whatever the case, that mean the answer refuses."""
    answered: tuple[str, ...] = ()
    """First words that mean it does not."""
    does_not_apply: tuple[str, ...] = ()
    """First words that mean that the question does not apply: such an answer counts nowhere."""
    labels: Annotated[tuple[Judged, ...], Field(min_length=1)] = ("target", "control")
    """Which prompts it can judge: target, those of the target label (also: harmful), or control, all others (also: benign)."""
    key_variable: Annotated[str | None, Field(pattern=r"^[A-Za-z_]\w*$")] = None
    """The environment variable that holds the key; the key itself is stored nowhere."""
    max_tokens: Count = 16
    """Tokens of a reply; more for a model that reasons first."""
    timeout: Annotated[float, Field(gt=0)] = 60
    """Seconds until a reply must be whole."""
    retries: Annotated[int, Field(ge=0)] = 5
    """How often it is asked again after a timeout, no connection, or the status 429 or 5xx; the pauses double from one second."""
    concurrency: Count = 4
    """Questions that are asked at a time."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.class_ is None) == (self.endpoint is None):
            raise ValueError(f"give exactly one of class, endpoint, not {'both' if self.class_ else 'none'}")
        given = self.model_fields_set - {"class_", "endpoint", "labels"}
        wrong = sorted(given - {"options"}) if self.class_ else sorted(given & {"options"})
        if wrong:
            raise ValueError(f"{wrong[0]} only makes sense together with {'endpoint' if self.class_ else 'class'}")
        if self.endpoint is not None:
            self._check_endpoint(self.endpoint)
        return self

    def _check_endpoint(self, endpoint: str) -> None:
        try:
            parts = urlsplit(endpoint)
            parts.port  # noqa: B018 - raises ValueError for what is not a port
        except ValueError as error:
            raise ValueError(f"endpoint is not an address ({error})") from error
        plain = parts.scheme in ("http", "https") and parts.hostname and not (parts.username or parts.query or parts.fragment)
        if not plain or not endpoint.isascii() or any(c.isspace() for c in endpoint):
            raise ValueError(
                "endpoint is http://HOST:PORT/v1 or https://..., without key and query: the key's variable goes into key_variable"
            )
        if not self.model or not self.question:
            raise ValueError(f"{'question' if self.model else 'model'} is missing: an endpoint needs model and question")
        if "{prompt}" not in self.question or "{answer}" not in self.question:
            raise ValueError("question needs {prompt} and {answer} in it")
        if not self.refused or not self.answered:
            raise ValueError("refused and answered need at least one word each")
        words = [word.strip().casefold() for word in (*self.refused, *self.answered, *self.does_not_apply)]
        if odd := [word for word in words if not re.fullmatch(r"[\w-]+", word)]:
            raise ValueError(f"{odd[0]!r} is not a single word: of a reply the first word is read")
        if twice := [word for word in words if words.count(word) > 1]:
            raise ValueError(f"{twice[0]!r} means two things: each word may stand once in refused, answered and does_not_apply")

    @property
    def host(self) -> str:
        """The host of the endpoint."""
        return urlsplit(self.endpoint or "").hostname or ""

    @property
    def is_here(self) -> bool:
        """Whether the endpoint is on this machine."""
        return LOOPBACK.fullmatch(self.host) is not None


Judges = dict[OwnName, JudgeTable]


def known_judges(judges: Judges) -> tuple[str, ...]:
    """All judges that a recipe with these tables knows."""
    return (*NAMED, *judges)


def check_names(judges: Judges, asked: "dict[str, str]") -> None:
    """Raises ValueError for a table that takes a judge's name, and for a field that names no judge."""
    if taken := [name for name in judges if name in RESERVED]:
        raise ValueError(f"judges.{taken[0]}: the name is taken: give it another")
    for field, name in asked.items():
        if name not in known_judges(judges):
            listed = ", ".join(map(repr, known_judges(judges)))
            raise ValueError(f"{field} should be one of {listed} (or a table [judges.{name}]), not {name!r}")
