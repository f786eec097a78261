"""The inside of a model's norms: what they make of their input before their gain and bias, checked against what they give."""

from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor, nn

from saelake.ingest.sums import sums_to


class Inside(NamedTuple):
    """How the inside of a norm is read."""

    of: str
    """input | output: what of the norm it is made of."""
    epsilon: float | None = None
    """What the norm adds to the variance; None: what it gives is the inside itself, as it has neither gain nor bias."""
    centred: bool = False
    """Whether the norm subtracts the mean."""

    def read(self, x: Tensor) -> Tensor:
        """The inside, in float32, of the norm's input or output (..., d)."""
        if self.epsilon is None:
            return x.float()
        mean, scale = _moments(x.float(), self.epsilon, self.centred)
        return (x.float() - mean) * scale


def inside_of(norm: nn.Module, took_nd: Tensor, gave_nd: Tensor) -> Inside | None:
    """How the inside of a norm is read, as it shows in what the norm took and gave; None where that is no norm that is known."""
    weight, bias = (getattr(norm, name, None) for name in ("weight", "bias"))
    epsilon = next((getattr(norm, name) for name in ("eps", "variance_epsilon") if hasattr(norm, name)), None)
    if epsilon is None:
        return Inside("output") if weight is None and bias is None else None  # OLMo
    gains = (torch.ones_like(took_nd[0]),) if weight is None else (weight, weight.float() + 1)  # Gemma, Nemotron: 1 + weight
    likely = bias is not None or isinstance(norm, nn.LayerNorm)
    for centred, gain in product((likely, not likely), gains):
        mean, scale = _moments(took_nd.float(), epsilon, centred)
        parts = [took_nd.float() * scale * gain, -mean * scale * gain]
        if sums_to(parts if bias is None else [*parts, bias.expand_as(gave_nd)], gave_nd):
            return Inside("input", epsilon, centred)
    return None


def _moments(x: Tensor, epsilon: float, centred: bool) -> tuple[Tensor, Tensor]:
    """What a norm subtracts of x (..., d), and what it multiplies the rest by: (..., 1) each."""
    mean = x.mean(-1, keepdim=True) if centred else torch.zeros_like(x[..., :1])
    return mean, torch.rsqrt((x - mean).pow(2).mean(-1, keepdim=True) + epsilon)
