"""Every command, statement and program that a document shows runs, and prints what the document shows."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from saelake.ingest.recipe import load_recipe
from tests.conftest import ROOT
from tests.documents import (
    blocks,
    by_k,
    cards_page,
    comparison_page,
    documents,
    formats_page,
    library_page,
    prepare,
    printed,
    programs,
    protocol_page,
    recipe_page,
    replication_page,
    same_but_for_rounding,
)
from tests.forked import Forks

RUN = [document for document in documents() if blocks(document)]


def test_there_is_something_to_check() -> None:
    assert sum(len(blocks(document)) for document in RUN) >= 30
    assert len([b for b in blocks(ROOT / "docs" / "cookbook.md") if b.language == "sql" and b.shown]) >= 20


def test_a_command_ends_with_its_quotes(tmp_path: Path) -> None:
    text = "```console\n$ saelake sql \"\nselect 1 as 'a'\n\" --lake x\na\n1\n```\n```console\n$ saelake runs\nnone\n```\n"
    (tmp_path / "x.md").write_text(text, encoding="utf-8")
    asked, listed = blocks(tmp_path / "x.md")
    assert asked.code == "saelake sql \"\nselect 1 as 'a'\n\" --lake x"
    assert asked.shown == "a\n1\n"
    assert asked.written(asked.shown) + "\n" + listed.written("none\n") + "\n" == text
    assert (listed.code, listed.shown) == ("saelake runs", "none\n")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    with programs(tmp_path_factory.mktemp("hub")) as one:
        yield one


@pytest.mark.parametrize("document", RUN, ids=lambda document: document.name)
def test_output_is_in_step(document: Path, organism_lake: Path, planted_lake: Path, tmp_path: Path, running: Forks) -> None:
    prepare(tmp_path, organism_lake, planted_lake)
    for block in blocks(document):
        now = printed(block, tmp_path, running)
        if block.shown is not None:
            assert same_but_for_rounding(block.shown, now), f"{document.name} is out of date (make docs):\n{block.code}\n{now}"


def test_the_protocol_is_the_schema() -> None:
    assert protocol_page.PAGE.read_text(encoding="utf-8") == protocol_page.page(), "make pages"


def test_every_section_and_field_of_a_recipe_is_documented() -> None:
    assert recipe_page.undocumented() == []
    assert recipe_page.PAGE.read_text(encoding="utf-8") == recipe_page.page(), "make pages"
    titles = [title for title, _ in recipe_page._sections()]
    assert [title for title in titles if "NAME" in title] == ["[judges.NAME]"], "no other table has names that are yours"
    assert {"[verdicts.harmbench]", "[[prompts.sources]]", "[[losses.texts]]"} <= set(titles), "as TOML writes them"


def test_the_tables_of_the_library_are_what_the_models_and_saes_were_found_to_do() -> None:
    assert library_page.PAGE.read_text(encoding="utf-8") == library_page.page(), "make pages"


def test_what_the_embedded_study_shows_of_the_paper_is_made_from_its_lake(organism_lake: Path) -> None:
    shown = replication_page.PAGE.read_text(encoding="utf-8")
    now = replication_page.page(shown, organism_lake)
    assert same_but_for_rounding(shown, now), f"docs/replication.md is out of date (make docs):\n{now}"
    assert [f"**R{n}. " in now for n in range(1, 22)] == [True] * 21


def test_the_picture_in_the_readme_is_drawn_from_the_lake(organism_lake: Path) -> None:
    assert same_but_for_rounding(by_k.PICTURE.read_text(encoding="utf-8"), by_k.picture(organism_lake)), "make docs"


def test_the_readme_can_be_read_in_a_few_minutes() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 150


def test_the_tables_of_the_formats_are_what_their_samples_brought_in_and_out() -> None:
    assert formats_page.PAGE.read_text(encoding="utf-8") == formats_page.page(), "make pages"


def test_the_cards_tell_what_lies_in_the_files() -> None:
    assert cards_page.PAGE.read_text(encoding="utf-8") == cards_page.page(), "make pages"


def test_what_is_compared_is_what_the_benchmarks_say() -> None:
    assert comparison_page.PAGE.read_text(encoding="utf-8") == comparison_page.page(), "make pages"


def test_a_changed_word_or_number_is_noticed() -> None:
    assert same_but_for_rounding("a 1.000 b", "a 1.004  b")
    assert not same_but_for_rounding("a 1.0 b", "a 1.2 b")
    assert not same_but_for_rounding("a 1.0 b", "a 1.0 c")


def test_links_of_documents_lead_somewhere() -> None:
    beside = [*ROOT.glob("*.md"), *(ROOT / "ingest").rglob("*.md")]
    for document in (*documents(), *beside):
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document.relative_to(ROOT)} links to {target}"


def test_recipes_in_documents_are_recipes(tmp_path: Path) -> None:
    for name in ("model", "classifier", "saes/layer_2"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("prompts.csv", "template.txt"):
        (tmp_path / name).touch()
    text = (ROOT / "docs" / "bring-your-own.md").read_text(encoding="utf-8")
    recipes = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    assert len(recipes) == 5
    for number, recipe in enumerate(recipes):
        (tmp_path / f"{number}.toml").write_text(recipe, encoding="utf-8")
        assert load_recipe(tmp_path / f"{number}.toml").prompts
