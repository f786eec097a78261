"""catalog.duckdb answers any DuckDB client, wherever the lake is moved and whatever is killed or damaged around it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from saelake.warehouse import catalog, storage
from saelake.warehouse.catalog import connect, current_runs, lock, recover_catalog
from saelake.warehouse.errors import UserError
from saelake.warehouse.housekeeping import drop
from saelake.warehouse.lake import Lake
from saelake.warehouse.literals import paths
from saelake.warehouse.runs import make_current
from saelake.warehouse.schema import TABLES
from saelake.warehouse.views import MAKING, _statements, set_lake, view_statements
from tests.warehouse import toys

ELSEWHERE = """
import duckdb, sys
con = duckdb.connect(sys.argv[1] + "/catalog.duckdb", read_only=True)
con.execute("set variable lake = $1", [sys.argv[1]])
counts = "select (select count(*) from activations), (select count(*) from all_runs.verdicts), count(*) from runs"
print(*con.execute(counts).fetchone())
"""


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    lake = Lake.create(tmp_path / "lake")
    toys.ingest(lake)
    toys.answers(lake)
    return lake


def test_it_answers_after_a_move_from_another_folder(lake: Lake, tmp_path: Path) -> None:
    n_rows = lake.records()[0].n_rows("activations")
    moved = lake.root.rename(tmp_path / "it's elsewhere")
    output = subprocess.run([sys.executable, "-c", ELSEWHERE, moved], cwd="/", capture_output=True, text=True, check=True)
    assert output.stdout.split() == [str(n_rows), "24", "2"]


def test_a_connection_that_reads_the_lake_alone_reads_it_wherever_it_lies(lake: Lake, tmp_path: Path) -> None:
    n_rows = lake.records()[0].n_rows("activations")
    beside, moved = tmp_path / "set [2].csv", Lake.existing(lake.root.rename(tmp_path / "study [v2] *what?*"))
    beside.write_text("n\n7\n")
    with connect(moved) as con:
        lock(con, moved, [beside])
        assert con.execute("select count(*) from activations").fetchall() == [(n_rows,)]
        assert con.execute(f"from read_csv({paths([beside])})").fetchall() == [(7,)]
        for other in (moved.root / "saelake.json", moved.root / "data" / ".." / "saelake.json", Path(__file__)):
            with pytest.raises(duckdb.PermissionException):
                con.execute(f"from read_text({paths([other])})").fetchall()


def test_it_answers_from_the_lakes_own_folder_without_a_variable(lake: Lake) -> None:
    code = "import duckdb; print(*duckdb.connect('catalog.duckdb', read_only=True).sql('from verdicts').shape)"
    output = subprocess.run([sys.executable, "-c", code], cwd=lake.root, capture_output=True, text=True, check=True)
    assert output.stdout.split()[0] == "24"


def test_views_that_are_copied_are_those_that_are_bound(lake: Lake) -> None:
    columns = "select schema_name, table_name, column_name, data_type from duckdb_columns() where not internal order by all"
    macros = "select schema_name, function_name, parameters from duckdb_functions() where function_type = 'table_macro'"
    with connect(lake) as copied, duckdb.connect() as bound:
        set_lake(bound, lake)
        bound.execute(f"set variable {MAKING} = true")
        for statement in view_statements(current_runs(lake)):
            bound.execute(statement)
        for listed, least in ((columns, 2 * len(TABLES)), (f"{macros} and not internal order by all", 1)):
            found = bound.execute(listed).fetchall()
            assert len(found) > least
            assert copied.execute(listed).fetchall() == found
        for table in TABLES:
            assert (
                copied.execute(f"select count(*) from {table}").fetchall()
                == bound.execute(f"select count(*) from {table}").fetchall()
            )


def test_plain_names_show_current_runs_and_all_runs_the_rest(lake: Lake) -> None:
    toys.ingest(lake, seed=1)
    (lake.root / "current/toy1/ingest").unlink()
    with connect(lake) as con, connect(lake, "toy0") as one, connect(lake, runs=[toys.ingest_spec(1).run_id]) as given:
        assert con.execute("select count(*) from runs").fetchall() == [(2,)]
        assert con.execute("select count(*) from all_runs.runs").fetchall() == [(3,)]
        assert one.execute("select distinct run_id from prompts").fetchall() == [(toys.ingest_spec(0).run_id,)]
        for prompts in ("prompts", "all_runs.prompts"):
            assert given.execute(f"select distinct run_id from {prompts}").fetchall() == [(toys.ingest_spec(1).run_id,)]
    with pytest.raises(UserError, match="no study named 'toy9'; it has toy0"):
        connect(lake, "toy9")
    with pytest.raises(UserError, match="no run ingest_0"):
        connect(lake, runs=["ingest_0"])


def test_the_runs_table_holds_the_records(lake: Lake) -> None:
    record = lake.records()[1]
    with connect(lake) as con:
        rows = con.execute(
            "select parents, config->>'device', seed, started, len(files), files[1].path, content_hash from runs "
            "where run_id = $1",
            [record.run_id],
        ).fetchall()
    parents, device, seed, started, n_files, path, content_hash = rows[0]
    assert (tuple(parents), device, seed) == (record.parents, "cpu", 0)
    assert started.isoformat(timespec="milliseconds") == record.started
    assert (n_files, path, content_hash) == (3, record.files[0].path, record.content_hash)


@pytest.mark.parametrize(("killed_after", "n_writes"), [("record", 1), ("pointer", 2)])
def test_a_kill_between_record_pointer_and_catalog_is_mended(
    lake: Lake, monkeypatch: pytest.MonkeyPatch, killed_after: str, n_writes: int
) -> None:
    """As if the process died: nothing after that point happens, and no handler runs."""
    written: list[str] = []
    real = storage.write_atomic

    def dying(path: Path, text: str) -> None:
        real(path, text)
        written.append(path.relative_to(lake.root).parts[0])
        if len(written) == n_writes:
            raise KeyboardInterrupt

    monkeypatch.setattr(storage, "write_atomic", dying)
    with pytest.raises(KeyboardInterrupt):
        toys.ingest(lake, seed=1)
    assert written[-1] == {"record": "runs", "pointer": "current"}[killed_after]
    monkeypatch.undo()
    toys.ingest(lake, seed=1)
    with duckdb.connect(lake.catalog, read_only=True) as con:
        con.execute("set variable lake = $1", [str(lake.root)])
        assert con.execute("select count(*) from runs").fetchall() == [(3,)]
        assert con.execute("select count(distinct run_id) from activations").fetchall() == [(2,)]


def test_an_open_catalog_stays_whole_while_runs_come_and_go(lake: Lake) -> None:
    with duckdb.connect(lake.catalog, read_only=True) as con:
        con.execute("set variable lake = $1", [str(lake.root)])
        before = con.execute("select count(*), sum(feature_id) from activations").fetchall()
        for run_id in (toys.answers_spec().run_id, toys.ingest_spec().run_id):
            drop(lake, run_id)
        toys.ingest(lake)
        assert con.execute("select count(*), sum(feature_id) from activations").fetchall() == before
        assert con.execute("select count(*) from runs").fetchall() == [(2,)]
        assert con.execute("select count(*) from verdicts").fetchall() == [(24,)]


def test_one_damaged_file_does_not_hide_the_other_tables(lake: Lake) -> None:
    record = lake.records()[0]
    os.truncate(lake.root / next(f.path for f in record.files if f.table == "activations"), 100)
    toys.ingest(lake, seed=1)  # the catalog is built again
    with connect(lake) as con:
        assert con.execute("select count(*) from prompts").fetchall() == [(48,)]
        with pytest.raises(duckdb.Error, match="saelake check"):
            con.execute("select count(damaged) from activations").fetchall()


def test_views_are_saved_in_words_of_every_duckdb(lake: Lake) -> None:
    """DuckDB 2 saves `if(a, b, c)` as a function of that name, which DuckDB 1 takes for unknown."""
    columns = [c.elsewhere for table in TABLES.values() for c in table.columns if c.elsewhere]
    for statement in [*_statements(current_runs(lake), {}, guarded=True, is_saved=True), *columns]:
        assert not re.search(r"\bif\s*\(", statement, re.IGNORECASE), statement


def test_a_catalog_that_was_changed_run_by_run_is_one_that_was_built_whole(lake: Lake) -> None:
    other = Lake.existing(lake.root)
    toys.ingest(other, seed=1)
    toys.ingest(lake, seed=2)
    toys.answers(lake, seed=2)
    drop(lake, toys.answers_spec().run_id)
    toys.answers(other, seed=1)
    made = ("sql from duckdb_views()", "macro_definition from duckdb_functions()", "run_id from all_runs.runs")
    found = []
    for _ in range(2):
        with duckdb.connect(lake.catalog, read_only=True) as con:
            con.execute("set variable lake = $1", [str(lake.root)])
            found.append([con.execute(f"select {what} order by all").fetchall() for what in made])
        lake.catalog.unlink()
        make_current(lake, "toy1", {"candidates": [record for record in lake.records() if record.recipe == "toy1"][1:]})
    assert found[0] == found[1]
    assert len(found[0][2]) == 5


def test_of_runs_that_follow_each_other_at_once_the_catalog_learns_when_one_takes_its_time_or_at_the_end(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    def known() -> list[str]:
        with duckdb.connect(lake.catalog, read_only=True) as con:
            return [run_id for (run_id,) in con.execute("select run_id from all_runs.runs order by all").fetchall()]

    before = known()
    first = toys.ingest(lake, seed=1, more_follows=True).run_id
    assert known() == before
    assert lake.current()["toy1", "ingest"] == (first,), "all but the catalog is up to date"
    toys.answers(lake, seed=1, more_follows=True)
    assert known() == before
    assert recover_catalog(lake)
    after = known()
    assert len(after) == len(before) + 2
    second = toys.ingest(lake, seed=2, more_follows=True).run_id
    monkeypatch.setattr(catalog, "SOON", 0)
    toys.answers(lake, seed=2, more_follows=True)
    assert known() == sorted([*after, second]), "when a later run lands a shard"


def test_a_missing_catalog_is_built_again(lake: Lake) -> None:
    lake.catalog.unlink()
    toys.ingest(lake)
    with duckdb.connect(lake.catalog, read_only=True) as con:
        con.execute("set variable lake = $1", [str(lake.root)])
        assert con.execute("select count(*) from verdicts").fetchall() == [(24,)]
