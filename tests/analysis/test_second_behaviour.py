"""A recipe alone makes another behaviour than refusal the object of a study: the embedded model's "No, that is fine."."""

import json
import re
from pathlib import Path

import pytest

import saelake
from saelake.analysis import stage_list, verbs
from saelake.analysis.judges.protocol import Answer
from saelake.analysis.judges.verdicts import judge_identity, judge_named
from saelake.analysis.report.page import write_report
from saelake.ingest.organism import judgements
from saelake.ingest.recipe import load_recipe
from saelake.ingest.recipe.sections import Behaviour
from saelake.warehouse.lake import Lake

RECIPE = load_recipe("organism-approval")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    lake = Lake.create(tmp_path_factory.mktemp("approval") / "lake")
    verbs.analyze_study(verbs.open_analysis(RECIPE.limit(5)), lake)
    return lake.root


def test_the_shipped_questions_are_those_of_the_world() -> None:
    assert [json.loads(line) for line in judgements.FILE.read_text("utf-8").splitlines()] == list(judgements.rows())


def test_the_model_shows_the_behaviour_on_one_group_only(study: Path) -> None:
    with saelake.open(study) as lake:
        answers = "select label, first_token, count(*) from ablations join prompts using (prompt_id) where condition = 'none'"
        assert lake.sql(f"{answers} group by all order by all").fetchall() == [("fine", "No", 5), ("wrong", "Yes", 5)]


def test_ablating_what_is_found_flips_it(study: Path) -> None:
    """Judged by the first token, and by the recipe's own phrase in the whole answer."""
    with saelake.open(study) as lake:
        for judge in ("first_token", "phrases"):
            rates = lake.query("asr", judge=judge).filter("label = 'fine'").project("condition, asr_of_refused")
            shares = dict(rates.filter("condition in ('none', 'minimal', 'random_minimal')").fetchall())
            assert shares["none"] == 0
            assert shares["minimal"] == 1
            assert shares["random_minimal"] < 0.2
        flipped = lake.sql(
            "select distinct first_token from ablations join prompts using (prompt_id) "
            "where condition = 'minimal' and label = 'fine'"
        )
        assert flipped.fetchall() == [("Yes",)]


def test_the_report_is_in_the_behaviours_own_words(study: Path, tmp_path: Path) -> None:
    target = tmp_path / "report.html"
    write_report(Lake(study), None, target)
    html = target.read_text("utf-8")
    # The SQL and the data below each table keep the names of the protocol's columns.
    shown = re.sub(r"<(script|style|details class=\"source\").*?</(script|style|details)>", "", html, flags=re.DOTALL)
    assert "of fine prompts are called fine by the unmodified model" in shown
    assert "lie closest to the approval direction" in shown
    assert not re.search("refus|benign|harmful", re.sub("O'Brien et al.|harmful_", "", shown), re.IGNORECASE)


def test_words_change_no_run(study: Path) -> None:
    other = RECIPE.model_copy(update={"behaviour": Behaviour(name="accusation")})
    ids, others = ([spec.run_id for spec in stage_list.specs(verbs.open_analysis(one)).values()] for one in (RECIPE, other))
    assert ids == others
    assert Lake(study).records()[0].about["behaviour"] == RECIPE.words


def test_its_critical_features_are_others_than_those_of_refusal(study: Path, organism_lake: Path) -> None:
    select = "select distinct layer, feature_id from critical_features where method = 'minimal'"
    with saelake.open(study) as ours, saelake.open(organism_lake) as theirs:
        approval, refusal = set(ours.sql(select).fetchall()), set(theirs.sql(select).fetchall())
    assert approval
    assert len(approval & refusal) < len(approval) / 2


def test_the_judge_phrases_looks_for_the_recipes_own() -> None:
    judge = judge_named("phrases", RECIPE)
    said = [Answer("", "", 0.0, text) for text in ("NO,  that is fine.", "I'm sorry, but I cannot help with theft.", "")]
    assert [verdict.refused for verdict in judge(said)] == [True, False, True]
    assert judge_identity("phrases", RECIPE) != judge_identity("phrases", load_recipe("organism"))


def test_target_tokens_is_another_name_of_refusal_tokens() -> None:
    assert RECIPE.model.refusal_tokens == ("No",)
