"""How the C library gives out memory."""

from __future__ import annotations

import ctypes

# glibc, malloc.h
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_LARGEST = (256 << 20, 32 << 20)  # bytes of an allocation; before glibc 2.35 no more than the second
_HEAP = 64 << 20  # of a thread; one that is empty goes back to the system unless this much is to be kept ahead


def keep_freed_memory(most: int = 512 << 20) -> bool:
    """Have this process keep freed memory for what it allocates next; return whether it does.

    glibc gives freed blocks of some megabytes back to the system at once, and the system clears every page before it hands it
    out again. The maps between the layers of a network are such blocks, each layer's anew: convolutional encoders spend a
    third of their time on pages, and reading images up to a tenth. Other C libraries are left as they are.

    Every thread goes on having heaps of its own. In one heap for all, small blocks of one thread that live long come to lie
    between the maps of others, which then find room at its end alone: it grows for thousands of images. The price is that a
    thread other than the first gives blocks that are longer than such a heap, 64 MB, back as before.

    Args:
        most: Bytes that are kept, of each heap.

    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl; macOS; Windows, where a name is needed
        return False
    taken = any(mallopt(_M_MMAP_THRESHOLD, min(size, most)) for size in _LARGEST)
    return bool(taken and mallopt(_M_TRIM_THRESHOLD, most) and mallopt(_M_TOP_PAD, _HEAP))
