"""What can be wrong with a study before any weights are loaded, each a sentence: access, fit of the SAEs, memory."""

from collections.abc import Sequence

from saelake.ingest.model_shape import ModelShape, read_shape, weight_bytes
from saelake.ingest.saes.description import SaeDescription, check_description, read_description
from saelake.ingest.saes.loader import free_bytes
from saelake.ingest.study import Study
from saelake.warehouse.errors import UserError
from saelake.warehouse.machine import host_bytes


def check_saes(study: Study) -> list[SaeDescription]:
    """What every SAE's configuration says; raises UserError when one does not fit the model, going by both configurations."""
    descriptions = [read_description(ref) for ref in study.saes]
    shape = read_shape(study.recipe.model)
    if shape is not None:
        for one in descriptions:
            check_description(one, shape)
    return descriptions


def check_device_memory(study: Study, descriptions: Sequence[SaeDescription]) -> None:
    """Raises UserError when the model and its largest SAE cannot be on the device together."""
    import torch

    shape = read_shape(study.recipe.model)
    if shape is None:
        return
    device = torch.device(study.device)
    there = free_bytes(device) if device.type == "cuda" else host_bytes()
    largest = max(one.n_bytes for one in descriptions)
    if (short := shortage(shape, study.recipe.model.dtype, largest, there, device.type)) is not None:
        raise UserError(short)


def shortage(shape: ModelShape, dtype: str, largest_sae: int, there: int, device: str) -> str | None:
    """The sentence about too little memory, or None where it suffices."""
    weights = shape.n_parameters * weight_bytes(dtype)
    if weights + largest_sae <= there:
        return None
    hint = ', or set model.dtype = "bfloat16"' if dtype == "float32" else ""
    return (
        f"the model takes {weights / 1e9:.1f} GB in {dtype} and its largest SAE {largest_sae / 1e9:.1f} GB, but {device} has "
        f"{there / 1e9:.1f} GB free: use a device with more memory{hint}"
    )
