"""Published runs in a bucket of an S3 server that runs on loopback: one record a run, whole runs only, the same rows."""

import logging
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import saelake
from saelake import cli
from saelake.extras import EXTRAS
from saelake.warehouse.bucket import Bucket
from saelake.warehouse.catalog import connect, is_catalog_current, recover_catalog
from saelake.warehouse.check import check
from saelake.warehouse.errors import UserError
from saelake.warehouse.housekeeping import drop, gc
from saelake.warehouse.keys import record_key
from saelake.warehouse.lake import Lake
from saelake.warehouse.runs import Rows, ensure_run
from saelake.warehouse.sharing.add import add
from saelake.warehouse.sharing.share import share
from saelake.warehouse.synth import plan
from tests import lakes
from tests.warehouse import processes, toys

obstore = pytest.importorskip("obstore", reason="the extra s3 is not installed")
SPEC = toys.ingest_spec()


@pytest.fixture
def lake(bucket: str) -> Lake:
    return Lake.create(f"{bucket}/team/lake")


def _keys(lake: Lake) -> set[str]:
    return {entry.key for entry in lake.published.entries("data")}


def test_a_lake_in_a_bucket_is_the_lake_in_a_folder(lake: Lake, tmp_path: Path) -> None:
    here = Lake.create(tmp_path / "here")
    ours, theirs = ([toys.ingest(where), toys.answers(where)] for where in (lake, here))
    assert [r.content_hash for r in ours] == [r.content_hash for r in theirs]
    assert _keys(lake) == {f.path for r in ours for f in r.files}
    assert Lake.existing(str(lake)).records() == ours
    assert lake.current() == here.current()
    assert check(lake) == []
    assert toys.answers(lake) == ours[1], "it is found, not computed again"
    everything = "from activations order by all"
    with connect(lake) as remote, connect(here) as local:
        assert remote.execute(everything).fetchall() == local.execute(everything).fetchall()
    assert not list((lake.root / "landing").iterdir())
    assert not list((lake.root / "data").iterdir()), "what is uploaded does not stay"


def test_the_commands_answer_from_a_bucket_as_from_a_folder(bucket: str, tmp_path: Path) -> None:
    lakes.build_lake(f"{bucket}/lake")
    lakes.build_lake(tmp_path / "lake")

    def say(where: object, *arguments: str) -> str:
        result = CliRunner().invoke(cli.main, [*arguments, "--lake", str(where)], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    for asked in (
        ["sql", "select label, count(*) as n from prompts join activations using (prompt_id) group by label order by label"],
        ["sql", "select run_id, parents, content_hash from runs order by run_id"],
        ["query", "asr"],
        ["query", "top_samples", "--features", "0:1,1:0"],
    ):
        assert say(f"{bucket}/lake", *asked) == say(tmp_path / "lake", *asked), asked
    remote, local = (say(where, "runs", "--format", "csv").splitlines() for where in (f"{bucket}/lake", tmp_path / "lake"))
    assert len(remote) == len(local) == 1 + 3, "when a run was published differs"
    with saelake.open(f"{bucket}/lake") as opened:
        assert opened.sql("select count(*) from tokens").fetchall() == [(24,)]


def test_of_two_machines_that_publish_a_run_one_record_counts(lake: Lake, tmp_path: Path) -> None:
    other = Lake(tmp_path / "another machine", lake.remote)

    def overtaken(missing: Sequence[str]) -> Iterator[tuple[str, list[Rows]]]:
        yield from plan(toys.SHAPE, SPEC).compute(missing)
        toys.ingest(other)

    record = ensure_run(lake, SPEC, replace(plan(toys.SHAPE, SPEC), compute=overtaken))
    assert lake.records() == [record] == [other.record(SPEC.run_id)]
    assert _keys(lake) == {f.path for f in record.files}, "the files of the one that was late are gone"
    assert check(lake) == []


def test_many_processes_that_publish_at_once_leave_one_run(lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publishers = []
    for n in range(3):
        monkeypatch.setenv("SAELAKE_WORK", str(tmp_path / f"machine {n}"))
        publishers.append(processes.start("toys.ingest(Lake.create(sys.argv[1]))", lake))
    for publisher in publishers:
        processes.finish(publisher)
    (record,) = lake.records()
    assert _keys(lake) == {f.path for f in record.files}
    assert check(lake) == []


DIES = """
import logging
import signal
import sys
import obstore

real, left = obstore.put, int(sys.argv[2])
def put(store, key, *rest, **options):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(store, key, *rest, **options)
obstore.put = put
toys.ingest(Lake.create(sys.argv[1]))
"""
N_PUTS = 9
"""Seven files of the toy's five tables, the record and the pointer."""


def test_a_killed_upload_leaves_nothing_visible_and_is_resumed(lake: Lake) -> None:
    for n_puts in (0, 3, N_PUTS - 2, N_PUTS - 1, N_PUTS):
        process = processes.start(DIES, lake, n_puts)
        if n_puts == N_PUTS:
            processes.finish(process)
            break
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        is_published = n_puts == N_PUTS - 1
        assert bool(Lake.existing(str(lake)).records()) == is_published
        with connect(lake) as con:
            assert con.execute("select count(*) > 0 from all_runs.activations").fetchall() == [(is_published,)]
        assert lake.current() == {}
    assert lake.current() == {("toy0", "ingest"): (SPEC.run_id,)}
    (record,) = lake.records()
    assert all(f.note for f in check(lake))
    assert {f.path for f in record.files} < _keys(lake)
    left_here = [f"landing/{SPEC.run_id}"]
    assert [g.path for g in gc(lake)] == left_here, "files that are young may be another machine's upload"
    assert gc(lake, older_than_seconds=0)
    assert {f.path for f in record.files} == _keys(lake)
    assert check(lake) == []


def test_a_reader_sees_whole_runs_only(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    real = obstore.put

    def watched(*arguments: Any, **options: Any) -> Any:
        result = real(*arguments, **options)
        with connect(Lake.existing(str(lake))) as con:
            seen.append(con.execute("select count(*) from all_runs.activations").fetchone())
        return result

    monkeypatch.setattr(obstore, "put", watched)
    record = toys.ingest(lake)
    n_rows = record.n_rows("activations")
    assert seen == [(0,)] * (N_PUTS - 2) + [(n_rows,)] * 2


def test_a_dropped_run_is_unknown_and_its_files_go_after_a_day(lake: Lake) -> None:
    toys.ingest(lake)
    record = toys.answers(lake)
    with pytest.raises(UserError, match=f"is what {record.run_id} is computed from"):
        drop(lake, SPEC.run_id)
    with connect(lake) as reader:
        drop(lake, record.run_id)
        assert reader.execute("select count(*) from ablations").fetchall() == [(24,)], "who reads it can finish"
    assert [r.run_id for r in lake.records()] == [SPEC.run_id]
    assert gc(lake) == []
    (gone,) = gc(lake, older_than_seconds=0)
    assert gone.n_bytes == sum(f.n_bytes for f in record.files)
    assert toys.answers(lake).content_hash == record.content_hash
    assert check(lake) == []


def test_gc_spares_the_copies_that_a_living_process_reads(lake: Lake) -> None:
    record = toys.ingest(lake)
    with lake.published.local(record.files[0].path) as copy:
        assert copy.is_file()
        assert gc(lake) == []
        assert copy.is_file()
    assert not copy.exists()
    copy.write_text("of a killed process")
    assert [one.path for one in gc(lake)] == [copy.name]


def test_a_change_that_a_bucket_refuses_after_others_leaves_a_catalog_to_mend(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    toys.ingest(lake)
    monkeypatch.setattr(Lake, "point", refuse)
    with pytest.raises(UserError, match="refused"):
        toys.answers(lake)
    assert len(lake.records()) == 2, "the record was written first"
    assert not is_catalog_current(lake)
    assert recover_catalog(lake)


def refuse(*_: object) -> None:
    raise UserError("the bucket refused it")


class Requests:
    """What a bucket is asked for, as its server logs it."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._log = caplog

    def __call__(self, work: Callable[[], object]) -> list[str]:
        self._log.clear()
        work()
        return [r.getMessage().split('"')[1] for r in self._log.records if "HTTP/1.1" in r.getMessage()]


def test_opening_reads_one_listing_and_what_is_new(
    lake: Lake, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    caplog.set_level(logging.INFO, "werkzeug")
    requests = Requests(caplog)
    toys.ingest(lake)
    toys.answers(lake)
    monkeypatch.setenv("SAELAKE_WORK", str(tmp_path / "another machine"))
    first = requests(lambda: saelake.open(str(lake)).close())
    again = requests(lambda: saelake.open(str(lake)).close())
    assert len([r for r in first if "list-type=2" in r]) == len([r for r in again if "list-type=2" in r]) == 1
    assert len(again) == 2, "the marker and a listing"
    assert len(first) == len(again) + 2 * len(lake.run_ids()), "a record and a pointer a run"
    kept = next((tmp_path / "another machine").rglob("texts.json"))
    kept.write_text(kept.read_text()[:100])
    with saelake.open(str(lake)) as opened:
        assert opened.sql("select count(*) from runs").fetchall() == [(2,)]


def test_what_is_missing_to_reach_a_bucket_is_one_sentence(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EXTRAS, "s3", ("module_that_is_absent",))
    with pytest.raises(UserError, match=r"needs the extra s3: pip install 'saelake\[s3\]'"):
        Lake.create(f"{bucket}/lake")


def test_check_names_the_object_that_is_damaged(lake: Lake) -> None:
    record = toys.ingest(lake)
    damaged, missing = (next(f for f in record.files if f.table == name) for name in ("activations", "tokens"))
    with lake.published.local(damaged.path) as path:
        content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    client = lake.published._objects  # type: ignore[attr-defined]
    obstore.put(client, damaged.path, bytes(content))
    lake.published.delete(missing.path)
    found = {f.path: f.what for f in check(lake) if not f.note}
    assert found[damaged.path] == "the file's bytes have changed since it was published"
    assert found[missing.path] == "the file is missing"
    lake.published.write(record_key(SPEC.run_id), "{")
    with pytest.raises(UserError, match=f"the run record {lake}/runs/{SPEC.run_id}.json is damaged"):
        lake.records()


def test_a_mistake_is_one_sentence(bucket: str, lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=f"{bucket}/nothing is not a lake: it has no saelake.json"):
        Lake.existing(f"{bucket}/nothing")
    with pytest.raises(UserError, match="is not a lake and not empty"):
        Lake.create(f"{bucket}/team")
    with pytest.raises(UserError, match=r"write s3://bucket/prefix"):
        Lake.existing("s3://")
    with pytest.raises(UserError, match=r"cannot read s3://no-such-bucket/lake: .*404 Not Found.*; check AWS_ENDPOINT_URL"):
        Lake.create("s3://no-such-bucket/lake")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"cannot read .*check AWS_ENDPOINT_URL"):
        Lake.existing(str(lake))


def test_a_set_that_was_shared_into_a_bucket_is_added(lake: Lake, bucket: str, tmp_path: Path) -> None:
    record = toys.ingest(lake)
    share(lake, tmp_path / "set")
    store = Bucket(f"{bucket}/sets/toy", tmp_path)._objects
    for path in (p for p in (tmp_path / "set").rglob("*") if p.is_file()):
        obstore.put(store, path.relative_to(tmp_path / "set").as_posix(), path)
    obstore.put(store, "data/escaped.sh", b"no file of a set")
    mine = tmp_path / "mine"
    shown = CliRunner().invoke(cli.main, ["add", f"{bucket}/sets/toy", "--lake", str(mine)])
    assert shown.exit_code == 0, shown.output
    assert [r.content_hash for r in Lake.existing(mine).records()] == [record.content_hash]
    assert check(Lake.existing(mine)) == []
    assert not list(tmp_path.rglob("escaped.sh"))


def test_adding_into_a_bucket_is_refused_in_one_sentence(lake: Lake, tmp_path: Path) -> None:
    toys.ingest(lake)
    share(lake, tmp_path / "set")
    with pytest.raises(UserError, match="is in a bucket: add the set to a lake on this machine"):
        add(lake, tmp_path / "set")
