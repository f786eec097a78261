"""Locks on open files that die with their owner. What they need of the system is imported by who takes one: readers never do."""

import os
import sys
import time

POLL_SECONDS = 0.05
"""How often Windows, which cannot wait for a lock longer than ten seconds, is asked again."""


def hold(fd: int, wait: bool = False) -> bool:
    """Takes the exclusive lock on an open file, which the system releases when the file is closed or the process ends.

    Returns whether it is held; False only if another holds it and `wait` is False. Raises OSError where there are no locks.
    """
    if sys.platform == "win32":
        import msvcrt

        while True:
            os.lseek(fd, 0, os.SEEK_SET)
            try:
                msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
                return True
            except PermissionError:
                if not wait:
                    return False
            time.sleep(POLL_SECONDS)
    import fcntl

    try:
        fcntl.flock(fd, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
