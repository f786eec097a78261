"""Answers of one's own, from wherever a model ran: rows with prompt and completion, and maybe refused, category, label, model.

`label` is target, control or other; `model` is compared with the study's. `refused` is a judge's verdict, whose name --judge
gives; without that column `--judge phrases` has saelake read the answers.
"""

from collections.abc import Sequence
from pathlib import Path

from saelake.formats.answers import OPTIONS, Answer, as_bool, as_text, found_answers
from saelake.formats.joined import Joined
from saelake.formats.registry import Asked, Format, Found
from saelake.ingest.cells import is_missing
from saelake.ingest.rows import read_rows
from saelake.warehouse.errors import UserError

OWNER = "import answers"
ROLES = ("target", "control", "other")


def _read(files: Sequence[Path], joined: Joined, asked: Asked) -> Found:
    (file,) = files
    column = asked.refused or "refused"
    answers = []
    for number, row in enumerate(read_rows(file, OWNER, ("prompt", "completion", "category", "label", "model", column)), start=1):
        where = f"{OWNER}: {file.name}, row {number}"
        wanted = ("prompt", "completion", *([column] if asked.refused else []))
        if absent := [name for name in wanted if name not in row]:
            raise UserError(f"{OWNER}: {file.name} has no column {absent[0]}: its columns are {', '.join(row)}")
        role = None if is_missing(row.get("label")) else str(row["label"])
        if role not in (None, *ROLES):
            raise UserError(f"{where}: its label is {role[:40]!r}, which is none of {', '.join(ROLES)}")
        refused = as_bool(row.get(column), where)
        category = None if is_missing(row.get("category")) else str(row["category"])
        prompt, said = as_text(row["prompt"], "prompt", where), as_text(row["completion"], "completion", where)
        model = None if is_missing(row.get("model")) else str(row["model"])
        answers.append(Answer(prompt, said, where, refused, None if refused is None else float(refused), category, role, model))
    if asked.judge is None and any(one.refused is not None for one in answers):
        raise UserError(f"{OWNER}: {file.name} has verdicts: say with --judge what their judge is called")
    return found_answers(answers, joined, asked, "answers", "none", {})


FORMAT = Format(
    what="answers from elsewhere (CSV, JSON lines, Parquet) with the columns prompt and completion, and maybe verdicts",
    read=_read,
    reads=OPTIONS | {"refused", "model"},
    needs_study=False,
)
