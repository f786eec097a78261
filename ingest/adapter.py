"""LoRA adapters in PEFT's layout (adapter_config.json, adapter_model.safetensors), merged into a model's weights as it is loaded.

    W' = W + scale B A, scale = alpha / r (alpha / sqrt(r) for rank-stabilised ones)

So nothing of an adapter is left to hook or to slow a pass, and PEFT itself is not needed.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from saelake.ingest.fingerprint import ADAPTER_FILES, check_files
from saelake.warehouse.errors import UserError, one_line

FIELD = "model.adapter"
MATRIX = re.compile(r"^base_model\.model\.(?P<module>.+)\.lora_(?P<which>[AB])(\.default)?\.weight$")
PLAIN: Mapping[str, tuple[object, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "fan_in_fan_out": (False, None),
    "use_dora": (False, None),
    "modules_to_save": (None, []),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "trainable_token_indices": (None,),
}
"""Field of the configuration -> the values with which an adapter is no more than A and B; a field that is absent has the last."""


def merge(model: nn.Module, folder: Path) -> None:
    """Adds an adapter to a model's weights in place, each sum in float32.

    A projection whose weight is the embeddings' too (a tied lm_head) gets one of its own: an adapter is the projection's alone.

    Raises UserError, before any weight is changed, for files that cannot be read, an adapter that is more than pairs of A and B,
    and matrices that fit no projection of the model.
    """
    scale_of, pairs = _read(folder)
    added: list[tuple[nn.Linear, Tensor]] = []
    for name, matrices in sorted(pairs.items()):
        if set(matrices) != {"A", "B"}:
            raise UserError(f"{FIELD}: {folder} has only one of the matrices A and B for {name}")
        A_rd, B_or = matrices["A"].float(), matrices["B"].float()
        try:
            module = model.get_submodule(name)
        except AttributeError:
            module = None
        if not isinstance(module, nn.Linear) or A_rd.ndim != 2 or B_or.ndim != 2 or len(A_rd) != B_or.shape[1]:
            raise UserError(
                f"{FIELD}: {folder} has matrices for {name}, which is not a linear projection of the model that they fit"
            )
        if module.weight.shape != (len(B_or), A_rd.shape[1]):
            shapes = f"{len(B_or)} x {A_rd.shape[1]}, not {' x '.join(map(str, module.weight.shape))}"
            raise UserError(f"{FIELD}: the matrices of {folder} for {name} come to {shapes}: it is an adapter of another model")
        if not (torch.isfinite(A_rd).all() and torch.isfinite(B_or).all()):
            raise UserError(f"{FIELD}: {folder} has numbers for {name} that are not finite")
        added.append((module, scale_of(len(A_rd)) * (B_or @ A_rd)))
    n_owners = Counter(id(weight) for part in model.modules() for weight in part.parameters(recurse=False))
    with torch.no_grad():
        for module, delta in added:
            if n_owners[id(module.weight)] > 1:
                module.weight = nn.Parameter(module.weight.clone(), module.weight.requires_grad)
            module.weight.copy_(module.weight.float() + delta.to(module.weight.device))


def _read(folder: Path) -> tuple[Any, dict[str, dict[str, Tensor]]]:
    """How the product of A and B is scaled at a rank, and both matrices by the module that they are for."""
    present = {file.name for file in check_files(folder, ADAPTER_FILES, FIELD)}
    if absent := next((name for name in ADAPTER_FILES if name not in present), None):
        raise UserError(f"{FIELD}: there is no {absent} in {folder}: give the folder of an adapter in PEFT's layout")
    try:
        config = json.loads((folder / ADAPTER_FILES[0]).read_text("utf-8"))
        weights = load_file(folder / ADAPTER_FILES[1])
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        raise UserError(f"{FIELD}: {folder} cannot be read ({one_line(error)})") from error
    if not isinstance(config, dict):
        raise UserError(f"{FIELD}: {folder / ADAPTER_FILES[0]} is not a table of fields")
    for field, plain in PLAIN.items():
        if config.get(field, plain[-1]) not in plain:
            raise UserError(f"{FIELD}: {folder} has {field} = {config.get(field)!r}: adapters of plain LoRA alone are merged")
    alpha = config.get("lora_alpha")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not math.isfinite(alpha):
        raise UserError(f"{FIELD}: {folder} has lora_alpha = {alpha!r}, which is not a number")
    pairs: dict[str, dict[str, Tensor]] = {}
    for key, matrix in weights.items():
        found = MATRIX.match(key)
        if found is None:
            raise UserError(f"{FIELD}: {folder} has weights {key!r}: adapters of plain LoRA alone are merged")
        pairs.setdefault(found["module"], {})[found["which"]] = matrix
    if not pairs:
        raise UserError(f"{FIELD}: {folder} has no matrices")
    stabilised = bool(config.get("use_rslora"))

    def scale_of(rank: int) -> float:
        return float(alpha) / (math.sqrt(rank) if stabilised else rank)

    return scale_of, pairs
