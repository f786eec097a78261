"""Made-up lakes of unusual shapes: more layers than two digits count, more firings than there are features."""

from pathlib import Path

import pytest

import saelake
from saelake.warehouse.check import check
from saelake.warehouse.errors import UserError
from saelake.warehouse.lake import Lake
from saelake.warehouse.sharing.add import add
from saelake.warehouse.sharing.share import share
from saelake.warehouse.synth import Shape, synthesize
from tests.warehouse.test_sharing import rows


def test_a_lake_with_a_hundred_layers_and_more_is_shared_and_added(tmp_path: Path) -> None:
    lake = Lake.create(tmp_path / "deep")
    synthesize(lake, Shape(n_prompts=3, tokens_per_prompt=4, n_layers=103, width=8, l0=2))
    other = Lake.create(tmp_path / "other")
    share(lake, tmp_path / "set")
    add(other, tmp_path / "set")
    assert check(other) == []
    layers = "select layer, sae_id, count(*) from activations group by all order by all"
    assert [row[0] for row in rows(other, layers)] == list(range(103))
    assert rows(other, layers) == rows(lake, layers)
    with saelake.open(other.root) as opened:
        assert opened.query("top_samples", features="102:0, 100:1, 10:1").fetchall()


def test_more_firings_a_token_than_features_can_have_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not on 73: raise the width"):
        synthesize(Lake.create(tmp_path / "lake"), Shape(n_prompts=1, tokens_per_prompt=2, n_layers=1, width=64, l0=73))
