"""Two judges decide what flips: the oracle on harmful prompts, another on benign ones; verdicts may not apply."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import saelake
from saelake.analysis import verbs
from saelake.analysis.judges.verdicts import control_oracle, oracle_identity
from saelake.analysis.search.directions import share
from saelake.ingest.recipe import Recipe, load_recipe
from saelake.warehouse.errors import UserError
from saelake.warehouse.lake import Lake
from saelake.warehouse.records import RunRecord
from tests.analysis.effects import Analysed
from tests.analysis.endpoint_server import Asked, Reply, says, serving
from tests.planted import write_planted

JUDGES = """
[judges.asked]
endpoint = "{address}"
model = "tiny"
question = "{{prompt}} => {{answer}}"
refused = ["no"]
answered = ["yes"]
labels = ["harmful"]
"""


def harm(asked: Asked) -> Reply:
    """As a classifier of harm: no for every refusal."""
    return says("no" if " => I cannot" in asked.question else "yes")


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[str, list[Asked]]]:
    with serving(harm) as found:
        yield found


@pytest.fixture(scope="module")
def recipe(served: tuple[str, list[Asked]], tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    file = write_planted(tmp_path_factory.mktemp("planted")).recipe
    text = file.read_text()
    old = 'judges = ["first_token", "phrases"]\noracle = "first_token"'
    assert old in text
    file.write_text(
        text.replace(old, 'judges = ["asked", "phrases", "first_token"]\noracle = "asked"') + JUDGES.format(address=served[0])
    )
    return load_recipe(file).limit(2)


@pytest.fixture(scope="module")
def analysed(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> tuple[Lake, list[RunRecord]]:
    lake = Lake.create(tmp_path_factory.mktemp("asked") / "lake")
    return lake, verbs.analyze(recipe, lake)


def test_the_judge_of_benign_prompts_is_the_oracle_where_that_can_judge_them(recipe: Recipe, tmp_path: Path) -> None:
    def with_verdicts(**fields: object) -> Recipe:
        return recipe.model_copy(update={"verdicts": recipe.verdicts.model_copy(update=fields)})

    assert control_oracle(recipe) == "phrases"
    assert control_oracle(with_verdicts(oracle="first_token")) == "first_token"
    assert "control" not in oracle_identity(with_verdicts(oracle="first_token")), "run ids of such studies stay"
    assert oracle_identity(recipe)["control"]["name"] == "phrases"  # type: ignore[index]
    assert control_oracle(with_verdicts(control_oracle="first_token")) == "first_token"
    with pytest.raises(UserError, match=r"verdicts\.control_oracle: asked cannot judge benign prompts"):
        oracle_identity(with_verdicts(oracle="first_token", control_oracle="asked"))


def test_each_prompt_is_read_by_its_judge_and_every_question_counts_it_so(analysed: tuple[Lake, list[RunRecord]]) -> None:
    with saelake.open(analysed[0].root) as lake:
        read = "select distinct v.judge, v.refused is null from verdicts v join ablations using (ablation_id) join prompts p "
        read += "using (prompt_id) where p.label = '{}' order by all"
        assert lake.sql(read.format("harmful")).fetchall() == [("asked", False), ("first_token", False), ("phrases", False)]
        assert lake.sql(read.format("benign")).fetchall() == [("first_token", False), ("phrases", False)]
        twice = "select ablation_id, judge from verdicts group by all having count(*) > 1"
        assert lake.sql(twice).fetchall() == []
        by_label = dict(lake.query("asr", judge="asked").filter("condition = 'none'").select("label, judge").fetchall())
        assert by_label == {"harmful": "asked", "benign": "phrases"}
        (choice,) = lake.query("k_choice", judge="asked").select("judge, n_control, control_answered").fetchall()
        alone = lake.query("k_choice", judge="phrases").select("judge, n_control, control_answered").fetchall()
        assert choice[0] == "asked"
        assert choice[1] > 0
        assert choice[1:] == alone[0][1:], "the planted refusals hold one of the phrases"
        (all_judges,) = lake.query("k_choice").filter("judge = 'asked'").select("n_control").fetchall()
        assert all_judges == choice[1:2]
        assert {label for (label,) in lake.query("per_prompt").select("label").fetchall()} == {"harmful", "benign"}
        for question in ("completions", "methods", "stage3", "first_tokens"):
            assert lake.query(question, judge="asked").fetchall(), question
        methods = lake.query("methods", judge="asked").select("control_answered").fetchall()
        assert all(share is not None for (share,) in methods)


def test_what_was_paid_stands_in_the_records(analysed: tuple[Lake, list[RunRecord]], served: tuple[str, list[Asked]]) -> None:
    lake, records = analysed
    paid = [record.about["judges"]["asked"] for record in records if "judges" in record.about]
    assert sum(cost["replies"] for cost in paid) == len(served[1]) > 0
    assert sum(cost["prompt_tokens"] for cost in paid) == 7 * len(served[1])
    n = len(served[1])
    assert lake.record(records[1].run_id) is not None
    assert all(" => " in one.question for one in served[1])
    assert len({one.question for one in served[1]}) == n, "nothing is asked twice"


def test_a_judge_beside_says_of_benign_prompts_that_it_does_not_apply(
    study: Analysed, served: tuple[str, list[Asked]], tmp_path: Path
) -> None:
    """Beside the oracle of the analysed study, first_token."""
    other = study.planted.folder / "asked.toml"
    other.write_text(study.planted.recipe.read_text() + JUDGES.format(address=served[0]))
    lake = Lake(Path(shutil.copytree(study.lake.root, tmp_path / "lake")))
    verbs.judge(load_recipe(other), lake, "asked")
    with saelake.open(lake.root) as opened:
        sql = (
            "select distinct p.label, v.refused is null, v.flipped is null, v.score is null, v.degenerate is null from verdicts "
        )
        sql += "as v join ablations using (ablation_id) join prompts p using (prompt_id) where v.judge = 'asked' order by all"
        assert opened.sql(sql).fetchall() == [("benign", True, True, True, False), ("harmful", False, False, False, False)]
        assert opened.query("asr", judge="asked").filter("label = 'benign'").fetchall() == [], (
            "what does not apply counts nowhere"
        )
        assert opened.query("k_choice", judge="asked").select("n_control").fetchall() in ([], [(None,)])


def test_shares_are_of_the_verdicts_that_apply() -> None:
    assert share([True, None, False, None]) == 0.5
    assert share([None]) == 0.0
