"""The same work on several things at once, in threads: reading, hashing, sorting and writing files release the GIL."""

from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def at_once(n: int, work: Callable[[Item], Result], items: Iterable[Item]) -> Generator[Result, None, None]:
    """What comes of the items, in their order, `n` of which are worked on at a time; what nobody waits for any more is not begun.

    One at a time, nothing runs ahead of whoever takes the results.
    """
    if n == 1:
        yield from map(work, items)
        return
    workers = ThreadPoolExecutor(n)
    try:
        yield from workers.map(work, items)
    finally:
        workers.shutdown(cancel_futures=True)
