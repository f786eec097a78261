"""Which requests resume from one layer: each from as high as it can, unless that makes many small batches."""

from collections.abc import Iterator, Sequence
from itertools import groupby

WORTH = {"cpu": 16, "cuda": 128, "mps": 64}
"""Tokens that take as long as a pass of hardly any, which reads all weights. Measured on the CPU with 135 million parameters (46
ms for one row, 6 ms for each of 32); the others by their memory's rate and that of their products."""


def together(
    starts: Sequence[int], prompts: Sequence[int], lengths: Sequence[int], worth: int
) -> Iterator[tuple[int, list[int]]]:
    """Layers to resume from, rising, and the requests that do, by their places.

    Below that layer a prompt is read once, however many requests it has. So a request that resumes lower than it could costs
    nothing where it is its prompt's only one, and else has the part between read again.

    Args:
        starts: (n,) layer that each request could resume from.
        prompts: (n,) its prompt.
        lengths: (n,) tokens of that.
        worth: token-layers that may be read again so that there is one batch less.
    """
    lowest, members = 0, list[int]()
    for start, group in groupby(sorted(range(len(starts)), key=starts.__getitem__), key=starts.__getitem__):
        more = list(group)
        again = sum(lengths[i] for i in more) - sum({prompts[i]: lengths[i] for i in more}.values())
        if members and again * (start - lowest) > worth:
            yield lowest, members
            members = []
        if not members:
            lowest = start
        members += more
    if members:
        yield lowest, members
