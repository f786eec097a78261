"""Vectors that others have saved, as arrays: .npy, .safetensors, and .pt as torch reads tensors and nothing else.

Nothing here runs what a file holds: numpy is told to take no objects, and torch to read weights only.
"""

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from saelake.extras import require
from saelake.ingest.inputs import open_input
from saelake.warehouse.errors import UserError, one_line

SUFFIXES = (".npy", ".safetensors", ".pt")


def read_array(file: Path, owner: str) -> np.ndarray:
    """The one array of numbers that a file holds, float32; `owner` opens the sentence about anything else."""
    with open_input(file, owner) as stream:
        content = stream.read()
    try:
        found = _arrays(file, content, owner)
    except UserError:
        raise
    except Exception as error:  # whatever the readers make of a stranger's file
        raise UserError(f"{owner}: {file.name} cannot be read ({one_line(error)})") from error
    if len(found) != 1 or not isinstance(found[0], np.ndarray) or found[0].dtype.kind not in "fiu" or not found[0].size:
        raise UserError(f"{owner}: {file.name} does not hold one tensor of numbers, and nothing else")
    with np.errstate(over="ignore"):
        values = np.ascontiguousarray(found[0], dtype=np.float32)
    if not np.isfinite(values).all():
        raise UserError(f"{owner}: {file.name} has values that are not finite numbers")
    return values


def read_vector(file: Path, owner: str = "vector") -> np.ndarray:
    """(d,) float32: the one vector that a file holds; raises UserError for anything else."""
    found = read_array(file, owner).squeeze()
    if found.ndim != 1:
        raise UserError(f"{owner}: {file.name} does not hold one vector of numbers")
    return found


def _arrays(file: Path, content: bytes, owner: str) -> list[np.ndarray]:
    suffix = file.suffix.lower()
    if suffix == ".npy":
        return [np.load(io.BytesIO(content), allow_pickle=False)]
    if suffix not in SUFFIXES:
        raise UserError(f"{owner}: {file.name} is none of {', '.join(SUFFIXES)}")
    require("compute", f"{file.name}", "torch", "safetensors")
    import torch

    if suffix == ".safetensors":
        import safetensors.torch

        return [_as_numpy(one, len(content)) for one in safetensors.torch.load(content).values()]
    _refuse_bomb(content)
    loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    if not isinstance(loaded, torch.Tensor):
        raise UserError(f"{owner}: {file.name} does not hold one tensor of numbers, and nothing else")
    return [_as_numpy(loaded, len(content))]


def _refuse_bomb(content: bytes) -> None:
    """Raises ValueError for a zip archive whose members unpack to more than it is: torch itself packs nothing."""
    if zipfile.is_zipfile(io.BytesIO(content)):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            total = sum(info.file_size for info in archive.infolist())
        if total > len(content):
            raise ValueError(f"its {len(content):,} bytes say that they unpack to {total:,}")


def _as_numpy(tensor: Any, n_bytes: int) -> np.ndarray:
    """A tensor of a file of so many bytes; raises ValueError for one of more numbers, which repeat, or of no real numbers."""
    if tensor.numel() * tensor.element_size() > n_bytes:
        raise ValueError(f"it has {tensor.numel():,} numbers in {n_bytes:,} bytes")
    if tensor.is_complex() or tensor.dtype == tensor.new_empty(0).bool().dtype:
        raise ValueError(f"it holds {tensor.dtype}")
    found: np.ndarray = tensor.detach().float().numpy()
    return found
