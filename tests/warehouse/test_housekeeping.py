"""`drop` refuses what others build on; `gc` deletes what nobody lists, holds or reads, and nothing else."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from saelake.warehouse import housekeeping
from saelake.warehouse.catalog import connect
from saelake.warehouse.check import check
from saelake.warehouse.errors import UserError
from saelake.warehouse.housekeeping import drop, gc
from saelake.warehouse.keys import record_key
from saelake.warehouse.lake import Lake
from saelake.warehouse.runs import Rows, ensure_run
from saelake.warehouse.sharing.add import add
from saelake.warehouse.sharing.share import share
from saelake.warehouse.storage import Folder
from tests.warehouse import processes, toys


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    lake = Lake.create(tmp_path / "lake")
    toys.ingest(lake)
    toys.answers(lake)
    return lake


PARENT, CHILD = toys.ingest_spec().run_id, toys.answers_spec().run_id


def test_drop_refuses_a_run_that_others_build_on(lake: Lake) -> None:
    with pytest.raises(UserError, match=f"run {PARENT} is what {CHILD} is computed from"):
        drop(lake, PARENT)
    with pytest.raises(UserError, match="has no run 'nonsense'"):
        drop(lake, "nonsense")
    with pytest.raises(UserError, match="has no run"):
        drop(lake, f"../runs/{CHILD}")
    assert check(lake) == []


def test_drop_makes_a_run_unknown_and_gc_frees_its_files_after_the_grace_period(lake: Lake) -> None:
    hash_before, files = lake.records()[1].content_hash, list((lake.root / "data" / CHILD).rglob("*.parquet"))
    size = sum(f.stat().st_size for f in files)
    for path in (lake.root / "data" / CHILD, *(lake.root / "data" / CHILD).rglob("*")):
        os.utime(path, (0, 0))  # published long ago
    drop(lake, CHILD)
    assert [r.run_id for r in lake.records()] == [PARENT]
    assert lake.current() == {("toy0", "ingest"): (PARENT,)}
    with connect(lake) as con:
        assert con.execute("select count(*) from ablations").fetchall() == [(0,)]
    assert gc(lake) == [], "it was dropped just now"
    (found,) = gc(lake, dry_run=True, older_than_seconds=0)
    assert (found.path, found.n_bytes) == (f"data/{CHILD}", size)
    assert all(f.exists() for f in files)
    assert gc(lake, older_than_seconds=0) == [found]
    assert not (lake.root / "data" / CHILD).exists()
    assert toys.answers(lake).content_hash == hash_before
    assert check(lake) == []


def test_a_run_that_comes_back_leaves_the_dropped_files_alone(lake: Lake) -> None:
    before = {p: p.stat().st_ino for p in (lake.root / "data" / CHILD).rglob("*.parquet")}
    drop(lake, CHILD)
    record = toys.answers(lake)
    assert {f.path.split("/")[1] for f in record.files} == {f"{CHILD}-2"}
    assert {p: p.stat().st_ino for p in before} == before
    assert [g.path for g in gc(lake, older_than_seconds=0)] == [f"data/{CHILD}"]
    assert check(lake) == []


def test_gc_takes_what_killed_processes_left(lake: Lake) -> None:
    left = [
        f"data/.{CHILD}.0123abcd/ablations/ablations.parquet",
        f"landing/{CHILD}/a/ablations.parquet",
        f"landing/{CHILD}.again/a/ablations.parquet",
        "landing/unfinished_0123/.a.0123abcd/ablations.parquet",
        "landing/unfinished_0123/.spill/block",
        "runs/.x.json.0123abcd",
        "current/toy0/.ingest.0123abcd",
        ".catalog.duckdb.0123abcd",
        ".catalog.duckdb.0123abcd.wal",
    ]
    kept = [".gitignore", "data/.gitkeep", "landing/unfinished_0123/a/ablations.parquet", "data/other_0123/young.parquet"]
    for name in left + kept:
        (lake.root / name).parent.mkdir(parents=True, exist_ok=True)
        (lake.root / name).write_text("12345")
    freed = gc(lake)
    assert sum(g.n_bytes for g in freed) == 5 * len(left)
    assert [name for name in left + kept if (lake.root / name).exists()] == kept
    assert [g.path for g in gc(lake, landings=True)] == ["landing/unfinished_0123"]
    assert all(f.note for f in check(lake))


def test_gc_spares_what_is_landed_for_a_run_that_came_in_part(lake: Lake, tmp_path: Path) -> None:
    share(lake, tmp_path / "set")
    other = Lake.create(tmp_path / "other")
    add(other, tmp_path / "set")

    def killed(missing: Sequence[str]) -> Iterator[tuple[str, list[Rows]]]:
        yield next(toys.answers_plan().compute(missing))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ensure_run(other, toys.answers_spec(), replace(toys.answers_plan(), compute=killed))
    assert gc(other, older_than_seconds=0) == []
    asked: list[str] = []
    plan = toys.answers_plan()
    ensure_run(
        other, toys.answers_spec(), replace(plan, compute=lambda missing: (asked.extend(missing), plan.compute(missing))[1])
    )
    assert asked == ["b", "c"]


COLLECT = """
from saelake.warehouse.housekeeping import gc
print(gc(Lake.existing(sys.argv[1]), older_than_seconds=0, landings=True))
"""


def test_gc_spares_what_a_living_process_works_on(lake: Lake) -> None:
    toys.ingest(lake, seed=1)
    run_id = toys.answers_spec(1).run_id

    def collect_meanwhile(missing: Sequence[str]) -> Iterator[tuple[str, list[Rows]]]:
        draft = lake.root / "data" / f".{run_id}.0123abcd"
        draft.mkdir()
        for name, rows in toys.answers_plan(1).compute(missing):
            yield name, rows
            assert processes.run(COLLECT, lake.root).strip() == "[]"

    ensure_run(lake, toys.answers_spec(1), replace(toys.answers_plan(1), compute=collect_meanwhile))
    assert check(lake) == []


def test_a_damaged_record_stops_gc_and_can_be_dropped(lake: Lake) -> None:
    (lake.root / record_key(CHILD)).write_text("{")
    with pytest.raises(UserError, match=f"saelake drop {CHILD}"):
        gc(lake, older_than_seconds=0)
    drop(lake, CHILD)
    gc(lake, older_than_seconds=0)
    toys.answers(lake)
    assert check(lake) == []


def test_gc_lists_the_folders_of_all_runs_once(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Listing them for every run grows with the square of the runs: ten seconds at 300."""
    asked: list[str] = []
    names = Folder.names
    monkeypatch.setattr(Folder, "names", lambda folder, key: asked.append(key) or names(folder, key))
    drop(lake, CHILD)
    (lake.root / "data" / f".{PARENT}.0123abcd").mkdir()
    asked.clear()
    garbage = gc(lake, older_than_seconds=0)
    assert [one.path for one in garbage] == [f"data/{CHILD}", f"data/.{PARENT}.0123abcd"]
    assert sorted(asked) == ["data", "data", "landing"]


def test_gc_says_nothing_of_what_has_gone_since_it_looked(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        housekeeping, "_folders", lambda _: {"run_gone": housekeeping._Folders(["data/run_gone"], ["data/.gone"])}
    )
    assert gc(lake, older_than_seconds=0) == []
