"""What a person lists as edits: positions, values, names of columns, and sets that say where each feature is held."""

from typing import Any

import pytest

from saelake.analysis.search import edit_sets
from saelake.analysis.search.edit_sets import EditSet, is_select, read_positions
from saelake.warehouse.errors import UserError


@pytest.mark.parametrize(
    ("text", "expected"),
    [(None, None), ("0", [0]), ("-1, 3,user", [-1, 3, "user"]), ("answer", ["answer"]), (" bos ", ["bos"])],
)
def test_positions_are_numbers_from_either_end_and_roles(text: str | None, expected: list[int | str] | None) -> None:
    assert read_positions(text) == expected


@pytest.mark.parametrize("text", ["", "--1", "1.0", "users", "1,,2", "-", "0 1"])
def test_what_is_no_position_is_told(text: str) -> None:
    with pytest.raises(UserError, match="is neither a position, as 0 or -1, nor one of bos, "):
        read_positions(text)


@pytest.mark.parametrize(
    ("given", "expected"), [(3, "3"), ("0, -1", "0,-1"), ([0, "user"], "0,user"), ((-2,), "-2"), ("user", "user")]
)
def test_positions_of_a_row_are_a_number_a_text_or_a_list(given: Any, expected: str) -> None:
    assert edit_sets._positions_text(given) == expected


@pytest.mark.parametrize("value", [None, "much", float("nan"), float("inf"), "-inf", [1]])
def test_a_value_is_a_finite_number(value: Any) -> None:
    with pytest.raises(UserError, match="edits: row 3: value is a finite number, not"):
        edit_sets._check_value(value, "row 3: value")


def test_columns_go_by_either_name_and_a_slip_is_told() -> None:
    for row in (
        {"sae": 5, "feature": 7},
        {"layer": 5, "feature_id": 7},
        {"sae": "", "sae_id": 5, "feature": None, "feature_id": 7},
    ):
        assert edit_sets._named(row) == {"sae": 5, "feature": 7, "value": None, "positions": None}
    assert edit_sets._named({"sae": 0, "feature": 0, "value": 0.0, "values": 1})["value"] == 0, "the name that is read is there"
    for slip, meant in (("valu", "value"), ("postions", "positions"), ("values", "value")):
        with pytest.raises(UserError, match=f"'{slip}' is not a column that is read .did you mean '{meant}'"):
            edit_sets._named({"sae": 5, "feature": 7, slip: 1})
    assert edit_sets._named({"sae": 5, "feature": 7, "valley": 1, "note": "x"})["value"] is None, "another word is another column"
    for row in ({"sae": 5}, {"feature": 7}, {"layer": "", "feature": 7}):
        with pytest.raises(UserError, match="a row needs the columns sae and feature, and has"):
            edit_sets._named(row)


def test_lists_and_files_are_no_selects() -> None:
    assert is_select("select 5 as layer, 1 as feature_id")
    assert is_select("my_table")
    assert not is_select("5:17, 5:18")
    assert not is_select("rows.csv ")
    assert not is_select([(5, 17)])


def test_a_set_keeps_each_feature_once_with_its_value_and_place() -> None:
    rows = [(2, 9, 0.0, None), (0, 5, 1.5, "user"), (2, 9, 0.0, None), (0, 3, 0.0, None)]
    found = EditSet.of(rows)
    assert found.rows.tolist() == [(0, 3, 0.0), (0, 5, 1.5), (2, 9, 0.0)]
    assert found.places == [None, "user", None]
    assert len(found) == 3
    everywhere = EditSet.of([(*row[:3], None) for row in rows])
    assert everywhere.positions == ()
    assert everywhere.places == [None] * 3
    assert everywhere.key == everywhere.features.key == found.features.key
    assert len({found.key, everywhere.key, EditSet.of([(*row[:3], "bos") for row in rows]).key}) == 3
    assert found.content != everywhere.content
    assert 0 <= found.key < 2**63
    assert found.key == int(found.content[:16], 16) // 2
    for other in ((0, 5, 0.0, "user"), (0, 5, 1.5, "bos")):
        with pytest.raises(UserError, match="feature 5 of layer 0 is named with two values or positions"):
            EditSet.of([*rows, other])
