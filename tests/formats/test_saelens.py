"""Data sets of SAELens' CacheActivationsRunner: SAELens makes one, and what its SAE finds in it is what the engine finds."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import saelake
from saelake.formats.registry import Asked
from saelake.formats.transfer import bring_in
from saelake.warehouse.lake import Lake
from tests.conftest import ROOT
from tests.formats.samples import HOOK, LENGTH, PLANTED_SAE, dense, lake_with_weights
from tests.formats.test_formats import refusal

MODEL = ROOT / "ingest" / "planted" / "model"
ASKED = Asked(weights=str(PLANTED_SAE))
N_ROWS = 8


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return lake_with_weights(tmp_path / "lake")


def made_by_saelens(folder: Path, tokens: list[list[int]]) -> Path:
    """What is at block 1 of the planted model, by SAELens' own runner."""
    import datasets
    from sae_lens import CacheActivationsRunner, CacheActivationsRunnerConfig

    config = CacheActivationsRunnerConfig(
        dataset_path="none",
        model_name=str(MODEL),
        model_class_name="AutoModelForCausalLM",
        model_batch_size=2,
        hook_name="model.layers.1",
        d_in=32,
        training_tokens=N_ROWS * LENGTH,
        context_size=LENGTH,
        new_cached_activations_path=str(folder),
        shuffle=False,
        device="cpu",
        prepend_bos=False,
        streaming=False,
        buffer_size_gb=3e-6,
    )
    CacheActivationsRunner(config, override_dataset=datasets.Dataset.from_dict({"input_ids": tokens})).run()
    return folder


def test_what_saelens_caches_fires_as_in_the_engine(lake: Lake, tmp_path: Path) -> None:
    from sae_lens import SAE
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(MODEL), AutoTokenizer.from_pretrained(MODEL)
    drawn = np.random.default_rng(0).integers(5, 40, size=(N_ROWS, LENGTH)).tolist()
    record = bring_in(lake.root, "saelens", str(made_by_saelens(tmp_path / "acts", drawn)), ASKED)
    assert record.about["hooks"] == ["model.layers.1"]
    with saelake.open(lake.root) as opened:
        place = f"from tokens where run_id = '{record.run_id}'"
        rows = opened.sql(f"select list(token_id order by pos) {place} group by prompt_id order by prompt_id").fetchall()
        mine = f"where run_id = '{record.run_id}' order by all"
        found = opened.sql(
            f"select (prompt_id & 4294967295)::int, pos, feature_id, activation from activations {mine}"
        ).fetchall()
    assert [tokens for (tokens,) in rows] == drawn[: len(rows)]
    engine = saelake.Engine(saelake.Subject(model, tokenizer), [SAE.load_from_disk(str(PLANTED_SAE))])
    wanted = engine.activations([tokens for (tokens,) in rows]).to_pylist()
    assert [row[:3] for row in found] == [(one["prompt"], one["pos"], one["feature_id"]) for one in wanted]
    np.testing.assert_allclose([row[3] for row in found], [one["activation"] for one in wanted], rtol=1e-5)
    assert len(found) > N_ROWS


def changed(folder: Path, **columns: Any) -> Path:
    """The data set with other columns."""
    import datasets

    whole = datasets.load_from_disk(str(dense(folder)))
    table = {name: np.array(whole[name]) for name in whole.column_names} | columns
    datasets.Dataset.from_dict({k: list(v) for k, v in table.items() if v is not None}).save_to_disk(str(folder / "changed"))
    return folder / "changed"


WIDE = np.zeros((3, LENGTH, 7), dtype=np.float32)


@pytest.mark.parametrize(
    ("columns", "why"),
    [
        ({HOOK: WIDE}, "is 7 wide, and weighed reads 32: it is another model's"),
        ({HOOK: np.full((3, LENGTH, 32), np.nan, dtype=np.float32)}, "not finite numbers"),
        ({HOOK: np.zeros((3, LENGTH + 1, 32), dtype=np.float32)}, f"its tokens (3, {LENGTH})"),
        (
            {HOOK: None, "blocks.4.hook_resid_post": WIDE},
            "where no SAE of it reads: sae0 resid_post, sae1 resid_post, weighed blocks.1",
        ),
        ({"token_ids": None}, "has no column token_ids"),
        ({"token_ids": np.full((3, LENGTH), -1)}, "not token ids"),
        ({"token_ids": np.array([[[1]]] * 3)}, "its tokens"),
    ],
)
def test_a_data_set_that_does_not_fit_is_one_sentence(columns: dict[str, Any], why: str, lake: Lake, tmp_path: Path) -> None:
    assert why in refusal(lake, "saelens", changed(tmp_path, **columns), ASKED)


def test_the_sae_is_the_studys_by_its_hash(lake: Lake, tmp_path: Path) -> None:
    place = dense(tmp_path)
    other = PLANTED_SAE.parent / "layer_2"
    assert "holds another SAE than weighed" in refusal(lake, "saelens", place, Asked(weights=str(other)))
    assert "say where the weights of weighed" in refusal(lake, "saelens", place, Asked())
    assert "there is no folder" in refusal(lake, "saelens", place, Asked(weights=str(tmp_path / "none")))
    assert "sae0 resid_post" in refusal(lake, "saelens", place, Asked(weights=str(PLANTED_SAE), sae="sae0"))


def test_a_data_set_that_lacks_a_file_or_its_end_is_refused(lake: Lake, tmp_path: Path) -> None:
    place = dense(tmp_path)
    (file,) = place.glob("*.arrow")
    whole = file.read_bytes()
    file.write_bytes(whole[:-8])
    assert "is cut off" in refusal(lake, "saelens", place, ASKED)
    file.write_bytes(whole)
    state = json.loads((place / "state.json").read_text())
    state["_data_files"].append({"filename": "data-00001-of-00002.arrow"})
    (place / "state.json").write_text(json.dumps(state))
    assert "data-00001-of-00002.arrow is missing" in refusal(lake, "saelens", place, ASKED)


def test_the_tokenizer_is_the_studys(lake: Lake, tmp_path: Path) -> None:
    """Token 0 is <bos> in the lake, and so are 1 to 3 what no vocabulary here calls them."""
    said = refusal(lake, "saelens", dense(tmp_path), Asked(weights=str(PLANTED_SAE), tokenizer=str(MODEL)))
    assert "it is another" in said
