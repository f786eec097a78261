"""What the disk or the folder refuses ends in one sentence, leaves the lake intact, and a rerun completes."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import saelake
from saelake.warehouse.check import check
from saelake.warehouse.errors import UserError, storage_errors
from saelake.warehouse.housekeeping import gc
from saelake.warehouse.lake import FORMAT, Lake
from saelake.warehouse.schema import SCHEMA_VERSION
from tests.lakes import build_lake
from tests.warehouse import processes, toys

LIMITED = """
limit = int(sys.argv[2])
lake = Lake.existing(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    toys.ingest(lake)
except UserError as error:
    print(error)
"""


@pytest.mark.parametrize("limit", [0, 100, 1_500, 3_000, 6_000, 20_000])
def test_disk_full(tmp_path: Path, limit: int) -> None:
    """Files may not grow past `limit`: landing, publishing, the record or the catalog fails, one after another."""
    lake = Lake.create(tmp_path / "lake")
    undisturbed = toys.ingest(Lake.create(tmp_path / "other"))
    said = processes.run(LIMITED, lake.root, limit).strip()
    assert said.startswith(f"cannot write to the lake {lake.root}: ")
    assert "File too large" in said
    assert said.count("\n") == 0
    assert "run the same command again" in said
    assert [f for f in check(lake) if not f.note] == []
    assert toys.ingest(lake).content_hash == undisturbed.content_hash
    gc(lake, older_than_seconds=0)
    assert check(lake) == []


READ_ONLY = """
if os.geteuid() == 0:
    os.setgid(65534), os.setuid(65534)
lake = Lake.existing(sys.argv[1])
for work in (toys.ingest, toys.answers):
    try:
        print(work(lake).run_id)
    except UserError as error:
        print(error)
"""


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users may enter, as pytest's may not."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def test_a_read_only_lake_answers_what_is_published_and_refuses_the_rest(open_folder: Path) -> None:
    lake = Lake.create(open_folder / "lake")
    record = toys.ingest(lake)
    folders = [lake.root, *(p for p in lake.root.rglob("*") if p.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    try:
        found, refused = processes.run(READ_ONLY, lake.root).strip().split("\n")
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert found == record.run_id
    assert refused.startswith(f"cannot write to the lake {lake.root}: Permission denied")
    assert check(lake) == []
    toys.answers(lake)
    assert check(lake) == []


def test_a_folder_that_is_no_lake_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        Lake.existing(tmp_path / "absent")
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match=r"no lake at .*thesis\.txt: it is no folder"):
        Lake.existing(tmp_path / "thesis.txt")
    for open_or_create in (Lake.existing, Lake.create):
        with pytest.raises(UserError, match="not a lake"):
            open_or_create(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_lake_of_a_newer_schema_version_is_refused(tmp_path: Path) -> None:
    lake = Lake.create(tmp_path)
    (lake.root / "saelake.json").write_text(json.dumps({"format": FORMAT, "schema_version": SCHEMA_VERSION + 1}))
    with pytest.raises(UserError, match=f"schema version {SCHEMA_VERSION + 1}.*upgrade saelake"):
        Lake.existing(tmp_path)


DEEP = "[" * 100_000
MARKERS = [f'{{"format": "{name}", "schema_version": {version}}}' for name, version in (("saelaka", 1), ("saelake", 0))]
MARKERS += [f'{{"format": "saelake", "schema_version": {version}}}' for version in ("1e999", "1.5", "true", '"2"')]


@pytest.mark.parametrize("text", ["", "{", "[]", pytest.param(DEEP, id="deep"), *MARKERS])
def test_a_damaged_marker_is_named(tmp_path: Path, text: str) -> None:
    lake = Lake.create(tmp_path)
    (lake.root / "saelake.json").write_text(text)
    with pytest.raises(UserError, match=r"saelake\.json is damaged"):
        Lake.existing(tmp_path)


def test_a_record_that_is_nested_too_deep_is_damaged(tmp_path: Path) -> None:
    lake = build_lake(tmp_path / "lake")
    (run_id, *_) = lake.run_ids()
    (lake.root / "runs" / f"{run_id}.json").write_text(DEEP)
    with pytest.raises(UserError, match=f"the run record .*{run_id}.json is damaged"):
        lake.record(run_id)
    assert lake.parents(run_id) == ()


def test_a_name_that_no_folder_can_have_is_a_sentence() -> None:
    for ask in (saelake.open, saelake.sparse):
        with pytest.raises(UserError, match="File name too long"):
            ask("x" * 5000)


CREATE = "Lake.create(sys.argv[1])"


def test_processes_that_create_one_lake_at_once_all_get_it(tmp_path: Path) -> None:
    for process in [processes.start(CREATE, tmp_path / "lake") for _ in range(4)]:
        processes.finish(process)
    assert Lake.existing(tmp_path / "lake").records() == []
    assert os.listdir(tmp_path) == ["lake"]


def test_an_error_that_says_nothing_is_a_sentence_too() -> None:
    with pytest.raises(UserError, match="cannot write to the lake x: OSError; what is published is intact"), storage_errors("x"):
        raise OSError
