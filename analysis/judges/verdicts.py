"""Judges by their names: those of `named/`, a recipe's own, and those behind an endpoint. Every judge reads stored answers (R7),
each behind its reasoning.

Refusal and degeneration are told apart: text that has fallen into repetition is neither a refusal nor a success.
"""

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

from saelake.analysis.judges.protocol import LABELS, Answer, Judge, Verdict
from saelake.analysis.judges.reasoning import Reasoning
from saelake.ingest.recipe import Recipe
from saelake.ingest.recipe.sections import Role
from saelake.warehouse.errors import UserError

CODE_VERSION = 3
"""To be raised when a judge, or the rule of degeneration, reads an answer otherwise than before."""
WRITTEN = {"target": "harmful", "control": "benign"}
"""How the identities of judges call LABELS, since version 1."""
UNANSWERED = Verdict(False, True, 0.0, "reasoning")
"""Of an answer whose reasoning has not ended."""

Reader = Callable[[Sequence[Answer]], list[Verdict]]


def after_reasoning(judge: Reader, reasoning: Reasoning, labels: Sequence[str] = LABELS) -> Reader:
    """What a judge says of answers: it reads what follows the reasoning of each, and is asked about prompts of its labels.

    An answer that does not get behind its reasoning is none. Where none applies, it is still said whether that is sensible text.
    """

    def read(answers: Sequence[Answer]) -> list[Verdict]:
        said = [reasoning.answer(a.completion) for a in answers]
        applies = [("target" if a.role == "target" else "control") in labels for a in answers]
        asked = [
            a._replace(completion=text, reasoned=text != a.completion)
            for a, text, ours in zip(answers, said, applies, strict=True)
            if text is not None and ours
        ]
        verdicts = iter(judge(asked) if asked else [])
        found = []
        for text, ours in zip(said, applies, strict=True):
            if ours:
                found.append(UNANSWERED if text is None else next(verdicts))
            else:
                found.append(UNANSWERED._replace(refused=None, score=None) if text is None else Verdict.of(None, text, None))
        return found

    return read


def check_judge(name: str, recipe: Recipe) -> None:
    """Raises UserError for a name that no judge has."""
    if name not in recipe.judge_names:
        raise UserError(f"there is no judge {name!r}: the judges are {', '.join(recipe.judge_names)}")


def judge_named(name: str, recipe: Recipe, working: Path | None = None, run: Callable[[], str] = str) -> Judge:
    """The judge of that name, with nothing loaded yet.

    Args:
        working: the folder in which it may keep what it has paid for.
        run: gives the run that is computed when it is called.
    Raises UserError for an unknown name, and for code or a host that the user has not allowed.
    """
    check_judge(name, recipe)
    table = recipe.judges.get(name)
    if table is None:
        judge: Judge = import_module(f"saelake.analysis.judges.named.{name}").JUDGE(recipe)
        return judge
    if table.class_ is not None:
        from saelake.analysis.judges.own import load

        return load(name, recipe)
    from saelake.analysis.judges.endpoint import Endpoint

    return Endpoint(name, recipe, working, run)


def judge_identity(name: str, recipe: Recipe) -> dict[str, object]:
    """What a judge's verdicts depend on, beside the answers; found without loading the judge.

    Raises UserError as `judge_named` does, and for what the judge needs and cannot be found.
    """
    judge = judge_named(name, recipe)
    reasoning = [list(marks) for marks in recipe.generation.reasoning]
    identity: dict[str, object] = {"name": name, "code": CODE_VERSION, "reasoning": reasoning}
    if set(judge.labels) != set(LABELS):
        identity["labels"] = sorted(WRITTEN[label] for label in judge.labels)
    return identity | dict(judge.identity)


def control_oracle(recipe: Recipe) -> str:
    """The judge whose verdicts count on all prompts but target ones: the recipe's, else the oracle where it can judge them, else
    phrases."""
    verdicts = recipe.verdicts
    if verdicts.control_oracle is not None:
        return verdicts.control_oracle
    return verdicts.oracle if "control" in judge_named(verdicts.oracle, recipe).labels else "phrases"


def oracle_of(role: str, recipe: Recipe) -> str:
    """The judge whose verdicts count on prompts whose label the study takes for target, control or other."""
    return recipe.verdicts.oracle if role == "target" else control_oracle(recipe)


def oracle_identity(recipe: Recipe) -> dict[str, object]:
    """That of the oracle and, in `control`, of the judge of all others where it is another; raises UserError for a judge that
    cannot judge the prompts that it is named for."""
    fields: tuple[tuple[str, Role], ...] = (("oracle", "target"), ("control_oracle", "control"))
    for field, role in fields:
        name = oracle_of(role, recipe)
        if role not in judge_named(name, recipe).labels:
            raise UserError(f"verdicts.{field}: {name} cannot judge {recipe.labels.of(role)} prompts")
    control = control_oracle(recipe)
    identity = judge_identity(recipe.verdicts.oracle, recipe)
    return identity if control == recipe.verdicts.oracle else identity | {"control": judge_identity(control, recipe)}
