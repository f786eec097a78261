"""No format runs what a pickle holds, whatever it is called and however it is wrapped."""

import os
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from saelake.formats.names import names
from saelake.formats.registry import Asked, load
from saelake.warehouse.lake import Lake
from tests.formats.test_formats import refusal

WRAPPED = ("torch.pt", "older.pt", "objects.npy")


class Evil:
    """What a pickle can do when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.mark}",)


@pytest.fixture
def found_classes() -> Iterator[list[str]]:
    """Every name that an unpickler looked up, of those that can do harm."""
    looked_up: list[str] = []
    listening = [True]

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if listening and event in ("pickle.find_class", "os.system"):
            looked_up.append(f"{event} {arguments}")

    sys.addaudithook(hook)  # hooks stay for good
    yield looked_up
    listening.clear()


@pytest.mark.parametrize("name", [name for name in names() if load(name).read])
def test_no_pickle_is_ever_loaded(name: str, lake: Lake, tmp_path: Path, found_classes: list[str]) -> None:
    """Whatever a hostile pickle is called, plain or as torch and NumPy wrap them, no format runs it."""
    import torch

    mark = tmp_path / "mark"
    suffixes = (".pkl", ".pt", ".npy", ".json", ".jsonl.gz", ".csv", ".txt", ".safetensors", ".parquet", ".eval")
    for suffix in suffixes:
        (tmp_path / f"plain{suffix}").write_bytes(pickle.dumps(Evil(mark)))
    torch.save(Evil(mark), tmp_path / "torch.pt")
    torch.save(Evil(mark), tmp_path / "older.pt", _use_new_zipfile_serialization=False)
    np.save(tmp_path / "objects.npy", np.array([Evil(mark)], dtype=object), allow_pickle=True)
    folder = tmp_path / "folder"
    for pattern in load(name).files:
        target = folder / pattern.replace("*", "x")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((tmp_path / "torch.pt").read_bytes())
    given = {"layer": 1, "sae": "sae0", "judge": "phrases"}
    asked = Asked(**{option: value for option, value in given.items() if option in load(name).reads})  # type: ignore[arg-type]
    places = [*(tmp_path / f"plain{suffix}" for suffix in suffixes), *(tmp_path / f"{one}" for one in WRAPPED)]
    for place in [*places, *([folder] if folder.exists() else [])]:
        refusal(lake, name, place, asked)
    assert not mark.exists()
    assert found_classes == []
