"""The referee's page: every row says what the study shows and what it cannot, whatever is there."""

import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from saelake import cli
from saelake.analysis.report.answers import Studied
from saelake.analysis.report.claims import ROWS, claims
from saelake.analysis.report.effects import text_sentences
from saelake.analysis.report.page import claims_of, write_report
from saelake.warehouse.catalog import connect, current_records
from saelake.warehouse.lake import Lake
from tests.analysis.effects import Analysed
from tests.warehouse.toys import ingest


def shown(study: Analysed) -> dict[str, tuple[str, str]]:
    return {one.row: (one.shows, one.cannot) for one in claims_of(study.lake, None)}


def test_every_row_of_the_replication_list_is_there_once(study: Analysed) -> None:
    assert [one.row for one in ROWS] == [f"R{n}" for n in range(1, 22)]
    found = claims_of(study.lake, None)
    assert [one.row for one in found] == [one.row for one in ROWS]
    assert all(one.claim and one.shows and one.cannot for one in found)
    assert {one.row for one in found if not one.published} == {"R7", "R21"}, "where the paper gives no figure"
    assert not any("{" in text for one in found for text in one), "all words are filled in"


def test_sentences_have_the_figures_of_the_planted_study(study: Analysed) -> None:
    said = shown(study)
    assert said["R2"][0] == "6 of 6 harmful prompts are refused unmodified; none is dropped."
    assert "100% of the flips of minimal sets" in said["R6"][1], "the unembedding reads the primary: read-outs"
    assert "12 flip it when what wakes is ablated too, and 0 when as many other active features are" in said["R13"][0]
    assert said["R13"][0].endswith("it is a backup.")
    assert "at most 6 of 6 benign prompts refused" in said["R14"][0]
    assert said["R19"][0] == "Nothing: there is no annotation study."
    assert said["R1"][1].startswith("Anything about the paper's two models")


def test_a_lake_of_which_little_is_computed_says_so_row_by_row(tmp_path: Path) -> None:
    lake = Lake.create(tmp_path / "lake")
    ingest(lake)
    found = claims_of(lake, None)
    assert len(found) == 21
    assert sum(one.shows.startswith("Nothing: ") for one in found) == 20
    assert not found[0].shows.startswith("Nothing")
    assert "is not counted until" in found[1].cannot, "that no family is known is said of a study with its statistics alone"


def test_the_report_opens_with_them_and_the_command_prints_them(study: Analysed, tmp_path: Path) -> None:
    write_report(study.lake, None, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert re.findall(r'<section id="(\w+)">', text)[0] == "claims"
    done = CliRunner().invoke(cli.main, ["report", "--lake", str(study.lake.root), "--claims"])
    assert done.exit_code == 0
    assert done.stdout.count("cannot show: ") == 21
    assert "R13  Redundant features wake" in done.stdout


def test_names_that_a_person_gave_are_no_words_to_fill_in(study: Analysed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Studied, "model", "some{one}/model{harmful}")
    with connect(study.lake, study.recipe.name, alone=True) as con:
        records = {record.stage: record for record in current_records(study.lake, study.recipe.name)}
        (first, *_) = claims(Studied(con, study.recipe.name, records))
    assert "some{one}/model{harmful}" in first.shows


def test_texts_that_are_known_by_heart_or_worse_than_guessed_are_named(study: Analysed) -> None:
    with connect(study.lake, study.recipe.name, alone=True) as con:
        records = {record.stage: record for record in current_records(study.lake, study.recipe.name)}
        said = " ".join(text_sentences(Studied(con, study.recipe.name, records)))
        ((n_tokens,),) = con.execute("select count(distinct token_id) from tokens").fetchall()
    heart, _, foreign = said.partition("expects ")
    losses = {texts: loss for texts, condition, loss in study.ask("losses", "texts, condition, loss") if condition == "none"}
    assert losses
    for name, loss in losses.items():
        assert (f"{name} ({loss:.3f} nats a token)" in heart) == (loss < 0.1)
        assert (f"{name} ({loss:.2f} nats a token)" in foreign) == (loss > np.log(n_tokens))
