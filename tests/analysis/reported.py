"""What a report's page carries: the rows of its answers."""

import json
import re
from typing import Any

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
