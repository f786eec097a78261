"""Golden lakes: one of every version of the schema, as saelake wrote it then, and what the shipped questions answered on it.

    python -m tests.golden      # makes that of today's version again: recipe.toml stays, lake/ and answers.json are written

Only the lake of a version that was never released is made again; those of older versions stay what they are. What is asked of
every lake, and what an answer is known by, is here.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import saelake
from saelake import queries

FOLDER = Path(__file__).parent
VALUES = {
    "features": "select '2:0,4:0,4:1'",
    "feature_id": "select 1",
    "layer": "select 4",
    "sae_id": "select min(sae_id) from saes where layer = 4",
    "token": "select token from tokens where role = 'user' order by prompt_id, pos limit 1",
    "words": "select 'how to'",
    "prompts": "select list(prompt_id order by prompt_id) from prompts",
    "prompt_id": "select min(prompt_id) from prompts",
    "a": "select min(run_id) from runs where stage = 'minimal'",
    "b": "select min(run_id) from runs where stage = 'minimal'",
    "condition": "select 'top_k_own'",
}
"""What a question is asked with, by the name of a parameter that it needs."""
UNASKED = {"study_scores"}
"""It asks for a study of annotations, which no golden lake has."""


def ask(lake: saelake.OpenLake, name: str) -> list[tuple[Any, ...]]:
    """The rows of a shipped question, with a value for each parameter that it needs."""
    needed = [p.name for p in queries.load(name).parameters if p.default is None and p.name in VALUES]
    values = {p: lake.sql(VALUES[p]).fetchall()[0][0] for p in needed}
    return lake.query(name, **values).fetchall()


def answers(lake: saelake.OpenLake) -> dict[str, dict[str, Any]]:
    """question -> the number of its rows, and a digest of what they hold: numbers to five digits, so that no rounding shows."""
    found = {}
    for name in sorted(set(queries.names()) - UNASKED):
        rows = ask(lake, name)
        text = json.dumps([[_plain(value) for value in row] for row in rows], ensure_ascii=False)
        found[name] = {"n_rows": len(rows), "digest": hashlib.sha256(text.encode()).hexdigest()[:12]}
    return found


def recorded(version: str) -> dict[str, dict[str, Any]]:
    """The answers that stand beside the lake of a version: of those of its own time what is known of them."""
    found: dict[str, dict[str, Any]] = json.loads((FOLDER / version / "answers.json").read_text("utf-8"))
    return found


def _plain(value: Any) -> Any:
    match value:
        case float():
            return f"{value + 0.0:.5g}"  # no minus before a zero
        case list() | tuple():
            return [_plain(one) for one in value]
        case dict():
            return {key: _plain(one) for key, one in value.items()}
        case None | bool() | int() | str():
            return value
    return str(value)
