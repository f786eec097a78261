"""The explorer's prompts: a list of them by what became of each, and a page for each, token by token."""

from typing import Any, NamedTuple

import duckdb
from fastapi import FastAPI
from fastapi.responses import Response

from saelake.analysis.explorer.study import ShownStudy, found, listed, page_length
from saelake.analysis.served.cards import strength, visible
from saelake.queries.rows import Row, rows, selected

N_TOP = 12
"""Features of a token that are listed."""


class PromptToken(NamedTuple):
    """One token of a prompt."""

    pos: int
    text: str
    role: str
    strength: int
    """0 to 4: how strongly the feature that is looked for fires on it, beside its strongest"""
    features: list[Row]
    """those that fire most on it"""


def add_prompts(app: FastAPI, shown: ShownStudy) -> None:
    """Adds the list of prompts and a page for each."""
    limit = page_length("prompt_list")
    labels, categories = shown.choices("label", "prompts"), shown.choices("category", "prompts")

    @app.get("/b/{token}/prompts")
    def prompts(token: str, words: str = "", label: str = "", category: str = "", page: int = 1) -> Response:
        shown.check(token)
        asked = {"words": words, "label": label, "category": category}
        with shown.cursor() as con:
            those, problem = listed(con, "prompt_list", asked, skip=limit * max(page - 1, 0))
        return shown.page(
            "prompts.html",
            "prompts",
            422 if problem else 200,
            asked=asked,
            page=max(page, 1),
            found=those,
            limit=limit,
            known_labels=labels,
            categories=categories,
            problem=problem,
        )

    @app.get("/b/{token}/prompts/{prompt_id}")
    def prompt(token: str, prompt_id: int, pos: int | None = None, feature: str = "") -> Response:
        shown.check(token)
        with shown.cursor() as con:
            told = prompt_of(con, prompt_id, feature)
        at = next((one for one in told["tokens"] if one.pos == pos), None)
        return shown.page("prompt.html", "prompts", at=at, looked_for=feature, **told)


def prompt_of(con: duckdb.DuckDBPyConnection, prompt_id: int, feature: str = "") -> dict[str, Any]:
    """What the page of a prompt shows; 404 where the study has no such prompt, and for what is not a feature.

    Args:
        feature: whose activations shade the tokens, as layer:feature_id or sae_id:feature_id.
    """
    firings = found(con, "prompt", prompt_id=prompt_id, n=N_TOP)
    fired = _fired(con, prompt_id, feature)
    strongest = max(fired.values(), default=0.0)
    tokens: dict[int, PromptToken] = {}
    for row in firings:
        pos = row["pos"]
        if pos not in tokens:
            tokens[pos] = PromptToken(pos, visible(row["token"]), row["role"], strength(fired.get(pos, 0.0), strongest), [])
        if row["feature_id"] is not None:
            tokens[pos].features.append(row)
    return {
        "prompt": selected(con, "select * from prompts where prompt_id = ?", prompt_id)[0],
        "tokens": list(tokens.values()),
        "features": rows(con, "prompt_features", prompt_id=prompt_id),
        "answers": rows(con, "prompt_answers", prompt_id=prompt_id),
    }


def _fired(con: duckdb.DuckDBPyConnection, prompt_id: int, feature: str) -> dict[int, float]:
    """pos -> activation of one feature on a prompt; nothing where none is looked for."""
    if not feature:
        return {}
    return {row["pos"]: row["activation"] for row in found(con, "feature_on_prompt", prompt_id=prompt_id, features=feature)}
