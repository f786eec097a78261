"""The static pages of a shared set: what is written for them is what the lake says, and nothing of what is left out."""

import hashlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from saelake import cli
from saelake.analysis.explorer.orders import ORDERS
from saelake.analysis.served.cards import samples_of
from saelake.analysis.static_pages import tables
from saelake.analysis.static_pages.index import LOOKUPS
from saelake.analysis.static_pages.write import STATIC, VENDORED, write_pages
from saelake.queries.rows import rows
from saelake.warehouse.catalog import connect
from saelake.warehouse.check import check
from saelake.warehouse.lake import Lake
from saelake.warehouse.sharing.add import add
from saelake.warehouse.sharing.share import Choice, share
from tests.lakes import build_lake

FEATURES = "select layer, sae_id, feature_id from features order by layer, sae_id, feature_id"


@pytest.fixture(scope="module")
def con(planted_lake: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    with connect(Lake.existing(planted_lake), "planted") as con:
        yield con


@pytest.fixture(scope="module")
def folder(planted_lake: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site") / "set"
    shared_with_pages(Lake.existing(planted_lake), folder, "planted", Choice(by_ranges=True))
    return folder


def shared_with_pages(lake: Lake, folder: Path, study: str, choice: Choice) -> None:
    share(lake, folder, choice, then=partial(write_pages, study=study))


def told(folder: Path, name: str) -> Any:
    return json.loads((folder / "site" / name).read_text("utf-8"))


def only(folder: Path, file: dict[str, Any], groups: list[list[Any]], copy: Path) -> pq.ParquetFile:
    """A Parquet file of which nothing is left but its footer and the bytes that the index gives for some row groups."""
    whole = (folder / file["path"]).read_bytes()
    footer = int.from_bytes(whole[-8:-4], "little") + 8
    kept = bytearray(len(whole))
    kept[-footer:] = whole[-footer:]
    for _, _, _, first, *sizes in groups:
        kept[first : first + sum(sizes)] = whole[first : first + sum(sizes)]
    copy.write_bytes(kept)
    return pq.ParquetFile(copy)


def found(folder: Path, file: dict[str, Any], key: int, columns: tuple[str, ...], copy: Path) -> list[dict[str, Any]]:
    """The rows of the row groups that may hold a key, read from their bytes alone."""
    groups = [group for group in file["groups"] if group[1] is None or int(group[1]) <= key <= int(group[2])]
    parquet = only(folder, file, groups, copy)
    numbers = [number for number in range(parquet.metadata.num_row_groups) if file["groups"][number] in groups]
    return parquet.read_row_groups(numbers, columns=list(columns)).to_pylist() if numbers else []


@pytest.mark.parametrize("table", ["activations", "feature_logits"])
def test_the_index_gives_the_bytes_that_hold_a_features_rows(
    table: str, folder: Path, con: duckdb.DuckDBPyConnection, tmp_path: Path
) -> None:
    columns = LOOKUPS[table].columns
    for number, sae in enumerate(told(folder, "index.json")["saes"]):
        files = told(folder, f"saes/{number}.json")[table]
        for feature_id in (0, 5, 17, 23):
            parts = [row for file in files for row in found(folder, file, feature_id, columns, tmp_path / "part.parquet")]
            mine = [tuple(row.values()) for row in parts if (row["sae_id"], row["feature_id"]) == (sae["sae_id"], feature_id)]
            asked = f"select {', '.join(columns)} from {table} where sae_id = ? and feature_id = ? order by all"
            assert sorted(mine) == con.execute(asked, [sae["sae_id"], feature_id]).fetchall(), (sae, feature_id)


def test_the_index_gives_the_bytes_of_a_prompts_tokens(folder: Path, con: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    (file,) = told(folder, "index.json")["tokens"]
    columns = LOOKUPS["tokens"].columns
    for (prompt_id,) in con.sql("select prompt_id from prompts order by prompt_id").fetchall()[::7]:
        parts = found(folder, file, prompt_id, columns, tmp_path / "part.parquet")
        mine = [tuple(row.values()) for row in parts if row["prompt_id"] == prompt_id]
        asked = f"select {', '.join(columns)} from tokens where prompt_id = ? order by all"
        assert sorted(mine) == con.execute(asked, [prompt_id]).fetchall()


def test_a_large_table_is_cut_so_that_few_bytes_are_read(organism_lake: Path, tmp_path: Path) -> None:
    shared_with_pages(
        Lake.existing(organism_lake), tmp_path / "set", "organism", Choice(by_ranges=True, tables=("feature_logits", "saes"))
    )
    files = told(tmp_path / "set", "saes/3.json")["feature_logits"]
    for feature_id in (0, 177, 511):
        groups = [group for file in files for group in file["groups"] if group[1] <= feature_id <= group[2]]
        assert groups
        assert sum(sum(group[4:]) for group in groups) < 100_000


def test_a_card_says_what_the_explorer_says(folder: Path, con: duckdb.DuckDBPyConnection) -> None:
    cards = {}
    for number, _ in enumerate(told(folder, "index.json")["saes"]):
        for row in pq.read_table(folder / "site" / "saes" / f"{number}.parquet").to_pylist():
            cards[row["sae_id"], row["feature_id"]] = row
    assert len(cards) == con.execute("select count(*) from features").fetchall()[0][0]
    for layer, sae_id, feature_id in con.execute(FEATURES).fetchall():
        one, asked = cards[sae_id, feature_id], {"layer": layer, "feature_id": feature_id}
        (facts,) = rows(con, "feature_facts", **asked)
        assert {name: one[name] for name in facts if name != "q_value"} == {n: v for n, v in facts.items() if n != "q_value"}
        assert json.loads(one["sets"] or "[]") == rows(con, "feature_in_sets", **asked)
        roles = {(row["population"], row["n_prompts"]) for row in rows(con, "causal_roles", **asked) if row["is_current"]}
        assert {(row["population"], row["n_prompts"]) for row in json.loads(one["roles"] or "[]")} == roles
        for row in rows(con, "logits", features=[(layer, feature_id)]):
            assert (one["skewness"], one["kurtosis"]) == (row["skewness"], row["kurtosis"])
        bins = rows(con, "densities", sae_id=sae_id, feature_id=feature_id)
        assert one["density"] == next((place for place, row in enumerate(bins) if row["is_here"]), None)
        require_edges(con, one, asked)
        require_effects(con, one, asked)
    for part in ("sets", "roles", "effects", "backed", "backs", "wakes", "woken", "nearest"):
        assert any(card[part] for card in cards.values()), part


def require_edges(con: duckdb.DuckDBPyConnection, card: dict[str, Any], asked: dict[str, Any]) -> None:
    """What stands in for a feature, wakes and lies near is what the questions about it answer."""
    told = {way: json.loads(card[way] or "[]") for way in ("backed", "backs", "wakes", "woken", "nearest")}
    theirs = rows(con, "feature_backups", **asked) + rows(con, "neighbours", **asked)
    theirs += [row | {"way": "nearest"} for row in rows(con, "nearest_rows", **asked)]
    for way, mine in told.items():
        others = [row for row in theirs if row["way"] == way]
        assert len(mine) == len(others), (asked, way)
        for one, other in zip(mine, others, strict=True):
            names = {name: name if name in other else f"other_{name}" for name in one}
            assert one == {name: other[named] for name, named in names.items()}, (asked, way)


def require_effects(con: duckdb.DuckDBPyConnection, card: dict[str, Any], asked: dict[str, Any]) -> None:
    """What ablating a feature alone does is what the question about it answers, without what the model said."""
    theirs = rows(con, "feature_effects", **asked)
    mine = json.loads(card["effects"] or '{"prompts": []}')
    assert len(mine["prompts"]) == len(theirs)
    for one, other in zip(mine["prompts"], theirs, strict=True):
        assert (one["label"], one["text"], one["flipped"]) == (other["label"], other["text"], other["flipped"])
        assert (one["p_clean"], one["p_target"]) == pytest.approx((other["p_clean"], other["p_target"]), rel=1e-12)
        assert (mine["n_prompts"], mine["n_flipped"]) == (other["n_prompts"], other["n_flipped"])
        assert mine["mean_fall"] == pytest.approx(other["mean_fall"], abs=1e-9)


def test_lists_come_in_the_explorers_order(folder: Path, con: duckdb.DuckDBPyConnection) -> None:
    saes = told(folder, "index.json")["saes"]
    for name, sae_id in (("features.json", None), *((f"saes/{n}-features.json", sae["sae_id"]) for n, sae in enumerate(saes))):
        listed = told(folder, name)
        for order in ORDERS:
            mine = [listed["rows"][place] for place in listed["orders"][order]]
            theirs = rows(con, "feature_list", order=order, limit=tables.LISTED, sae_id=sae_id)
            assert mine == theirs, (name, order)


def test_what_is_too_much_for_a_browser_is_written(
    planted_lake: Path, con: duckdb.DuckDBPyConnection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "MOST_FIRINGS", 200)
    monkeypatch.setattr(tables, "AT_ONCE", 2)
    shared_with_pages(Lake.existing(planted_lake), tmp_path / "set", "planted", Choice(by_ranges=True))
    dense = 0
    for number, _ in enumerate(told(tmp_path / "set", "index.json")["saes"]):
        for card in pq.read_table(tmp_path / "set" / "site" / "saes" / f"{number}.parquet").to_pylist():
            assert (card["firing"] is not None) == (card["n_tokens"] > 200)
            if card["firing"] is None:
                continue
            dense += 1
            key = (card["sae_id"], card["feature_id"])
            firing = json.loads(card["firing"])
            assert firing["counts"] == [row["n_tokens"] for row in rows(con, "histogram", features=[key])]
            samples = samples_of(con, [key])[key]
            assert [one["activation"] for one in firing["samples"]] == [sample.activation for sample in samples]
            shown = [[t.text, t.strength, t.is_template, t.is_top] for t in samples[0].tokens]
            assert firing["samples"][0]["tokens"] == shown
    assert dense


def test_nothing_that_is_left_out_is_in_the_pages(tmp_path: Path) -> None:
    lake = build_lake(tmp_path / "lake")
    shared_with_pages(lake, tmp_path / "set", "small", Choice(restricted=("hand",), by_ranges=True))
    for path in (p for p in tmp_path.glob("set/site/**/*") if p.suffix in (".json", ".parquet")):
        held = str(pq.read_table(path).to_pylist()) if path.suffix == ".parquet" else path.read_text("utf-8")
        assert not [one for one in ("drop table", "text 0", "a0", "b3") if f"{one}" in held.split("'")], path
    (file,) = told(tmp_path / "set", "index.json")["tokens"]
    tokens = pq.read_table(tmp_path / "set" / file["path"]).to_pylist()
    assert {row["token"] for row in tokens if row["role"] == "user"} == {""}
    assert {row["token"] for row in tokens} > {""}


def test_tables_that_are_left_out_are_named(planted_lake: Path, tmp_path: Path) -> None:
    chosen = ("prompts", "saes", "features", "ablations", "verdicts")
    shared_with_pages(Lake.existing(planted_lake), tmp_path / "set", "planted", Choice(tables=chosen, by_ranges=True))
    index = told(tmp_path / "set", "index.json")
    assert {"activations", "tokens", "feature_logits", "feature_sets", "populations"} <= set(index["absent"])
    assert not set(chosen) & set(index["absent"])
    assert index["tokens"] == []
    assert told(tmp_path / "set", "saes/0.json")["activations"] == []
    assert told(tmp_path / "set", "conditions.json")[0]["condition"] == "none"


def test_a_set_with_pages_is_whole_and_can_be_added(folder: Path, tmp_path: Path) -> None:
    lines = [line.split("  ") for line in (folder / "SHA256SUMS").read_text().splitlines()]
    assert {"index.html", "site/index.json", "site/hyparquet.js", "site/saes/0.parquet"} <= {name for _, name in lines}
    assert all(hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest for digest, name in lines)
    other = Lake.create(tmp_path / "other")
    assert add(other, folder).studies == ("planted",)
    assert check(other) == []


def test_the_command_says_where_the_page_is_and_needs_one_study(planted_lake: Path, tmp_path: Path) -> None:
    run = partial(CliRunner().invoke, cli.main)
    done = run(["share", str(tmp_path / "set"), "--site", "--lake", str(planted_lake)])
    assert done.exit_code == 0, done.output
    assert f"{tmp_path}/set/index.html" in done.output
    assert (tmp_path / "set" / "index.html").is_file()
    lake = build_lake(tmp_path / "two")
    build_lake(tmp_path / "two", "other", 1)
    done = run(["share", str(tmp_path / "both"), "--site", "--lake", str(lake.root)])
    assert "holds several studies (other, small): choose one with --recipe" in done.output
    assert not (tmp_path / "both").exists()


def test_the_library_is_the_pinned_one_with_its_licences() -> None:
    pins = json.loads((VENDORED / "pins.json").read_text("utf-8"))
    library = (VENDORED / "hyparquet.js").read_bytes()
    assert hashlib.sha256(library).hexdigest() == pins["hyparquet.js"]["sha256"]
    for name in (name for name, pin in pins.items() if "ships" in pin):
        assert f"{name} {pins[name]['version']} ({pins[name]['licence']})".encode() in library.splitlines()[0]
        assert "Permission is hereby granted" in (VENDORED / f"{name}.LICENSE").read_text("utf-8")


@pytest.mark.parametrize(
    "script", [file for file in STATIC if file.suffix == ".js" and file.parent != VENDORED], ids=lambda f: f.name
)
def test_a_script_never_makes_html_of_a_text(script: Path) -> None:
    text = script.read_text("utf-8")
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", "style="):
        assert word not in text
    if shutil.which("node"):
        subprocess.run(["node", "--check", "--input-type=module"], input=text, text=True, check=True)
