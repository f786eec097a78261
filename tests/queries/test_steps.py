"""Statements stand in files: Python of the stages, pages and formats holds no more than a line of SQL."""

import ast
import re
from pathlib import Path

import pytest

from saelake import queries
from saelake.queries.loader import STEPS, step
from tests.conftest import ROOT

STATEMENT = re.compile(r"\s*(?:select\b.+\bfrom\b|with\s+\w+\s+as\s*\()", re.DOTALL)
LONGEST = 200
"""Letters of a statement that may stand where it is asked: some columns of a table, a count."""
PART = re.compile(r"^(?:with )?(\w+) as (?:materialized )?\(", re.MULTILINE)
"""A part of a statement with a name."""
FOLDERS = ("analysis", "commands", "formats", "ingest", "saelake")
"""queries/ writes statements, warehouse/ the views of a catalog."""


def test_no_statement_of_several_parts_stands_in_python() -> None:
    found = []
    for path in sorted(path for folder in FOLDERS for path in (ROOT / folder).glob("**/*.py")):
        for line, text in _texts(ast.parse(path.read_text("utf-8"))):
            if STATEMENT.match(text) and len(" ".join(text.split())) > LONGEST:
                found.append(f"{path.relative_to(ROOT)}:{line}")
    assert not found, "put these into queries/ (a question), queries/stages/ or queries/steps/"


def _texts(tree: ast.Module) -> list[tuple[int, str]]:
    """The texts of a module that are not docstrings; of one that is filled in, what stands in it."""
    bare = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    filled = [node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)]
    inner = {id(part) for node in filled for part in node.values}
    found = [(n.lineno, "".join(p.value if isinstance(p, ast.Constant) else "x" for p in n.values)) for n in filled]  # type: ignore[misc]
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in bare | inner:
            found.append((node.lineno, node.value))
    return found


@pytest.mark.parametrize("file", sorted(STEPS.glob("*.sql")), ids=lambda file: file.stem)
def test_a_step_says_what_it_is_and_is_asked_once(file: Path) -> None:
    text = file.read_text("utf-8")
    assert text.startswith("-- ")
    code = re.sub(r"'[^']*'", "", step(file.stem))
    assert code == code.lower()
    python = [path for folder in (*FOLDERS, "queries") for path in (ROOT / folder).glob("**/*.py")]
    asked = [path for path in python if f'step("{file.stem}")' in path.read_text("utf-8")]
    included = [path for path in STEPS.parent.rglob("*.sql") if f"$step({file.stem})" in path.read_text("utf-8")]
    assert len(asked) == 1 or (not asked and len(included) > 1), "by one module, or within several statements"


@pytest.mark.parametrize("name", [*queries.names(), *queries.names_of_stages(), *queries.names_of_pages()])
def test_no_part_of_a_statement_has_the_name_of_one_in_a_step_that_it_takes(name: str) -> None:
    """Spark sees them all side by side."""
    parts = PART.findall(queries.load(name).sql)
    assert len(set(parts)) == len(parts)
