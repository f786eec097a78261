"""The console asks as `saelake sql` does, and within limits of time and rows."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient

from saelake.analysis.explorer import console
from saelake.analysis.explorer.explorer import add_explorer
from saelake.analysis.explorer.study import ShownStudy
from saelake.analysis.served.server import new_app
from saelake.queries import names
from tests.meaning import build_meaning_lake

LONG = "select count(*) from range(100000000000) a(i), range(1000) b(j) where hash(i + j) % 7 = 1"


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TestClient, str]]:
    """A browser's requests, and where the console is."""
    shown = ShownStudy.open(build_meaning_lake(tmp_path_factory.mktemp("console") / "lake"), "small", "secret")
    app = new_app(())
    add_explorer(app, shown)
    yield TestClient(app), f"{shown.base}/sql"
    shown.close()


def test_a_statement_that_reads_is_answered_and_downloaded(asked: tuple[TestClient, str], tmp_path: Path) -> None:
    client, url = asked
    statement = "select prompt_id, text, n_tokens from prompts order by prompt_id"
    page = client.post(url, data={"statement": statement, "as": "table"}).text
    assert page.count("<tr><td") == 6
    csv = client.post(url, data={"statement": statement, "as": "csv"})
    assert csv.headers["content-disposition"] == 'attachment; filename="rows.csv"'
    assert csv.text.splitlines()[0] == "prompt_id,text,n_tokens"
    (tmp_path / "rows.parquet").write_bytes(client.post(url, data={"statement": statement, "as": "parquet"}).content)
    rows = pq.read_table(tmp_path / "rows.parquet")
    assert (rows.num_rows, rows.schema.field("prompt_id").type) == (6, pa.int64())


@pytest.mark.parametrize(
    ("statement", "sentence"),
    [
        ("drop table prompts", "Only statements that read are allowed here"),
        ("copy (select 1) to '/tmp/saelake-no.csv'", "Only statements that read are allowed here"),
        ("select 1; select 2", "One statement at a time"),
        ("select * from read_text('/etc/passwd')", "file system operations are disabled"),
        ("from '/etc/passwd'", "/etc/passwd"),
        ("set enable_external_access = true", "Only statements that read are allowed here"),
        ("select * from query('select 1')", "does more than read"),
        ("select nothing_such from prompts", "nothing_such"),
        ("", "There is no statement"),
    ],
)
@pytest.mark.parametrize("kind", ["table", "csv", "parquet"])
def test_what_does_more_is_refused_in_its_place(asked: tuple[TestClient, str], statement: str, sentence: str, kind: str) -> None:
    client, url = asked
    answer = client.post(url, data={"statement": statement, "as": kind})
    assert answer.status_code == 422
    assert sentence in answer.text.replace("&#39;", "'")
    assert "root:" not in answer.text


def test_a_long_statement_is_cancelled_within_a_second_and_at_its_limit(
    asked: tuple[TestClient, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, url = asked
    answers: list[str] = []
    asking = threading.Thread(target=lambda: answers.append(client.post(url, data={"statement": LONG, "ticket": "one"}).text))
    asking.start()
    while client.post(f"{url}/cancel", data={"ticket": "one"}).status_code != 204:
        time.sleep(0.05)
    begun = time.monotonic()
    asking.join()
    assert time.monotonic() - begun < 1
    assert "it was cancelled" in answers[0]
    assert client.post(f"{url}/cancel", data={"ticket": "one"}).status_code == 404
    monkeypatch.setattr(console, "SECONDS", 0.3)
    assert "it took longer than" in client.post(url, data={"statement": LONG}).text
    assert client.post(url, data={"statement": "select 41 + 1"}).text.count(">42<") == 1


def test_rows_are_limited_and_charts_are_drawn(asked: tuple[TestClient, str]) -> None:
    client, url = asked
    page = client.post(url, data={"statement": "select range as n, range * range as square from range(2000)"}).text
    assert "The first 500 rows" in page
    assert page.count("<circle") == 500
    page = client.post(url, data={"statement": "select range as n, -range as down from range(10)", "kind": "bars"}).text
    assert page.count("<rect") == 10
    assert "<rect" not in client.post(url, data={"statement": "select 'a' as a, 1 as n"}).text


def test_every_question_and_table_is_at_hand(asked: tuple[TestClient, str]) -> None:
    client, url = asked
    page = client.get(url).text
    assert all(f"?question={name}" in page for name in names())
    assert "<code>critical_features</code>" in page
    for name in names():
        answer = client.get(url, params={"question": name})
        assert answer.status_code == 200 or "needs" in answer.text, name
    assert client.get(url, params={"question": "nothing_such"}).status_code == 422
