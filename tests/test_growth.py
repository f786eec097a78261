"""A study that grows step by step answers every shipped question as one that was computed whole."""

import json
from pathlib import Path

import pytest

import saelake
from saelake.analysis import verbs
from saelake.ingest.job import ingest
from saelake.ingest.recipe import Recipe, load_recipe
from saelake.warehouse.check import check
from saelake.warehouse.lake import Lake
from tests.golden import FOLDER, answers
from tests.planted import write_planted

OF_THE_RUNS = {"runs", "search_methods"}
"""They say when runs were computed, and how long it took."""


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """The study of the newest golden lake, with every third prompt in a set of its own."""
    write_planted(tmp_path / "study")
    file, newest = tmp_path / "study" / "recipe.toml", max(FOLDER.glob("v*/recipe.toml"))
    file.write_text(newest.read_text())
    rows = (tmp_path / "study" / "prompts.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "study" / "more.jsonl").write_text("".join(rows[::3]))
    (tmp_path / "study" / "prompts.jsonl").write_text("".join(row for n, row in enumerate(rows) if n % 3))
    content = load_recipe(file).model_dump(exclude_unset=True)
    (one,) = content["prompts"]
    return Recipe.model_validate(content | {"prompts": [one, one | {"set": "more", "file": tmp_path / "study" / "more.jsonl"}]})


def contents(lake: Lake) -> dict[str, str]:
    """run_id -> hash of its content, of all runs that are current"""
    return {run_id: str(getattr(lake.record(run_id), "content_hash", None)) for ids in lake.current().values() for run_id in ids}


def test_a_lake_that_grew_answers_as_one_that_was_made_whole(recipe: Recipe, tmp_path: Path) -> None:
    grown, whole = Lake.create(tmp_path / "grown"), Lake.create(tmp_path / "whole")
    one_sae = recipe.model_copy(update={"saes": recipe.saes.model_copy(update={"layers": (2,)})})
    one_judge = recipe.model_copy(update={"verdicts": recipe.verdicts.model_copy(update={"judges": ("first_token",)})})
    ingest(one_sae.model_copy(update={"prompts": one_sae.prompts[:1]}), grown)
    ingest(one_sae, grown)
    verbs.analyze(one_judge, grown)
    before = contents(grown)
    verbs.analyze(recipe, grown)
    assert set(contents(grown)) - set(before) == set(grown.current()["golden", "verdicts_phrases"]), (
        "the new judge's verdicts alone"
    )
    verbs.analyze(recipe, whole)
    assert contents(grown) == contents(whole)
    with saelake.open(grown.root, recipe="golden") as one, saelake.open(whole.root, recipe="golden") as other:
        found, expected = answers(one), answers(other)
    assert found.keys() == expected.keys()
    assert {name for name in found if found[name] != expected[name]} <= OF_THE_RUNS
    assert sum(answer["n_rows"] > 0 for answer in found.values()) > 40, json.dumps(found)
    assert not check(grown)
