"""Sharing and adding: what travels, what stays behind, and what a lake looks like after it."""

import hashlib
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import saelake
from saelake.warehouse.check import check
from saelake.warehouse.durable import try_locked
from saelake.warehouse.errors import UserError
from saelake.warehouse.housekeeping import gc
from saelake.warehouse.keys import record_key
from saelake.warehouse.lake import Lake
from saelake.warehouse.runs import whole_run
from saelake.warehouse.schema import TABLES
from saelake.warehouse.sharing import share as sharing
from saelake.warehouse.sharing.add import add
from saelake.warehouse.sharing.names import data_name, lake_names
from saelake.warehouse.sharing.share import Choice, share
from tests.conftest import ROOT
from tests.warehouse.toys import answers, ingest

COUNTS = "select count(*), sum(feature_id), sum(pos) from activations"


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    lake = Lake.create(tmp_path_factory.mktemp("lakes") / "mine")
    ingest(lake)
    answers(lake)
    return lake


@pytest.fixture
def shared(lake: Lake, tmp_path: Path) -> Path:
    share(lake, tmp_path / "set")
    return tmp_path / "set"


def rows(lake: Lake, statement: str) -> list[tuple[object, ...]]:
    with saelake.open(lake.root) as opened:
        return opened.sql(statement).fetchall()


def test_a_set_added_to_an_empty_lake_answers_the_same(lake: Lake, shared: Path, tmp_path: Path) -> None:
    other = Lake.create(tmp_path / "other")
    assert add(other, shared).studies == ("toy0",)
    assert check(other) == []
    tables = {table.name for record in lake.records() for table in record.tables}
    for table in sorted(tables - {"ablations"}):
        assert rows(lake, f"select * from {table} order by all") == rows(other, f"select * from {table} order by all"), table
    assert rows(lake, COUNTS) == rows(other, COUNTS)


def test_completions_to_harmful_prompts_stay_behind(lake: Lake, shared: Path, tmp_path: Path) -> None:
    told = "select ablation_id, label, completion from ablations join prompts using (prompt_id) order by ablation_id"
    before = rows(lake, told)
    add(Lake.create(tmp_path / "other"), shared)
    after = rows(Lake(tmp_path / "other"), told)
    assert {label for _, label, _ in before} == {"harmful", "benign"}
    for (_, label, mine), (_, _, theirs) in zip(before, after, strict=True):
        assert str(theirs).startswith("withheld:") if label == "harmful" and mine else theirs == mine
    assert "left out" in (shared / "README.md").read_text()


def test_completions_are_shared_where_they_are_asked_for(lake: Lake, tmp_path: Path) -> None:
    share(lake, tmp_path / "set", Choice(with_completions=True))
    add(Lake.create(tmp_path / "other"), tmp_path / "set")
    told = "select * from ablations order by ablation_id"
    assert rows(lake, told) == rows(Lake(tmp_path / "other"), told)
    assert "**included**" in (tmp_path / "set" / "README.md").read_text()


def test_restricted_sets_lose_their_text_and_their_tokens(lake: Lake, tmp_path: Path) -> None:
    (name,) = rows(lake, 'select distinct "set" from prompts')[0]
    share(lake, tmp_path / "set", Choice(restricted=(str(name),)))
    other = Lake.create(tmp_path / "other")
    add(other, tmp_path / "set")
    assert check(other) == []
    assert rows(other, "select count(*) from prompts where text <> ''") == [(0,)]
    assert rows(other, "select count(*) from tokens where role = 'user' and (token <> '' or token_id <> 0)") == [(0,)]
    assert rows(other, "select count(*) from ablations where completion not like 'withheld:%' and completion <> ''") == [(0,)]
    assert rows(other, COUNTS) == rows(lake, COUNTS)
    assert str(name) in (tmp_path / "set" / "README.md").read_text()


def test_chosen_tables_and_runs_only(lake: Lake, tmp_path: Path) -> None:
    (record,) = share(lake, tmp_path / "set", Choice(tables=("features", "saes")))
    assert [p.name for p in sorted((tmp_path / "set" / "data").iterdir())] == ["features", "saes"]
    other = Lake.create(tmp_path / "other")
    add(other, tmp_path / "set")
    assert check(other) == []
    with pytest.raises(UserError, match=r"activations is not here: run \w+ was shared without activations, prompts, tokens"):
        rows(other, "select count(*) from activations")
    assert whole_run(other, record.run_id) is None, "an analysis must not build on a part of a run"


def test_an_incomplete_run_is_computed_again_and_then_whole(shared: Path, tmp_path: Path) -> None:
    other = Lake.create(tmp_path / "other")
    add(other, shared)
    assert rows(other, "select count(*) from ablations where completion like 'withheld:%'") != [(0,)]
    answers(other)
    assert rows(other, "select count(*) from ablations where completion like 'withheld:%'") == [(0,)]
    assert all(f.note for f in check(other))
    gc(other, older_than_seconds=0)
    assert check(other) == []


def test_adding_twice_changes_nothing(shared: Path, tmp_path: Path) -> None:
    other = Lake.create(tmp_path / "other")
    add(other, shared)
    before = {p: p.stat().st_mtime_ns for p in (other.root / "data").rglob("*.parquet")}
    again = add(other, shared)
    assert (len(again.published), len(again.known)) == (0, 2)
    assert {p: p.stat().st_mtime_ns for p in (other.root / "data").rglob("*.parquet")} == before


def test_adding_to_the_lake_it_came_from_keeps_the_whole_runs(lake: Lake, shared: Path) -> None:
    assert not add(lake, shared).published
    assert rows(lake, "select count(*) from ablations where completion like 'withheld:%'") == [(0,)]


def test_a_set_takes_nothing_from_a_run_that_the_lake_has(lake: Lake, shared: Path, tmp_path: Path) -> None:
    other, answers_alone = Lake.create(tmp_path / "other"), tmp_path / "answers"
    share(lake, answers_alone, Choice(tables=("ablations", "verdicts"), with_completions=True))
    add(other, shared)
    gc(other, older_than_seconds=0)
    before = [table for record in other.records() for table in record.tables]
    says = r"comes without feature_sets, which the lake has, and the lake has it without ablations\.completion"
    with pytest.raises(UserError, match=says):
        add(other, answers_alone)
    assert [table for record in other.records() for table in record.tables] == before
    share(lake, tmp_path / "sets", Choice(tables=("feature_sets",), with_completions=True))
    assert not add(other, tmp_path / "sets").published, "a table that is left out lacks all its columns"
    share(lake, tmp_path / "whole", Choice(with_completions=True))
    (whole,) = add(other, tmp_path / "whole").published
    assert not whole.withheld, "it has all that the lake has, and more"


def test_a_study_of_the_same_name_needs_another_one(lake: Lake, shared: Path, tmp_path: Path) -> None:
    other = Lake.create(tmp_path / "other")
    share(lake, tmp_path / "ingest", Choice(runs=tuple(r.run_id for r in lake.records() if r.stage == "ingest")))
    ingest(other, seed=1)
    (other.root / "current" / "toy1").rename(other.root / "current" / "toy0")
    with pytest.raises(UserError, match="has a study toy0 of its own"):
        add(other, shared)
    assert add(other, shared, name="theirs").studies == ("theirs",)
    with saelake.open(other.root, recipe="theirs") as theirs, saelake.open(lake.root) as mine:
        assert theirs.sql(COUNTS).fetchall() == mine.sql(COUNTS).fetchall()
    assert len({run_id for (recipe, _), run_id in other.current().items() if recipe == "toy0"}) == 1
    assert [f for f in check(other) if not f.note] == []


def test_a_run_with_other_content_is_refused(shared: Path, tmp_path: Path) -> None:
    other = Lake.create(tmp_path / "other")
    add(other, shared)
    record = next(r for r in other.records() if r.stage == "ingest")
    changed = tuple(replace(t, content_hash="0" * 64) for t in record.tables)
    other.published.write(record_key(record.run_id), replace(record, tables=changed).to_json())
    with pytest.raises(UserError, match="with other content in"):
        add(other, shared)


DIE = """
import os, signal, sys
from pathlib import Path
from saelake.warehouse.storage import Folder
from saelake.warehouse.lake import Lake
from saelake.warehouse.sharing import add as adding

place = Folder if sys.argv[1] == "write" else adding
real, left = getattr(place, sys.argv[1]), int(sys.argv[2])

def dying(*given, **named):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*given, **named)

setattr(place, sys.argv[1], dying)
adding.add(Lake(Path(sys.argv[3])), Path(sys.argv[4]))
"""


@pytest.mark.parametrize(
    ("function", "call", "n_visible"),
    [
        ("write_table", 1, 0),
        ("write_table", 9, 0),
        ("_publish", 1, 0),
        ("write", 1, 0),
        ("write", 2, 1),
        ("write", 3, 2),
    ],
)
def test_a_killed_add_shows_no_half_run_and_the_same_command_finishes(
    function: str, call: int, n_visible: int, lake: Lake, shared: Path, tmp_path: Path
) -> None:
    other = Lake.create(tmp_path / "other")
    killed = [sys.executable, "-c", DIE, function, str(call), str(other.root), str(shared)]
    assert subprocess.run(killed, cwd=ROOT, check=False).returncode == -signal.SIGKILL
    assert len(other.records()) == n_visible
    assert all(parent in {r.run_id for r in other.records()} for r in other.records() for parent in r.parents)
    assert [f for f in check(other) if not f.note] == []
    assert add(other, shared).studies == ("toy0",)
    gc(other, older_than_seconds=0)
    assert check(other) == []
    assert rows(other, COUNTS) == rows(lake, COUNTS)
    assert not [p for p in (other.root / "data").iterdir() if p.name.startswith(".")]


def test_the_sums_are_those_of_sha256sum(shared: Path) -> None:
    lines = [line.split("  ") for line in (shared / "SHA256SUMS").read_text().splitlines()]
    listed = {name: digest for digest, name in lines}
    files = {p.relative_to(shared).as_posix() for p in shared.rglob("*") if p.is_file()} - {"SHA256SUMS"}
    assert files == listed.keys()
    assert all(hashlib.sha256((shared / name).read_bytes()).hexdigest() == digest for name, digest in listed.items())
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=shared, check=True)


def test_files_are_copied_as_they_are_with_page_index_and_checksums(lake: Lake, shared: Path) -> None:
    record = next(r for r in lake.records() if r.stage == "ingest")
    for file in record.files:
        layer = Path(file.path).stem.removeprefix(file.table)
        copy = shared / "data" / file.table / f"{record.run_id}{'-' * bool(layer)}{layer}.parquet"
        assert copy.read_bytes() == (lake.root / file.path).read_bytes()
    for path in shared.glob("data/*/*.parquet"):
        column = pq.ParquetFile(path).metadata.row_group(0).column(0)
        assert column.has_offset_index


def test_row_groups_too_large_for_the_viewer_are_cut(lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "LARGEST_GROUP", 2_000)
    share(lake, tmp_path / "set")
    groups = [
        metadata.row_group(i).total_byte_size
        for path in (tmp_path / "set").glob("data/*/*.parquet")
        for metadata in [pq.ParquetFile(path).metadata]
        for i in range(metadata.num_row_groups)
        if metadata.row_group(i).num_rows > 1
    ]
    assert max(groups) <= 4_000, "estimated from the whole, so a little more is possible"
    other = Lake.create(tmp_path / "other")
    add(other, tmp_path / "set")
    assert rows(other, COUNTS) == rows(lake, COUNTS)


def test_mistakes_are_sentences_and_leave_nothing_behind(lake: Lake, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("precious")
    for choice, target, says in [
        (Choice(), "full", "not empty"),
        (Choice(recipe="nobody"), "set", "no study named 'nobody'"),
        (Choice(runs=("ingest_0",)), "set", "has no run ingest_0"),
        (Choice(tables=("feature",)), "set", "did you mean features"),
        (Choice(tables=("directions",)), "set", "none of the chosen runs has rows"),
        (Choice(restricted=("toyz",)), "set", "there is no prompt set 'toyz'"),
    ]:
        with pytest.raises(UserError, match=says):
            share(lake, tmp_path / target, choice)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["full"]


def test_a_damaged_lake_is_not_shared(lake: Lake, tmp_path: Path) -> None:
    copy = shutil.copytree(lake.root, tmp_path / "copy")
    path = next(copy.glob("data/*/activations/*.parquet"))
    damaged = bytearray(path.read_bytes())
    damaged[100] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(UserError, match="missing or damaged"):
        share(Lake(copy), tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_gc_leaves_the_files_alone_while_they_are_copied(lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_ids = [record.run_id for record in lake.records()]

    def is_free(run_id: str) -> bool:
        with try_locked(lake.lock(run_id)) as free:
            return free

    copied: list[bool] = []
    copy = shutil.copyfile

    def copyfile(source: Path, target: Path) -> object:
        copied.extend(is_free(run_id) for run_id in run_ids)
        return copy(source, target)

    monkeypatch.setattr(sharing.shutil, "copyfile", copyfile)
    share(lake, tmp_path / "set")
    assert copied
    assert not any(copied)
    assert all(is_free(run_id) for run_id in run_ids)


def test_the_card_describes_every_column_and_its_configs_are_the_folders(shared: Path) -> None:
    yaml = pytest.importorskip("yaml")
    text = (shared / "README.md").read_text()
    front = yaml.safe_load(text.split("---\n")[1])
    folders = {p.name for p in (shared / "data").iterdir()}
    assert {c["config_name"] for c in front["configs"]} == folders
    assert [c["config_name"] for c in front["configs"] if c.get("default")] == ["activations"]
    for table in folders:
        for column in TABLES[table].stored():
            assert f"| `{column.name}` | {column.type} | {column.meaning}" in text


def test_sparse_matrices_hold_the_activations(lake: Lake, shared: Path) -> None:
    with saelake.open(lake.root) as opened:
        matrix, prompts, features = opened.sparse(layer=1)
        largest = "select prompt_id, feature_id, max(activation) from activations where layer = 1 group by all order by all"
        expected = opened.sql(largest).fetchall()
        n_tokens = opened.sql("select count(*) from tokens").fetchall()[0][0]
    found = matrix.tocoo()
    coordinates = zip(prompts["prompt_id"][found.row], features["feature_id"][found.col], found.data, strict=True)
    assert sorted((int(p), int(f), float(v)) for p, f, v in coordinates) == expected
    files = str(shared / "data" / "activations" / "*.parquet")
    tensor, tokens, _ = saelake.sparse(files, layer=1, rows="token", library="torch")
    assert tensor.shape[0] == len(tokens["pos"]) == n_tokens
    assert np.array_equal(saelake.sparse(files, layer=1).matrix.toarray(), matrix.toarray())
    assert np.isclose(float(tensor.to_dense().max()), matrix.max())


def test_a_layer_has_one_name_in_a_set(lake: Lake) -> None:
    record = next(record for record in lake.records() if record.n_rows("activations"))
    files = tuple(replace(file, path=data_name(file, record.run_id)) for file in record.files)
    names = lake_names(replace(record, files=files))
    assert {data_name(replace(file, path=names[file.path]), record.run_id) for file in files} == set(names)
    of_layer = next(file for file in files if "-layer-" in file.path)
    for other in ("-layer-0", "-layer-000", "-layer-1234567", "-layer--1", "-layer-\u0661\u0661"):
        wrong = replace(of_layer, path=re.sub(r"-layer-\d\d", other, of_layer.path))
        with pytest.raises(ValueError, match="is not where a file"):
            lake_names(replace(record, files=(wrong,)))
