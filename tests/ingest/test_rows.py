"""Files of rows as people and their tools write them: names that occur twice, missing values, encodings, endings, types."""

import gzip
import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saelake.ingest import rows
from saelake.ingest.cells import MISSING, as_text, is_missing, matches, same
from saelake.ingest.inputs import read_text
from saelake.ingest.prompts import Prompt, load_prompts
from saelake.ingest.recipe import load_recipe
from saelake.ingest.rows import FORMATS, read_rows
from saelake.warehouse.errors import UserError
from tests.ingest.test_prompts import make_recipe

TABLE = [{"prompt": "How?", "kind": "bad"}, {"prompt": "Why not?\nTell", "kind": "good"}, {"prompt": "Où?", "kind": "good"}]


def load(file: Path, content: str | bytes | None = None, **spec: Any) -> list[Prompt]:
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return load_prompts(make_recipe({"file": file, "text": "prompt", "label": "harmful", "split": "test", **spec}))


def lines(values: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)


def as_csv(values: list[dict[str, Any]], delimiter: str = ",") -> str:
    quoted = [[f'"{cell}"' for cell in row.values()] for row in values]
    return "\n".join(delimiter.join(cells) for cells in [list(values[0]), *quoted])


SPELT = {".csv": as_csv(TABLE), ".tsv": as_csv(TABLE, "\t"), ".jsonl": lines(TABLE), ".json": json.dumps(TABLE, indent=1)}


@pytest.mark.parametrize(
    ("name", "content"),
    [(f"rows{kind}", text) for kind, text in SPELT.items()]
    + [("ROWS.JSONL", SPELT[".jsonl"]), ("rows.ndjson", SPELT[".jsonl"]), ("rows.Csv", SPELT[".csv"])]
    + [("rows.json", SPELT[".jsonl"]), ("rows.jsonl", SPELT[".json"]), ("rows.json", "\n\n".join(map(json.dumps, TABLE)))],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_table_is_the_same_however_it_is_written(tmp_path: Path, name: str, content: str, encoding: str, packed: bool) -> None:
    data = content.encode(encoding)
    file = tmp_path / (f"{name}.gz" if packed else name)
    file.write_bytes(gzip.compress(data) if packed else data)
    assert list(read_rows(file, "rows")) == TABLE


@given(st.lists(st.dictionaries(st.text(), st.integers() | st.text() | st.lists(st.none() | st.floats(allow_nan=False)))))
def test_json_is_read_in_pieces_as_json_reads_it_whole(tmp_path_factory: pytest.TempPathFactory, values: list[Any]) -> None:
    file = tmp_path_factory.mktemp("json") / "rows.json"
    piece, rows._Json.PIECE = rows._Json.PIECE, 3
    try:
        for text in (json.dumps(values), json.dumps(values, indent=2), lines(values)):
            file.write_text(text)
            assert list(read_rows(file, "rows")) == values
    finally:
        rows._Json.PIECE = piece


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("x.jsonl", '{"prompt": "a"}\n{"prompt": "b", "prompt": "c"}', ("row 2", "'prompt' twice")),
        ("x.json", '[{"prompt": "a", "kind": "x", "kind": "y"}]', ("row 1", "'kind' twice")),
        ("x.csv", "prompt,kind,prompt\na,b,c\n", ("header", "'prompt' twice")),
        ("x.tsv", "prompt\tprompt\na\tb\n", ("header", "'prompt' twice")),
        ("x.json", '[{"prompt": "a"} {"prompt": "b"}]', ("row 1", "comma")),
        ("x.json", '[{"prompt": "a"},\n {"prompt": "b"', ("row 2", "line 2")),
        ("x.json", '[{"prompt": "a"}', ("row 1", "end of the list")),
        ("x.json", '[{"prompt": "a"}] 7', ("behind the end of the list",)),
        ("x.jsonl", '{"prompt": "a"}\n{"prompt": "b\n', ("row 2", "line 2")),
        ("x.jsonl.gz", b"no gzip at all", ("x.jsonl.gz", "not a readable .jsonl.gz file")),
        ("x.csv.gz", gzip.compress(b"prompt\n" + b"a\n" * 9, mtime=0)[:-9], ("not a readable .csv.gz file",)),
        ("x.csv", "prompt\n" + "a" * 200_000, ("field",)),
    ],
)
def test_what_is_wrong_in_a_file_is_named(tmp_path: Path, name: str, content: str | bytes, says: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as caught:
        load(tmp_path / name, content)
    assert all(part in str(caught.value) for part in (name, *says)), caught.value


def test_parquet_columns_with_one_name_are_refused_and_unread_ones_may_be_anything(tmp_path: Path) -> None:
    far = pa.array([3_000_000], pa.int32()).cast(pa.date32())
    pq.write_table(pa.table({"prompt": ["How?"], "expires": far}), tmp_path / "far.parquet")
    assert [p.text for p in load(tmp_path / "far.parquet")] == ["How?"]
    with pytest.raises(UserError, match="no column 'kind' in row 1: the columns are prompt, expires"):
        load(tmp_path / "far.parquet", category={"column": "kind"})
    pq.write_table(pa.table([["How?"], ["Why?"]], names=["prompt", "prompt"]), tmp_path / "two.parquet")
    with pytest.raises(UserError, match=r"two\.parquet .*'prompt' twice"):
        load(tmp_path / "two.parquet")


def test_spreadsheets_leave_columns_without_a_name(tmp_path: Path) -> None:
    assert [p.text for p in load(tmp_path / "x.csv", "prompt,,\nHow?,,\n")] == ["How?"]


NOTHING = [None, math.nan, "", " ", "nan", "NaN", "NA", "N/A", "None", "null", "NULL", "<NA>"]


@pytest.mark.parametrize("missing", NOTHING)
@pytest.mark.parametrize("kind", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_missing_values_are_missing_in_every_format_and_field(tmp_path: Path, kind: str, missing: Any) -> None:
    file = tmp_path / f"rows{kind}"

    def written(column: str) -> Path:
        table: dict[str, list[Any]] = {"prompt": ["How?", "Why?"], "label": ["harmful"] * 2, "kind": ["x"] * 2, "part": ["a"] * 2}
        table[column][1] = missing
        if isinstance(missing, float) and kind == ".parquet":
            table[column][0] = 1.0
        if kind == ".parquet":
            pq.write_table(pa.table(table), file)
        elif kind == ".jsonl":
            file.write_text(lines([dict(zip(table, cells, strict=True)) for cells in zip(*table.values(), strict=True)]))
        else:
            cells = [[str(cell) for cell in cells] for cells in zip(*table.values(), strict=True)]
            file.write_text("\n".join(("," if kind == ".csv" else "\t").join(row) for row in [list(table), *cells]))
        return file

    found = load(written("kind"), category={"column": "kind"})
    assert found[1].category is None
    assert found[0].category is not None
    assert len(load(written("kind"), where={"kind": found[0].category})) == 1
    for column, field, spec in (
        ("label", "label", {"label": {"column": "label", "map": {"1": "harmful"} if found[0].category == "1" else {}}}),
        ("part", "split", {"split": {"column": "part"}}),
        ("prompt", "prompt", {}),
    ):
        if column == "prompt" and found[0].category == "1":
            continue  # a column of numbers holds no prompts at all
        with pytest.raises(UserError, match=rf"row 2: column '{column}'.*({field}|instead of a text)"):
            load(written(column), **spec)


@pytest.mark.parametrize(
    ("cells", "wanted"),
    [
        (["True", "true", "TRUE", True, 1, 1.0, "1", "1.0"], [True, "true", "True", 1, 1.0]),
        (["False", False, 0, 0.0, "0", "0.0"], [False, "false", 0]),
        ([3, 3.0, "3", "3.0", "3.00"], [3, 3.0]),
        ([0.5, "0.5", "0.50", "5e-1"], [0.5]),
        ([1e-7, "1e-07", "0.0000001"], [1e-7]),
        ([3, 3.0], ["3", "3.0"]),
    ],
)
def test_equal_values_match_however_they_were_typed(cells: list[Any], wanted: list[Any]) -> None:
    for one in wanted:
        assert [cell for cell in cells if not matches(cell, one) and not (isinstance(cell, str) and isinstance(one, str))] == []
        assert not any(matches(cell, one) for cell in ("x", None, "nan", 7, "yes", "007"))


def test_texts_match_texts_as_they_stand() -> None:
    assert matches("True", "true")
    assert not matches("1.0", "1")
    assert not matches("007", "7")
    assert matches("nan", "")
    assert all(is_missing(word) for word in MISSING)


@given(st.booleans() | st.integers(-(10**12), 10**12) | st.floats(-1e6, 1e6).map(lambda x: round(x, 3)))
def test_a_value_is_the_same_as_what_pandas_writes_for_it(value: bool | int | float) -> None:
    assert same(value, str(value))
    assert same(value, as_text(value))


def test_labels_and_splits_are_matched_as_values(tmp_path: Path) -> None:
    content = "prompt,bad,part\nHow?,True,1.0\nWhy?,False,2.0\n"
    spec: dict[str, Any] = {"label": {"column": "bad", "map": {"true": "harmful", "false": "benign"}}}
    for names in ({"1": "train", "2": "test"}, {"1.0": "train", "2.0": "test"}):
        found = load(tmp_path / "x.csv", content, **spec, split={"column": "part", "map": names})
        assert [(p.label, p.split) for p in found] == [("harmful", "train"), ("benign", "test")]
    pq.write_table(pa.table({"prompt": ["How?", "Why?"], "bad": [1.0, 0.0], "part": [1, 2]}), tmp_path / "x.parquet")
    found = load(tmp_path / "x.parquet", **spec, split={"column": "part"})
    assert [(p.label, p.split) for p in found] == [("harmful", "1"), ("benign", "2")]


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"where": {"kind": ["x", "z"]}}, ("where.kind names 'z', but no row has it", "'x', 'y'")),
        ({"where": {"kind": "z"}}, ("is empty", "where.kind names 'z'")),
        ({"category": {"column": "kind", "map": {"x": "a", "Y": "b"}}}, ("category.map names 'Y', but no row has it",)),
        ({"split": {"column": "kind", "map": {"z": "test"}}}, ("split.map names 'z'",)),
    ],
)
def test_a_value_that_no_row_has_is_refused(tmp_path: Path, spec: dict[str, Any], says: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as caught:
        load(tmp_path / "x.csv", "prompt,kind\nHow?,x\nWhy?,y\n", **spec)
    assert all(part in str(caught.value) for part in says), caught.value


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ({"1": "harmful", "1.0": "benign"}, "'1' and as '1.0'"),
        ({"True": "harmful", "true": "benign"}, "twice"),
        ({"nan": "benign"}, "missing"),
    ],
)
def test_names_of_a_map_that_are_one_value_are_refused(names: dict[str, str], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make_recipe({"file": __file__, "label": {"column": "kind", "map": names}})


@pytest.mark.parametrize("column", ["prompt", "kind", "part", "only"])
def test_halves_of_characters_are_refused_in_every_column_that_is_read(tmp_path: Path, column: str) -> None:
    row = {"prompt": "How?", "kind": "x", "part": "test", "only": "yes"} | {column: "\ud83d"}
    spec = {"category": {"column": "kind"}, "split": {"column": "part"}, "where": {"only": "yes"}}
    with pytest.raises(UserError, match=f"row 1: column '{column}' holds half of a character"):
        load(tmp_path / "x.json", json.dumps([row]), **spec)


@pytest.mark.parametrize("value", [["x"], {"a": 1}])
def test_a_list_is_no_category(tmp_path: Path, value: Any) -> None:
    with pytest.raises(UserError, match=r"row 1: column 'kind' holds .* instead of one value"):
        load(tmp_path / "x.json", json.dumps([{"prompt": "How?", "kind": value}]), category={"column": "kind"})


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_is_no_part_of_a_recipe_or_template(tmp_path: Path, encoding: str) -> None:
    source = load_recipe("organism").file
    assert source is not None
    text = source.read_text("utf-8").replace("../", f"{source.parent.parent}/")
    (tmp_path / "recipe.toml").write_bytes(text.encode(encoding))
    assert load_recipe(tmp_path / "recipe.toml").section("model") == load_recipe("organism").section("model")
    (tmp_path / "template.jinja").write_bytes("{{ x }}\r\nà".encode(encoding))
    assert read_text(tmp_path / "template.jinja", "model.chat_template_file") == "{{ x }}\nà"


def test_every_format_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load(tmp_path / "rows.xlsx", b"")
    assert all(kind in str(caught.value) for kind in (*FORMATS, ".gz"))
