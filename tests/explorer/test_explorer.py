"""The explorer's pages say what the lake knows, and their state is in their address."""

import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from saelake.analysis.explorer.charts import chart_of, histogram
from saelake.analysis.explorer.explorer import add_explorer
from saelake.analysis.explorer.study import ShownStudy
from saelake.analysis.served.server import new_app
from saelake.warehouse.lake import Lake


@pytest.fixture(scope="module")
def client(planted_lake: Path) -> Iterator[tuple[TestClient, ShownStudy]]:
    shown = ShownStudy.open(Lake.existing(planted_lake), "planted", "secret")
    app = new_app(())
    add_explorer(app, shown)
    yield TestClient(app), shown
    shown.close()


def text_of(client: TestClient, url: str) -> str:
    answer = client.get(url)
    assert answer.status_code == 200, url
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", answer.text)).split())


def listed(client: TestClient, url: str) -> list[str]:
    return re.findall(r'<th scope="row"><a href="[^"]*">([^<]+)</a>', client.get(url).text)


def test_the_list_begins_with_what_is_critical_and_is_sorted_by_its_address(client: tuple[TestClient, ShownStudy]) -> None:
    ask, shown = client
    found = shown.con.execute(
        "select layer || ':' || feature_id from critical_features where method = 'minimal' group by layer, feature_id "
        "order by count(distinct prompt_id) desc limit 1"
    ).fetchall()[0][0]
    by_effect = shown.con.execute(
        "select layer || ':' || feature_id from single_effects group by layer, feature_id "
        "order by avg(p_clean - p_target) desc limit 4"
    ).fetchall()
    assert listed(ask, shown.base)[0].endswith(":5")
    assert found in listed(ask, shown.base)[:6]
    assert {name for (name,) in by_effect} & set(listed(ask, f"{shown.base}?order=effect")[:6])
    assert set(listed(ask, f"{shown.base}?layer=4&min_critical=1")) < {f"4:{n}" for n in range(24)}
    assert listed(ask, f"{shown.base}?order=feature")[:2] == ["0:0", "0:1"]
    assert ask.get(f"{shown.base}?order=nothing").status_code == 422
    assert "AUROC at least is a number" in ask.get(f"{shown.base}?min_auroc=x").text, "as the form calls it"
    assert ask.get(f"{shown.base}?min_auroc=x").status_code == 422
    assert 'aria-sort="descending"' in ask.get(f"{shown.base}?order=q").text


def test_a_card_says_what_ablating_the_feature_does_and_what_stands_in_for_it(client: tuple[TestClient, ShownStudy]) -> None:
    ask, shown = client
    text = text_of(ask, f"{shown.base}/2/5")
    for part in (
        "Ablated alone",
        "P(target) falls by",
        "In the sets of the search",
        "Nearest decoder rows",
        "From weak to strong",
    ):
        assert part in text, part
    assert re.search(r"Stands in for it when it is ablated .*?4:17", text)
    missing = ask.get(f"{shown.base}/2/24")
    assert missing.status_code == 404
    assert "There is no feature 24 in layer 2" in missing.text
    assert f'href="{shown.base}/prompts"' in missing.text, "there is a way on"
    assert f'href="{shown.base}/2/24"' not in ask.get(f"{shown.base}/2/23").text, "no next feature after the last"
    assert ask.get(f"{shown.base}/7/1").status_code == 404


def test_pages_of_prompts_conditions_and_runs(client: tuple[TestClient, ShownStudy]) -> None:
    ask, shown = client
    prompt_id, said = shown.con.execute(
        "select prompt_id, completion from ablations join prompts using (prompt_id) "
        "where method = 'none' and label_role = 'target' order by prompt_id limit 1"
    ).fetchall()[0]
    page = ask.get(f"{shown.base}/prompts/{prompt_id}?pos=3&feature=2:5").text
    folded = re.findall(r"<details>.*?</details>", page, re.DOTALL)
    assert any(said in one for one in folded), "answers to target prompts are folded"
    assert said not in re.sub(r"<details>.*?</details>", "", page, flags=re.DOTALL)
    assert re.search(r't s[1-4]"', page), "tokens are shaded by the feature"
    assert not re.search(r'<p class="quiet small">\s*·', page), "a dot stands between two parts"
    assert ask.get(f"{shown.base}/prompts/12").status_code == 404
    assert ask.get(f"{shown.base}/prompts/{prompt_id}?feature=x").status_code == 404
    assert "minimal" in text_of(ask, f"{shown.base}/conditions")
    sides = ask.get(f"{shown.base}/conditions/top_k_own?k=2&label=harmful").text
    assert sides.count('class="card pair"') == 6
    assert ask.get(f"{shown.base}/conditions/nothing").status_code == 404
    run = shown.con.execute("select run_id, parents[1] from runs where stage = 'minimal'").fetchall()[0]
    text = text_of(ask, f"{shown.base}/runs/{run[0]}")
    assert run[1] in text
    assert ask.get(f"{shown.base}/runs/none").status_code == 404
    assert "Live" not in text
    assert ask.get(f"{shown.base}/live").status_code in (404, 422)


def test_charts_are_as_high_as_what_they_count() -> None:
    bars = histogram([0, 5, 10], ["a", "b", "c"], (30, 100), marked=1)
    assert [bar.height for bar in bars] == [0, 50, 100]
    assert [bar.is_marked for bar in bars] == [False, True, False]
    assert [bar.height for bar in histogram([0, 4, 16], ["", "", ""], (30, 100), by_root=True)] == [0, 50, 100]
    chart = chart_of(["a", "n"], [False, True], [("x", 1), ("y", -1), ("z", None)])
    assert chart is not None
    assert [bar.height for bar in chart.bars] == [120, 120]
    assert chart_of(["a"], [False], [("x",), ("y",)]) is None
