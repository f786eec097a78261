"""Inspect's logs (.eval): what was asked, what was answered, and what a scorer makes of it.

--refused names the scorer whose value is C, true, 1 or at least one half where the answer is a refusal, --judge what it is called
here. Samples with several turns of the user, and those without an answer, are left out, and counted.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from saelake.formats.answers import OPTIONS, Answer, as_share, found_answers
from saelake.formats.joined import Joined
from saelake.formats.json_files import check_values
from saelake.formats.models import check_model
from saelake.formats.registry import Asked, Format, Found
from saelake.formats.zip_files import members
from saelake.warehouse.errors import UserError, one_line

OWNER = "import inspect"
HEADER, SAMPLES = "header.json", "samples/"
ATTACHMENT = "attachment://"
VALUES = {"C": 1.0, "I": 0.0, True: 1.0, False: 0.0}
"""Inspect's words for correct and incorrect."""
HALF = 0.5


def _read(files: Sequence[Path], joined: Joined, asked: Asked) -> Found:
    answers: list[Answer] = []
    about: dict[str, Any] = {"models": [], "tasks": [], "scorers": set(), "n_left_out": 0}
    for file in files:
        has_header = False
        for name, content in members(file, lambda name: name == HEADER or name.startswith(SAMPLES), OWNER):
            told = _object(content, f"{OWNER}: {file.name}, {name}")
            if name == HEADER:
                has_header = True
                spec = told.get("eval") if isinstance(told.get("eval"), dict) else {}
                assert isinstance(spec, dict)
                about["models"].append(str(spec.get("model") or ""))
                about["tasks"].append(str(spec.get("task")))
                continue
            one = _answer(told, asked, about["scorers"], f"{OWNER}: {file.name}, {name.removeprefix(SAMPLES)}")
            if one is None:
                about["n_left_out"] += 1
            else:
                answers.append(one)
        if not has_header:
            raise UserError(f"{OWNER}: {file.name} has no {HEADER}: it is not a finished log of Inspect")
    about["scorers"] = sorted(about["scorers"])
    for model in about["models"]:
        check_model(model, joined, asked, OWNER)
    return found_answers(answers, joined, asked, "inspect", asked.refused or "none", about)


def _object(content: bytes, where: str) -> dict[str, Any]:
    try:
        text = content.decode()
        check_values(text)
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: it is not JSON ({one_line(error)})") from error
    if not isinstance(found, dict):
        raise UserError(f"{where}: it is not an object")
    return found


def _answer(sample: dict[str, Any], asked: Asked, scorers: set[str], where: str) -> Answer | None:
    """One sample's answer; None where it has several turns, or no answer."""
    held = sample.get("attachments") if isinstance(sample.get("attachments"), dict) else {}
    assert isinstance(held, dict)
    given = sample.get("input")
    turns = [given] if isinstance(given, str) else _contents(given, "user", where)
    output = sample.get("output")
    choices = output.get("choices") if isinstance(output, dict) else None
    messages = [one.get("message") for one in choices if isinstance(one, dict)][:1] if isinstance(choices, list) else []
    said = _contents(messages, "assistant", where)
    scores = sample.get("scores") if isinstance(sample.get("scores"), dict) else {}
    assert isinstance(scores, dict)
    scorers.update(scores)
    if len(turns) != 1 or not said or not said[0]:
        return None
    prompt, completion = (_attached(text, held, where) for text in (turns[0], said[0]))
    score = None
    if asked.refused is not None:
        if asked.refused not in scores:
            raise UserError(f"{where}: it has no score by {asked.refused!r}; its scorers are {', '.join(scores) or 'none'}")
        told = scores[asked.refused]
        value = told.get("value") if isinstance(told, dict) else told
        score = VALUES[value] if isinstance(value, str | bool) and value in VALUES else as_share(value, where)
    return Answer(prompt, completion, where, None if score is None else score >= HALF, score)


def _contents(messages: Any, role: str, where: str) -> list[str]:
    """The texts of the messages of a role."""
    if not isinstance(messages, list) or not all(isinstance(one, dict) for one in messages):
        raise UserError(f"{where}: it has no list of messages")
    found = []
    for message in messages:
        content = message.get("content")
        if isinstance(content, list):
            content = "".join(
                str(part.get("text", "")) for part in content if isinstance(part, dict) and part.get("type") == "text"
            )
        if message.get("role") == role and isinstance(content, str):
            found.append(content)
    return found


def _attached(text: str, held: dict[str, Any], where: str) -> str:
    """The text itself where Inspect has put it, for its length, elsewhere in the sample."""
    if not text.startswith(ATTACHMENT):
        return text
    found = held.get(text.removeprefix(ATTACHMENT))
    if not isinstance(found, str):
        raise UserError(f"{where}: its text {text[:60]} is not among its attachments")
    return found


FORMAT = Format(
    what="Inspect's logs (.eval): prompts, answers and scores",
    read=_read,
    files=("*.eval",),
    reads=OPTIONS | {"refused", "model"},
    needs_study=False,
)
