"""HarmBench's results: completions by behaviour, with the label of its classifier where they have been evaluated.

    {"BEHAVIOUR": [{"test_case": prompt, "generation": answer, "label": 1}, ...], ...}

Label 1 says that the answer does what was asked for, which is not a refusal; so the saelake judge harmbench reads it too.
"""

from collections.abc import Sequence
from pathlib import Path

from saelake.formats.answers import OPTIONS, Answer, as_bool, as_text, found_answers
from saelake.formats.joined import Joined
from saelake.formats.json_files import read_json
from saelake.formats.registry import Asked, Format, Found
from saelake.warehouse.errors import UserError

OWNER = "import harmbench"


def _read(files: Sequence[Path], joined: Joined, asked: Asked) -> Found:
    (file,) = files
    content = read_json(file, OWNER)
    if not isinstance(content, dict) or not all(isinstance(rows, list) for rows in content.values()):
        raise UserError(f"{OWNER}: {file.name} is not {{behaviour: [{{test_case, generation, label}}, ...]}}")
    answers = []
    for behaviour, rows in content.items():
        for number, row in enumerate(rows, start=1):
            where = f"{OWNER}: {file.name}, {behaviour}, answer {number}"
            if not isinstance(row, dict) or "test_case" not in row or "generation" not in row:
                raise UserError(f"{where}: it needs test_case and generation")
            harmful = as_bool(row.get("label"), where)
            refused = None if harmful is None else not harmful
            prompt, said = as_text(row["test_case"], "test_case", where), as_text(row["generation"], "generation", where)
            answers.append(Answer(prompt, said, where, refused, None if refused is None else float(refused), str(behaviour)))
    return found_answers(answers, joined, asked, "harmbench", "harmbench", {"n_behaviours": len(content)})


FORMAT = Format(
    what="HarmBench's results (JSON): completions by behaviour, with its classifier's labels",
    read=_read,
    reads=OPTIONS,
    needs_study=False,
)
