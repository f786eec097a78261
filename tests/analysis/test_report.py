"""The report of the embedded study: its numbers against the tables, and what a page that travels must not do."""

import fnmatch
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from statsmodels.stats.proportion import proportion_confint

import saelake
from saelake import queries
from saelake.analysis.report import effects
from saelake.analysis.report import page as page_module
from saelake.analysis.report.answers import Answer, Studied
from saelake.analysis.report.blocks import Cell, Figure, Section, Table
from saelake.analysis.report.page import page, write_report
from saelake.analysis.report.published import BY_MODEL
from saelake.ingest.recipe import load_recipe
from saelake.warehouse.catalog import connect, current_records
from saelake.warehouse.check import check
from saelake.warehouse.errors import UserError
from saelake.warehouse.lake import Lake
from saelake.warehouse.sharing.add import add
from saelake.warehouse.sharing.share import share
from tests.lakes import HOSTILE
from tests.meaning import chromium
from tests.warehouse.toys import ingest

Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def html(organism_lake: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    target = tmp_path_factory.mktemp("report") / "report.html"
    n_bytes = write_report(Lake(organism_lake), None, target)
    assert n_bytes == target.stat().st_size
    return target.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def lake(organism_lake: Path) -> Iterator[saelake.OpenLake]:
    with saelake.open(organism_lake) as opened:
        yield opened


def data(html: str) -> dict[str, Any]:
    """The data that the page carries."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert found
    return dict(json.loads(found[1]))


def without_hashes(told: dict[str, Any]) -> str:
    """The data without content hashes: those of runs that lost their completions differ, and must.

    Numbers to ten figures: DuckDB adds up in the order in which its threads come.
    """
    hashes = re.compile(r'"[0-9a-f]{64}"|"content_hash":"[0-9a-f]{12}"')
    rounded = json.loads(json.dumps(told), parse_float=lambda text: float(f"{float(text):.10g}"))
    return hashes.sub("", json.dumps(rounded, separators=(",", ":")))


def answers(html: str, question: str) -> list[Rows]:
    """The rows of every answer to a question, in the page's order."""
    found = [a for a in data(html)["answers"].values() if a["name"] == question]
    return [[dict(zip(a["columns"], row, strict=True)) for row in a["rows"]] for a in found]


def one(rows: Rows, **values: Any) -> dict[str, Any]:
    (found,) = [row for row in rows if all(row[name] == value for name, value in values.items())]
    return found


def flips(lake: saelake.OpenLake, condition: str, k: int | None) -> np.ndarray:
    """The share of answers that flip, of each harmful prompt that is refused at baseline, straight from the tables."""
    found = lake.connection.execute(
        """
        select avg(v.flipped::int) from ablations as a join verdicts as v using (ablation_id) join prompts as p using (prompt_id)
        where v.judge = 'first_token' and p.label = 'harmful' and a.condition = $1 and a.k is not distinct from $2
        and prompt_id in (
            select b.prompt_id from ablations as b join verdicts as w using (ablation_id)
            where b.condition = 'none' and w.judge = 'first_token' and w.refused
        )
        group by prompt_id
        """,
        [condition, k],
    )
    return np.array([value for (value,) in found.fetchall()])


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
        study = Studied(con, "organism", {r.stage: r for r in current_records(lake, "organism")})
        page(study)
        for answer in study.asked:
            assert len(con.sql(answer.sql).fetchall()) == answer.n_rows, answer.question
            assert answer.command.startswith(f"saelake query {answer.question}")


def test_rates_and_their_intervals(html: str, lake: saelake.OpenLake) -> None:
    rates = answers(html, "rates")[0]
    for condition, k in [("top_k_own", 1), ("top_k_chosen", 3), ("random", 20)]:
        mine = flips(lake, condition, k)
        low, high = proportion_confint(mine.sum(), len(mine), method="wilson")
        row = one(rates, condition=condition, k=k)
        assert row["n_prompts"] == len(mine)
        assert [row["rate"], row["low"], row["high"]] == pytest.approx([mine.mean(), low, high], abs=1e-9)


def test_means_of_the_diagnostic_and_their_intervals(html: str, lake: saelake.OpenLake) -> None:
    chosen = answers(html, "direction_by_layer")[0]
    for layer, label in [(0, "benign"), (3, "harmful"), (5, "benign")]:
        found = lake.sql(
            f"select cosine from layer_cosines join prompts using (prompt_id) "
            f"where direction = 'chosen' and layer = {layer} and label = '{label}'"
        ).fetchnumpy()["cosine"]
        low, high = scipy.stats.t.interval(0.95, len(found) - 1, found.mean(), scipy.stats.sem(found))
        row = one(chosen, layer=layer, label=label)
        assert [row["mean"], row["low"], row["high"]] == pytest.approx([found.mean(), low, high], abs=1e-3)


def test_counts_of_critical_features(html: str, lake: saelake.OpenLake) -> None:
    minimal = one(answers(html, "search_methods")[0], condition="minimal")
    sets = lake.sql(
        "select set_id, prompt_id, list(distinct (sae_id, feature_id)) from ablations join feature_sets using (set_id) "
        "join prompts using (prompt_id) where condition = 'minimal' and label = 'harmful' group by all"
    ).fetchall()
    assert minimal["n_unique"] == len({member for *_, members in sets for member in members})
    assert minimal["largest"] == max(len(members) for *_, members in sets)
    assert minimal["n_searched"] == len({prompt_id for _, prompt_id, _ in sets})


def test_shares_of_woken_tokens_and_the_most_certain_edges(html: str, lake: saelake.OpenLake) -> None:
    role = one(answers(html, "waking_roles")[0], source="one", is_control=False)
    tokens, first, user = lake.sql(
        "select sum(n_tokens), sum(n_first), sum(n_user) from wakings join waking_passes using (ablation_id) "
        "where method is null and control is null"
    ).fetchall()[0]
    assert [role["tokens_first"], role["tokens_user"]] == pytest.approx([first / tokens, user / tokens])
    edges = answers(html, "waking_edges")[0]
    assert (
        len(edges)
        == lake.sql("select count(*) from waking_edges where q_value <= 0.05 and source_layer is not null").fetchall()[0][0]
    )


def test_accuracies_losses_and_seconds(html: str, lake: saelake.OpenLake) -> None:
    machine = one(answers(html, "fm_metrics")[0], model="fm_20")
    right = lake.sql("select avg(correct::int) from predictions where model = 'fm_20' and split = 'test'").fetchall()[0][0]
    assert machine["test_accuracy"] == pytest.approx(right)
    for condition in ("none", "direction", "minimal"):
        for texts, mean in lake.sql(
            f"select texts, avg(loss) from losses where condition = '{condition}' group by texts"
        ).fetchall():
            assert one(answers(html, "losses")[0], texts=texts, condition=condition)["loss"] == pytest.approx(mean, rel=1e-6)
    for stage in ("prompts", "candidates", "fm"):
        seconds = lake.sql(f"select epoch(finished - started) from runs where stage = '{stage}'").fetchall()[0][0]
        assert one(answers(html, "runs")[0], stage=stage)["seconds"] == pytest.approx(seconds, abs=2e-3)


def test_tables_on_the_page_hold_the_data(html: str) -> None:
    shown = re.sub(r"<script.*", "", html, flags=re.DOTALL)
    rows = answers(html, "causal_link")[0][:3]
    assert len(rows) == 3
    for row in rows:
        assert re.search(rf">{row['k']}</td>\s*<td[^>]*>{row['n_active']}</td>\s*<td[^>]*>{row['n_alone']}</td>", shown)


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
    write_report(Lake(organism_lake), None, tmp_path / "report.html", with_completions=True)
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


POISON = f"</script><img src=x onerror=alert(1)>{HOSTILE}"


@pytest.fixture
def poisoned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A page whose only section shows hostile text, in a table and in a chart."""
    import altair as alt

    from saelake.analysis.report import charts

    answer = Answer("prompt", {"prompt_id": POISON}, f"select '{POISON}'", ("text", "n"), [{"text": POISON, "n": 1}], 1)

    def render(study: Studied) -> list[Any]:
        study.asked.append(answer)
        chart = charts.bars(alt.Y("text:N"), alt.X("n:Q"), ("text:N",))
        return [Figure("A", charts.spec(chart), answer, POISON), Table("B", answer, [Cell("text", "text", "text")])]

    monkeypatch.setattr(page_module, "SECTIONS", (Section("hostile", "H", "L", render),))
    lake = Lake.create(tmp_path / "lake")
    ingest(lake)
    write_report(lake, None, tmp_path / "report.html")
    return tmp_path / "report.html"


def test_hostile_text_stays_text(poisoned: Path) -> None:
    text = poisoned.read_text(encoding="utf-8")
    assert "<img" not in re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)
    assert text.count("</script>") == 3
    assert data(text)["answers"]["answer-0"]["rows"] == [[POISON, 1]]
    assert "\x1b" not in re.sub(r'<script type="application/json".*', "", text, flags=re.DOTALL)


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


def test_a_strangers_words_stay_text(organism_lake: Path) -> None:
    lake = Lake(organism_lake)
    records = {r.stage: r for r in current_records(lake, "organism")}
    hostile = {"name": POISON, "shown": "{harmful", "absent": "\x1b[31m", "unknown": "x"}
    records["prompts"] = replace(records["prompts"], about={"behaviour": hostile})
    with connect(lake, "organism") as con:
        text = page(Studied(con, "organism", records))
    assert "<img" not in re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    assert "\x1b" not in text
    assert "of harmful prompts are {harmful by the unmodified model" in text


def test_a_browser_draws_every_chart(html: str, poisoned: Path, tmp_path: Path) -> None:
    (tmp_path / "whole.html").write_text(html, encoding="utf-8")
    with chromium() as browser:
        for file, n_charts in ((tmp_path / "whole.html", html.count('class="chart"')), (poisoned, 1)):
            shown = browser.new_page()
            shown.goto(file.as_uri())
            shown.wait_for_selector(".drawn", state="attached", timeout=120_000)
            page_itself = re.sub(r"<script.*?</script>", "", shown.content(), flags=re.DOTALL)
            assert page_itself.count("<svg") == n_charts > 0
            assert "could not be drawn" not in page_itself
            assert "<img" not in page_itself
            assert "NaN" not in page_itself


def test_a_comparison_whose_p_is_0_counts_as_one_that_differs() -> None:
    tested = Answer(
        "comparisons", {}, "", ("p_holm",), [{"p_holm": p, "p_families_holm": None} for p in (0.0, 0.04, 0.05, None)], 4
    )

    class Asked(Studied):
        def ask(self, question: str, **parameters: Any) -> Answer:
            return tested

    _, table, *_ = effects._stability(Asked(None, "small", {}))  # type: ignore[arg-type]
    assert isinstance(table, Table)
    assert table.title.startswith("Comparisons with their tests: 2 of 4 differ")
