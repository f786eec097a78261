"""The main memory of the machine that computes."""

import os


def host_bytes() -> int:
    """Size of main memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
