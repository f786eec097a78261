"""Features of two trainings are matched by their decoders, and their sets compared."""

import gc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from saelake.analysis.interactions import retrained
from saelake.analysis.interactions.retrained import compare_trainings, match
from saelake.analysis.search import algorithm1, alignments, baseline, candidates, directions, minimal
from saelake.analysis.stage_list import specs
from saelake.analysis.study_context import StudyContext
from saelake.analysis.verbs import ensure_stage, open_analysis
from saelake.ingest.job import ingest_study
from saelake.ingest.recipe import Recipe, load_recipe
from saelake.ingest.saes.sae import load_sae
from saelake.warehouse.errors import UserError
from saelake.warehouse.lake import Lake

NEEDED = (directions, alignments, baseline, candidates, algorithm1, minimal)
BY_FEATURE = {"W_enc": 1, "W_dec": 0, "b_enc": 0, "threshold": 0}
"""Tensors of an SAE, and their axis of features."""


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**16), n=st.integers(2, 60), n_lost=st.integers(0, 10))
def test_a_shuffled_copy_is_matched_feature_by_feature(seed: int, n: int, n_lost: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    decoder = torch.randn(n, 64, generator=rng)
    order = torch.randperm(n, generator=rng)
    kept = order[: max(n - n_lost, 1)]
    scale = torch.rand(len(kept), 1, generator=rng) + 0.5
    mine, theirs = match(decoder, decoder[kept] * scale + 0.01 * torch.randn(len(kept), 64, generator=rng))
    assert mine.tolist() == sorted(kept.tolist())
    assert np.array_equal(kept.numpy()[theirs], mine)


def test_features_are_matched_from_the_least_cosine_on_and_ties_go_to_the_lower() -> None:
    mine = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]])
    theirs = torch.tensor([[0.0, 0.69, 0.7238], [0.71, 0, 0.7042], [1.42, 0, 1.4084]])
    assert [ids.tolist() for ids in match(mine, theirs)] == [[0, 2], [1, 0]], "0.71 and 0.72; the second, of 0.69, is not near"
    at = torch.tensor([[0.5, 0.75**0.5, 0]])
    assert [ids.tolist() for ids in match(mine[:1], at, 0.5)] == [[0], [0]]
    assert [ids.tolist() for ids in match(mine[:1], at, 0.51)] == [[], []]
    assert [ids.tolist() for ids in match(mine[3:], at, 0.1)] == [[], []], "a row of zeros is near to nothing"


@pytest.mark.parametrize("rows", [1, 3, 7, 8])
def test_large_decoders_are_compared_some_rows_at_a_time(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrained, "CHUNK_ROWS", rows)
    decoder = torch.randn(7, 16, generator=torch.Generator().manual_seed(0))
    order = torch.tensor([3, 6, 0, 2, 5, 1, 4])
    mine, theirs = match(decoder, decoder[order])
    assert mine.tolist() == list(range(7))
    assert order[theirs].tolist() == list(range(7))


def shuffled(recipe: Recipe, folder: Path) -> Recipe:
    """The study with the features of its SAEs in another order."""
    layers = recipe.saes.layers
    for layer in layers:
        source = Path(str(recipe.saes.path).format(layer=layer))
        target = folder / f"layer_{layer}"
        target.mkdir(parents=True)
        (target / "cfg.json").write_text((source / "cfg.json").read_text())
        tensors = load_file(source / "sae_weights.safetensors")
        order = torch.randperm(len(tensors["threshold"]), generator=torch.Generator().manual_seed(layer))
        for name, axis in BY_FEATURE.items():
            tensors[name] = tensors[name].index_select(axis, order).contiguous()
        save_file(tensors, target / "sae_weights.safetensors")
    saes = recipe.saes.model_copy(update={"path": folder / "layer_{layer}"})
    return recipe.model_copy(update={"name": "again", "saes": saes})


def analysed(recipe: Recipe, lake: Lake) -> Recipe:
    study = open_analysis(recipe)
    known, context = specs(study), StudyContext(study, lake)
    ingest_study(study, lake)
    for module in NEEDED:
        ensure_stage(module.STAGE, known, context)
    return recipe


def test_the_same_saes_in_another_order_find_the_same_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoders: list[weakref.ref[torch.Tensor]] = []
    most = 0

    def load(*given: Any) -> Any:
        nonlocal most
        loaded = load_sae(*given)
        encoders.append(weakref.ref(loaded.W_enc))
        gc.collect()
        most = max(most, sum(one() is not None for one in encoders))
        return loaded

    monkeypatch.setattr(retrained, "load_sae", load)
    lake = Lake.create(tmp_path / "lake")
    recipe = load_recipe("organism").limit(3)
    pruned = recipe.algorithm1.model_copy(update={"taus": (0.2,), "seeds": 1})  # is computed before, and not compared
    recipe = analysed(recipe.model_copy(update={"algorithm1": pruned}), lake)
    other = analysed(shuffled(recipe, tmp_path / "saes"), lake)
    found = compare_trainings(lake, recipe, other)
    assert found.n_features == found.n_matched == 6 * 512
    assert found.n_prompts > 0
    assert found.jaccard > 0.8, "searches start at random, in the order of the features: sets may differ, features hardly"
    assert len(encoders) > 2
    assert most == 1, "of the SAE before the decoder alone is kept"
    assert compare_trainings(lake, recipe, recipe).jaccard == compare_trainings(lake, recipe, recipe).jaccard_of_study == 1
    assert compare_trainings(lake, recipe, other, min_cosine=1.1).jaccard == 0, "nothing matched, nothing shared"


def test_a_study_without_sets_is_a_sentence(tmp_path: Path) -> None:
    recipe, lake = load_recipe("organism").limit(2), Lake.create(tmp_path / "lake")
    with pytest.raises(UserError, match="no study named 'organism'"):
        compare_trainings(lake, recipe, recipe)
    ingest_study(open_analysis(recipe), lake)
    with pytest.raises(UserError, match="has no minimal sets of organism: `saelake analyze organism` first"):
        compare_trainings(lake, recipe, recipe)
