"""Neuronpedia's bulk files, field by field against the models of its own package, and data sets of top activations."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

import saelake
from saelake.formats.registry import Asked
from saelake.formats.transfer import bring_in, write_out
from saelake.warehouse.lake import Lake
from tests.formats.samples import BULK, bulk
from tests.formats.test_formats import refusal
from tests.lakes import FIRINGS


def lines(folder: Path, sae: str, kind: str) -> list[dict[str, Any]]:
    text = gzip.decompress((folder / "v1" / "small" / sae / kind / "batch-0.jsonl.gz").read_bytes()).decode()
    return [json.loads(line) for line in text.splitlines()]


def test_bulk_files_are_read_field_by_field(lake: Lake, tmp_path: Path) -> None:
    (tmp_path / "bulk").mkdir()
    bring_in(lake.root, "neuronpedia", str(bulk(tmp_path / "bulk")), Asked())
    with saelake.open(lake.root) as opened:
        said = opened.sql("select sae_id, feature_id, number, description, method, explainer from explanations").fetchall()
        columns = "feature_id, number, activation, token, pos, context, tokens::varchar[], values"
        shown = opened.sql(f"select {columns} from examples order by number").fetchall()
        moved = opened.sql("select side, rank, token, logit from reported_logits order by side, rank").fetchall()
        counted = opened.sql("select feature_id, density, max_activation from feature_reports").fetchall()
    assert said == [("sae1", 0, 0, "the letter a", None, None), ("sae1", 3, 0, "words of harm", "oai_token-act-pair", "gpt-4o")]
    assert shown == [
        (3, 0, 4.5, " robbery", 0, " robbery", [" robbery"], [4.5]),
        (3, 1, 2.5, " steal", 2, "how to steal", ["how", " to", " steal"], [0.0, 0.5, 2.5]),
    ]
    assert moved == [("promoted", 0, " theft", 1.5), ("promoted", 1, " crime", 1.25), ("suppressed", 0, " cake", -0.5)]
    assert counted == [(3, 0.01, 4.5)]


def test_what_is_written_fits_the_documented_models(lake: Lake, tmp_path: Path) -> None:
    np_activation = pytest.importorskip("neuronpedia.np_activation", reason="the package neuronpedia is not installed")
    np_explanation = pytest.importorskip("neuronpedia.np_explanation")
    (tmp_path / "bulk").mkdir()
    bring_in(lake.root, "neuronpedia", str(bulk(tmp_path / "bulk")), Asked())
    write_out(lake.root, "neuronpedia", tmp_path / "out", Asked(sae="sae1"))
    found = [np_activation.Activation.from_np_db_json(row) for row in lines(tmp_path / "out", "sae1", "activations")]
    assert {(one.modelId, one.source) for one in found} == {("small", "sae1")}
    assert found[0].tokens == ["<bos>", "user", "a0", "b0"]
    assert found[0].values == [0.0, 0.0, 4.0, 0.0]
    assert (found[0].index, found[0].quantileMax) == (0, None)
    said = [np_explanation.Explanation.from_np_db_json(row) for row in lines(tmp_path / "out", "sae1", "explanations")]
    wanted = sorted(BULK["explanations"], key=lambda row: str(row["index"]))
    assert [(one.index, one.text, one.method, one.explainer_model) for one in said] == [
        (int(str(row["index"])), row["description"], row["typeName"], row["explanationModelName"]) for row in wanted
    ]


def test_what_is_written_comes_back(lake: Lake, tmp_path: Path) -> None:
    (tmp_path / "bulk").mkdir()
    bring_in(lake.root, "neuronpedia", str(bulk(tmp_path / "bulk")), Asked())
    write_out(lake.root, "neuronpedia", tmp_path / "out", Asked())
    record = bring_in(lake.root, "neuronpedia", str(tmp_path / "out"), Asked())
    strongest = {
        (f"sae{layer}", feature, prompt): max(value for (p, pos), value in rows.items() if p == prompt and pos)
        for (layer, feature), rows in FIRINGS.items()
        for prompt in {p for p, pos in rows if pos}
    }
    with saelake.open(lake.root) as opened:
        mine = f"where run_id = '{record.run_id}'"
        shown = opened.sql(f"select sae_id, feature_id, activation from examples {mine}").fetchall()
        said = opened.sql(f"select description from explanations {mine} order by feature_id").fetchall()
        moved = opened.sql(f"select count(*) from reported_logits {mine}").fetchall()
    assert sorted(shown) == sorted((sae, feature, value) for (sae, feature, _), value in strongest.items())
    assert said == [("the letter a",), ("words of harm",)]
    assert moved == [(3,)]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"index": "4", "description": "x"}, "there is no feature 4 in sae1"),
        ({"index": "-1", "description": "x"}, "it names no feature"),
        ({"index": "1", "tokens": ["a"], "values": [1, 2]}, "do not fit together"),
        ({"index": "1", "tokens": ["a"], "values": [float("nan")]}, "not a finite number"),
        ({"index": "1", "tokens": [1], "values": [1]}, "its token is not text"),
        ({"index": "1", "pos_str": ["a"], "pos_values": []}, "do not fit together"),
        ({"index": "1", "layer": "9-res", "description": "x"}, "not known to be an SAE of small"),
    ],
)
def test_rows_that_do_not_fit_are_one_sentence(row: dict[str, object], why: str, lake: Lake, tmp_path: Path) -> None:
    (tmp_path / "batch-0.jsonl").write_text(json.dumps({"modelId": "small", "layer": "sae1"} | row) + "\n")
    assert why in refusal(lake, "neuronpedia", tmp_path / "batch-0.jsonl")


def test_top_activations_load_with_datasets_and_come_back(lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="the extra compute is not installed")
    write_out(lake.root, "top_activations", tmp_path / "out", Asked())
    loaded = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded.num_rows == 8
    assert {(row["sae"], row["feature"], row["token"]) for row in loaded if row["rank"] == 0} == {
        ("sae0", 1, "b0"),
        ("sae0", 2, "b1"),
        ("sae1", 0, "a0"),
        ("sae1", 3, "a2"),
    }
    record = bring_in(lake.root, "top_activations", str(tmp_path / "out"), Asked())
    assert record.n_rows("examples") == 8
