"""The Croissant card of a shared set: every table and column, and where its package is installed, it reads the set by it."""

import json
from pathlib import Path

import pytest

from saelake.warehouse.schema import TABLES
from saelake.warehouse.sharing.share import share
from tests.lakes import build_lake


@pytest.fixture
def card(tmp_path: Path) -> Path:
    share(build_lake(tmp_path / "lake"), tmp_path / "set")
    return tmp_path / "set" / "croissant.json"


def test_it_names_every_table_and_column_with_its_meaning(card: Path) -> None:
    content = json.loads(card.read_text())
    found = {one["@id"]: {field["@id"]: field for field in one["field"]} for one in content["recordSet"]}
    assert set(found) == {"prompts", "tokens", "saes", "features", "activations", "alignments", "ablations", "verdicts"}
    for name, fields in found.items():
        assert list(fields) == [f"{name}/{column.name}" for column in TABLES[name].stored()]
        assert all(fields[f"{name}/{column.name}"]["description"].startswith(column.meaning) for column in TABLES[name].stored())
    files = {one["@id"]: one["includes"] for one in content["distribution"]}
    assert all(list(card.parent.glob(pattern)) for pattern in files.values())


def test_its_own_package_reads_the_set(card: Path) -> None:
    mlcroissant = pytest.importorskip("mlcroissant", reason="mlcroissant is not installed")
    dataset = mlcroissant.Dataset(jsonld=str(card))
    assert not dataset.metadata.ctx.issues.errors
    rows = list(dataset.records("activations"))
    assert len(rows) == 16
    assert sorted(row["activations/activation"] for row in rows)[-1] == 9.0
    assert {row["prompts/label"] for row in dataset.records("prompts")} == {b"harmful", b"benign"}
