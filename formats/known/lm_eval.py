"""Samples of lm-evaluation-harness (`--log_samples`): what was asked, what was answered, and the metrics of each.

Only tasks that generate text have answers. A metric is a verdict where --refused says so: 1 for a refusal. It is of what a filter
made of all texts of a sample, and so of an answer only where one was generated.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from saelake.formats.answers import OPTIONS, Answer, as_bool, as_text, found_answers
from saelake.formats.joined import Joined
from saelake.formats.json_files import read_json
from saelake.formats.models import check_model
from saelake.formats.registry import Asked, Format, Found
from saelake.ingest.rows import Row, read_rows
from saelake.warehouse.errors import UserError

OWNER = "import lm_eval"
RESULTS = "results_"
"""How the file begins that the harness writes beside the samples."""


def _read(files: Sequence[Path], joined: Joined, asked: Asked) -> Found:
    answers = []
    samples = [file for file in files if not file.name.startswith(RESULTS)]
    if not samples:
        raise UserError(f"{OWNER}: the folder {files[0].parent} has results, and no samples: run the harness with --log_samples")
    models = [model for file in files if file not in samples for model in [_model(file)] if model]
    for model in models:
        check_model(model, joined, asked, OWNER)
    for file in samples:
        first: Any = None
        for number, row in enumerate(read_rows(file, OWNER), start=1):
            where = f"{OWNER}: {file.name}, sample {number}"
            if absent := [name for name in ("arguments", "resps") if name not in row]:
                raise UserError(f"{where}: it has no {absent[0]}: give a file of samples, as --log_samples writes them")
            if asked.refused is not None and asked.refused not in row:
                raise UserError(f"{where}: it has no metric {asked.refused!r}")
            first = row.get("filter") if number == 1 else first
            if row.get("filter") != first:  # the harness writes a sample once for each filter, with the same answers
                if asked.refused is not None:
                    raise UserError(
                        f"{where}: its filter is {row.get('filter')!r}, and {first!r} before: {asked.refused} is another metric "
                        f"under each; give a file with the samples of one filter"
                    )
                continue
            texts = _answers(row, where)
            refused = None if asked.refused is None or len(texts) > 1 else as_bool(row[asked.refused], where)
            score = None if refused is None else float(refused)
            prompt = _prompt(row, where)
            answers += [Answer(prompt, said, where, refused, score) for said in texts]
    if asked.judge is None and asked.refused is not None:
        raise UserError(f"{OWNER}: say with --judge what the judge is called whose verdict {asked.refused} is")
    return found_answers(answers, joined, asked, "lm_eval", "none", {"tasks": [file.stem for file in samples], "models": models})


def _model(results: Path) -> str:
    """The model that the harness's results name."""
    told = read_json(results, OWNER)
    name = told.get("model_name") if isinstance(told, dict) else None
    return name if isinstance(name, str) else ""


def _prompt(row: Row, where: str) -> str:
    """The text that the model was given: {"gen_args_0": {"arg_0": text, ...}}, or [[text, ...]] in older files."""
    given: Any = row["arguments"]
    if isinstance(given, tuple):  # an object in a row stays pairs of names and values
        given = dict(given).get("gen_args_0")
        given = dict(given).get("arg_0") if isinstance(given, tuple) else None
    elif isinstance(given, list) and given and isinstance(given[0], list) and given[0]:
        given = given[0][0]
    return as_text(given, "prompt", where)


def _answers(row: Row, where: str) -> list[str]:
    """All texts that were generated for a sample."""
    resps = row["resps"]
    found = resps[0] if isinstance(resps, list) and resps else None
    if not isinstance(found, list) or not found or not all(isinstance(said, str) for said in found):
        raise UserError(f"{where}: its task generates no text, so that there are no answers in it")
    return found


FORMAT = Format(
    what="samples of lm-evaluation-harness (JSON lines) of tasks that generate text",
    read=_read,
    files=("samples_*.jsonl", "samples_*.json", f"{RESULTS}*.json"),
    reads=OPTIONS | {"refused", "model"},
    needs_study=False,
)
