"""How many requests share a pass: as many as free memory holds, and fewer after a pass did not fit."""

import gc
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch

from saelake.ingest.model_shape import sizes_of
from saelake.ingest.subject import Subject
from saelake.warehouse.errors import UserError

FREE_SHARE = 0.5
"""Of the memory that is free when the work begins; the rest is for fragments and for what the estimate leaves out."""
MOST_TOKENS = {"cpu": 2048, "cuda": 32768, "mps": 16384}
"""Padded tokens a pass beyond which it gets no faster (CPU: measured with 1 and 135 million parameters; others: an estimate)."""
ANSWERING = 2
"""So many times these tokens share a pass that is to be answered: in all that follow it has one token a row (measured on the CPU
with 1 million parameters: 14% faster, twice as many again no more)."""
MESSAGES = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
UNKNOWN = 4 << 30
"""Free memory where the machine does not say."""

Result = TypeVar("Result")


class Size(NamedTuple):
    """What a request's row in a batch holds."""

    n_tokens: int
    n_new: int = 0
    """Tokens to be generated."""
    n_features: int = 0
    """Features held, of all SAEs."""
    widest: int = 0
    """Features of one SAE that are held, at most."""


class Batches:
    """Cuts work into batches for one subject, and remembers what did not fit."""

    def __init__(self, subject: Subject, most_tokens: int | None = None) -> None:
        self._subject = subject
        self._shape = _Shape.of(subject)
        self._most_tokens = most_tokens
        self._most_bytes: float = float("inf")

    def run(self, sizes: Sequence[Size], compute: Callable[[slice], Result]) -> Iterator[tuple[slice, Result]]:
        """Results of neighbouring requests together, sizes given in rising order of tokens.

        Where memory runs out, the requests concerned are computed again in smaller parts, and so is all that follows. UserError
        where one request does not fit by itself.
        """
        start, free = 0, FREE_SHARE * free_bytes(self._subject.device)
        while start < len(sizes):
            part = slice(start, start + self._n_fitting(sizes[start:], min(free, self._most_bytes)))
            try:
                result = compute(part)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
            else:
                yield part, result
                start = part.stop
                continue
            # Not inside `except`: the error holds on to the tensors of the failed pass.
            self._shrink(sizes[part])

    def _n_fitting(self, sizes: Sequence[Size], most_bytes: float) -> int:
        n, most_tokens = 0, self._most_tokens or self._tokens_by_default(sizes[0])
        for n_rows, largest in enumerate(accumulate(map(self._bytes, sizes), max), start=1):
            if n and (n_rows * sizes[n].n_tokens > most_tokens or n_rows * largest > most_bytes):
                break
            n = n_rows
        return n

    def _tokens_by_default(self, size: Size) -> int:
        return MOST_TOKENS.get(self._subject.device.type, 4096) * (ANSWERING if size.n_new else 1)

    def _shrink(self, sizes: Sequence[Size]) -> None:
        if len(sizes) == 1:
            raise UserError(
                f"a prompt of {sizes[0].n_tokens} tokens does not fit into this {self._subject.device.type}'s free memory by "
                f'itself: free some, set model.dtype = "bfloat16", or choose another compute.device'
            )
        self._most_bytes = len(sizes) * max(map(self._bytes, sizes)) / 2
        gc.collect()
        if self._subject.device.type == "cuda":
            torch.cuda.empty_cache()
        elif self._subject.device.type == "mps":
            torch.mps.empty_cache()

    def _bytes(self, size: Size) -> int:
        """At the peak of one layer: its activations and attention, the edit's (t, u) and (t, d), and what all layers keep."""
        shape, t = self._shape, size.n_tokens
        cache = shape.cached * (t + size.n_new) if size.n_new else 0
        edits = 4 * (3 * t * size.widest + 2 * t * shape.d_model + 2 * shape.d_model * size.n_features)
        return t * shape.activations + t * t * shape.attention + cache + edits + shape.logits


class _Shape(NamedTuple):
    """Bytes that a subject needs."""

    d_model: int
    activations: int
    """of one layer, a token"""
    attention: int
    """of one layer, a pair of tokens"""
    cached: int
    """keys and values of all layers, and of one while it grows, a token"""
    logits: int
    """of one position, with their softmax, in float32"""

    @classmethod
    def of(cls, subject: Subject) -> "_Shape":
        config, d = subject.model.config.get_text_config(), subject.d_model
        number = 2 if subject.dtype == torch.bfloat16 else 4
        sizes = sizes_of(config.to_dict())
        # Attention that is not fused writes scores and weights, and its softmax is in float32.
        pair = 2 * sizes.n_heads * (number + 4) if config._attn_implementation == "eager" else 4
        cached = 2 * number * (subject.n_layers + 1) * sizes.n_key_heads * sizes.d_head
        return cls(d, number * (8 * d + 3 * sizes.d_mlp), pair, cached, 3 * 4 * subject.n_vocab)


def free_bytes(device: torch.device) -> int:
    """Memory of the device that nobody uses, what torch holds in reserve included."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    return min(_available(), _left_in_container())


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out: MPS and the CPU's allocator have no exception of their own for it."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in MESSAGES)


def _available() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:  # not Linux
        return UNKNOWN
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def _left_in_container() -> int:
    folder = Path("/sys/fs/cgroup")
    try:
        return int((folder / "memory.max").read_text()) - int((folder / "memory.current").read_text())
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        return UNKNOWN * 1024
