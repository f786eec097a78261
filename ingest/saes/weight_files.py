"""Shapes of the tensors in a weights file, from its header alone. No torch."""

import json
import struct
import zipfile
from pathlib import Path

import numpy as np


def tensor_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor in a .safetensors or .npz file."""
    if file.suffix == ".npz":
        with zipfile.ZipFile(file) as archive:
            return {name.removesuffix(".npy"): _npy_shape(archive, name) for name in archive.namelist()}
    with file.open("rb") as stream:
        header = json.loads(stream.read(struct.unpack("<Q", stream.read(8))[0]))
    return {name: tuple(value["shape"]) for name, value in header.items() if name != "__metadata__"}


def _npy_shape(archive: zipfile.ZipFile, name: str) -> tuple[int, ...]:
    with archive.open(name) as stream:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        return tuple(read(stream)[0])
