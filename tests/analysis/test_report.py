"""The report of the embedded study: which sections it has, and what a page that travels must not do."""

import fnmatch
import json
import re
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from saelake import queries
from saelake.analysis.report import effects
from saelake.analysis.report import page as page_module
from saelake.analysis.report.answers import Answer, Studied
from saelake.analysis.report.blocks import Table
from saelake.analysis.report.page import page, write_report
from saelake.analysis.report.published import BY_MODEL
from saelake.ingest.recipe import load_recipe
from saelake.warehouse.catalog import connect, current_records
from saelake.warehouse.check import check
from saelake.warehouse.errors import UserError
from saelake.warehouse.lake import Lake
from saelake.warehouse.sharing.add import add
from saelake.warehouse.sharing.share import share
from tests.analysis.reported import answers, data
from tests.warehouse.toys import ingest


def test_every_section_is_there_or_names_its_command(html: str, organism_lake: Path) -> None:
    sections = re.findall(r'<section id="(\w+)">(.*?)</section>', html, re.DOTALL)
    assert [key for key, _ in sections] == [section.key for section in page_module.SECTIONS]
    done = {record.stage for record in current_records(Lake(organism_lake), "organism")}
    for section, (_, text) in zip(page_module.SECTIONS, sections, strict=True):
        is_there = all(fnmatch.filter(done, stage) for stage in section.stages) and set(section.questions) <= set(queries.names())
        assert (f"<code>{section.command.format(recipe='organism')}</code> computes it" in text) == (not is_there)


def test_the_page_needs_nothing_else(html: str) -> None:
    assert len(html.encode()) < 5_000_000
    outside_of_scripts = re.sub(r"<script.*?</script>", "", html, flags=re.DOTALL)
    assert not re.search(r'(?:src|href)="(?!#)|(?:src|href)=[^"]', outside_of_scripts)
    assert "@import" not in outside_of_scripts
    assert "url(" not in outside_of_scripts
    assert "default-src 'none'" in html


def test_the_sql_that_is_shown_gives_the_rows_that_are_shown(organism_lake: Path) -> None:
    lake = Lake(organism_lake)
    with connect(lake, "organism") as con:
        study = Studied.of(con, lake, "organism")
        page(study)
        for answer in study.asked:
            assert len(con.sql(answer.sql).fetchall()) == len(answer.rows), answer.question
            assert answer.command.startswith(f"saelake query {answer.question}")


def without_hashes(told: dict[str, Any]) -> str:
    """The data without content hashes: those of runs that lost their completions differ, and must.

    Numbers to ten figures: DuckDB adds up in the order in which its threads come.
    """
    hashes = re.compile(r'"[0-9a-f]{64}"|"content_hash":"[0-9a-f]{12}"')
    rounded = json.loads(json.dumps(told), parse_float=lambda text: float(f"{float(text):.10g}"))
    return hashes.sub("", json.dumps(rounded, separators=(",", ":")))


def test_a_shared_lake_gives_the_same_report(organism_lake: Path, html: str, tmp_path: Path) -> None:
    share(Lake(organism_lake), tmp_path / "set")
    other = Lake.create(tmp_path / "lake")
    add(other, tmp_path / "set")
    assert check(other) == []
    write_report(other, "organism", tmp_path / "report.html")
    again = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert without_hashes(data(again)) == without_hashes(data(html))
    assert "added from a shared set" in again
    assert "added from a shared set" not in html


def test_answers_to_harmful_prompts_are_in_only_when_asked_for(organism_lake: Path, html: str, tmp_path: Path) -> None:
    assert not answers(html, "completions")
    n_bytes = write_report(Lake(organism_lake), None, tmp_path / "report.html", with_completions=True)
    assert n_bytes == (tmp_path / "report.html").stat().st_size
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    (rows,) = answers(text, "completions")
    assert len(rows) == 20
    shown = section(text, "answers")
    assert shown.index("<details>") < shown.index(rows[0]["completion"][:12])


def section(text: str, key: str) -> str:
    found = re.search(rf'<section id="{key}">(.*?)</section>', text, re.DOTALL)
    assert found
    return unescape(found[1])


def test_a_study_without_backups_points_to_the_one_with_some(organism_lake: Path, html: str, tmp_path: Path) -> None:
    """By its commands, or by a link where `make report` has put its page beside this one."""
    shown = section(html, "backups")
    assert "`make backups`" in shown
    command = re.search(r"`saelake analyze (\w+) ", shown)
    assert command
    assert load_recipe(command[1]).name == "hydra"
    (tmp_path / "backups.html").touch()
    write_report(Lake(organism_lake), None, tmp_path / "report.html")
    beside = section((tmp_path / "report.html").read_text(encoding="utf-8"), "backups")
    assert '<a href="backups.html#backups">' in beside
    assert "make backups" not in beside
    write_report(Lake(organism_lake), None, tmp_path / "backups.html")
    assert 'href="backups.html' not in (tmp_path / "backups.html").read_text(encoding="utf-8")


def test_a_study_with_backups_points_nowhere(planted_lake: Path, tmp_path: Path) -> None:
    write_report(Lake(planted_lake), "planted", tmp_path / "report.html")
    shown = section((tmp_path / "report.html").read_text(encoding="utf-8"), "backups")
    assert "it is a backup" in shown
    assert "hydra" not in shown


def test_what_has_not_been_run_says_so(tmp_path: Path) -> None:
    lake = Lake.create(tmp_path / "lake")
    ingest(lake)
    write_report(lake, None, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert text.count("Not run yet") == len(page_module.SECTIONS) - 1
    assert "<code>saelake analyze toy0</code>" in text


def test_a_lake_without_one_study_is_a_sentence(tmp_path: Path) -> None:
    lake = Lake.create(tmp_path / "lake")
    with pytest.raises(UserError, match="holds no study"):
        write_report(lake, None, tmp_path / "report.html")
    ingest(lake, seed=0)
    ingest(lake, seed=1)
    with pytest.raises(UserError, match=r"several studies \(toy0, toy1\): choose one"):
        write_report(lake, None, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("model", BY_MODEL)
def test_all_published_figures_stand_beside_ours_and_beside_no_other_model(organism_lake: Path, html: str, model: str) -> None:
    lake = Lake(organism_lake)
    records = {r.stage: r for r in current_records(lake, "organism")}
    ingested = records["prompts"].config
    records["prompts"] = replace(records["prompts"], config=ingested | {"model": ingested["model"] | {"id": model}})
    with connect(lake, "organism") as con:
        text = unescape(page(Studied(con, "organism", records)))
    for section, figures in BY_MODEL[model].items():
        if section != "study":  # nobody has annotated the embedded study
            for what, published in figures.values():
                row = rf'<th scope="row">{re.escape(what)}</th><td>{re.escape(published)}</td><td>(.*?)</td>'
                (ours,) = re.findall(row, text)
                assert ours != "–" or section == "redundancy", f"{section}: {what}"
    assert "The paper's figures" in text
    assert "The paper's figures" not in html


def test_a_comparison_whose_p_is_0_counts_as_one_that_differs() -> None:
    tested = Answer("comparisons", {}, "", ("p_holm",), [{"p_holm": p, "p_families_holm": None} for p in (0.0, 0.04, 0.05, None)])

    class Asked(Studied):
        def ask(self, question: str, **parameters: Any) -> Answer:
            return tested

    _, table, *_ = effects._stability(Asked(None, "small", {}))  # type: ignore[arg-type]
    assert isinstance(table, Table)
    assert table.title.startswith("Comparisons with their tests: 2 of 4 differ")
