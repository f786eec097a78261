"""The few rows of an SAE that an edit copies encode and decode as the whole SAE does."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from saelake.analysis.engine import slices
from saelake.analysis.engine.slices import FullSlice, Slice, SliceCache
from tests.ingest.saes import ELEMENTWISE, TOPK, saved
from tests.ingest.tiny import D_MODEL

RESID = torch.randn(21, D_MODEL, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("config", ELEMENTWISE + TOPK)
@pytest.mark.parametrize("feature_ids", [[0, 7, 39], [3], list(range(40))])
def test_a_slice_is_its_part_of_the_sae(tmp_path: Path, config: dict[str, Any], feature_ids: list[int]) -> None:
    sae = saved(tmp_path, **config)
    found = SliceCache(sae).of(np.array(feature_ids))
    torch.testing.assert_close(found.encode(RESID), sae.encode(RESID)[:, feature_ids])
    assert torch.equal(found.decoder_ud, sae.W_dec[feature_ids])
    assert isinstance(found, Slice if sae.elementwise else FullSlice)


@pytest.mark.parametrize("config", ELEMENTWISE)
def test_each_row_reads_its_own_features(tmp_path: Path, config: dict[str, Any]) -> None:
    sae = saved(tmp_path, **config)
    pooled = SliceCache(sae).of(np.array([1, 4, 7, 20]))
    assert isinstance(pooled, Slice)
    places_bk = torch.tensor([[0, 1], [3, 2], [1, 1]])
    own = pooled.rows(places_bk)
    resid_btd = RESID.view(3, 7, D_MODEL)
    acts_btk = own.encode(resid_btd)
    for row, places in enumerate(places_bk):
        ids = torch.tensor([1, 4, 7, 20])[places]
        torch.testing.assert_close(acts_btk[row], sae.encode(resid_btd[row])[:, ids])
        assert torch.equal(own.decoder_bkd[row], sae.W_dec[ids])


def test_a_latent_at_its_threshold_does_not_fire() -> None:
    found = Slice(torch.eye(3), torch.zeros(3), torch.tensor([0.0, 1.0, 2.0]), torch.eye(3))
    resid_nd = torch.tensor([[0.0, 1.0, 2.0], [0.5, 1.5, 2.5], [-1.0, -1.5, 1.5]])
    expected = torch.tensor([[0.0, 0.0, 0.0], [0.5, 1.5, 2.5], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(found.encode(resid_nd), expected)


@pytest.mark.parametrize("config", ELEMENTWISE[:1])
def test_a_union_of_most_features_is_the_whole_sae(config: dict[str, Any], tmp_path: Path) -> None:
    cache = SliceCache(saved(tmp_path, **config))
    width = cache.sae.width
    most = int(0.8 * width)
    assert cache.union(np.array([5, 3, 5])).tolist() == [3, 5]
    assert len(cache.union(np.arange(most))) == most, "eight of ten are copied"
    assert cache.union(np.arange(most + 1)).tolist() == list(range(width))


@pytest.mark.parametrize("config", ELEMENTWISE[:1])
def test_an_sae_is_cut_into_parts_of_as_many_rows_as_there_is_room_for(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = SliceCache(saved(tmp_path, **config))
    monkeypatch.setattr(slices, "PART_BYTES", 8 * D_MODEL * 15)
    assert [ids.tolist() for ids, _ in cut.parts()] == [list(range(15)), list(range(15, 30)), list(range(30, 40))]
    monkeypatch.setattr(slices, "PART_BYTES", 1)
    assert [len(ids) for ids, _ in cut.parts()] == [1] * 40
