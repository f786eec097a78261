"""The few rows of an SAE that an edit copies encode and decode as the whole SAE does."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

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
