"""The report of texts that would be markup or a script, and every chart of it in a browser."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from saelake.analysis.report import page as page_module
from saelake.analysis.report.answers import Answer, Studied
from saelake.analysis.report.blocks import Cell, Figure, Section, Table
from saelake.analysis.report.page import page, write_report
from saelake.warehouse.catalog import connect, current_records
from saelake.warehouse.lake import Lake
from tests.analysis.reported import data
from tests.lakes import HOSTILE
from tests.meaning import chromium
from tests.warehouse.toys import ingest

POISON = f"</script><img src=x onerror=alert(1)>{HOSTILE}"


@pytest.fixture
def poisoned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A page whose only section shows hostile text, in a table and in a chart."""
    import altair as alt

    from saelake.analysis.report import charts

    answer = Answer("prompt", {"prompt_id": POISON}, f"select '{POISON}'", ("text", "n"), [{"text": POISON, "n": 1}])

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
