"""Decoder blocks that torch compiles: norms, activations and rotations become a few kernels. For passes without a cache.

What is edited or read inside a block takes the plain one, since a compiled one would not see the hooks. So do backward passes,
and those with a cache, whose tokens come one by one.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import Cache

from saelake.ingest.recipe import Compute
from saelake.warehouse.errors import UserError


def check_compiles(compute: Compute, device: str) -> None:
    """Raises UserError where compute.compile would do nothing."""
    if compute.compile and device != "cuda":
        raise UserError(f"compute.compile is for a CUDA device, and this study computes on {device}: leave it out")


def compile_blocks(blocks: Iterable[nn.Module], backend: str | Callable[..., Any] = "inductor") -> None:
    """Blocks of one model, which share what is compiled; that takes some 20 seconds, in the first passes.

    These raise UserError where the backend cannot compile on this machine.
    """
    from torch._dynamo import config  # seconds, which only who compiles should wait

    # torch counts compilations for all models of a process together, and would run blocks plain, in silence, after the eighth.
    config.recompile_limit = config.accumulated_recompile_limit
    for block in blocks:
        fast = torch.compile(block.forward, dynamic=True, backend=backend)
        block.forward = partial(_forward, block, block.forward, fast)


def _forward(block: nn.Module, plain: Any, fast: Any, *args: Any, **kwargs: Any) -> Any:
    # By whatever name or place a family's blocks take their cache.
    is_cached = any(isinstance(one, Cache) for one in (*args, *kwargs.values()))
    if is_cached or torch.is_grad_enabled() or _is_hooked(block):
        return plain(*args, **kwargs)
    from torch._dynamo.exc import TorchDynamoException

    try:
        return fast(*args, **kwargs)
    except TorchDynamoException as error:
        why = " ".join(str(error).split("\n")[:2])
        raise UserError(
            f"compute.compile: torch cannot compile here ({why}): it needs a C compiler and Triton; or leave it out"
        ) from error


def _is_hooked(block: nn.Module) -> bool:
    """Whether somebody looks inside: what is hooked to the block itself sees a compiled one too."""
    return any(part._forward_hooks or part._forward_pre_hooks for part in block.modules() if part is not block)
