"""A lake as a PyTorch data set: every row once an epoch, mixed anew, the same as the sparse matrix, in one process or several."""

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import saelake
from saelake.analysis import rows_dataset
from saelake.warehouse.lake import Lake
from saelake.warehouse.synth import Shape, synthesize
from tests.lakes import build_lake

SHAPE = Shape(n_prompts=70, tokens_per_prompt=9, n_layers=3, width=64, l0=6)
PROCESSES = multiprocessing.get_context("forkserver")
"""What a worker is given is pickled, as where it is spawned, but what it imports is there."""
PROCESSES.set_forkserver_preload(["saelake.analysis.rows_dataset"])


@pytest.fixture(params=[False, True], ids=["in memory", "by prompt"])
def lake(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(rows_dataset, "GROUP_PROMPTS", 8)
    monkeypatch.setattr(rows_dataset, "MIXED", 3)
    shape = Shape(**(vars(SHAPE) | {"prompt_major": request.param}))
    synthesize(Lake.create(tmp_path / "lake"), shape)
    return tmp_path / "lake"


def gathered(batches: object) -> dict[tuple[int, int], np.ndarray]:
    """prompt_id and pos -> the row."""
    found: dict[tuple[int, int], np.ndarray] = {}
    for batch in batches:  # type: ignore[attr-defined]
        pos = batch["pos"].tolist() if "pos" in batch else [-1] * len(batch["prompt_id"])
        for key, row in zip(zip(batch["prompt_id"].tolist(), pos, strict=True), batch["x"].to_dense().numpy(), strict=True):
            assert key not in found
            found[key] = row
    return found


@pytest.mark.parametrize("rows", ["token", "prompt"])
@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("layer", [None, 1])
def test_every_row_is_that_of_the_matrix(lake: Path, rows: str, bos: bool, layer: int | None) -> None:
    with saelake.open(lake) as opened:
        wanted = opened.sparse(layer=layer, rows=rows, bos=bos)
        is_bos = set(opened.sql("select prompt_id, pos from tokens where role = 'bos'").fetchall())
        given = opened.dataset(layer=layer, rows=rows, bos=bos, batch_rows=50, dense=rows == "token")
    found = gathered(given)
    pos = wanted.rows["pos"].tolist() if rows == "token" else [-1] * len(wanted.rows["prompt_id"])
    keys = list(zip(wanted.rows["prompt_id"].tolist(), pos, strict=True))
    kept = [i for i, key in enumerate(keys) if bos or key not in is_bos]
    assert set(found) == {keys[i] for i in kept}
    assert len(found) == given.n_rows
    np.testing.assert_array_equal(np.stack([found[keys[i]] for i in kept]), wanted.matrix[kept].toarray())
    for name in ("layer", "feature_id"):
        np.testing.assert_array_equal(given.features[name], wanted.features[name])


def test_epochs_differ_and_can_be_had_again(lake: Path) -> None:
    with saelake.open(lake) as opened:
        rows = opened.dataset(layer=0, batch_rows=64)
        plain = opened.dataset(layer=0, shuffle=False, batch_rows=64)
    first, second = (torch.cat([batch["prompt_id"] for batch in rows]) for _ in range(2))
    assert not torch.equal(first, second)
    rows.set_epoch(0)
    assert torch.equal(torch.cat([batch["prompt_id"] for batch in rows]), first)
    in_order = torch.cat([batch["prompt_id"] for batch in plain])
    assert torch.equal(in_order, first.sort().values)
    assert {len(batch["label"]) for batch in plain} == {64, len(first) % 64}


def test_workers_share_the_rows(lake: Path) -> None:
    with saelake.open(lake) as opened:
        rows = opened.dataset(layer=2, batch_rows=40)
    alone = gathered(rows)
    together = gathered(DataLoader(rows, batch_size=None, num_workers=2, multiprocessing_context=PROCESSES))
    assert alone.keys() == together.keys()
    assert all((alone[key] == together[key]).all() for key in alone)


@pytest.mark.parametrize("is_persistent", [False, True])
def test_workers_have_the_epoch_that_is_set(lake: Path, is_persistent: bool) -> None:
    with saelake.open(lake) as opened:
        rows = opened.dataset(layer=2, batch_rows=40)
    workers = {"num_workers": 2, "multiprocessing_context": PROCESSES, "persistent_workers": is_persistent}
    loader: DataLoader[dict[str, torch.Tensor]] = DataLoader(rows, batch_size=None, **workers)  # type: ignore[arg-type]
    orders = []
    for epoch in (0, 1, 0):
        rows.set_epoch(epoch)
        orders.append(torch.cat([batch["prompt_id"] * 16 + batch["pos"] for batch in loader]))
    assert torch.equal(orders[0], orders[2])
    assert not torch.equal(orders[0], orders[1])
    assert torch.equal(orders[0].sort().values, orders[1].sort().values)


def test_labels_are_those_of_the_study(tmp_path: Path) -> None:
    lake = build_lake(tmp_path / "lake")
    with saelake.open(lake.root) as opened:
        (batch,) = opened.dataset(rows="prompt", shuffle=False)
    assert batch["label"].tolist() == [1, 1, 1, 1, 0, 0]
    assert batch["x"].shape == (6, 8)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"rows": "feature"}, "rows is token or prompt"),
        ({"layer": 9}, "there is no SAE in layer 9"),
        ({"layer": "x"}, "layer"),
        ({"batch_rows": 0}, "batch_rows"),
        ({"dense": "yes"}, "dense is True or False"),
        ({"batchrows": 1}, "a data set has no option 'batchrows'"),
    ],
)
def test_a_wrong_option_is_one_sentence(options: dict[str, object], why: str, tmp_path: Path) -> None:
    lake = build_lake(tmp_path / "lake")
    with saelake.open(lake.root) as opened, pytest.raises(saelake.UserError, match=why):
        opened.dataset(**options)
