"""Keeps large freed blocks in the process: on a CPU a step frees and asks again for the same hundreds of megabytes."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
"""glibc's malloc.h."""


def keep_freed_memory() -> bool:
    """Tell glibc's allocator not to give freed memory back to the system; says whether that was possible.

    By default every block above 32 MB is mapped anew and its pages zeroed at first touch, at each step: a quarter of
    the time of the demo's network on two cores. The process then keeps its peak size. Other libraries are left alone.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    limits = ((_M_MMAP_THRESHOLD, 2**31 - 1), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 200 * 2**20))
    return all(mallopt(option, value) == 1 for option, value in limits)
