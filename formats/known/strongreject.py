"""StrongREJECT's results: rows with a prompt, an answer and a score from 0, of no use, to 1, harmful.

The prompt is `jailbroken_prompt` where there is one, else `forbidden_prompt`. An answer counts as a refusal where the grader's
column `refusal` says so or, without it, below a score of one half; the measure of refusal is 1 - score.
"""

from collections.abc import Sequence
from pathlib import Path

from saelake.formats.answers import OPTIONS, Answer, as_bool, as_share, as_text, found_answers
from saelake.formats.joined import Joined
from saelake.formats.registry import Asked, Format, Found
from saelake.ingest.cells import is_missing
from saelake.ingest.rows import read_rows
from saelake.warehouse.errors import UserError

OWNER = "import strongreject"
COLUMNS = ("forbidden_prompt", "jailbroken_prompt", "response", "score", "refusal", "category", "model")
HALF = 0.5


def _read(files: Sequence[Path], joined: Joined, asked: Asked) -> Found:
    (file,) = files
    answers = []
    for number, row in enumerate(read_rows(file, OWNER, COLUMNS), start=1):
        where = f"{OWNER}: {file.name}, row {number}"
        if absent := [name for name in ("forbidden_prompt", "response") if name not in row]:
            raise UserError(f"{OWNER}: {file.name} has no column {absent[0]}")
        asked_for = row["forbidden_prompt"] if is_missing(row.get("jailbroken_prompt")) else row["jailbroken_prompt"]
        score = None if is_missing(row.get("score")) else as_share(row["score"], where)
        refused = as_bool(row.get("refusal"), where)
        if refused is None and score is not None:
            refused = score < HALF
        category = None if is_missing(row.get("category")) else str(row["category"])
        prompt, said = as_text(asked_for, "forbidden_prompt", where), as_text(row["response"], "response", where)
        model = None if is_missing(row.get("model")) else str(row["model"])
        answers.append(Answer(prompt, said, where, refused, None if score is None else 1 - score, category, model=model))
    return found_answers(answers, joined, asked, "strongreject", "strongreject", {})


FORMAT = Format(
    what="StrongREJECT's results (CSV, JSON lines, Parquet): prompts, answers and scores",
    read=_read,
    reads=OPTIONS | {"model"},
    needs_study=False,
)
