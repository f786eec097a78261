"""`check` finds every kind of damage, names the file and the run to repeat, and is silent about a sound lake."""

import json
import random
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from saelake.warehouse.check import Finding, check
from saelake.warehouse.durable import sha256_file
from saelake.warehouse.keys import record_key
from saelake.warehouse.lake import Lake
from saelake.warehouse.layout import parquet_options
from saelake.warehouse.records import RunRecord
from saelake.warehouse.rules import POINTED, References, referred
from saelake.warehouse.schema import TABLES
from tests.warehouse import toys

N_DAMAGES = 40


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    lake = Lake.create(tmp_path_factory.mktemp("check") / "lake")
    toys.ingest(lake)
    toys.answers(lake)
    return lake


@pytest.fixture
def lake(sound: Lake, tmp_path: Path) -> Lake:
    shutil.copytree(sound.root, tmp_path / "lake")
    return Lake.existing(tmp_path / "lake")


def _published(lake: Lake) -> Iterator[Path]:
    for record in lake.records():
        yield lake.root / record_key(record.run_id)
        yield from (lake.root / f.path for f in record.files)


def _damage(findings: list[Finding]) -> list[Finding]:
    return [f for f in findings if not f.note]


def test_a_sound_lake_has_no_findings(sound: Lake) -> None:
    assert check(sound) == []


def test_what_several_runs_point_to_is_read_once(sound: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def counted(table: str, batches: Iterable[pa.RecordBatch]) -> References:
        read.append(table)
        return referred(table, batches)

    monkeypatch.setattr("saelake.warehouse.check.referred", counted)
    monkeypatch.setattr("os.cpu_count", lambda: 1)  # two runs at once may both be the first to ask
    assert check(sound) == []
    assert sorted(read) == sorted(f.table for record in sound.records() for f in record.files if f.table in POINTED)


def test_random_bit_flips_and_truncations_are_all_found(sound: Lake) -> None:
    chance = random.Random(0)
    paths = sorted(_published(sound))
    for number in range(N_DAMAGES):
        path = chance.choice(paths)
        content = path.read_bytes()
        damaged = bytearray(content)
        if number % 4 == 3:
            damaged = damaged[: chance.randrange(len(damaged))]
        else:
            damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
        try:
            path.write_bytes(damaged)
            found = {f.path for f in _damage(check(sound))}
        finally:
            path.write_bytes(content)
        name = path.relative_to(sound.root).as_posix()
        assert name in found, f"damage {number} of {name} is missed"
        assert len(found) == 1 or path.suffix == ".json", f"damage {number} of {name} is seen in {found}"
    assert check(sound) == []


def test_a_finding_names_file_and_run(lake: Lake) -> None:
    record = lake.records()[0]
    path = next(f.path for f in record.files if f.table == "activations")
    (lake.root / path).unlink()
    (finding,) = check(lake)
    assert (finding.run_id, finding.path, finding.what) == (record.run_id, path, "the file is missing")
    assert f"`saelake drop {record.run_id}` and repeat stage ingest of recipe toy0" in str(finding)
    assert "\n" not in str(finding)


def test_pointers_and_unlisted_files(lake: Lake) -> None:
    (lake.root / "current/toy0/gone").write_text("gone_0123\n")
    (lake.root / "data" / "notes.txt").write_text("")
    pointer, unlisted = check(lake)
    assert (pointer.path, pointer.note) == ("current/toy0/gone", False)
    assert (unlisted.path, unlisted.note) == ("data/notes.txt", True)


def test_a_missing_parent_is_a_note(lake: Lake) -> None:
    """A part of a lake can be shared."""
    (lake.root / record_key(toys.ingest_spec().run_id)).unlink()
    (lake.root / "current/toy0/ingest").unlink()
    assert _damage(check(lake)) == []
    assert any("is not in the lake" in f.what for f in check(lake))


def test_a_damaged_catalog_is_named(lake: Lake) -> None:
    content = bytearray(lake.catalog.read_bytes())
    content[:64] = bytes(64)
    lake.catalog.write_bytes(content)
    assert [f.path for f in check(lake)] == ["catalog.duckdb"]


def _set(column: str, value: Any, row: int = 0) -> Callable[[pa.Table], pa.Table]:
    def change(rows: pa.Table) -> pa.Table:
        values = rows[column].to_pylist()
        values[row] = value
        return rows.set_column(rows.column_names.index(column), rows.field(column), pa.array(values, rows.field(column).type))

    return change


def _swap(rows: pa.Table) -> pa.Table:
    return rows.take([1, 0, *range(2, len(rows))])


def _repeat(rows: pa.Table) -> pa.Table:
    return rows.take([0, 0, *range(2, len(rows))])


@pytest.mark.parametrize(
    ("table", "change", "what"),
    [
        ("activations", _set("activation", 0.0), "activation is below"),
        ("activations", _set("activation", float("nan")), "activation is not a finite number"),
        ("activations", _set("activation", float("inf")), "activation is not a finite number"),
        ("activations", _set("activation", 123.0), "the rows of activations are not those that were published"),
        ("activations", _set("feature_id", 128, -1), "feature_id is past the SAE's width"),
        ("activations", _set("feature_id", -1), "feature_id is below 0"),
        ("activations", _set("layer", 1), "layer is not the SAE's"),
        ("activations", _set("pos", 6), "pos is past the prompt's end"),
        ("activations", _set("pos", -1), "pos is below 0"),
        ("activations", _set("prompt_id", 5), "prompt_id is not in prompts"),
        ("activations", _set("sae_id", "other"), "sae_id is not in saes"),
        ("activations", _set("run_id", "other"), "run_id is not ingest_"),
        ("activations", _swap, "is broken in"),
        ("activations", _repeat, "repeats in 1 row"),
        ("activations", lambda rows: rows.slice(1), "not those that were published"),
        ("activations", lambda rows: rows.drop_columns("pos"), "its columns are not those of activations"),
        ("prompts", _set("prompt_id", 5), "prompt_id does not carry the run's tag"),
        ("prompts", _set("label_role", "odd"), "label_role is neither target nor control nor other"),
        ("tokens", _set("role", "odd"), "role is neither bos nor template nor system nor user nor assistant nor answer"),
        ("ablations", _set("set_id", 5, -1), "set_id is not in feature_sets"),
        ("ablations", _set("p_refusal_token", 1.5), "p_refusal_token is above 1"),
        ("verdicts", _set("ablation_id", 5), "ablation_id is not in ablations"),
        ("feature_sets", _set("feature_id", 4096), "feature_id is past the SAE's width"),
    ],
)
def test_wrong_rows_in_an_intact_file_are_found(
    lake: Lake, table: str, change: Callable[[pa.Table], pa.Table], what: str
) -> None:
    """A file whose record was rewritten to fit: only the rows themselves can show it."""
    record = next(r for r in lake.records() if r.n_rows(table))
    file = next(f for f in record.files if f.table == table)
    path = lake.root / file.path
    rows = change(pq.read_table(path))
    schema = pa.schema([TABLES[table].schema.field(name) for name in rows.column_names])
    pq.write_table(rows.cast(schema), path, **(parquet_options(table) | {"use_dictionary": False, "column_encoding": None}))
    changed = replace(file, n_rows=len(rows), n_bytes=path.stat().st_size, sha256=sha256_file(path))
    files = tuple(changed if f == file else f for f in record.files)
    (lake.root / record_key(record.run_id)).write_text(replace(record, files=files).to_json())
    assert any(file.path.startswith(f.path) and what in f.what for f in _damage(check(lake))), check(lake)


@pytest.mark.parametrize("change", [{"seed": 1}, {"config": {"device": "cuda"}}, {"content_hash": "0"}])
def test_a_record_that_contradicts_itself_is_found(lake: Lake, change: dict[str, Any]) -> None:
    record = lake.records()[1]
    (lake.root / record_key(record.run_id)).write_text(replace(record, **change).to_json())
    assert [f.path for f in check(lake)] == [f"runs/{record.run_id}.json"]


def test_a_record_that_lists_files_outside_the_lake_is_refused(lake: Lake) -> None:
    record = lake.records()[1]
    files = (replace(record.files[0], path="data/../../secret.parquet"),)
    with pytest.raises(ValueError, match="outside"):
        RunRecord.from_json(replace(record, files=files).to_json())
    with pytest.raises(ValueError, match="checksum"):
        RunRecord.from_json(json.dumps(asdict(record)))
