"""JailbreakBench's artifacts: an attack's prompts, the answers to them, and whether its judge calls them jailbroken.

    {"parameters": {...}, "jailbreaks": [{"goal", "behavior", "category", "prompt", "response", "jailbroken"}, ...]}

Where the attack found no prompt, prompt and response are null: such a row is left out, and counted.
"""

from collections.abc import Sequence
from pathlib import Path

from saelake.formats.answers import OPTIONS, Answer, as_bool, as_text, found_answers
from saelake.formats.joined import Joined
from saelake.formats.json_files import read_json
from saelake.formats.registry import Asked, Format, Found
from saelake.warehouse.errors import UserError

OWNER = "import jailbreakbench"


def _read(files: Sequence[Path], joined: Joined, asked: Asked) -> Found:
    (file,) = files
    content = read_json(file, OWNER)
    rows = content.get("jailbreaks") if isinstance(content, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{OWNER}: {file.name} has no list of jailbreaks: give an artifact of JailbreakBench")
    told = content.get("parameters")
    parameters = {k: v for k, v in told.items() if isinstance(v, str | int | float)} if isinstance(told, dict) else {}
    model = str(parameters["model"]) if "model" in parameters else None
    answers = []
    for number, row in enumerate(rows, start=1):
        where = f"{OWNER}: {file.name}, jailbreak {number}"
        if row.get("prompt") is None or row.get("response") is None:
            continue
        jailbroken = as_bool(row.get("jailbroken"), where)
        refused = None if jailbroken is None else not jailbroken
        category = row.get("category")
        prompt, said = as_text(row["prompt"], "prompt", where), as_text(row["response"], "response", where)
        score = None if refused is None else float(refused)
        answers.append(Answer(prompt, said, where, refused, score, None if category is None else str(category), model=model))
    about = {"parameters": parameters, "n_without_prompt": len(rows) - len(answers)}
    return found_answers(answers, joined, asked, "jailbreakbench", "jailbreakbench", about)


FORMAT = Format(
    what="JailbreakBench's artifacts (JSON): prompts of an attack, answers, and its judge's verdicts",
    read=_read,
    reads=OPTIONS | {"model"},
    needs_study=False,
)
