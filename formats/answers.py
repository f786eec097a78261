"""Answers that were given elsewhere, as prompts, ablations and verdicts: what all formats that hold them have in common.

A prompt whose text the study has ingested is that prompt; any other becomes a prompt of the run itself. What the model answered
first, and how probable a refusal was, is not known of them.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from saelake import queries
from saelake.analysis.judges.degenerate import degenerate_rule
from saelake.analysis.judges.named.phrases import plain_phrases, refuses
from saelake.formats.joined import Joined
from saelake.formats.models import check_model
from saelake.formats.prompts import prompt_rows
from saelake.formats.registry import STAGE_PREFIX, Asked, Found
from saelake.ingest.cells import key
from saelake.warehouse.durable import sha256_text
from saelake.warehouse.errors import UserError
from saelake.warehouse.literals import is_unicode
from saelake.warehouse.runs import Rows
from saelake.warehouse.schema import ABLATIONS, VERDICTS

OPTIONS = frozenset({"judge", "condition", "label"})
WORD = re.compile("[a-z][a-z0-9_]{0,60}")
CLEAN = "none"
READER = "phrases"
"""The judge that reads answers that come without verdicts: it needs nothing but their text."""
LABELS = {"target": "harmful", "control": "benign", "other": "other"}
"""What prompts are labelled in a study that has none of the kind."""


@dataclass(frozen=True)
class Answer:
    """One answer of a source."""

    prompt: str
    completion: str
    where: str
    """Where it stands, for a sentence."""
    refused: bool | None = None
    """The source's verdict; None where it has none."""
    score: float | None = None
    """The source's measure of refusal, 0 to 1."""
    category: str | None = None
    role: str | None = None
    """target, control or other, where the source says so."""
    model: str | None = None
    """Whose answer it is, where the source says so."""


def found_answers(
    answers: Sequence[Answer], joined: Joined, asked: Asked, name: str, judge: str, about: Mapping[str, Any]
) -> Found:
    """Rows of answers.

    Args:
        name: the format's.
        judge: what the judge is called whose verdicts the source holds.
    Raises UserError for no answers, text that is none, answers of another model than the study's, and answers under a condition
    that the study has answers under.
    """
    owner, condition = f"import {name}", asked.condition or CLEAN
    if not answers:
        raise UserError(f"{owner}: it holds no answers")
    for one in answers:
        if not one.prompt.strip():
            raise UserError(f"{one.where}: its prompt is empty")
        if not all(map(is_unicode, (one.prompt, one.completion, one.category or ""))):
            raise UserError(f"{one.where}: it holds half of a character, which is not Unicode text")
    for model in {one.model: None for one in answers}:
        check_model(model or "", joined, asked, owner)
    for what, word in (("condition", condition), ("judge", asked.judge or judge)):
        if not WORD.fullmatch(word):
            raise UserError(f"the {what} {word!r} is not a name: use lower-case letters, digits and _, a letter first")
    known = _known(joined, condition, owner, {one.prompt for one in answers})
    new: dict[str, Answer] = {}
    for one in answers:
        first = new.setdefault(one.prompt, one) if one.prompt not in known.ids else one
        if first.role != one.role:
            raise UserError(f"{one.where}: its prompt is {one.role}, but {first.role} before ({first.where})")
    verdicts = _verdicts(answers, asked, judge, owner)

    def rows(first_id: int) -> list[Rows]:
        ids = {text: first_id + place for place, text in enumerate(new)} | dict(known.ids)
        return [_prompt_rows(new, ids, known, asked, name), *_answer_rows(answers, ids, condition, name, verdicts)]

    told = {**about, "n_answers": len(answers), "n_known_prompts": len({one.prompt for one in answers} & known.ids.keys())}
    used = sorted({known.runs[one.prompt] for one in answers if one.prompt in known.ids})
    return Found(rows, tuple(used), told)


@dataclass(frozen=True)
class _Known:
    """What the study has of prompts."""

    ids: Mapping[str, int]
    runs: Mapping[str, str]
    labels: Mapping[str, str]
    """role -> label"""


def _known(joined: Joined, condition: str, owner: str, texts: set[str]) -> _Known:
    con = joined.con
    if con is None:
        return _Known({}, {}, LABELS)
    con.register("asked_texts", pa.table({"text": sorted(texts)}))
    # What one import makes of a source does not depend on others: rows that one brought are left out.
    imported = {"imported": STAGE_PREFIX}
    rows = con.execute(queries.step("prompts_of_texts"), imported).fetchall()
    own = "select label_role, min(label) from prompts where not starts_with(run_id, $imported) group by label_role"
    labels = con.execute(own, imported).fetchall()
    ((n_before,),) = con.execute(queries.step("answers_to_texts"), {"condition": condition, **imported}).fetchall()
    con.unregister("asked_texts")
    if n_before:
        raise UserError(
            f"{owner}: the study {joined.name} has its own answers under {condition} to {n_before} of these prompts: give these "
            f"another name with --condition"
        )
    return _Known({row[0]: row[1] for row in rows}, {row[0]: row[2] for row in rows}, LABELS | dict(labels))


def _prompt_rows(new: Mapping[str, Answer], ids: Mapping[str, int], known: _Known, asked: Asked, name: str) -> Rows:
    roles = [one.role or asked.label or "target" for one in new.values()]
    return prompt_rows(
        [ids[text] for text in new],
        list(new),
        name,
        labels=[known.labels[role] for role in roles],
        roles=roles,
        categories=[one.category for one in new.values()],
    )


Read = tuple[str, bool | None, float | None]
"""judge, refused, score"""


def _verdicts(answers: Sequence[Answer], asked: Asked, judge: str, owner: str) -> list[Read | None]:
    """The source's verdicts; where it has none at all, and phrases is asked for, that judge's."""
    if any(one.refused is not None for one in answers):
        name = asked.judge or judge
        return [None if one.refused is None else (name, one.refused, one.score) for one in answers]
    if asked.judge is None:
        return [None] * len(answers)
    if asked.judge != READER:
        raise UserError(f"{owner}: it holds no verdicts, and the judge that reads answers here is {READER}, not {asked.judge}")
    phrases = plain_phrases()
    return [(READER, refused, float(refused)) for refused in (refuses(one.completion, phrases) for one in answers)]


def _answer_rows(
    answers: Sequence[Answer], ids: Mapping[str, int], condition: str, name: str, verdicts: Sequence[Read | None]
) -> Iterator[Rows]:
    n, seen, draws = len(answers), dict[str, int](), []
    for one in answers:
        draws.append(seen.get(one.prompt, 0))
        seen[one.prompt] = draws[-1] + 1
    several = any(draws)
    keys = [int(sha256_text(f"{name}|{place}|{one.prompt}")[:15], 16) for place, one in enumerate(answers)]
    ablations: dict[str, Any] = {
        "ablation_id": keys,
        "prompt_id": [ids[one.prompt] for one in answers],
        "stage": [f"{STAGE_PREFIX}{name}"] * n,
        "method": [condition] * n,
        "draw": draws if several else [None] * n,
        "completion": [one.completion for one in answers],
        **{column: [None] * n for column in ("set_id", "part", "control", "seed", "k", "tau", "n_uncertain")},
        **{column: [None] * n for column in ("p_refusal_token", "first_token")},
    }
    yield Rows.of(ABLATIONS, ablations)
    read = [(place, *verdict) for place, verdict in enumerate(verdicts) if verdict is not None]
    rules = [degenerate_rule(answers[place].completion) for place, *_ in read]
    yield Rows.of(
        VERDICTS,
        {
            "ablation_id": [keys[place] for place, *_ in read],
            "judge": [judge for _, judge, *_ in read],
            "refused": [refused for *_, refused, _ in read],
            "degenerate": [rule is not None for rule in rules],
            "degenerate_rule": rules,
            "flipped": [not refused and rule is None for (*_, refused, _), rule in zip(read, rules, strict=True)],
            "score": [score for *_, score in read],
        },
    )


def as_bool(value: Any, where: str) -> bool | None:
    """A verdict as formats spell it: true, 1, yes and their opposites; None for a missing one."""
    text = key(value).casefold()
    if text in ("", "none"):
        return None
    if text in ("true", "1", "yes"):
        return True
    if text in ("false", "0", "no"):
        return False
    raise UserError(f"{where}: {str(value)[:40]!r} is not a verdict, which is true or false, 1 or 0, yes or no")


def as_share(value: Any, where: str) -> float:
    """A score from 0 to 1."""
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        found = float("nan")
    if not 0 <= found <= 1:
        raise UserError(f"{where}: the score {str(value)[:40]!r} is not a number from 0 to 1")
    return found


def as_text(value: Any, what: str, where: str) -> str:
    """A text; raises UserError for anything else."""
    if not isinstance(value, str):
        raise UserError(f"{where}: its {what} is {'missing' if value is None else 'no text'}")
    return value
