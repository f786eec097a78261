"""The site holds every document, every public name and every question, and asks nothing of another host."""

import importlib.util
import inspect
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml  # type: ignore[import-untyped]

import saelake
from saelake import queries
from tests.conftest import ROOT
from tests.documents import documents

VOID = {"br", "hr", "img", "input", "link", "meta", "path"}
"""Elements of the site's pages that are not closed."""


@pytest.fixture(scope="module")
def pages() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pages", ROOT / "docs" / "site" / "pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_document_has_its_place_and_its_kind() -> None:
    nav = (ROOT / "mkdocs.yml").read_text("utf-8").partition("\nnav:")[2]
    places = [page for part in yaml.safe_load(f"nav:{nav}")["nav"] for pages in part.values() for page in _pages(pages)]
    assert len(places) == len(set(places))
    assert {document.name for document in documents()} - {"README.md"} <= set(places)
    for page in set(places) - {"index.md", "questions.md", "commands.md", "api.md"}:
        assert (ROOT / "docs" / page).is_file() or (ROOT / page).is_file(), page


def _pages(part: str | list[dict[str, str]]) -> list[str]:
    return [part] if isinstance(part, str) else [page for one in part for page in one.values()]


def test_pages_made_from_code_leave_nothing_out(pages: ModuleType) -> None:
    api, questions = pages._api(), pages._questions()
    assert api.count("\n:::") == len(saelake.__all__) + len(pages.RETURNED) + len(pages.RAISED)
    assert re.findall(r"^## (\w+)$", questions, re.MULTILINE) == queries.names()
    assert "\n## saelake study create\n" in pages._commands()


def test_what_public_calls_return_is_described(pages: ModuleType) -> None:
    calls = [
        saelake.Engine.answer, saelake.Engine.next_token, saelake.minimal_set, saelake.FactorizationMachine.pairs,
        saelake.compare, saelake.OpenLake.sparse, saelake.OpenLake.dataset, saelake.Subject.encode, saelake.Subject.batch,
    ]  # fmt: skip
    returned = [re.findall(r"\w+", inspect.formatannotation(call.__annotations__["return"]))[-1] for call in calls]
    assert returned == [name.rpartition(".")[2] for name in pages.RETURNED]


def test_links_out_of_the_documents_lead_to_pages_that_show_the_files(pages: ModuleType) -> None:
    linked = {path.relative_to(ROOT).as_posix() for path in pages.linked_files()}
    assert {"recipes/organism.toml", "ingest/hydra/hydra.md", "CONTRIBUTING.md"} <= linked
    for path in pages.linked_files():
        assert len(pages._shown(path)) > 20


def test_the_site_is_built_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    for package in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(package, reason="what `make site` installs beside the repository is missing")
    subprocess.run([sys.executable, "-m", "mkdocs", "build", "--quiet", "-d", tmp_path / "site"], cwd=ROOT, check=True)
    for page in (tmp_path / "site").rglob("*.html"):
        text = page.read_text("utf-8")
        seen = re.sub(r"<(script|style)\b.*?</\1>", "", text, flags=re.DOTALL)
        unclosed = set(re.findall(r"<([a-z]\w*)", seen)) - set(re.findall(r"</(\w+)>", seen)) - VOID
        assert not unclosed, f"{page.name}: angle brackets of a text are taken for HTML"
        assert not re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=\"https?:", text), page.name
    assert "minimal_set" in (tmp_path / "site" / "search" / "search_index.json").read_text("utf-8")
