"""A question that answers with nothing says why: nothing was computed, or what it is asked about has nothing to show."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from click.testing import CliRunner

import saelake
from saelake import cli, queries
from saelake.queries import QueryError
from tests.lakes import build_lake, prompt_id

NEVER, ON_BOS = "0:3", "0:0"
"""Features of the hand-made lake: one that never fires, one that fires on BOS tokens alone."""


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[saelake.OpenLake]:
    with saelake.open(build_lake(tmp_path_factory.mktemp("silent") / "lake").root) as opened:
        yield opened


@pytest.mark.parametrize("name", queries.names())
def test_what_nothing_was_computed_for_has_no_row_of_zeros(name: str, opened: saelake.OpenLake) -> None:
    run = opened.sql("select min(run_id) from runs").fetchall()[0][0]
    by_type = {"layer": 0, "feature": 1, "features": "0:1", "run": run, "text": "a ", "prompt": prompt_id(opened.lake, 0)}
    given = {one.name: by_type.get(one.type, "x") for one in queries.load(name).parameters if one.required}
    rows = opened.query(name, **given).fetchall()
    if not rows:
        assert name in ("find_prompts", "compare_runs") or queries.why_no_rows(opened.connection, name, given)
    assert not [row for row in rows if not any(row)]


@pytest.mark.parametrize(
    ("name", "features", "said"),
    [
        ("top_samples", NEVER, ["1 of 1 features asked for fire on no token: 0:3"]),
        ("histogram", f"{NEVER}, 1:1", ["2 of 2 features asked for fire on no token: 0:3, 1:1"]),
        ("quantile_samples", ON_BOS, ["1 of 1 features asked for fire on BOS tokens alone, which do not count: 0:0"]),
        ("cofiring", "0:1", ["features names one feature, and a pair has two"]),
        (
            "cofiring",
            f"{NEVER}, {ON_BOS}",
            [
                "1 of 2 features asked for fire on no token: 0:3",
                "1 of 2 features asked for fire on BOS tokens alone, which do not count: 0:0",
            ],
        ),
        ("top_samples", "from features where feature_id = 77", ["features names no feature"]),
        ("dormant", NEVER, ["waking is not computed: `saelake analyze` does that"]),
    ],
)
def test_features_with_nothing_to_show_are_named(name: str, features: str, said: list[str], opened: saelake.OpenLake) -> None:
    given = {"features": features}
    assert opened.query(name, **given).fetchall() == []
    assert queries.why_no_rows(opened.connection, name, given) == said
    asked = ["query", name, "--features", features, "--lake", opened.lake.root]
    told = CliRunner().invoke(cli.main, list(map(str, asked)))
    assert [line.removeprefix("no rows: ") for line in told.stderr.splitlines()] == said


def test_a_token_that_does_not_occur_is_told(opened: saelake.OpenLake) -> None:
    def why(token: str) -> list[str]:
        return queries.why_no_rows(opened.connection, "features_on_token", {"token": token})

    assert why("zebra") == ["no token of these prompts is 'zebra'"]
    assert why("A") == ["no token of these prompts is 'A'; match = contains also finds 'a0', 'a1', 'a2', 'a3', 'a4', 'a5'"]
    assert why(" A0 ") == []


def test_bos_tokens_that_count_are_no_reason(opened: saelake.OpenLake) -> None:
    assert len(opened.query("top_samples", features=ON_BOS, bos=True).fetchall()) == 5
    pair = {"features": f"{ON_BOS}, {NEVER}", "bos": True}
    assert queries.why_no_rows(opened.connection, "cofiring", pair) == ["1 of 2 features asked for fire on no token: 0:3"]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("neighbours", {"layer": 1, "feature_id": 4}),
        ("feature_search", {"feature_id": "4"}),
        ("causal_roles", {"layer": 0, "feature_id": -1}),
    ],
)
def test_a_number_beyond_the_width_is_told(name: str, values: dict[str, Any], opened: saelake.OpenLake) -> None:
    number = values["feature_id"]
    with pytest.raises(QueryError, match=re.escape(f"there is no feature {number}") + ".*: its features are 0 to 3"):
        opened.query(name, **values)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"feature_id": 3, "sae_id": "sae0", "layer": 0}, "the query densities has no parameter layer"),
        ({"feature_id": "x", "sae_id": "sae0"}, "feature_id is the number of a feature, not 'x'"),
        ({"feature_id": [1, 2], "sae_id": "sae0"}, "feature_id is the number of a feature, not [1, 2]"),
        ({"feature_id": None, "sae_id": "sae0"}, "feature_id cannot be null"),
    ],
)
def test_what_is_no_feature_is_told_as_it_was_given(values: dict[str, Any], expected: str, opened: saelake.OpenLake) -> None:
    with pytest.raises(QueryError, match=re.escape(expected)):
        opened.query("densities", **values)
