"""Trainings in several threads: the same results, and an end for all when one of them ends badly."""

import shutil
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch

from saelake.ingest.recipe import Recipe
from saelake.ingest.saes import train as training
from saelake.ingest.saes.side_by_side import side_by_side
from saelake.ingest.saes.train import train_saes
from saelake.ingest.torch_threads import torch_threads
from saelake.warehouse.progress import Quiet
from tests.ingest.test_train_saes import study


class Counted(Quiet):
    """Counts steps."""

    n = 0

    def advance(self, n: int = 1, rows: int = 0) -> None:
        self.n += n


def test_each_item_is_worked_on_with_its_share_of_torchs_threads_and_every_step_is_heard() -> None:
    progress = Counted()

    def work(item: int, progress: Quiet) -> tuple[int, int]:
        for _ in range(100):
            progress.advance()
        return item, torch.get_num_threads()

    with torch_threads(4):
        assert sorted(side_by_side(2, work, range(5), progress)) == [(item, 2) for item in range(5)]
        assert torch.get_num_threads() == 4
    assert progress.n == 500


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_where_one_fails_the_others_end_at_their_next_step(error: type[BaseException]) -> None:
    begun = Event()

    def work(item: int, progress: Quiet) -> None:
        if not item:
            begun.wait()
            raise error
        begun.set()
        while True:  # for ever, unless a step ends it
            progress.advance()

    with pytest.raises(error):
        list(side_by_side(2, work, range(4), Quiet()))


@pytest.fixture(scope="module")
def two_at_once(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    recipe = study(tmp_path_factory.mktemp("two"), steps=40, min_explained_variance=0.01, max_l0_factor=9)
    return recipe.model_copy(update={"compute": recipe.compute.model_copy(update={"threads": 2})})


def test_saes_trained_at_once_are_bit_for_bit_those_trained_one_after_the_other(two_at_once: Recipe, tmp_path: Path) -> None:
    with torch_threads(torch.get_num_threads()):  # training takes those of its recipe
        together = train_saes(two_at_once)
        saes = two_at_once.saes.model_copy(update={"path": tmp_path / "layer_{layer}"})
        alone = train_saes(
            two_at_once.model_copy(update={"saes": saes, "compute": two_at_once.compute.model_copy(update={"threads": 1})})
        )
    for one, other in zip(together, alone, strict=True):
        files = [(trained.folder / "sae_weights.safetensors").read_bytes() for trained in (one, other)]
        assert files[0] == files[1], f"layer {one.layer}"


def test_a_training_that_is_resumed_ends_as_one_that_was_not_killed(
    two_at_once: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one layer left, that layer has no more threads than it had beside the other."""
    saes = two_at_once.saes.model_copy(update={"path": tmp_path / "layer_{layer}"})
    given = list[int]()

    def train(*arguments: Any) -> Any:
        given.append(torch.get_num_threads())
        return real(*arguments)

    real, before = training._train, torch.get_num_threads()
    monkeypatch.setattr(training, "_train", train)
    try:
        train_saes(two_at_once.model_copy(update={"saes": saes}))
        shutil.rmtree(tmp_path / "layer_2")
        train_saes(two_at_once.model_copy(update={"saes": saes}), update=True)
    finally:
        torch.set_num_threads(before)
    assert given == [1, 1, 1]
