"""Tensors of .safetensors files that a stranger wrote, as arrays by their names."""

from pathlib import Path

import numpy as np

from saelake.extras import require
from saelake.ingest.inputs import open_input
from saelake.warehouse.errors import UserError, one_line


def read_tensors(file: Path, owner: str) -> dict[str, np.ndarray]:
    """name -> array; raises UserError for a file that is damaged, or none."""
    require("compute", file.name, "safetensors")
    from safetensors.numpy import load

    with open_input(file, owner) as stream:
        content = stream.read()
    try:
        found: dict[str, np.ndarray] = load(content)
    except UserError:
        raise
    except Exception as error:  # whatever the reader makes of a stranger's file
        raise UserError(f"{owner}: {file.name} cannot be read ({one_line(error)})") from error
    return found
