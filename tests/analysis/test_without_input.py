"""A study whose stages find nothing to work on says why and what to change, wherever it is shown."""

import re
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
from click.testing import CliRunner, Result

import saelake
from saelake import cli
from saelake.analysis import verbs
from saelake.analysis.report.page import write_report
from saelake.analysis.search.directions import NoDirection, Scores, left_out
from saelake.analysis.stage_status import StageStatus
from saelake.analysis.study_status import study_status
from saelake.ingest.recipe import load_recipe
from saelake.ingest.recipe.search import Direction
from saelake.warehouse.lake import Lake
from saelake.warehouse.schema import TABLES
from saelake.warehouse.sharing.add import add
from saelake.warehouse.sharing.share import Choice, share
from tests.planted import write_planted

FEW = """
[algorithm1]
seeds = 1
taus = [0.5]
[minimal]
starts = 1
[fm]
sizes = [2]
epochs = 2
[stage3]
size = 2
ks = [1]
[steering]
values = [2.0]
"""


class Ran(NamedTuple):
    recipe: Path
    lake: Path
    result: Result

    def ask(self, *arguments: str) -> Result:
        return CliRunner().invoke(cli.main, [*arguments, "--lake", str(self.lake)])


def analysed(folder: Path, *changes: tuple[str, str]) -> Ran:
    file = write_planted(folder).recipe
    text = file.read_text().replace("random_draws = 3", "random_draws = 1") + FEW
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    file.write_text(text)
    ran = Ran(file, folder / "lake", Result(CliRunner(), b"", b"", b"", None, 0, None))
    return ran._replace(result=ran.ask("analyze", str(file)))


@pytest.fixture(scope="module")
def undirected(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """No direction passes the filters."""
    return analysed(tmp_path_factory.mktemp("undirected"), ("[direction]", "[direction]\ndrop_last_layers = 0.99"))


@pytest.fixture(scope="module")
def unflipped(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """One feature of each SAE flips no prompt, so no search has a pool."""
    return analysed(tmp_path_factory.mktemp("unflipped"), ("cap = 4", "cap = 1"))


def states(ran: Ran) -> dict[str, StageStatus]:
    return {one.stage: one for one in study_status(load_recipe(ran.recipe), Lake.existing(ran.lake))}


def test_filters_are_named_one_by_one() -> None:
    def scores(kl: float, induced: float) -> Scores:
        return Scores(n_prompts=9, n_flipped=9, p_refusal_token=0.0, kl=kl, induced=induced)

    layers = [scores(0.1, 1.0), scores(0.11, 1.0), scores(0.0, 0.49), scores(0.3, 0.5), scores(0.2, 0.0)]
    assert left_out(layers, Direction()) == [None, "kl", "induced", "kl", "late, kl, induced"]
    free = Direction(kl_max=9, induce_min=0, drop_last_layers=0)
    assert left_out(layers, free) == [None] * 5


def test_where_no_direction_passes_the_analysis_ends_with_the_table(undirected: Ran) -> None:
    output = undirected.result.output
    assert undirected.result.exit_code == 0
    assert "no layer passes the recipe's filters" in output
    assert "drop_last_layers 6" in output
    table = re.findall(r"^ *(\d) +6 +(\d) .* late *$", output, re.MULTILINE)
    assert table == [("0", "0"), ("1", "0"), ("2", "6"), ("3", "6"), ("4", "6"), ("5", "6")]
    assert {record.stage for record in Lake.existing(undirected.lake).records()} == {
        "prompts",
        "activations",
        "direction",
        "baseline",
    }


def test_what_is_advised_admits_the_layer(undirected: Ran, tmp_path: Path) -> None:
    advice = re.search(
        r"layer (\d), which flips 6 of 6 prompts, is admitted with direction.(drop_last_layers = [\d.]+)",
        undirected.result.output,
    )
    assert advice is not None
    ran = analysed(tmp_path, ("[direction]", f"[direction]\n{advice[2]}"), ("cap = 4", "cap = 1"))
    assert ran.result.exit_code == 0, ran.result.output
    with saelake.open(ran.lake) as opened:
        assert opened.sql("select layer from directions where chosen").fetchall() == [(int(advice[1]),)]


def test_status_and_questions_tell_it_too(undirected: Ran) -> None:
    found = states(undirected)
    assert (found["direction"].state, found["minimal"].state) == ("done", "to do")
    assert found["direction"].why.startswith("no input: no layer's direction passes the filters")
    assert found["minimal"].why == found["statistics"].why == "no direction is chosen"
    answer = undirected.ask("query", "search_methods")
    assert "no rows: direction: no layer's direction passes" in answer.output
    with pytest.raises(NoDirection):
        verbs.analyze(load_recipe(undirected.recipe), Lake.existing(undirected.lake))


def test_a_question_that_needs_no_direction_does_not_blame_it(undirected: Ran) -> None:
    assert "change direction.drop_last_layers" in undirected.ask("query", "candidates").output
    found = undirected.ask("query", "find_prompts", "--words", "nosuchword")
    assert found.exit_code == 0, found.output
    assert "no rows" in found.output
    assert "direction" not in found.output
    assert "direction" in undirected.ask("query", "label_separation").output


def test_questions_about_what_other_commands_bring_name_these(unflipped: Ran) -> None:
    assert "no rows: no explanations are here: `saelake explain`" in unflipped.ask("query", "word_counts").output
    assert "no annotation study is closed" in unflipped.ask("query", "study_scores", "--study", "pilot").output


@pytest.mark.parametrize("tables", [("verdicts", "ablations"), ("searches", "saes"), ("directions",)])
def test_tables_that_a_set_left_out_hide_no_others(unflipped: Ran, tmp_path: Path, tables: tuple[str, ...]) -> None:
    share(Lake.existing(unflipped.lake), tmp_path / "set", Choice(tables=tables))
    other = unflipped._replace(lake=tmp_path / "other")
    add(Lake.create(other.lake), tmp_path / "set")
    told = other.ask("status", str(other.recipe))
    assert told.exit_code == 0, told.output
    for name in tables:
        assert other.ask("sql", f"select count(*) from {name}").exit_code == 0
    assert "searches is not here" not in other.ask("query", "directions").output


@pytest.mark.parametrize("left_out", ["prompts", "ablations"])
def test_the_report_of_a_set_says_in_each_section_what_was_left_out(unflipped: Ran, tmp_path: Path, left_out: str) -> None:
    tables = tuple(name for name in TABLES if name not in ("runs", left_out))
    share(Lake.existing(unflipped.lake), tmp_path / "set", Choice(tables=tables))
    other = unflipped._replace(lake=tmp_path / "other")
    add(Lake.create(other.lake), tmp_path / "set")
    told = other.ask("report", "--output", str(tmp_path / "report.html"))
    assert told.exit_code == 0, told.output
    text = (tmp_path / "report.html").read_text()
    assert text.count(f'<p class="missing">{left_out} is not here: run ') >= 1
    assert text.count("<table") > 2, "the other sections are there"
    claims = other.ask("report", "--claims").output
    assert f"{left_out} is not here: run " in claims
    assert "R21" in claims, "the other rows are there"
    assert other.ask("status", str(other.recipe)).exit_code == 0


def test_status_tells_of_a_damaged_table_and_nothing_else(unflipped: Ran, tmp_path: Path) -> None:
    damaged = unflipped._replace(lake=Path(shutil.copytree(unflipped.lake, tmp_path / "lake")))
    (file,) = damaged.lake.glob("data/*/prompts/prompts.parquet")
    file.write_bytes(file.read_bytes()[:-100])
    told = damaged.ask("status", str(damaged.recipe))
    assert (told.exit_code, told.stdout) == (1, "")
    assert told.stderr.startswith("Error: prompts cannot be read")


def test_the_report_of_an_analysis_that_ended_says_where(undirected: Ran, tmp_path: Path) -> None:
    write_report(Lake.existing(undirected.lake), None, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "Not run yet" not in text
    assert text.count("Not run, since no layer&#39;s direction passes the filters of [direction]") > 10


def test_a_search_without_a_pool_says_so_and_so_does_all_that_follows(unflipped: Ran) -> None:
    assert unflipped.result.exit_code == 0, unflipped.result.output
    why = "none of the 6 harmful prompts that are refused flips while the top K features of each SAE by the own direction are"
    found = states(unflipped)
    empty = {stage for stage, one in found.items() if one.why.startswith(f"no input: {why}")}
    assert {"algorithm1", "minimal", "inert", "waking", "waking_graph", "steering", "stage3", "stage3_probe"} <= empty
    assert "up to K = 1" in found["minimal"].why
    assert "raise candidates.cap" in found["minimal"].why
    assert found["losses"].why.startswith("no input: losses.texts names no")
    assert {one.state for one in found.values()} == {"done"}
    assert f"minimal had no input: {why}" in unflipped.result.output.replace("\n", " ")
    for question in ("critical_features", "waking_edges", "populations"):
        assert why in unflipped.ask("query", question).output, question
    with_rows = unflipped.ask("query", "asr")
    assert "no rows" not in with_rows.output


def test_the_report_says_it_in_the_sections(unflipped: Ran, tmp_path: Path) -> None:
    write_report(Lake.existing(unflipped.lake), None, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "minimal had no input: none of the 6 harmful prompts that are refused flips" in text
    assert "No rows: there is nothing to draw." not in text
