"""Memory that is done with goes back to the system at once, instead of leaving holes.

glibc raises the size from which an allocation is a mapping of its own up to 32 MB, as it sees larger ones freed; the
activations of a step then share one heap, which breaks into pieces. Measured on a model of 30M parameters with 768
tokens at once on two CPU cores: 1.16 instead of 1.37 GB, and a step takes 0.9 of the time.
"""

from __future__ import annotations

import ctypes
import platform
from functools import cache

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
BYTES = 2**20


@cache
def return_memory_at_once() -> bool:
    """For allocations of at least a megabyte, in this process; False where there is no glibc, and nothing is done."""
    if platform.libc_ver()[0] != "glibc":
        return False
    set_option = ctypes.CDLL(None).mallopt
    return bool(set_option(_M_MMAP_THRESHOLD, BYTES) and set_option(_M_TRIM_THRESHOLD, BYTES))
