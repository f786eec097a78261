"""Damage never answers: whatever a statement selects from a damaged table, through whatever door, it fails with the sentence."""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import saelake
from saelake import cli, queries
from saelake.queries import QueryError
from saelake.warehouse.catalog import connect, current_runs, files_behind
from saelake.warehouse.check import check
from saelake.warehouse.errors import LeftOut, UserError
from saelake.warehouse.lake import Lake
from saelake.warehouse.literals import literal
from saelake.warehouse.sharing.add import add
from saelake.warehouse.sharing.share import Choice, share
from tests.lakes import build_lake

STATEMENTS = (
    "select count(*) from {}",
    "select 1 from {} limit 1",
    "select exists(from {})",
    "select * from {}",
    "select count(*) from (select run_id from {} using sample 1)",
    "select 1 from {} limit 0",
    "select max(2) from {} where false",
    "select count(*) from runs left join {} as t on t.run_id = runs.run_id",
    "select run_id from runs where exists (from {})",
)
NEEDED = {
    "features": "0:1", "integer": 0, "integers": [0], "text": "x", "number": 0.5, "boolean": True, "judge": "first_token",
    "layer": 0, "prompt": 0, "prompts": [], "sae": "sae0", "feature": 0,
}  # fmt: skip
SENTENCE = "`saelake check` says what to do"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    lake = build_lake(tmp_path_factory.mktemp("damage") / "lake")
    return lake.root


@pytest.fixture
def lake(sound: Path, tmp_path: Path) -> Lake:
    return Lake(Path(shutil.copytree(sound, tmp_path / "lake")))


def file_of(lake: Lake, table: str) -> Path:
    return lake.root / next(f.path for r in lake.records() for f in r.files if f.table == table)


def replaced(path: Path) -> None:
    pq.write_table(pa.table({"other": [1, 2, 3]}), path)


def same_size(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


DAMAGED: dict[str, tuple[str, Callable[[Path], None]]] = {
    "cut in half": ("verdicts", lambda path: os.truncate(path, path.stat().st_size // 2)),
    "missing": ("prompts", lambda path: path.unlink()),
    "another file": ("saes", replaced),
    "zeros": ("alignments", same_size),
    "empty": ("tokens", lambda path: os.truncate(path, 0)),
    "one of two layers": ("activations", lambda path: os.truncate(path.with_name("layer-01.parquet"), 9)),
}
POINTERS: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_text(""),
    "garbage": lambda path: path.write_bytes(b"\xff\x00 garbage\n/etc/passwd"),
    "absent run": lambda path: path.write_text("candidates_000000000000\n"),
    "another stage": lambda path: shutil.copy(path.with_name("ingest"), path),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


def refused(lake: Lake, statement: str) -> None:
    with saelake.open(lake.root) as opened, pytest.raises(UserError, match=SENTENCE):
        opened.sql(statement).fetchall()


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_table_never_answers(lake: Lake, name: str) -> None:
    table, damage = DAMAGED[name]
    damage(file_of(lake, table))
    for statement in STATEMENTS:
        refused(lake, statement.format(table))
        if statement.count("runs") == 0:
            refused(lake, statement.format(f"all_runs.{table}"))
    if name == "one of two layers":
        refused(lake, "select count(*) from activations_of(1)")
        with saelake.open(lake.root) as opened:
            assert opened.sql("select count(*) from activations_of(0)").fetchall() != [(0,)]
            with pytest.raises(UserError, match=SENTENCE):
                opened.sparse(layer=1)
    if name != "zeros":
        with pytest.raises(UserError, match=SENTENCE):
            files_behind(lake, current_runs(lake))
    result = CliRunner().invoke(cli.main, ["sql", f"select count(*) from {table}", "--lake", str(lake.root)])
    assert result.exit_code == 1
    assert re.search(rf"Error: {table} cannot be read \(.*\): {SENTENCE}", result.output)
    assert any(finding.path.startswith("data/") for finding in check(lake))


@pytest.mark.parametrize("name", DAMAGED)
def test_a_saved_catalog_never_answers_over_damage_that_came_later(lake: Lake, name: str) -> None:
    table, damage = DAMAGED[name]
    damage(file_of(lake, table))
    with duckdb.connect(lake.catalog, read_only=True) as con:
        con.execute(f"set variable lake = {literal(str(lake.root))}")
        for statement in (s.format(table) for s in STATEMENTS if "limit 0" not in s and "where false" not in s):
            with pytest.raises(duckdb.Error):
                con.execute(statement).fetchall()


@pytest.mark.parametrize("name", POINTERS)
def test_a_damaged_pointer_never_answers(lake: Lake, name: str) -> None:
    POINTERS[name](lake.root / "current/small/candidates")
    with saelake.open(lake.root) as opened:
        for statement in (*STATEMENTS, "select count(*) from {}"):
            for table in ("verdicts", "prompts", "runs"):
                with pytest.raises(UserError, match=r"current/small/candidates is damaged \(it .*delete it and repeat stage"):
                    opened.sql(statement.format(table)).fetchall()
        with pytest.raises(UserError, match="is damaged"):
            opened.sparse(layer=0)
        with pytest.raises(UserError, match="is damaged"):
            opened.sql("from activations_of(0)").fetchall()
        assert opened.sql("select count(*) from all_runs.runs").fetchall() == [(3,)]
    with pytest.raises(UserError, match="is damaged"):
        files_behind(lake, current_runs(lake))
    assert [f.path for f in check(lake) if not f.note] == ["current/small/candidates"]


@pytest.mark.parametrize("damage", ["verdicts", "pointer"])
def test_every_question_over_damage_fails_with_the_sentence(lake: Lake, damage: str) -> None:
    if damage == "pointer":
        (lake.root / "current/small/ingest").write_text("")
    else:
        for record in lake.records():
            for file in record.files:
                os.truncate(lake.root / file.path, 7)
    with saelake.open(lake.root) as opened:
        for name in (*queries.names(), *queries.names_of_stages()):
            asked = queries.load(name)
            if name == "compare_runs" or (damage != "pointer" and not answers_from_files(lake, name)):
                continue  # it asks all_runs, which no pointer names
            values: dict[str, Any] = {p.name: NEEDED.get(p.type, p.type.split("|")[0]) for p in asked.parameters if p.required}
            with pytest.raises((UserError, QueryError), match="`saelake check`"):
                opened.query(name, **values).fetchall()


def answers_from_files(lake: Lake, name: str) -> bool:
    """Whether a question reads a table that the lake has files of."""
    tables = {f.table for r in lake.records() for f in r.files}
    return any(re.search(rf"\b{table}\b", queries.load(name).sql) for table in tables)


def test_two_damaged_pointers_are_mended_one_after_the_other(lake: Lake) -> None:
    for stage in ("ingest", "candidates"):
        (lake.root / "current/small" / stage).write_text("")
    build_lake(lake.root)
    assert check(lake) == []


def test_what_a_shared_set_left_out_is_told(lake: Lake, tmp_path: Path) -> None:
    share(lake, tmp_path / "set", Choice(tables=("features", "saes", "prompts")))
    other = Lake.create(tmp_path / "other")
    add(other, tmp_path / "set")
    left_out = r"tokens is not here: run ingest_\w+ was shared without .*activations.*tokens"
    with saelake.open(other.root) as opened:
        assert opened.sql("select count(*) from prompts").fetchall() == [(6,)]
        for statement in STATEMENTS[:7]:
            for table in ("tokens", "all_runs.tokens"):
                with pytest.raises(LeftOut, match=left_out):
                    opened.sql(statement.format(table)).fetchall()
        with pytest.raises(LeftOut, match="was shared without"):
            opened.query("features", layer=0).fetchall()
        with pytest.raises(LeftOut, match="was shared without"):
            opened.sql("from activations_of(0)").fetchall()
    share(other, tmp_path / "again")
    share(other, tmp_path / "features", Choice(tables=("features",)))
    third = Lake.create(tmp_path / "third")
    add(third, tmp_path / "features")
    share(third, tmp_path / "without prompts")
    with connect(other) as con, pytest.raises(duckdb.Error, match=left_out):
        con.execute("select count(*) from tokens")


def test_a_study_does_not_show_a_part_of_a_table_whichever_study_its_runs_were_computed_for(lake: Lake, tmp_path: Path) -> None:
    theirs = build_lake(tmp_path / "theirs", "other", 1)
    (ours,), (run_id,) = lake.current()["small", "ingest"], theirs.current()["other", "ingest"]
    share(theirs, tmp_path / "set", Choice(runs=(run_id,), tables=("features", "saes", "prompts")))
    add(lake, tmp_path / "set")
    lake.point("other", "ingest", [ours, run_id])
    rows = "select count(*) > 0 from {}"
    with saelake.open(lake.root, recipe="other") as opened:
        assert opened.sql("select count(distinct run_id) from prompts").fetchall() == [(2,)]
        for table in ("activations", "activations_of(1)"):
            with pytest.raises(LeftOut, match=f"activations is not here: run {run_id} was shared without"):
                opened.sql(rows.format(table)).fetchall()
    with saelake.open(lake.root) as opened:
        for table in ("activations", "activations_of(1)", "all_runs.activations"):
            assert opened.sql(rows.format(table)).fetchall() == [(True,)], "what one study lacks is not taken from another"
