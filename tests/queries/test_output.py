"""Rows as table, CSV, JSON and Parquet: they round-trip, and untrusted text in them stays text."""

import csv
import io
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest

from saelake.queries import QueryError
from saelake.queries.fetched import ShownRows
from saelake.queries.output import is_numeric, printable, show, show_table
from tests.lakes import HOSTILE

ROW = f"""
select 9007199254740993::bigint as prompt_id, 9007199254740993::hugeint as total, 12345.678::float as value, 'nan'::double as nan,
    $${HOSTILE}$$ as text, null::integer as nothing, true as yes, [1, 2] as list, {{'a': 'x', 'b': [9007199254740993]}} as nested,
    timestamp '2026-01-02 03:04:05' as made, 1.50::decimal(5, 2) as price, '' as empty
"""


@pytest.fixture
def relation() -> duckdb.DuckDBPyRelation:
    return duckdb.connect().sql(ROW)


def test_csv_round_trips(relation: duckdb.DuckDBPyRelation, tmp_path: Path) -> None:
    show(relation, None, tmp_path / "rows.csv")
    with (tmp_path / "rows.csv").open(newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert row["text"] == HOSTILE
    assert row["prompt_id"] == row["total"] == "9007199254740993"
    assert (row["nothing"], row["yes"], row["list"], row["made"]) == ("", "true", "[1, 2]", "2026-01-02T03:04:05")
    again = duckdb.sql(f"select text, prompt_id from read_csv('{tmp_path}/rows.csv', all_varchar = true)").fetchall()
    assert again == [(HOSTILE, "9007199254740993")]


FORMULAS = ("=1+1", "+1", "-1", "@x", "\t=1", "\r=1", "=", "'=1", "''-1")
PLAIN = ("it's", "'", "1-1", "a=b", " =1", "''", "", "x@y", "\n")


def test_csv_holds_no_formula_and_numbers_stay_numbers(tmp_path: Path) -> None:
    """Text that a spreadsheet would run gets an apostrophe, which whoever reads it back takes away."""
    texts = [*FORMULAS, *PLAIN]
    con = duckdb.connect()
    con.execute("create table t as select unnest($1) as text", [texts])
    select = "select text as \"=name\", -5 as n, -1.5::double as x, -0.5::decimal(3, 1) as d, interval '-1' day as i from t"
    show(con.sql(select), "csv", tmp_path / "rows.csv")
    with (tmp_path / "rows.csv").open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["'=name", "n", "x", "d", "i"]
    assert [row[0] for row in rows] == [f"'{text}" for text in FORMULAS] + list(PLAIN)
    assert [re.sub(r"^'(?='*[=+\-@\t\r])", "", row[0]) for row in rows] == texts
    assert {tuple(row[1:4]) for row in rows} == {("-5", "-1.5", "-0.5")}
    assert rows[0][4][0] == "'"


@pytest.mark.parametrize("name", ["rows.csv", "rows.json", "rows.parquet", "rows.txt"])
@pytest.mark.parametrize(
    ("select", "is_private"),
    [
        ("select * from ablations", True),
        ("select upper(completion) as x from ablations", True),
        ("select count(*) as n from ablations where completion like 'I%'", True),
        ("select prompt_id from ablations", False),
        ("select string_agg(token, ' ' order by pos) as x from answer_tokens", True),
    ],
)
def test_files_with_completions_are_their_owners_alone(name: str, select: str, is_private: bool, tmp_path: Path) -> None:
    con = duckdb.connect()
    con.execute("create table ablations as select 1 as prompt_id, 'I cannot' as completion")
    con.execute("create table answer_tokens as select 7 as pos, 'I' as token")
    before = os.umask(0o022)
    try:
        show(con.sql(select), None, tmp_path / name)
    finally:
        os.umask(before)
    assert (tmp_path / name).stat().st_mode & 0o777 == (0o600 if is_private else 0o644)


def test_json_round_trips_with_ids_as_strings(relation: duckdb.DuckDBPyRelation, tmp_path: Path) -> None:
    show(relation, "json", tmp_path / "rows")
    (row,) = json.loads((tmp_path / "rows").read_text(encoding="utf-8"))
    assert row["prompt_id"] == row["total"] == row["nested"]["b"][0] == "9007199254740993"
    assert (row["text"], row["nothing"], row["nan"], row["yes"]) == (HOSTILE, None, None, True)
    assert (row["list"], row["made"], row["price"]) == ([1, 2], "2026-01-02T03:04:05", 1.5)


def test_json_keeps_small_ids_as_strings_and_repeated_columns(tmp_path: Path) -> None:
    con = duckdb.connect()
    show(con.sql("select 1::bigint as set_id, 2 as feature_id, 3 as a, 4 as a"), "json", tmp_path / "rows.json")
    assert json.loads((tmp_path / "rows.json").read_text()) == [{"set_id": "1", "feature_id": 2, "a": 3, "a_1": 4}]
    show(con.sql("select 1 as a where false"), "json", tmp_path / "none.json")
    assert json.loads((tmp_path / "none.json").read_text()) == []


def test_parquet_round_trips(relation: duckdb.DuckDBPyRelation, tmp_path: Path) -> None:
    show(relation, None, tmp_path / "rows.parquet")
    again = duckdb.sql(f"select prompt_id, text, list, nested, made from '{tmp_path}/rows.parquet'").fetchall()
    assert again == relation.select("prompt_id", "text", "list", "nested", "made").fetchall()


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("before")
    failing = duckdb.connect().sql("select if(i < 50000, i, error('late')) from range(100000) t(i)")
    with pytest.raises(duckdb.Error, match="late"):
        show(failing, "csv", tmp_path / "rows.csv")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("rows.csv", "before")]


def table(relation: duckdb.DuckDBPyRelation, capsys: pytest.CaptureFixture[str]) -> str:
    show(relation)
    return capsys.readouterr().out


def test_table_escapes_markup_and_control_characters(
    relation: duckdb.DuckDBPyRelation, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = table(relation.select("text", "nothing", "value", "prompt_id"), capsys)
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert "\\x1b[31m[red]bold[/red]" in shown
    header, _, line = shown.splitlines()
    assert line.split()[-3:] == ["-", "1.235e+04", "9007199254740993"]
    assert header.rstrip().endswith("prompt_id")


@pytest.mark.parametrize("kind", ["INTEGER", "UTINYINT", "HUGEINT", "FLOAT", "DOUBLE", "DECIMAL(18,3)", "BIGINT", "SMALLINT"])
def test_numbers_are_known_by_their_type(kind: str) -> None:
    assert is_numeric(kind)
    assert not is_numeric(f"{kind}[]")
    assert not is_numeric("INTERVAL")


def test_table_aligns_numbers_right_and_text_left(capsys: pytest.CaptureFixture[str]) -> None:
    shown = table(duckdb.connect().sql("from (values (1, 'a', null), (100, 'bb', 0.5)) t(number, text, share)"), capsys)
    lines = [line.rstrip() for line in shown.splitlines()]
    assert lines[0] == "number  text  share"
    assert lines[2:] == ["     1  a         -", "   100  bb      0.5"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A terminal of 50 columns."""
    monkeypatch.setenv("COLUMNS", "50")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return Terminal()


def test_a_terminal_cuts_long_text_and_many_rows(terminal: Terminal) -> None:
    rows = iter([("x" * 500, i) for i in range(1234)])
    show_table(ShownRows(["long", "i"], ["VARCHAR", "BIGINT"], rows), terminal)
    shown = terminal.getvalue().splitlines()
    assert 40 < len(shown[2]) <= 50
    assert "x…" in shown[2]
    assert shown[-1] == "… 1,184 more rows: use a limit, or --format csv for all"


def test_a_pipe_cuts_no_cell(capsys: pytest.CaptureFixture[str]) -> None:
    shown = table(duckdb.connect().sql("select repeat('x', 500) as long, i from range(1234) t(i)"), capsys)
    assert shown.count("x" * 500) == 1_000
    assert shown.splitlines()[-1] == "… 234 more rows: use a limit, or --format csv for all"


def test_a_narrow_terminal_keeps_numbers_ids_and_names_whole(terminal: Terminal) -> None:
    run_id = "verdicts_first_token_0123456789ab"
    rows = iter([(2**62, run_id, "algorithm1_common", "word " * 30), (1, None, None, None)])
    show_table(ShownRows(["id", "run_id", "condition", "text"], ["BIGINT", *["VARCHAR"] * 3], rows), terminal)
    for whole in (str(2**62), run_id, "algorithm1_common"):
        assert whole in terminal.getvalue()
    assert "\x1b[2m-" in terminal.getvalue(), "null is dim on a terminal"


def test_a_table_without_rows_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert table(duckdb.connect().sql("select 1 as n where false"), capsys).splitlines()[-1] == "no rows"


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_single_precision_is_written_as_short_as_it_can_be(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    show(duckdb.connect().sql("select 0.1::float as tau, 51.093586::float as activation, null::float as nothing"), kind)
    shown = capsys.readouterr().out
    assert "0.1" in shown
    assert "0.10000000149011612" not in shown
    assert "51.093586" in shown
    assert "51.0935859" not in shown


@pytest.mark.parametrize("name", ["rows.xlsx", "nowhere/rows.csv"])
def test_a_file_that_cannot_be_meant_is_told(tmp_path: Path, name: str) -> None:
    with pytest.raises(QueryError, match=r"\.xlsx is not a format|there is no folder .*nowhere"):
        show(duckdb.connect().sql("select 1 as n"), output=tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_csv_and_json_on_a_terminal_do_not_obey_the_text(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    relation = duckdb.connect().sql("select $$\x1b[31m \x9b1m$$ as text")
    for kind in ("csv", "json"):
        show(relation, kind)
        shown = capsys.readouterr().out
        assert "\x1b" not in shown
        assert "\x9b" not in shown


def test_parquet_is_refused_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    with pytest.raises(QueryError, match="parquet is not for a terminal"):
        show(duckdb.connect().sql("select 1"), "parquet")


def test_printable_spells_out_what_would_be_obeyed() -> None:
    assert printable("é 漢 \x1b\n\u202e\x9b") == "é 漢 \\x1b\\n\\u202e\\x9b"


UNUSUAL = """
select timestamptz '2026-01-02 03:04:05+00' as made, [made] as list, {'at': made, 'total': 12::hugeint} as nested,
    1267650600228229401496703205376::hugeint as large, interval 3 day as wait, '01:02:03+01'::timetz as clock,
    map {'a': 1} as map, '101'::bit as bits, 'infinity'::timestamp as ever, date '290000-01-01' as far,
    timestamp '2026-01-02 03:04:05.5' as at, 1 as twice, 2 as twice, 'q' as "a""b"
"""


@pytest.mark.parametrize("kind", ["csv", "json", "table", "parquet"])
def test_every_type_is_written_in_every_format(kind: str, tmp_path: Path) -> None:
    """Without further packages (pytz), and past what Python's own dates hold."""
    con = duckdb.connect()
    con.execute("set timezone = 'UTC'")
    show(con.sql(UNUSUAL), kind, tmp_path / f"rows.{kind}")
    if kind == "parquet":
        (row,) = pq.read_table(tmp_path / "rows.parquet", columns=["made", "wait", "bits", 'a"b']).to_pylist()
        assert str(row["made"]) == "2026-01-02 03:04:05+00:00"
        assert (row["wait"], row["bits"], row['a"b']) == ("3 days", "101", "q")
        return
    shown = (tmp_path / f"rows.{kind}").read_text(encoding="utf-8")
    for word in (
        "2026-01-02T03:04:05+00",
        str(2**100),
        "3 days",
        "01:02:03+01",
        "101",
        "infinity",
        "290000-01-01",
        "T03:04:05.5",
    ):
        assert word in shown
    if kind == "json":
        (row,) = json.loads(shown)
        assert (row["nested"]["total"], row["map"], row["twice"], row["twice_1"]) == (12, {"a": 1}, 1, 2)


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("union_value(x := 1)", "1"),
        ("{'a': union_value(x := 1), 'b': interval 1 day}", "{'a': 1, 'b': 1 day}"),
        ("map {'a': union_value(x := 1)}", "{a=1}"),
        ("[union_value(x := {'y': 1})]", "[{'y': 1}]"),
        ("{'UNION(': 1}", {"UNION(": 1}),
    ],
)
def test_a_column_with_unions_is_text_in_parquet(value: str, written: Any, tmp_path: Path) -> None:
    show(duckdb.sql(f"select {value} as v, 2 as w"), None, tmp_path / "rows.parquet")
    assert duckdb.sql(f"from '{tmp_path}/rows.parquet'").fetchall() == [(written, 2)]


@pytest.mark.parametrize("name", ["DATE", "INTERVAL", "TIMESTAMP WITH TIME ZONE", 'a "DATE'])
def test_a_field_called_like_a_type_keeps_its_name(name: str, tmp_path: Path) -> None:
    relation = duckdb.sql(f"select {{'{name}': 1, 'then': date '2000-01-02'}} as s, 'DATE'::enum('DATE', 'BIT') as e")
    show(relation, None, tmp_path / "rows.json")
    assert json.loads((tmp_path / "rows.json").read_text()) == [{"s": {name: 1, "then": "2000-01-02"}, "e": "DATE"}]
    show(relation, None, tmp_path / "rows.parquet")
    assert duckdb.sql(f"select s['{name}'] from '{tmp_path}/rows.parquet'").fetchall() == [(1,)]
