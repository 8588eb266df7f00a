"""How the C library gives out memory."""

from __future__ import annotations

import ctypes

# glibc, malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_LARGEST = (256 << 20, 32 << 20)  # bytes of an allocation; before glibc 2.35 no more than the second


def keep_freed_memory(most: int = 512 << 20) -> bool:
    """Have this process keep freed memory for what it allocates next; return whether it does.

    To be called before there are threads that compute: each would have a heap of its own, which is never kept so.

    glibc gives freed blocks of some megabytes back to the system at once, and the system clears every page before it hands it
    out again. The maps between the layers of a network are such blocks, each layer's anew: convolutional encoders spend a
    third of their time on pages, and reading images up to a tenth. Other C libraries are left as they are.

    Args:
        most: Bytes that are kept.

    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl; macOS; Windows, where a name is needed
        return False
    taken = any(mallopt(_M_MMAP_THRESHOLD, min(size, most)) for size in _LARGEST)
    return bool(taken and mallopt(_M_TRIM_THRESHOLD, most) and mallopt(_M_ARENA_MAX, 1))
