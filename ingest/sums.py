"""Whether numbers that a model computed are the sums that they are taken for."""

from collections.abc import Sequence

import torch
from torch import Tensor

TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""By how much each number of a sum may be off, of the sizes of what is added there: a few roundings. Not of the largest number:
beside the huge activations of a first token, another output would pass for the one that is added."""


def sums_to(parts: Sequence[Tensor], total: Tensor) -> bool:
    """Whether numbers are sums, each up to a few roundings of a model's dtype."""
    whole = [part.float().to(total.device) for part in parts]
    size = sum((part.abs() for part in whole), torch.zeros_like(total, dtype=torch.float32))
    off = (sum(whole, torch.zeros_like(size)) - total.float()).abs()
    return bool((off <= TOLERANCE.get(total.dtype, TOLERANCE[torch.bfloat16]) * size + torch.finfo(torch.float32).tiny).all())


def alike(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same numbers, up to as much."""
    return one.shape == other.shape and sums_to([one], other)
