"""Sets that want to do harm: each is refused with one sentence and a lake that is as it was, or its content is inert."""

import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from click.testing import CliRunner

import saelake
from saelake import cli
from saelake.queries.output import printable
from saelake.warehouse.check import check
from saelake.warehouse.errors import UserError
from saelake.warehouse.lake import Lake
from saelake.warehouse.sharing.add import add
from saelake.warehouse.sharing.read import _require_told, read_records
from saelake.warehouse.sharing.share import Choice, share
from tests.lakes import HOSTILE, build_lake, tree
from tests.warehouse.spoiled import Record, edit, ingest_record, records, rewrite, set_first_file, sign
from tests.warehouse.toys import ingest

N_FUZZED = 120


def refusal(lake: Lake, folder: Path) -> str:
    """The sentence with which a set is refused; fails if the lake has changed."""
    before = tree(lake.root)
    with pytest.raises(UserError) as refused:
        add(lake, folder)
    assert tree(lake.root) == before
    return str(refused.value)


def content_hashes(lake: Lake) -> set[str]:
    return {record.content_hash for record in lake.records()}


RECORDS: dict[str, tuple[Callable[[Record], object], str]] = {
    "a path upwards": (set_first_file(path="data/../../../secret"), "outside the lake"),
    "an absolute path": (set_first_file(path="/etc/passwd"), "outside the lake"),
    "a path into another table": (set_first_file(path="data/verdicts/x.parquet"), "is not where a file"),
    "a file twice": (lambda r: r["files"].append(r["files"][0]), "twice"),
    "a table that is none": (lambda r: r["tables"][0].update(name="../x"), "there is no table"),
    "a file of no table": (set_first_file(table="runs"), "none of its tables"),
    "rows without end": (set_first_file(n_rows=2**62), "do not fit"),
    "bytes without end": (lambda r: [f.update(n_bytes=2**60) for f in r["files"]], "room for"),
    "negative rows": (set_first_file(n_rows=-1), "do not fit"),
    "rows that are text": (set_first_file(n_rows="many"), "not integers"),
    "rows that are true": (set_first_file(n_rows=True), "not integers"),
    "a number past 64 bits": (lambda r: r.update(seed=2**70), "64 bits"),
    "a run id with a path": (lambda r: r.update(run_id="../ingest_000000000000"), "run_id"),
    "the id of another run": (lambda r: r.update(run_id="ingest_000000000000"), "run_id is not its name"),
    "a recipe with a path": (lambda r: r.update(recipe="../../x"), "not a name"),
    "a stage with a path": (lambda r: r.update(stage="/tmp/x"), "not a name"),
    "a stage that its id does not have": (lambda r: r.update(stage="baseline"), "does not fit what it says of itself"),
    "another configuration": (lambda r: r["config"].update(device="cuda"), "does not fit what it says of itself"),
    "a parent with a path": (lambda r: r.update(parents=["../../x"]), "not a run_id"),
    "itself as its parent": (lambda r: r.update(parents=[r["run_id"]]), "computed from each other"),
    "a time that is none": (lambda r: r.update(started="'); drop table runs; --"), "refused"),
    "files that are not a list": (lambda r: r.update(files=7), "refused"),
    "tables that are not a list": (lambda r: r.update(tables="activations"), "refused"),
    "negative bytes": (set_first_file(n_bytes=-1, n_rows=0), "a file has -1 bytes"),
    "prompts that are not a list": (lambda r: r["about"].update(prompts=5), "no list"),
    "a prompt set without a name": (lambda r: r["about"].update(prompts=[{}]), "no name"),
    "sources that are not a list": (lambda r: r["about"].update(prompts=[{"set": "x", "sources": 5}]), "no list"),
    "a behaviour that is not a table": (lambda r: r["about"].update(behaviour=[]), "about"),
    "a behaviour whose word is none": (lambda r: r["about"].update(behaviour={"name": 1}), "about"),
    "config that is not an object": (lambda r: r.update(config=[1]), "not an object"),
    "escapes in a text": (lambda r: r["versions"].update(saelake="\x1b[31m"), "control characters"),
    "a null character in a key": (lambda r: r["config"].update({"a\0b": 1}), "control characters"),
    "an unknown field": (lambda r: r.update(pickle="x"), "refused"),
    "a field missing": (lambda r: r.pop("versions"), "refused"),
    "an old schema": (lambda r: r.update(schema_version=0), "schema version"),
    "a newer schema": (lambda r: r.update(schema_version=99), "schema version"),
    "a schema that is not a number": (lambda r: r.update(schema_version=[[]]), "schema version"),
    "no hash": (set_first_file(sha256=""), "sha256"),
    "another hash": (set_first_file(sha256="0" * 64), "not those that its record gives"),
    "another content hash": (lambda r: r.update(content_hash="0" * 64), "content hash does not fit"),
    "other rows than it says": (lambda r: r["tables"][0].update(content_hash="1" * 64), "content hash does not fit"),
    "withholding nonsense": (lambda r: r.update(withheld=["../x"]), "withholds"),
}


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_that_lies_is_refused(name: str, hostile: Path, mine: Lake) -> None:
    change, says = RECORDS[name]
    edit(ingest_record(hostile), change)
    assert says in refusal(mine, hostile)


@pytest.mark.parametrize(
    ("about", "says"),
    [
        ({"prompts": [], "model": "x"}, "not objects"),
        ({"prompts": [], "saes": {"licence": ["x"]}}, "not told as text"),
        ({"prompts": [{"set": "x", "pins": [5]}]}, "not told as text"),
    ],
)
def test_what_a_card_tells_is_of_its_types(about: dict[str, Any], says: str, hostile: Path) -> None:
    record = replace(read_records(hostile)[0], about=about, config={"model_hash": "x"})
    with pytest.raises(ValueError, match=says):
        _require_told(record)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "refused"),
        ("[" * 100_000, "refused"),
        ("null", "refused"),
        ('{"schema_version": 1}', "checksum"),
        ('{"schema_version": 1, "a": NaN, "checksum": ""}', "refused"),
        ('{"schema_version": 1, "a": "\\ud800", "checksum": ""}', "control characters"),
        ("\ufeff{}", "refused"),
        (f'{{"schema_version": 1, "a": {"9" * 10_000}}}', "refused"),
        ("x" * ((16 << 20) + 2), "more than"),
    ],
    ids=lambda value: value[:12],
)
def test_a_record_that_is_no_record_is_refused(text: str, says: str, hostile: Path, mine: Lake) -> None:
    ingest_record(hostile).write_text(text)
    assert says in refusal(mine, hostile)


def test_links_pipes_and_folders_in_place_of_files_are_refused(hostile: Path, mine: Lake, tmp_path: Path) -> None:
    path = sorted((hostile / "data" / "tokens").glob("*.parquet"))[0]
    elsewhere = tmp_path / "elsewhere"
    path.rename(elsewhere)  # the very bytes, but behind a link
    for make in (lambda: path.symlink_to(elsewhere), lambda: os.mkfifo(path), path.mkdir):
        make()
        assert "regular files only" in refusal(mine, hostile)
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    elsewhere.rename(path)
    folder = path.parent.rename(tmp_path / "tokens")
    path.parent.symlink_to(folder)
    assert "regular files only" in refusal(mine, hostile)
    path.parent.unlink()
    folder.rename(path.parent)
    record = ingest_record(hostile)
    moved = record.rename(tmp_path / record.name)
    record.symlink_to(moved)
    assert "refused" in refusal(mine, hostile)
    runs = (hostile / "runs").rename(tmp_path / "runs")
    (hostile / "runs").symlink_to(runs)
    assert "link" in refusal(mine, hostile)


def test_a_file_that_is_missing_is_refused(hostile: Path, mine: Lake) -> None:
    sorted((hostile / "data" / "tokens").glob("*.parquet"))[0].unlink()
    assert "cannot be read" in refusal(mine, hostile)


def column(name: str, change: Callable[[pa.ChunkedArray], Any]) -> Callable[[pa.Table], pa.Table]:
    return lambda rows: rows.set_column(rows.column_names.index(name), rows.schema.field(name), change(rows[name]))


def retyped(name: str, kind: pa.DataType) -> Callable[[pa.Table], pa.Table]:
    return lambda rows: rows.set_column(rows.column_names.index(name), name, rows[name].cast(kind))


def first(value: Any) -> Callable[[pa.ChunkedArray], pa.Array]:
    return lambda values: pa.array([value, *values.to_pylist()[1:]], values.type)


def invalid_text(values: pa.ChunkedArray) -> pa.Array:
    raw = pa.array([b"\xff\xfe", *(v.encode() for v in values.to_pylist()[1:])], pa.binary())
    return pa.Array.from_buffers(pa.string(), len(raw), raw.buffers())


ROWS: dict[str, tuple[str, Callable[[pa.Table], pa.Table], str]] = {
    "a wrong type": ("activations", retyped("activation", pa.float64()), "columns are not those"),
    "ids as text": ("activations", retyped("prompt_id", pa.string()), "columns are not those"),
    "a column more": ("tokens", lambda t: t.append_column("x", t["pos"]), "columns are not those"),
    "a column less": ("tokens", lambda t: t.drop_columns("role"), "columns are not those"),
    "rows of another run": ("tokens", column("run_id", lambda v: pa.array(["mine"] * len(v))), "run_id is not"),
    "ids of another run": ("prompts", column("prompt_id", first(7)), "tag"),
    "a prompt that is not there": ("tokens", column("prompt_id", first(2**40)), "prompt_id is not in prompts"),
    "a feature past the width": ("activations", column("feature_id", first(10**6)), "past the SAE's width"),
    "an activation that is not a number": ("activations", column("activation", first(float("nan"))), "not a finite number"),
    "an activation below 0": ("activations", column("activation", first(-1.0)), "below"),
    "a role that is none": ("tokens", column("role", first("admin")), "neither"),
    "text that is not UTF-8": ("tokens", column("token", invalid_text), "cannot be read"),
    "other text than was published": ("prompts", column("text", first("other")), "not those that were published"),
    "rows twice": ("tokens", lambda t: pa.concat_tables([t.slice(0, 1), t]), "repeats"),
    "rows in another order": ("tokens", lambda t: t.take(pc.sort_indices(t, [("pos", "descending")])), "order"),
}


@pytest.mark.parametrize("name", ROWS)
def test_rows_that_break_the_protocol_are_refused(name: str, hostile: Path, mine: Lake) -> None:
    table, change, says = ROWS[name]
    types = {"a wrong type", "ids as text", "a column more", "a column less"}
    rewrite(hostile, table, change, {"store_schema": False} if name in types else None)
    assert says in refusal(mine, hostile)


def test_a_row_group_that_would_not_fit_in_memory_is_refused_unread(hostile: Path, mine: Lake) -> None:
    rewrite(hostile, "tokens", lambda t: t.take(pa.array([0] * ((1 << 20) + 1))), {"row_group_size": 1 << 22})
    assert "too large" in refusal(mine, hostile)


def test_poisoned_text_is_carried_and_shown_inert(tmp_path: Path) -> None:
    theirs = build_lake(tmp_path / "theirs")
    share(theirs, tmp_path / "set", Choice(tables=("prompts", "tokens", "saes", "ablations")))
    lake = Lake.create(tmp_path / "lake")
    add(lake, tmp_path / "set")
    with saelake.open(lake.root) as opened:
        assert opened.sql("select count(*) from prompts where text = ?", params=[HOSTILE]).fetchall() == [(1,)]
    shown = CliRunner().invoke(cli.main, ["sql", "select text from prompts", "--lake", str(lake.root)]).stdout
    assert printable(HOSTILE)[:20] in shown
    assert "\x1b" not in shown
    assert "\x1b" not in (tmp_path / "set" / "README.md").read_text()


@pytest.mark.parametrize("seed", range(0, N_FUZZED, 20))
def test_fuzzed_sets_are_refused_or_change_nothing_that_counts(seed: int, sound: Path, mine: Lake, tmp_path: Path) -> None:
    """Bytes flipped, cut, repeated or zeroed in any file; half of the time the record is made to fit the damage."""
    truth = {json.loads(p.read_text())["content_hash"] for p in records(sound)}
    for number in range(seed, seed + 20):
        lot = random.Random(number)
        folder = Path(shutil.copytree(sound, tmp_path / f"set-{number}"))
        path = lot.choice(sorted(p for p in folder.rglob("*") if p.suffix in (".json", ".parquet")))
        content = bytearray(path.read_bytes())
        at = lot.randrange(len(content))
        match lot.randrange(4):
            case 0:
                content[at] ^= 1 << lot.randrange(8)
            case 1:
                del content[at:]
            case 2:
                content[at:at] = content[at : at + lot.randrange(1, 200)]
            case _:
                content[at : at + 16] = b"\0" * 16
        changed = bytes(content) != path.read_bytes()
        path.write_bytes(bytes(content))
        if path.suffix == ".parquet" and lot.random() < 0.5:
            sign(folder, path)
        if changed:
            try:
                refusal(mine, folder)
            except pytest.fail.Exception:  # added: what was changed is not a row, and no reader of this lake sees it
                assert content_hashes(mine) >= truth
                assert [f for f in check(mine) if not f.note] == []
                shutil.rmtree(mine.root)
                ingest(Lake.create(mine.root), seed=1)
        shutil.rmtree(folder)
