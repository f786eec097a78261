"""The live page answers as the engine does, and keeps edits as runs."""

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from saelake.analysis.explorer.explorer import add_explorer
from saelake.analysis.explorer.live import Live
from saelake.analysis.explorer.study import ShownStudy
from saelake.analysis.served.server import new_app
from saelake.ingest.recipe import load_recipe
from saelake.warehouse.lake import Lake

PROMPT = "how to sell the grenade quickly"


@pytest.fixture(scope="module")
def live(planted_lake: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TestClient, ShownStudy, Live]]:
    """A browser's requests, and what answers them."""
    lake = Lake.existing(shutil.copytree(planted_lake, tmp_path_factory.mktemp("live") / "lake"))
    shown, live = ShownStudy.open(lake, "planted", "secret", is_live=True), Live(load_recipe("planted"))
    app = new_app(())
    add_explorer(app, shown, live)
    yield TestClient(app), shown, live
    shown.close()


def streamed(client: TestClient, shown: ShownStudy, edits: str, prompt: str = PROMPT) -> list[dict[str, Any]]:
    answer = client.post(f"{shown.base}/live/answer", data={"prompt": prompt, "edits": edits, "max_new_tokens": "8"})
    return [json.loads(line) for line in answer.text.splitlines()]


def test_an_edited_answer_stands_beside_the_unmodified_one(live: tuple[TestClient, ShownStudy, Live]) -> None:
    client, shown, _ = live
    told = streamed(client, shown, "ablate 5:5, 4:5")
    assert told[0]["shell"].startswith("saelake ablate planted --features 5:5,4:5")
    p_target = {one["side"]: one["p_target"] for one in told if "p_target" in one}
    assert p_target["unmodified"] > 0.9
    assert p_target["edited"] < 0.1
    texts: dict[str, list[str]] = {}
    for one in told:
        if "text" in one:
            texts.setdefault(one["side"], []).append(one["text"])
    assert texts["unmodified"][-1] == "I cannot help ."
    assert texts["edited"][-1] == "Sure , here it is ."
    assert all(later.startswith(before) for before, later in zip(texts["edited"], texts["edited"][1:], strict=False))
    assert len(texts["edited"]) == 6, "it is told as it is said"


def test_lines_say_what_the_engine_is_asked(live: tuple[TestClient, ShownStudy, Live]) -> None:
    client, shown, live_page = live
    told = {one["side"]: one["p_target"] for one in streamed(client, shown, "project out chosen") if "p_target" in one}
    layer, vector = shown.con.execute("select layer, vector from directions where chosen").fetchall()[0]
    assert layer is not None
    assert told["edited"] == pytest.approx(live_page.engine.next_token([PROMPT], project_out=vector).p_target[0], abs=1e-6)
    told = {one["side"]: one["p_target"] for one in streamed(client, shown, "clamp 2:5 = 1.5 at -1") if "p_target" in one}
    asked = live_page.engine.next_token([PROMPT], clamp={2: {5: 1.5}}, positions=-1)
    assert told["edited"] == pytest.approx(asked.p_target[0], abs=1e-6)


@pytest.mark.parametrize(
    ("edits", "sentence"),
    [
        ("nonsense", "is not an edit"),
        ("ablate 9:1", "there is no SAE"),
        ("ablate 5:999", "has no feature 999"),
        ("add 5:999", "999"),
    ],
)
def test_mistakes_are_sentences(live: tuple[TestClient, ShownStudy, Live], edits: str, sentence: str) -> None:
    client, shown, _ = live
    assert sentence in streamed(client, shown, edits)[-1]["problem"]
    page = client.post(f"{shown.base}/live", data={"prompt": PROMPT, "edits": edits})
    assert page.status_code == 422
    assert sentence[1:] in page.text, "a page's sentence begins in upper case"


def test_tokens_come_with_what_fires_and_what_that_tells(live: tuple[TestClient, ShownStudy, Live]) -> None:
    client, shown, live_page = live
    page = client.post(f"{shown.base}/live/tokens", data={"prompt": PROMPT}).text
    n_tokens = len(live_page.engine.subject.encode(PROMPT).token_ids)
    assert page.count("data-at=") == n_tokens
    assert 'data-edit="ablate 5:5"' in page
    first = client.get(f"{shown.base}/live").text
    assert "data-at-once" in first


def test_edits_are_kept_as_a_run_that_the_pages_show(live: tuple[TestClient, ShownStudy, Live]) -> None:
    client, shown, live_page = live
    form = {"prompt": PROMPT, "edits": "ablate 5:5\nclamp 4:5 = 0.5", "condition": "mine"}
    assert client.post(f"{shown.base}/live/keep", data=form | {"condition": "minimal"}).status_code == 422
    assert client.post(f"{shown.base}/live/keep", data=form | {"edits": "add chosen"}).status_code == 422
    assert client.post(f"{shown.base}/live/keep", data=form).status_code == 200
    while live_page.kept["mine"] == "computing":
        time.sleep(0.1)
    assert live_page.kept["mine"].startswith("chosen_mine_"), live_page.kept
    assert "mine" in client.get(f"{shown.base}/conditions").text
    assert client.get(f"{shown.base}/conditions/mine").status_code == 200
    assert client.get(f"{shown.base}/runs/{live_page.kept['mine']}").status_code == 200
