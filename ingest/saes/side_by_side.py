"""Several trainings at once on a processor: a step of one SAE is too small to gain from a second thread of torch's.

    for fits in side_by_side(n, train_layer, layers, progress):
        ...

Where one fails, or whoever waits is interrupted, the others stop at their next step.
"""

from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from threading import Event, Lock
from typing import TypeVar

import torch

from saelake.ingest.torch_threads import torch_threads
from saelake.warehouse.progress import Quiet

Item = TypeVar("Item")
Result = TypeVar("Result")


class _Stopped(Exception):
    """Raised in a training that nobody waits for any more."""


class _Steps(Quiet):
    """Hears of the steps of several threads, and ends these when it is told to."""

    def __init__(self, progress: Quiet) -> None:
        self._progress, self._lock, self.stopped = progress, Lock(), Event()

    def advance(self, n: int = 1, rows: int = 0) -> None:
        if self.stopped.is_set():
            raise _Stopped
        with self._lock:
            self._progress.advance(n, rows)


def side_by_side(
    n: int, work: Callable[[Item, Quiet], Result], items: Iterable[Item], progress: Quiet
) -> Generator[Result, None, None]:
    """What `work` makes of the items, as they end; `n` at a time, which share torch's threads.

    Args:
        work: is given an item and what it must tell of every step.
    """
    if n <= 1:
        yield from (work(item, progress) for item in items)
        return
    steps = _Steps(progress)
    workers = ThreadPoolExecutor(n)
    try:
        with torch_threads(max(torch.get_num_threads() // n, 1)):
            for future in as_completed([workers.submit(work, item, steps) for item in items]):
                yield future.result()
    finally:
        steps.stopped.set()
        workers.shutdown(cancel_futures=True)
