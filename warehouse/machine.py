"""Main memory and processors of the machine that computes."""

import os


def host_bytes() -> int:
    """Size of main memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def n_processors() -> int:
    """Of the machine's processors, those that this process may use: a scheduler or container may leave it fewer."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
