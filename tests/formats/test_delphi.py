"""delphi's latent cache: its own package reads ours and writes theirs, and the non-zeros are the same."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import saelake
from saelake.formats.registry import Asked
from saelake.formats.transfer import bring_in, write_out
from saelake.warehouse.lake import Lake
from tests.formats.samples import NONZEROS, cache
from tests.formats.test_formats import refusal
from tests.lakes import FIRINGS

safetensors_numpy = pytest.importorskip("safetensors.numpy", reason="safetensors, which the extra compute installs, is missing")


def test_the_nonzeros_of_a_cache_are_those_of_the_lake(lake: Lake, tmp_path: Path) -> None:
    record = bring_in(lake.root, "delphi", str(cache(tmp_path)), Asked())
    with saelake.open(lake.root) as opened:
        place = "(prompt_id & 4294967295)::integer, pos, feature_id"
        found = opened.sql(f"select {place}, activation from activations where run_id = '{record.run_id}'").fetchall()
        prompts = opened.sql(f"select text, n_tokens from prompts where run_id = '{record.run_id}' order by prompt_id").fetchall()
        fired = opened.sql("select feature_id, n_tokens, n_prompts from features where layer = 1 order by feature_id").fetchall()
    assert {tuple(row[:3]): row[3] for row in found} == NONZEROS
    assert prompts == [("usera0b0", 4), ("b0a0<9>", 4)]
    # Over both runs, BOS left out; (1, 0) fires three times by hand and once here, (1, 3) once each beside BOS.
    assert fired == [(0, 4, 4), (1, 1, 1), (2, 0, 0), (3, 2, 2)]


def test_what_is_written_comes_back(lake: Lake, tmp_path: Path) -> None:
    write_out(lake.root, "delphi", tmp_path / "out", Asked())
    for layer in (0, 1):
        record = bring_in(lake.root, "delphi", str(tmp_path / "out" / f"layers.{layer}"), Asked())
        with saelake.open(lake.root) as opened:
            place = "feature_id, (prompt_id & 4294967295)::integer, pos, activation"
            found = opened.sql(f"select {place} from activations where run_id = '{record.run_id}'").fetchall()
        wanted = {(f, p, pos): value for (at, f), rows in FIRINGS.items() if at == layer for (p, pos), value in rows.items()}
        assert {tuple(row[:3]): row[3] for row in found} == wanted


def test_delphi_reads_what_is_written(lake: Lake, tmp_path: Path) -> None:
    loader = pytest.importorskip("delphi.latents.loader", reason="delphi is not installed: `make bench-lake` puts it beside")
    write_out(lake.root, "delphi", tmp_path / "out", Asked())
    for layer in (0, 1):
        found: dict[tuple[int, ...], float] = {}
        for file in sorted((tmp_path / "out" / f"layers.{layer}").glob("*.safetensors")):
            locations, activations, tokens = loader.TensorBuffer(str(file), f"layers.{layer}").load()
            assert tuple(tokens.shape) == (6, 4)
            found |= {tuple(place): value for place, value in zip(locations.tolist(), activations.tolist(), strict=True)}
        wanted = {(p, pos, f): value for (at, f), rows in FIRINGS.items() if at == layer for (p, pos), value in rows.items()}
        assert found == wanted


def test_delphi_writes_what_is_read(lake: Lake, tmp_path: Path) -> None:
    delphi = pytest.importorskip("delphi.latents.cache", reason="delphi is not installed: `make bench-lake` puts it beside")
    import torch

    latents = torch.zeros(2, 4, 4)
    for where, value in NONZEROS.items():
        latents[where] = value
    theirs = delphi.LatentCache(None, {}, batch_size=2)
    theirs.width = 4
    theirs.cache.add(latents, torch.tensor([[0, 1, 2, 3], [0, 3, 2, 9]]), 0, "layers.1")
    theirs.cache.save()
    theirs.save_splits(2, tmp_path / "latents")
    record = bring_in(lake.root, "delphi", str(tmp_path / "latents" / "layers.1"), Asked())
    with saelake.open(lake.root) as opened:
        place = "(prompt_id & 4294967295)::integer, pos, feature_id"
        found = opened.sql(f"select {place}, activation from activations where run_id = '{record.run_id}'").fetchall()
    assert {tuple(row[:3]): row[3] for row in found} == NONZEROS


TOKENS = np.array([[0, 1, 2, 3], [0, 3, 2, 9]])


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"locations": np.array([[0, 1, 5]], dtype=np.uint16)}, "has feature 5, which is past its range"),
        ({"locations": np.array([[2, 1, 0]], dtype=np.uint16)}, "there is no row 2"),
        ({"locations": np.array([[0, 4, 0]], dtype=np.uint16)}, "there is no position 4"),
        ({"locations": np.array([[0, 1]], dtype=np.uint16)}, "do not fit together"),
        ({"activations": np.array([np.nan], dtype=np.float16)}, "not finite numbers"),
        ({"activations": np.array([-1.0], dtype=np.float16)}, "not above 0"),
        ({"tokens": TOKENS + 1}, "they are of two caches"),
        ({"tokens": TOKENS - 1}, "not token ids"),
        (
            {"locations": np.array([[0, 1, 0]] * 2, dtype=np.uint16), "activations": np.array([1.0, 2.0], dtype=np.float16)},
            "an activation comes twice",
        ),
    ],
)
def test_a_cache_that_does_not_fit_is_one_sentence(change: dict[str, np.ndarray], why: str, lake: Lake, tmp_path: Path) -> None:
    module = cache(tmp_path)
    sound = {"locations": np.array([[0, 1, 0]], dtype=np.uint16), "activations": np.array([4.0], dtype=np.float16)}
    safetensors_numpy.save_file(sound | {"tokens": TOKENS} | change, module / "0_1.safetensors")
    assert why in refusal(lake, "delphi", module)


def test_a_cache_of_another_sae_or_model_is_refused(lake: Lake, tmp_path: Path) -> None:
    module = cache(tmp_path)
    assert "the study small has no SAE '7'" in refusal(lake, "delphi", module.rename(tmp_path / "layers.7"))
    module = cache(tmp_path)
    (module / "2_3.safetensors").rename(module / "2_5.safetensors")
    assert "an SAE of 6 features, and sae1 has 4" in refusal(lake, "delphi", module)
    (module / "2_5.safetensors").unlink()
    assert "an SAE of 2 features, and sae1 has 4" in refusal(lake, "delphi", module)
    (module / "0_1.safetensors").rename(module / "1_2.safetensors")
    assert "no file has feature 0" in refusal(lake, "delphi", module)
    (module / "config.json").write_text(json.dumps([1]))
    assert "config.json is not an object" in refusal(lake, "delphi", module)


@pytest.mark.parametrize("name", ["delphi", "neuronpedia", "top_activations"])
def test_restricted_sets_are_not_passed_on(name: str, lake: Lake, tmp_path: Path) -> None:
    imported = bring_in(lake.root, "delphi", str(cache(tmp_path)), Asked())
    with saelake.open(lake.root) as opened:
        rows = opened.sql('select distinct run_id, "set" from prompts where run_id <> $1', [imported.run_id]).fetchall()
    for run_id, prompt_set in rows:
        record = lake.record(run_id)
        assert record is not None
        told = replace(record, about={**record.about, "prompts": [{"set": prompt_set, "restricted": True}]})
        (lake.root / "runs" / f"{run_id}.json").write_text(told.to_json())
    with saelake.open(lake.root) as opened:
        of_imported = opened.sql("select distinct token_id from tokens where run_id = $1", [imported.run_id]).fetchnumpy()
        (kept,) = opened.sql("select list(distinct text) from prompts where run_id = $1", [imported.run_id]).fetchall()[0]
        hidden = [text for (text,) in opened.sql("select text from prompts").fetchall() if text not in kept]
    assert hidden
    write_out(lake.root, name, tmp_path / "out", Asked())
    written = [file.read_bytes() for file in (tmp_path / "out").rglob("*") if file.is_file()]
    assert written
    if name == "delphi":
        (tokens, *_) = [safetensors_numpy.load(one)["tokens"] for one in written if not one.startswith(b"{")]
        assert len(tokens) == 2
        assert set(np.unique(tokens)) <= {0, *of_imported["token_id"].tolist()}
    assert not [text for text in hidden for one in written if text.encode() in one]
