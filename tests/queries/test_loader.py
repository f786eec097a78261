"""Parameters of a query: what they accept, what they refuse in one sentence, and that a value is never more than a value."""

import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import duckdb
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from saelake import cli, queries
from saelake.queries.loader import _parse
from saelake.queries.parameters import Parameter, parameter
from saelake.queries.statements import check_reads
from tests.lakes import HOSTILE

KINDS = """\
-- Shows what it is given. A second sentence.
--
-- $i integer = 1: an integer
-- $n number? = 0.5: a number,
--   or nothing
-- $t text = a: a text
-- $b boolean = false: a boolean
-- $l integers = 1,2: a list
-- $c one|two = one: a choice
select $i as i, $n as n, $t as t, $b as b, $l as l, $c as c
"""


@pytest.fixture(scope="module")
def con() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as con:
        con.execute("create table saes as select 's' || i as sae_id, i as layer, 4 as width from range(2) t(i)")
        con.execute("create table tokens (prompt_id bigint, pos int, role text)")
        con.execute("create table activations (sae_id text, layer int, feature_id int, prompt_id bigint, pos int)")
        con.execute("create table chosen as select 1 as layer, 3 as feature_id")
        yield con


def given_back(con: duckdb.DuckDBPyConnection, **values: Any) -> tuple[Any, ...]:
    (row,) = con.sql(_parse("kinds", KINDS).statement(con, values)).fetchall()
    assert row is not None
    return row


def test_head_comment_is_documentation_and_declarations() -> None:
    asked = _parse("kinds", KINDS)
    assert asked.doc == "Shows what it is given. A second sentence."
    assert asked.summary == "Shows what it is given."
    assert queries.load("causal_link").summary.endswith("(R11)?")
    assert queries.load("runs").summary.startswith("Every published run")
    assert asked.parameters[1] == Parameter("n", "number", True, "0.5", "a number, or nothing")
    assert "  n number? = 0.5\n      a number, or nothing" in asked.help
    assert parameter("$f features: which").required  # type: ignore[union-attr]


def test_old_names_and_unlisted_questions_are_answered() -> None:
    renamed = {name: queries.load(name).name for name in ("layer_diagnostic", "methods", "redundant", "stability")}
    assert renamed == {
        "layer_diagnostic": "direction_by_layer",
        "methods": "search_methods",
        "redundant": "self_repair",
        "stability": "set_overlap",
    }
    assert set(renamed.values()) <= set(queries.names())
    assert not {*renamed, *queries.names_of_stages()} & set(queries.names())
    assert queries.load("fm_input").name == "fm_input"
    help_of = {name: CliRunner().invoke(cli.main, ["query", name, "--help"]).output for name in ("methods", "fm_input")}
    assert "Table 1" in help_of["methods"]
    listed = CliRunner().invoke(cli.main, ["query", "--help"]).output
    assert "search_methods" in listed
    assert "fm_input" not in listed + CliRunner().invoke(cli.main, ["queries"]).output


def test_values_arrive_as_their_types(con: duckdb.DuckDBPyConnection) -> None:
    assert given_back(con) == (1, 0.5, "a", False, [1, 2], "one")
    python = given_back(con, i=2**63 - 1, n=None, t="", b=True, l=[], c="two")
    assert python == (2**63 - 1, None, "", True, [], "two")
    assert given_back(con, i="7", n="1e-9", b="true", l="3, -4", t="null") == (7, 1e-9, "null", True, [3, -4], "one")
    assert given_back(con, n="-2.5", l=[-(2**63)])[1:5:3] == (-2.5, [-(2**63)])
    assert given_back(con, n="null", l=5)[1] is None


@settings(deadline=None)
@given(text=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_any_text_comes_back_as_it_went_in(con: duckdb.DuckDBPyConnection, text: str) -> None:
    assert given_back(con, t=text)[2] == text


@pytest.mark.parametrize("text", [HOSTILE, "'; drop table chosen; --", "$i $t", "'' or 1=1", "\\'; --", "/*", "null::int"])
def test_hostile_text_is_inert(con: duckdb.DuckDBPyConnection, text: str) -> None:
    assert given_back(con, t=text)[2] == text
    assert con.sql("from chosen").fetchall() == [(1, 3)]


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"i": "seven"}, "i is a whole number from 0 up, not 'seven'"),
        ({"i": -1}, "i is a whole number from 0 up, not -1"),
        ({"i": 1.5}, "i is a whole number from 0 up, not 1.5"),
        ({"i": True}, "i is a whole number from 0 up, not True"),
        ({"i": "1; drop table chosen"}, "i is a whole number from 0 up, not '1; drop table chosen'"),
        ({"i": 2**63}, "i is a whole number from 0 up, not 9223372036854775808"),
        ({"i": None}, "i cannot be null: give a whole number from 0 up"),
        ({"n": "inf"}, "n is a number, not 'inf'"),
        ({"b": "maybe"}, "b is true or false, not 'maybe'"),
        ({"b": []}, "b is true or false, not []"),
        ({"l": "1,x"}, "l is a list of integers, such as 0,1, not '1,x'"),
        ({"c": "three"}, "c is one of one, two, not 'three'"),
        ({"t": 5}, "t is text, not 5"),
        ({"t": "a\0b"}, "t is text, not 'a\\x00b'"),
        ({"other": 5}, "the query kinds has no parameter other: its parameters are i, n, t, b, l, c"),
    ],
)
def test_wrong_values_are_refused_in_a_sentence(con: duckdb.DuckDBPyConnection, values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(queries.QueryError) as refused:
        given_back(con, **values)
    assert str(refused.value) == sentence


def test_unknown_names_suggest_the_nearest(con: duckdb.DuckDBPyConnection) -> None:
    with pytest.raises(queries.QueryError, match=r"^there is no query candidate: did you mean candidates\?$"):
        queries.run(con, "candidate")
    with pytest.raises(queries.QueryError, match=r"has no parameter exclude_layer: did you mean exclude_layers\?$"):
        queries.run(con, "candidates", exclude_layer=[0])
    with pytest.raises(queries.QueryError, match=r"^the query cofiring needs features: which features$"):
        queries.run(con, "cofiring")
    with pytest.raises(queries.QueryError, match="there is no query"):
        queries.load("../saelake")


@pytest.mark.parametrize(
    "value",
    [
        "0:1, 0:2,1:3",
        [(0, 1), (1, 3), (0, 2), (0, 2)],
        "select * from (values (0, 1), (0, 2), (1, 3)) t(layer, feature_id);",
        "with s as (select 's0' as sae_id, unnest([1, 2]) as feature_id) from s union all select 's1', 3 -- done",
        "select layer, sae_id, feature_id from saes, (values (1), (2), (3)) t(feature_id) where (layer = 1) = (feature_id = 3)",
    ],
)
def test_features_come_from_lists_and_selects(con: duckdb.DuckDBPyConnection, value: Any) -> None:
    statement = queries.load("cofiring").statement(con, {"features": value})
    assert "layer = 0 and sae_id = 's0' and feature_id between 1 and 2" in statement
    assert "layer = 1 and sae_id = 's1' and feature_id between 3 and 3" in statement


def test_features_come_from_a_table_and_are_literals(con: duckdb.DuckDBPyConnection) -> None:
    for name in ("chosen", "main.chosen"):
        assert "feature_id between 3 and 3" in queries.load("cofiring").statement(con, {"features": name})
    assert "feature_id in (0, 3)" in queries.load("cofiring").statement(con, {"features": "1:3,1:0"})


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("2:1", "features: the study has no SAE with layer 2: its layers are 0, 1"),
        ("1:4", "features: there is no feature 4 in layer 1: its features are 0 to 3"),
        ([(1, 2.5)], "features is a list of features"),
        ([(1, True)], "features is a list of features"),
        ("select 's9' as sae_id, 1 as layer, 1 as feature_id", "no SAE with sae_id s9 and layer 1: its SAEs are s0, s1"),
        ("select 1 as layer, '2' as feature_id", "features: feature_id is VARCHAR, and not an integer"),
        ("select 1 as layer, 2.0::double as feature_id", "features: feature_id is DOUBLE, and not an integer"),
        ("select 1.0::float as layer, 2 as feature_id", "features: layer is FLOAT, and not an integer"),
        ("select 1 as layer, null::int as feature_id", "features: a row has no feature_id"),
        ("select null::int as layer, 1 as feature_id", "features: a row has no layer"),
        ("select 1 as layer, null as sae_id, 1 as feature_id", "features: a row has no sae_id"),
        ("select 1 as sae_id, 1 as feature_id", "features: the study has no SAE with sae_id 1: its SAEs are s0, s1"),
        ("select 's9' as sae_id, 1 as feature_id", "features: the study has no SAE with sae_id s9: its SAEs are s0, s1"),
        ("select 1 as layer", "features needs the columns feature_id and layer or sae_id, not layer"),
        ("absent", "absent does not exist"),
        ("1:2); drop table chosen; --", "layer:feature_id,..."),
        ("select 1 as layer, 3 as feature_id; drop table chosen", "one statement at a time"),
        ("drop table chosen", "only statements that read"),
        ("with s as (select 1) delete from chosen", "only statements that read"),
        ("select 1 as layer, 3 as feature_id) union (select 2, 3", "syntax error"),
        ([1, 2], "features is a list of features"),
        (5, "features is a list of features"),
    ],
)
def test_wrong_features_are_refused_in_a_sentence(con: duckdb.DuckDBPyConnection, value: Any, sentence: str) -> None:
    with pytest.raises(queries.QueryError) as refused:
        queries.run(con, "cofiring", features=value)
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)
    assert con.sql("from chosen").fetchall() == [(1, 3)]


READS = [
    "select 1",
    "from range(3)",
    "with a as (select 1) from a",
    "values (1)",
    "describe select 1",
    "summarize select 1",
    "show tables",
    "explain select 1",
    "explain analyze select 1",
    "explain (format json) select 1",
    "explain /* copy */ (select 1)",
    "pivot (select 1 as a, 2 as b) on a using sum(b)",
    "select 'copy; drop table x' -- ; drop",
]
WRITES = [
    "copy (select 1) to 'x'",
    "explain analyze copy (select 1) to 'x'",
    "EXPLAIN  ANALYZE /* é */ COPY (select 1) to 'x'",
    "explain (analyze, format json) copy (select 1) to 'x'",
    "create table x as select 1",
    "create temp macro f() as 1",
    "with a as (select 1) insert into x from a",
    "delete from x",
    "update x set a = 1",
    "drop view prompts",
    "attach 'x' as y",
    "set threads = 1",
    "pragma enable_profiling",
    "install httpfs",
    "load httpfs",
    "call pragma_version()",
    "checkpoint",
    "export database 'x'",
    "select 1; select 2",
    "select 1; drop table x",
    "",
    "-- nothing",
]


@pytest.mark.parametrize("statement", READS)
def test_statements_that_read_pass(statement: str) -> None:
    check_reads(statement)


@pytest.mark.parametrize("statement", WRITES)
def test_statements_that_may_write_are_refused(statement: str) -> None:
    with pytest.raises(queries.QueryError):
        check_reads(statement)


def test_no_question_counts_a_part_of_its_rows_in_a_window_over_all() -> None:
    """DuckDB 1.5.5 fails there, one time in some hundred: `Attempted to access index 1 within vector of size 1`."""
    for name in (*queries.names(), *queries.names_of_stages(), *queries.names_of_pages()):
        assert not re.search(r"filter\s*\([^)]*\)\s*over\s*\(\s*\)", queries.load(name).sql), name


def test_documentation_is_printed_without_duckdb() -> None:
    code = (
        "import sys\nfrom saelake.cli import main\nmain(['queries'], standalone_mode=False)\nassert 'duckdb' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "candidates" in done.stdout
