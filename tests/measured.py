"""What a call that refuses something says, how long it takes and how much memory, in a process of its own.

Processes are forked from one that has imported what reads sources and sets: each begins in no time, and with the same memory.
"""

import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import torch  # noqa: F401

from saelake.formats.transfer import bring_in  # noqa: F401
from saelake.warehouse.errors import UserError
from saelake.warehouse.sharing.add import add  # noqa: F401

PATIENCE = 120
"""Seconds after which a process counts as hung."""
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload([__name__])


class Measured(NamedTuple):
    """What came of a call."""

    said: str
    """The sentence with which it refused; "done" if it did not."""
    seconds: float
    n_bytes: int
    """Most memory, beside what the process began with: a fork begins without the pages of libraries, and maps what it uses."""


def measured(call: Callable[..., object], *arguments: object) -> Measured:
    """Calls a function of a module, with arguments that can be pickled."""
    here, there = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=_call, args=(there, call, arguments))
    process.start()
    process.join(PATIENCE)
    if process.is_alive():
        process.kill()
    assert process.exitcode == 0, process.exitcode
    return Measured(*here.recv())


def _call(there: Connection, call: Callable[..., object], arguments: tuple[object, ...]) -> None:
    before, begun, said = _high_water(), time.monotonic(), "done"
    try:
        call(*arguments)
    except UserError as error:
        said = str(error)
    there.send((said, time.monotonic() - begun, _high_water() - before))


def _high_water() -> int:
    """Of this process alone: what getrusage says begins with what the parent had."""
    (most,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(most.split()[1]) * 1024
