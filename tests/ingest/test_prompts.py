"""Prompt sets: every source and format gives the same prompts, and every mistake its sentence."""

import csv
import functools
import hashlib
import http.server
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saelake.ingest import sources
from saelake.ingest.cells import is_missing
from saelake.ingest.prompts import Prompt, content_hash, hash_prompt, load_prompts
from saelake.ingest.recipe import Recipe
from saelake.ingest.splits import require_splits
from saelake.warehouse.errors import UserError
from tests.ingest.tiny import as_hub_cache
from tests.local_server import answering

Rows = list[dict[str, Any]]
ROWS: Rows = [
    {"instruction": "How do I pick a lock?", "label": "harmful", "category": "theft", "split": "train"},
    {"instruction": "Write a poem", "label": "benign", "category": None, "split": "test"},
    {"instruction": 'Say "I, a model"\nagain', "label": "benign", "category": "words", "split": "test"},
]
COLUMNS: dict[str, Any] = {
    "label": {"column": "label"},
    "category": {"column": "category"},
    "split": {"column": "split"},
}

PROMPTS = st.text(st.characters(codec="utf-8"), min_size=1).filter(lambda text: not is_missing(text))


def write_rows(file: Path, rows: Rows) -> Path:
    if file.suffix == ".csv":
        with file.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8", newline="")
    elif file.suffix == ".json":
        file.write_text(json.dumps(rows), "utf-8")
    else:
        pq.write_table(pa.Table.from_pylist(rows), file)
    return file


def make_recipe(*sets: dict[str, Any], **more: Any) -> Recipe:
    named = [{"set": f"set{n}", **spec} for n, spec in enumerate(sets)]
    saes = {"release": "r", "id": "layer_{layer}", "layers": [0, 1]}
    return Recipe.model_validate({"name": "test", "model": {"id": "a/b"}, "saes": saes, "prompts": named, **more})


def load_rows(folder: Path, rows: Rows, **spec: Any) -> list[Prompt]:
    file = write_rows(folder / "rows.jsonl", rows)
    return load_prompts(make_recipe({"file": file, **COLUMNS, **spec}))


def texts(*values: Any, **more: Any) -> Rows:
    return [{"instruction": value, "label": "harmful", "category": "x", "split": "train", **more} for value in values]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".json", ".parquet"])
def test_every_format_gives_the_same_prompts(tmp_path: Path, suffix: str) -> None:
    prompts = load_prompts(make_recipe({"file": write_rows(tmp_path / f"rows{suffix}", ROWS), **COLUMNS}))
    first = ROWS[0]["instruction"]
    assert prompts[0] == Prompt("set0", "train", "harmful", "theft", first, hashlib.sha256(first.encode()).hexdigest()[:16])
    assert [prompt.text for prompt in prompts] == [row["instruction"] for row in ROWS]
    assert [prompt.category for prompt in prompts] == ["theft", None, "words"], "an empty cell is not a category"
    assert content_hash(prompts) == content_hash(load_rows(tmp_path, ROWS))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.text(st.characters(codec="utf-8"), min_size=1).filter(lambda t: not is_missing(t)), min_size=1, max_size=5, unique=True
    )
)
def test_any_unicode_text_survives_every_format(tmp_path_factory: pytest.TempPathFactory, values: list[str]) -> None:
    folder = tmp_path_factory.mktemp("round")
    for suffix in (".csv", ".jsonl", ".json", ".parquet"):
        file = write_rows(folder / f"rows{suffix}", texts(*values))
        prompts = load_prompts(make_recipe({"file": file, **COLUMNS}))
        assert [prompt.text for prompt in prompts] == values, suffix
        assert [prompt.prompt_hash for prompt in prompts] == [hash_prompt(value) for value in values]


def test_sets_come_in_recipe_order_with_constants(tmp_path: Path) -> None:
    one, two = write_rows(tmp_path / "1.csv", texts("b", "a")), write_rows(tmp_path / "2.json", texts("c"))
    recipe = make_recipe(
        {"file": two, "label": "benign", "split": "test"},
        {"file": one, "label": "harmful", "category": "all", "split": "train"},
    )
    found = [(p.set, p.split, p.label, p.category, p.text) for p in load_prompts(recipe)]
    assert found == [
        ("set0", "test", "benign", None, "c"),
        ("set1", "train", "harmful", "all", "b"),
        ("set1", "train", "harmful", "all", "a"),
    ]


def test_content_hash_tells_fields_apart() -> None:
    prompt = Prompt("s", "train", "harmful", None, "text", hash_prompt("text"))
    others = [
        Prompt("s", "train", "harmful", "", "text", prompt.prompt_hash),
        Prompt("st", "rain", "harmful", None, "text", prompt.prompt_hash),
    ]
    assert len({content_hash([one]) for one in [prompt, *others]}) == 3
    assert content_hash([prompt, others[0]]) != content_hash([others[0], prompt])


def test_labels_are_renamed_by_map(tmp_path: Path) -> None:
    rows = texts("a", label="unsafe") + texts("b", label="benign")
    found = load_rows(tmp_path, rows, label={"column": "label", "map": {"unsafe": "harmful"}})
    assert [prompt.label for prompt in found] == ["harmful", "benign"]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".json", ".parquet"])
def test_where_keeps_rows_by_value_whatever_the_format(tmp_path: Path, suffix: str) -> None:
    rows = texts("a", n=1, ok=True) + texts("b", n=2, ok=True) + texts("c", n=3, ok=False)
    if suffix == ".csv":
        rows = [row | {"ok": str(row["ok"]).lower()} for row in rows]
    spec = {"file": write_rows(tmp_path / f"rows{suffix}", rows), **COLUMNS}

    def kept(where: dict[str, Any]) -> list[str]:
        return [prompt.text for prompt in load_prompts(make_recipe({**spec, "where": where}))]

    assert kept({"n": [1, 3]}) == ["a", "c"]
    assert kept({"ok": True}) == ["a", "b"]
    assert kept({"n": [2, 3], "ok": True}) == ["b"]


def test_deduplicate_keeps_the_first_and_count_is_asserted_after_it(tmp_path: Path) -> None:
    rows = texts("a", "b", "a", "c")
    assert [p.text for p in load_rows(tmp_path, rows, deduplicate=True, count=3)] == ["a", "b", "c"]
    assert [p.text for p in load_rows(tmp_path, rows, deduplicate=True, take=2)] == ["a", "b"]
    with pytest.raises(UserError, match=r"prompt set 'set0' has 3 prompts, but its count says 4$"):
        load_rows(tmp_path, rows, deduplicate=True, count=4)


def test_a_label_is_any_text_and_one_of_them_is_the_studys(tmp_path: Path) -> None:
    found = load_rows(tmp_path, texts("a") + texts("b", label="odd"), label={"column": "label"})
    assert [prompt.label for prompt in found] == ["harmful", "odd"]
    with pytest.raises(UserError, match="no prompt is labelled harmful or benign: the labels are 'bad'; say which is which with"):
        load_rows(tmp_path, texts("a", label="bad"), label={"column": "label"})


def test_fractions_are_exact_within_label_and_category_and_ignore_row_order(tmp_path: Path) -> None:
    rows = texts(*[f"h{n}" for n in range(10)]) + texts(*[f"b{n}" for n in range(20)], label="benign")
    spec = {"split": {"train": 0.4, "val": 0.2, "test": 0.4, "seed": 1}}
    prompts = load_rows(tmp_path, rows, **spec)
    counts = {(label, split): 0 for label in ("harmful", "benign") for split in ("train", "val", "test")}
    for prompt in prompts:
        counts[prompt.label, prompt.split] += 1
    assert list(counts.values()) == [4, 2, 4, 8, 4, 8]
    split_of = {prompt.text: prompt.split for prompt in prompts}
    assert {prompt.text: prompt.split for prompt in load_rows(tmp_path, rows[::-1], **spec)} == split_of
    reseeded = load_rows(tmp_path, rows, split={"train": 0.4, "val": 0.2, "test": 0.4, "seed": 2})
    assert {prompt.text: prompt.split for prompt in reseeded} != split_of


def test_limit_takes_the_first_of_every_group_with_unchanged_splits(tmp_path: Path) -> None:
    rows = texts(*[f"h{n}" for n in range(10)]) + texts(*[f"b{n}" for n in range(10)], label="benign")
    file = write_rows(tmp_path / "rows.csv", rows)
    recipe = make_recipe({"file": file, "label": {"column": "label"}})
    everything, few = load_prompts(recipe), load_prompts(recipe.limit(1))
    assert len(few) == 6, "two labels, three splits"
    assert set(few) <= set(everything)
    assert [p for p in everything if p in few] == few
    require_splits(recipe, few)


def test_a_text_may_stand_in_two_sets_but_not_with_two_labels(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.csv", texts("a"))
    both = make_recipe({"file": file, "label": "harmful"}, {"file": file, "label": "harmful"})
    assert len({prompt.prompt_hash for prompt in load_prompts(both)}) == 1
    with pytest.raises(UserError, match=r"'a' is harmful in set 'set0', but benign in set 'set1'"):
        load_prompts(make_recipe({"file": file, "label": "harmful"}, {"file": file, "label": "benign"}))


@pytest.mark.parametrize(
    ("rows", "spec", "expected"),
    [
        (texts("a"), {"text": "prompt"}, "no column 'prompt' in row 1: the columns are instruction, label, category, split"),
        (texts("a"), {"where": {"kind": "x"}}, "no column 'kind' in row 1"),
        ([*texts("a"), {"instruction": "b"}], {}, "no column 'label' in row 2: the columns are instruction"),
        (texts("a", "b", "a"), {}, "rows 1 and 3 are the same prompt; deduplicate = true keeps the first"),
        (texts("a", None), {}, "row 2: column 'instruction' holds nothing instead of a text"),
        (texts("a", 7), {}, "row 2: column 'instruction' holds 7 instead of a text"),
        (texts("a", "  "), {}, "row 2: column 'instruction' holds '  ' instead of a text"),
        (texts("a", label=None), {}, "row 1: column 'label' (label) is empty"),
        (texts("a", split=""), {}, "row 1: column 'split' (split) is empty"),
        (texts("a"), {"where": {"label": "benign"}}, "prompt set 'set0' is empty: no row is left after where"),
        (texts("a"), {"sha256": "0" * 64}, "but the recipe says 0000"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, rows: Rows, spec: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError) as caught:
        load_rows(tmp_path, rows, **spec)
    assert expected in str(caught.value)
    assert "prompt set 'set0'" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("x.jsonl", b'{"instruction": "a"}\nnonsense\n', "x.jsonl is not a readable .jsonl file"),
        ("x.jsonl", b"[1]\n", "row 1 of x.jsonl is not an object"),
        ("x.json", b'{"a": 1}', "has no column 'instruction' in row 1: the columns are a"),
        ("x.csv", b"instruction,label\na,b,c\n", "row 1 has another number of cells than the header"),
        ("x.csv", b"instruction\n\xff\xfe\n", "x.csv is not a readable .csv file"),
        ("x.csv", b"", "prompt set 'set0' is empty"),
        ("x.parquet", b"PAR1 broken", "x.parquet is not a readable .parquet file"),
        ("x.txt", b"a", "x.txt is none of .csv, .jsonl, .json, .parquet"),
        ("x.json", b'[{"instruction": "\\ud800"}]', "instead of a text"),
    ],
)
def test_unreadable_files_are_named(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_prompts(make_recipe({"file": tmp_path / name, "label": "harmful"}))
    assert expected in str(caught.value)


def test_file_that_vanished_after_the_recipe_was_read(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.csv", texts("a"))
    recipe = make_recipe({"file": file, "label": "harmful"})
    file.unlink()
    with pytest.raises(UserError, match=r"there is no file .*rows\.csv"):
        load_prompts(recipe)


def test_splits_that_the_stages_need_are_required(tmp_path: Path) -> None:
    recipe = make_recipe({"file": write_rows(tmp_path / "rows.csv", texts("a")), "label": "harmful", "split": "train"})
    with pytest.raises(UserError, match=r"direction\.split is 'train', but no benign prompt is in that split"):
        require_splits(recipe, load_prompts(recipe))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Path]]:
    """A local web server and the folder that it serves; downloads are cached in a folder of the test."""
    monkeypatch.setenv("SAELAKE_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "site"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            """Says nothing."""

    with answering(functools.partial(Quiet, directory=folder)) as address:
        yield address, folder


def from_url(url: str, sha256: str) -> list[Prompt]:
    return load_prompts(make_recipe({"url": url, "sha256": sha256, **COLUMNS}))


def test_url_is_verified_cached_and_fetched_again_when_the_copy_is_damaged(site: tuple[str, Path]) -> None:
    address, folder = site
    file = write_rows(folder / "rows.json", ROWS)
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    first = from_url(f"{address}/rows.json?raw=1", sha256)
    copy = sources.cache_folder() / f"{sha256}.json"
    copy.write_text("damaged")
    assert from_url(f"{address}/rows.json", sha256) == first
    file.unlink()
    assert from_url(f"{address}/rows.json", sha256) == first, "the cached copy is enough"
    assert [one.name for one in copy.parent.iterdir()] == [copy.name], "nothing half-done is left"


def test_url_with_another_hash_is_refused(site: tuple[str, Path]) -> None:
    address, folder = site
    write_rows(folder / "rows.json", ROWS)
    with pytest.raises(UserError, match=r"has sha256 [0-9a-f]{64}, but the recipe says 0000.*the file has changed"):
        from_url(f"{address}/rows.json", "0" * 64)
    assert not list(sources.cache_folder().iterdir())


def test_url_that_is_not_there_or_too_large(site: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    address, folder = site
    with pytest.raises(UserError, match=r"rows\.json cannot be fetched \(HTTP Error 404"):
        from_url(f"{address}/rows.json", "0" * 64)
    write_rows(folder / "rows.json", ROWS)
    monkeypatch.setattr(sources, "MAX_DOWNLOAD_BYTES", 10)
    with pytest.raises(UserError, match="larger than 10 bytes"):
        from_url(f"{address}/rows.json", "0" * 64)


@pytest.mark.parametrize("name", ["train.jsonl", "data/train-00000-of-00001.parquet", "train.csv"])
def test_hub_data_set_in_the_cache_loads_offline(offline_hub: Path, name: str) -> None:
    file = as_hub_cache(offline_hub, "acme/prompts", "a" * 40, "datasets") / name
    file.parent.mkdir(exist_ok=True)
    write_rows(file, ROWS)
    prompts = load_prompts(make_recipe({"hub": "acme/prompts", "revision": "a" * 40, **COLUMNS}))
    assert [(p.text, p.category) for p in prompts] == [(row["instruction"], row["category"]) for row in ROWS]
    assert len(load_prompts(make_recipe({"hub": "acme/prompts", "take": 2, **COLUMNS}))) == 2


def test_hub_configs_and_splits_are_those_of_the_data_sets_card(offline_hub: Path) -> None:
    snapshot = as_hub_cache(offline_hub, "acme/prompts", "a" * 40, "datasets")
    write_rows(snapshot / "one.jsonl", ROWS[:1])
    write_rows(snapshot / "two.jsonl", ROWS[1:])
    card = "---\nconfigs:\n- config_name: pref\n  data_files:\n  - split: held_out\n    path: two.jsonl\n---\n"
    (snapshot / "README.md").write_text(card)
    spec = {"hub": "acme/prompts", "config": "pref", "hub_split": "held_out", **COLUMNS}
    assert [p.text for p in load_prompts(make_recipe(spec))] == [row["instruction"] for row in ROWS[1:]]
    with pytest.raises(UserError, match="hub data set acme/prompts cannot be read"):
        load_prompts(make_recipe(spec | {"hub_split": "nope"}))


def test_hub_data_set_that_is_not_there(offline_hub: Path) -> None:
    with pytest.raises(UserError, match="hub data set acme/none cannot be read"):
        load_prompts(make_recipe({"hub": "acme/none", **COLUMNS}))


def test_more_prompts_than_there_are_cannot_be_taken(tmp_path: Path) -> None:
    assert len(load_rows(tmp_path, texts("a", "b"), take=2)) == 2
    with pytest.raises(UserError, match="'set0' has only 2 prompts, but its take says 3"):
        load_rows(tmp_path, texts("a", "b"), take=3)
    with pytest.raises(UserError, match="'set0' has only 1 prompts, but its take says 2"):
        load_rows(tmp_path, texts("a", "a"), take=2, deduplicate=True)


def test_a_share_that_no_prompt_falls_into_is_named(tmp_path: Path) -> None:
    rows = texts("a", "b", "c")
    with pytest.raises(UserError, match=r"no prompt falls into split 'val', whose share is 0\.1 of 3 prompts"):
        load_rows(tmp_path, rows, split={"train": 0.5, "test": 0.4, "val": 0.1})
    file = write_rows(tmp_path / "few.jsonl", texts("a"))
    assert load_prompts(make_recipe({"file": file, "label": "harmful"})), "shares that no recipe names"


def test_the_split_of_the_diagnostic_has_prompts(tmp_path: Path) -> None:
    file = write_rows(
        tmp_path / "rows.jsonl",
        [{"instruction": f"{a}{b}", "label": a, "split": b} for a in ("harmful", "benign") for b in ("train", "val", "test")],
    )
    spec = {"file": file, "label": {"column": "label"}, "split": {"column": "split"}}
    require_splits(recipe := make_recipe(spec), prompts := load_prompts(recipe))
    recipe = make_recipe(spec, diagnostic={"split": "tset"})
    with pytest.raises(UserError, match=r"diagnostic\.split is 'tset', but no prompt is in that split: the splits are"):
        require_splits(recipe, prompts)
