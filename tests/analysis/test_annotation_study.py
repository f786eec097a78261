"""R19 without a browser: drawing, answering, closing and scoring, by hand on the lake of tests/meaning.py."""

import csv
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from saelake import cli, queries
from saelake.analysis.meaning import annotation_study as studies
from saelake.analysis.meaning.annotation_study import AnnotationStudy, Sampling
from saelake.analysis.meaning.scores import scores
from saelake.warehouse.catalog import connect
from saelake.warehouse.errors import UserError
from saelake.warehouse.lake import Lake
from tests.meaning import build_meaning_lake

PEOPLE = ("ann", "bob", "cy")
DRAW = Sampling("candidates", "user", per_group=5, n_random=5, n_silent=5, seed=3)
ANSWERS = {
    ("critical", 0, 1): (["bombs"], ["bombs", "fraud"], ["fraud"]),
    ("critical", 0, 2): (["None"], ["None"], ["bombs"]),
    ("silent", 0, 3): (["None"], ["None"], ["fraud"]),
}
"""(stratum, layer, feature_id) -> what ann, bob and cy choose. Truth by the user's tokens: 0:1 and 0:2 bombs, 0:3 nothing."""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    return build_meaning_lake(tmp_path_factory.mktemp("study") / "lake")


@pytest.fixture
def lake(built: Lake, tmp_path: Path) -> Lake:
    return Lake(Path(shutil.copytree(built.root, tmp_path / "lake")))


def answered(lake: Lake) -> AnnotationStudy:
    """The study of ANSWERS, everything answered."""
    study = studies.create(lake, "small", "pilot", PEOPLE, DRAW)
    for number, item in enumerate(study.items):
        for person, chosen in zip(PEOPLE, ANSWERS[item.stratum, item.layer, item.feature_id], strict=True):
            studies.answer(lake, study, person, number, chosen)
    return study


def test_features_are_drawn_by_stratum(lake: Lake) -> None:
    """Layer 0: 0:1 and 0:2 are candidates that fire on the user's tokens, 0:0 fires on BOS alone, 0:3 never."""
    study = studies.create(lake, "small", "pilot", PEOPLE, DRAW)
    assert {(i.stratum, i.layer, i.feature_id, i.n_categories) for i in study.items} == {
        ("critical", 0, 1, 1), ("critical", 0, 2, 1), ("silent", 0, 3, 0),
    }  # fmt: skip
    literal = studies.create(lake, "small", "literal", PEOPLE, Sampling("stage3", per_group=1, n_random=5, n_silent=5))
    assert {(i.stratum, i.layer, i.feature_id, i.n_categories) for i in literal.items} == {
        ("critical", 1, 0, 2), ("random", 1, 3, 2), ("silent", 1, 1, 0), ("silent", 1, 2, 0),
    }  # fmt: skip


def test_the_paper_s_numbers_are_the_default_and_draws_are_seeded(organism_lake: Path) -> None:
    with connect(Lake.existing(organism_lake), "organism") as con:

        def draw(**values: object) -> list[tuple[object, ...]]:
            return queries.run(con, "study_sample", **values).project("item, stratum, n_categories, layer, feature_id").fetchall()

        drawn = draw()
        assert draw() == drawn != draw(seed=1)
        strata = [row[1] for row in drawn]
        assert (strata.count("random"), strata.count("silent")) == (23, 7)
        per_group = [sum(row[1:3] == ("critical", n) for row in drawn) for n in range(1, 6)]
        assert max(per_group) == 10
        assert [row[0] for row in drawn] == list(range(len(drawn)))
        assert strata != sorted(strata, key=str), "shuffled"
        found = {row[3:] for row in con.sql("select 1, 2, 3, layer, feature_id from populations").fetchall()}
        assert all((row[3:] in found) == (row[1] == "critical") for row in drawn)


def test_everybody_has_a_link_and_an_order_of_their_own(lake: Lake) -> None:
    study = studies.create(lake, "small", "pilot", PEOPLE, DRAW)
    larger = replace(study, items=study.items * 20)
    orders = [larger.order(person) for person in PEOPLE]
    assert all(sorted(order) == list(range(60)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    assert studies.load(lake, "pilot") == study
    assert len(set(study.tokens.values())) == 3
    assert all(len(token) >= 20 for token in study.tokens.values())
    file = lake.root / "studies" / "pilot" / "study.json"
    assert file.stat().st_mode & 0o077 == 0, "the links are for the owner alone"


def test_scores_by_hand(lake: Lake) -> None:
    """Majorities: 0:1 bombs and fraud (score 1, precision 1/2), 0:2 None (score 0), 0:3 None (score 1)."""
    studies.close(lake, answered(lake))
    with connect(lake) as con:
        rows = queries.run(con, "study_scores", study="pilot", mapping="user").project(
            "stratum, feature_id, n_annotators, majority, truth, score, precision"
        )
        assert sorted(rows.fetchall()) == [
            ("critical", 1, 3, ["bombs", "fraud"], ["bombs"], 1.0, 0.5),
            ("critical", 2, 3, ["None"], ["bombs"], 0.0, None),
            ("silent", 3, 3, ["None"], [], 1.0, None),
        ]
        found = {(one.measure, one.of): one.measured for one in scores(con, "pilot", mapping="user")}
        literal = {
            row[0]: row[1] for row in queries.run(con, "study_scores", study="pilot").project("feature_id, score").fetchall()
        }
    assert found["accuracy", "all"].estimate == pytest.approx(2 / 3)
    assert found["accuracy", "critical"].estimate == pytest.approx(1 / 2)
    assert found["precision", "all"][:2] == (1, 0.5)
    assert literal == {1: 1.0, 2: 0.0, 3: 1.0}
    # bombs: 0:1 is 1 1 0, 0:2 is 0 0 1, 0:3 is 0 0 0: 3 ones, 6 zeros, 2 x (2 x 1 / 2) unlike pairs: 1 - 8 x 2 / 18
    assert found["alpha", "bombs"].estimate == pytest.approx(1 - 8 * 2 / (3 * 6))
    # over both categories: fraud 0 1 1, 0 0 0, 0 0 1 adds 3 ones, 6 zeros and 2 unlike pairs
    assert found["alpha", "all"].estimate == pytest.approx(1 - 17 * 4 / (6 * 12))
    # ann chose 1 of 6 decisions, bob 2, both 1: agreement 5/6, by chance 1/6 x 2/6 + 5/6 x 4/6
    chance = (1 * 2 + 5 * 4) / 36
    assert found["kappa", "ann and bob"].estimate == pytest.approx((5 / 6 - chance) / (1 - chance))


def test_partial_credit_loses_an_equal_share_for_each_missing_label(lake: Lake) -> None:
    study = studies.create(lake, "small", "part", ("ann",), Sampling("stage3", per_group=1, n_random=0, n_silent=0))
    studies.answer(lake, study, "ann", 0, ["fraud"])
    studies.close(lake, study)
    with connect(lake) as con:
        assert queries.run(con, "study_scores", study="part").project("truth, score, precision").fetchall() == [
            (["bombs", "fraud"], 0.5, 1.0)
        ]  # fmt: skip


def test_answers_are_replaced_withdrawn_and_at_last_closed(lake: Lake) -> None:
    study = studies.create(lake, "small", "pilot", PEOPLE, DRAW)
    with pytest.raises(UserError, match="no answers yet"):
        studies.close(lake, study)
    assert studies.withdraw(lake, study, "ann") is None
    studies.answer(lake, study, "ann", 0, ["bombs"])
    studies.answer(lake, study, "ann", 1, ["fraud", "bombs"])
    studies.answer(lake, study, "ann", 0, ["None"])
    assert studies.state(lake, study).answers["ann"] == {1: ("bombs", "fraud"), 0: ("None",)}
    assert studies.withdraw(lake, study, "ann") == 0, "what was answered last"
    assert studies.state(lake, study).answers["ann"] == {1: ("bombs", "fraud")}
    for chosen, says in (
        ([], "at least one"),
        (["None", "bombs"], "not both"),
        (["theft"], "at least one of bombs, fraud, None"),
    ):
        with pytest.raises(UserError, match=says):
            studies.answer(lake, study, "bob", 0, chosen)
    with pytest.raises(UserError, match=r"answers are missing \(ann 2, bob 3, cy 3\)"):
        studies.close(lake, study)
    record = studies.close(lake, study, unfinished=True)
    assert studies.close(lake, study).run_id == record.run_id
    assert record.n_rows("annotations") == 3
    for late in (lambda: studies.answer(lake, study, "bob", 0, ["None"]), lambda: studies.withdraw(lake, study, "ann")):
        with pytest.raises(UserError, match="is closed"):
            late()


def test_mistakes_are_told_and_leave_the_lake_as_it_was(lake: Lake) -> None:
    made = studies.create(lake, "small", "pilot", PEOPLE, DRAW)
    assert studies.create(lake, "small", "pilot", PEOPLE, DRAW) == made, "the same command again, as after a kill"
    for name, people, says in (
        ("pilot", PEOPLE[:1], "has another annotation study pilot already"),
        ("../x", PEOPLE, "is not a name for an annotation study"),
        ("two", ("ann", "ann"), "is not a name for one annotator"),
        ("two", ("<b>",), "is not a name for one annotator"),
        ("two", (), "at least one annotator"),
    ):
        with pytest.raises(UserError, match=says):
            studies.create(lake, "small", name, people, DRAW)
    with pytest.raises(UserError, match="no feature of redundant in small"):
        studies.create(lake, "small", "two", PEOPLE, Sampling("redundant"))
    with pytest.raises(UserError, match="has no annotation study 'two'; it has pilot"):
        studies.load(lake, "two")
    assert [p.name for p in (lake.root / "studies").iterdir()] == ["pilot"]
    (lake.root / "studies" / "pilot" / "study.json").write_text("{")
    with pytest.raises(UserError, match=r"study.json is damaged"):
        studies.load(lake, "pilot")


def test_the_command_line_from_creating_to_scoring(lake: Lake) -> None:
    def saelake(*arguments: str) -> str:
        done = CliRunner().invoke(cli.main, [*arguments, "--lake", str(lake.root)])
        assert done.exit_code == 0, done.output
        return done.stdout

    counts = ("--per-group", "5", "--random", "5", "--silent", "5")
    made = saelake("study", "create", "pilot", "--annotator", "ann", "--population", "candidates", "--mapping", "user", *counts)
    assert made.startswith("3 features: 2 critical, 0 random, 1 silent;")
    study = studies.load(lake, "pilot")
    for number in range(3):
        studies.answer(lake, study, "ann", number, ["None"])
    assert "3 answers" in saelake("study", "close", "pilot")
    assert "accuracy" in saelake("study", "score", "pilot")
    rows = csv.DictReader(io.StringIO(saelake("query", "study_scores", "--study", "pilot", "--format", "csv")))
    assert [json.loads(row["score"]) for row in rows].count(1.0) == 1
    for arguments, says in (
        (["study", "score", "other"], "has no annotation study 'other'"),
        (["study", "create", "two", "--recipe", "other"], "has no study named 'other'; it has small"),
        (["annotate", "pilot", "--host", "203.0.113.1"], "cannot listen on 203.0.113.1"),
    ):
        done = CliRunner().invoke(cli.main, [*arguments, "--lake", str(lake.root)])
        assert done.exit_code == 1
        assert says in done.stderr
