"""Shapes of the tensors in a weights file, from its header alone. No torch."""

import zipfile
from pathlib import Path

import numpy as np

from saelake.warehouse.errors import UserError, one_line


def tensor_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor in a .safetensors or .npz file; raises UserError for a file that is cut or damaged."""
    from safetensors import safe_open

    try:
        if file.suffix == ".npz":
            with zipfile.ZipFile(file) as archive:
                return {name.removesuffix(".npy"): _npy_shape(archive, name) for name in archive.namelist()}
        with safe_open(file, framework="numpy") as tensors:
            return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118 - no dict
    except UserError:
        raise
    except Exception as error:  # whatever the readers make of a stranger's file
        raise UserError(f"saes: {file.parent} cannot be loaded ({file.name}: {one_line(error)})") from error


def _npy_shape(archive: zipfile.ZipFile, name: str) -> tuple[int, ...]:
    with archive.open(name) as stream:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        return tuple(read(stream)[0])
