"""SAEDashboard's files: its own classes read the batches, and the columnar bundle holds the same, table by table."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from saelake.formats.registry import Asked
from saelake.formats.transfer import bring_in, write_out
from saelake.warehouse.lake import Lake
from tests.formats.samples import bulk
from tests.lakes import build_lake


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    lake = build_lake(tmp_path / "lake")
    (tmp_path / "bulk").mkdir()
    bring_in(lake.root, "neuronpedia", str(bulk(tmp_path / "bulk")), Asked())
    return lake


def batch(lake: Lake, tmp_path: Path) -> dict[str, Any]:
    write_out(lake.root, "saedashboard", tmp_path / "out", Asked(sae="sae1"))
    found: dict[str, Any] = json.loads((tmp_path / "out" / "sae1" / "batch-0.json").read_text())
    return found


def test_a_dashboard_holds_what_the_lake_does(lake: Lake, tmp_path: Path) -> None:
    found = batch(lake, tmp_path)
    assert (found["model_id"], found["layer"], found["sae_set"]) == ("small", 1, "sae1")
    first, last = found["features"]
    assert (first["feature_index"], last["feature_index"]) == (0, 3)
    assert (last["pos_str"], last["pos_values"], last["neg_str"]) == ([" theft", " crime"], [1.5, 1.25], [" cake"])
    assert [one["values"] for one in first["activations"]] == [[0, 0, 4.0, 0], [0, 0, 0, 1.5], [0, 1.0, 0, 0]]
    assert [one["qualifying_token_index"] for one in first["activations"]] == [2, 3, 1]
    assert sum(first["freq_hist_data_bar_heights"]) == 3
    assert first["frac_nonzero"] == 3 / 18
    assert sum(last["freq_hist_data_bar_heights"]) == 1, "what fires on BOS counts for nothing"


def test_its_own_classes_read_a_batch(lake: Lake, tmp_path: Path) -> None:
    theirs = pytest.importorskip(
        "sae_dashboard.neuronpedia.neuronpedia_dashboard", reason="sae-dashboard is not installed", exc_type=ImportError
    )
    found = batch(lake, tmp_path)
    assert theirs.NeuronpediaDashboardBatch(**found).to_dict() == found


def test_the_bundle_is_the_same_table_by_table(lake: Lake, tmp_path: Path) -> None:
    features = batch(lake, tmp_path)["features"]
    root = tmp_path / "out" / "sae1" / "columnar"
    (part,) = json.loads((root / "manifest.json").read_text())["batches"]
    manifest = json.loads((root / part["artifact_dir"] / "manifest.json").read_text())
    assert manifest["row_counts"] == part["row_counts"]
    tables = {name: pq.read_table(root / part["artifact_dir"] / file).to_pylist() for name, file in manifest["tables"].items()}
    assert {name: len(rows) for name, rows in tables.items()} == manifest["row_counts"]
    for name, rows in tables.items():
        wanted = [feature["feature_index"] for feature in features for _ in feature["activations"]]
        assert [row["feature_index"] for row in rows] == (wanted if name == "activation_rows" else [0, 3])
    assert [row["max"] for row in tables["feature_statistics"]] == [4.0, 2.5]
    told = [text for feature in features for text in feature["activations"]]
    for row, text in zip(tables["activation_rows"], told, strict=True):
        assert {name: row[name] for name in text} == text
        assert row["values"][row["max_value_token_index"]] == row["max_value"] == max(text["values"])
