"""Killed between any two changes of a lake, a command can be repeated, and who comes next repairs what was left and says so."""

import signal
from pathlib import Path

import duckdb
import pytest
from click.testing import CliRunner

from saelake import cli
from saelake.warehouse import parents
from saelake.warehouse.check import check
from saelake.warehouse.durable import folder_atomic, sha256_file
from saelake.warehouse.errors import UserError
from saelake.warehouse.housekeeping import drop, gc
from saelake.warehouse.keys import record_key
from saelake.warehouse.lake import Lake
from saelake.warehouse.runs import ensure_run
from saelake.warehouse.sharing.add import add
from saelake.warehouse.sharing.share import share
from tests.lakes import tree
from tests.warehouse import processes, toys

KILLED_AT = """
import signal
from saelake.warehouse.storage import Folder
from saelake.warehouse.housekeeping import drop
from saelake.warehouse.sharing.add import add
left = int(sys.argv[1])
def counted(change):
    def changed(self, *given):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return change(self, *given)
    return changed
Folder.write, Folder.delete = counted(Folder.write), counted(Folder.delete)
"""
"""A process that is killed when it has changed the lake so many times."""
PARENT, CHILD = toys.ingest_spec().run_id, toys.answers_spec().run_id


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    lake = build(tmp_path_factory.mktemp("theirs") / "lake")
    share(lake, lake.root.parent / "set")
    return lake.root.parent / "set"


def build(folder: Path) -> Lake:
    lake = Lake.create(folder)
    toys.ingest(lake)
    toys.answers(lake)
    return lake


def killed(code: str, *arguments: object) -> None:
    process = processes.start(code, *arguments)
    _, err = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL, err


def runs_of_the_catalog(lake: Lake) -> set[str]:
    with duckdb.connect(lake.catalog, read_only=True) as con:
        return {run_id for (run_id,) in con.execute("select run_id from all_runs.runs").fetchall()}


@pytest.mark.parametrize("changes", [0, 1, 2, 3])
def test_an_add_that_was_killed_is_repeated(changes: int, shared: Path, tmp_path: Path) -> None:
    lake = Lake.create(tmp_path / "lake")
    killed(KILLED_AT + "add(Lake(Path(sys.argv[2])), Path(sys.argv[3]))", changes, lake.root, shared)
    added = add(lake, shared)
    assert {record.run_id for record in (*added.published, *added.known)} == {PARENT, CHILD}
    assert sorted(lake.current().values()) == sorted([(PARENT,), (CHILD,)])
    assert runs_of_the_catalog(lake) == {PARENT, CHILD}
    gc(lake, older_than_seconds=0)
    assert check(lake) == []


def test_a_study_of_other_runs_is_still_another_study(shared: Path, tmp_path: Path) -> None:
    lake = Lake.create(tmp_path / "lake")
    spec = toys.RunSpec("ingest", "toy0", {"device": "other"})
    ensure_run(lake, spec, toys.plan(toys.SHAPE, spec))
    with pytest.raises(UserError, match="whose ingest is another run"):
        add(lake, shared)


@pytest.mark.parametrize("mender", ["drop", "gc", "check", "again"])
def test_a_drop_that_was_killed_leaves_no_stale_catalog(mender: str, tmp_path: Path) -> None:
    lake = build(tmp_path / "lake")
    kill = "from saelake.warehouse import catalog\ncatalog._build_catalog = lambda lake: os.kill(os.getpid(), signal.SIGKILL)\n"
    killed(KILLED_AT + kill + "drop(Lake(Path(sys.argv[2])), sys.argv[3])", 99, lake.root, CHILD)
    assert runs_of_the_catalog(lake) == {PARENT, CHILD}, "the kill came before the catalog was written"
    command = {"drop": ["drop", CHILD], "again": ["drop", PARENT]}.get(mender, [mender])
    said = CliRunner().invoke(cli.main, [*command, "--lake", str(lake.root)])
    assert said.exit_code == 0, said.output
    expected = {"drop": f"already dropped: {CHILD}", "again": f"dropped {PARENT}"}
    assert expected.get(mender, "a killed process left it older than the runs") in said.output
    assert runs_of_the_catalog(lake) == {r.run_id for r in lake.records()}
    assert not lake.stale.exists()


@pytest.mark.parametrize("changes", [0, 1, 2])
def test_a_drop_that_was_killed_is_repeated(changes: int, tmp_path: Path) -> None:
    lake = build(tmp_path / "lake")
    killed(KILLED_AT + "drop(Lake(Path(sys.argv[2])), sys.argv[3])", changes, lake.root, CHILD)
    drop(lake, CHILD)
    assert [r.run_id for r in lake.records()] == [PARENT]
    toys.answers(lake)
    gc(lake, older_than_seconds=0)
    assert check(lake) == []


def test_a_refused_drop_leaves_nothing_to_mend(tmp_path: Path) -> None:
    lake = build(tmp_path / "lake")
    before = tree(lake.root)
    with pytest.raises(UserError):
        drop(lake, PARENT)
    assert tree(lake.root) == before


WRITES_A_DRAFT = """
from saelake.warehouse.durable import folder_atomic, sha256_file
with folder_atomic(Path(sys.argv[1])) as draft:
    (draft / "data").mkdir()
    print("there", flush=True)
    time.sleep(600)
"""


def test_drafts_of_killed_shares_go_and_those_of_living_ones_stay(tmp_path: Path) -> None:
    lake, target = build(tmp_path / "lake"), tmp_path / "set"
    (tmp_path / ".set.0123abcd").mkdir()
    (tmp_path / ".set.0123abcd" / "mine.txt").touch()  # of somebody who likes such names
    writers = [processes.start(WRITES_A_DRAFT, target) for _ in range(2)]
    for writer in writers:
        assert writer.stdout is not None
        writer.stdout.readline()
    assert len(list(tmp_path.glob(".set.*"))) == 3
    writers[0].kill()
    writers[0].communicate()
    share(lake, target)
    assert len(list(tmp_path.glob(".set.*"))) == 2
    writers[1].kill()
    writers[1].communicate()
    with folder_atomic(tmp_path / "other"):
        share(lake, tmp_path / "set2")
    assert len(list(tmp_path.glob(".set.*"))) == 2, "another target's are not looked at"


def test_of_two_that_write_into_one_folder_the_second_says_that_it_wrote_nothing(tmp_path: Path) -> None:
    lake, target = build(tmp_path / "lake"), tmp_path / "set"

    def other(*_: object) -> None:
        target.mkdir()
        (target / "theirs").touch()

    with pytest.raises(UserError, match=f"another process has made {target} meanwhile"):
        share(lake, target, then=other)
    assert [path.name for path in target.iterdir()] == ["theirs"]


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(bytes(content))


def test_a_stage_is_not_computed_on_a_file_that_has_changed(tmp_path: Path) -> None:
    lake = Lake.create(tmp_path / "lake")
    parent = toys.ingest(lake)
    for file in parent.files:
        path = lake.root / file.path
        flip(path, file.n_bytes // 2)
        with pytest.raises(UserError) as refused:
            toys.answers(lake)
        assert f"{file.path} of run {PARENT}" in str(refused.value)
        assert "has changed since it was published" in str(refused.value)
        assert not (lake.root / record_key(CHILD)).exists()
        flip(path, file.n_bytes // 2)
    toys.answers(lake)
    assert check(lake) == []


def test_what_parents_are_computed_from_counts_and_is_read_once_a_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = build(tmp_path / "lake")
    parents._sha256.cache_clear()
    read: list[Path] = []
    monkeypatch.setattr(parents, "sha256_file", lambda path: read.append(path) or sha256_file(path))
    for _ in range(2):
        parents.require_sound(lake, [CHILD])
    assert sorted(read) == sorted(lake.root / f.path for r in lake.records() for f in r.files)
