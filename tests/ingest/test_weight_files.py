"""Shapes in weights files: what a header says, and one sentence for whatever is not whole."""

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from saelake.ingest.saes.weight_files import tensor_shapes
from saelake.warehouse.errors import UserError

TENSORS = {"W_enc": np.ones((3, 4), dtype=np.float32), "b": np.arange(5)}
SHAPES = {"W_enc": (3, 4), "b": (5,)}


def write_npz(file: Path) -> None:
    np.savez_compressed(file, **TENSORS)  # type: ignore[arg-type]  # its stub takes each for the flag allow_pickle


WRITERS: dict[str, Callable[[Path], None]] = {".safetensors": lambda file: save_file(TENSORS, file), ".npz": write_npz}


@pytest.fixture(params=WRITERS)
def file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    found: Path = tmp_path_factory.mktemp("weights") / f"weights{request.param}"
    WRITERS[request.param](found)
    return found


def test_shapes_are_read(file: Path) -> None:
    assert tensor_shapes(file) == SHAPES


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)  # each example writes its own file
@given(st.data())
def test_a_damaged_file_is_one_sentence_or_still_has_shapes(file: Path, data: st.DataObject) -> None:
    whole = file.read_bytes()
    content = bytearray(whole)
    content[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    damaged = file.with_stem("damaged")
    damaged.write_bytes(content[: data.draw(st.integers(0, len(whole)))])
    said = ""
    try:
        tensor_shapes(damaged)
    except UserError as error:
        said = str(error)
    assert not said or said.startswith(f"saes: {file.parent} cannot be loaded (damaged{file.suffix}: ")
    assert "\n" not in said


@pytest.mark.parametrize("header", [b"[" * 100_000, b"{}" * 4, b'{"a": 1}'])
def test_a_header_that_is_none_is_one_sentence(header: bytes, tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    file.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(UserError, match=r"cannot be loaded \(weights.safetensors: "):
        tensor_shapes(file)
