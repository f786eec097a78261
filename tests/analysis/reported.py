"""What a report's page carries, the rows of its answers; and a study whose questions have the answers that a test gives."""

import json
import re
from typing import Any

import duckdb

from saelake.analysis.report.answers import Answer, Studied

Rows = list[dict[str, Any]]


def data(html: str) -> dict[str, Any]:
    """The data that the page carries."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert found
    return dict(json.loads(found[1]))


def answers(html: str, question: str) -> list[Rows]:
    """The rows of every answer to a question, in the page's order."""
    found = [a for a in data(html)["answers"].values() if a["name"] == question]
    return [[dict(zip(a["columns"], row, strict=True)) for row in a["rows"]] for a in found]


def answer(question: str, rows: Rows) -> Answer:
    """An answer with these rows."""
    return Answer(question, {}, "", tuple(rows[0]) if rows else (), rows)


def given(con: duckdb.DuckDBPyConnection | None = None, **rows: Rows) -> Studied:
    """A study in which every question has these rows, or none; `con` answers the steps that are asked besides."""

    class Given(Studied):
        def ask(self, question: str, **parameters: Any) -> Answer:
            return answer(question, rows.get(question, []))

        @property
        def judge(self) -> str:
            return "first_token"

    return Given(con or duckdb.connect(), "small", {})
