"""How the C library gives out memory."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import cast

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
    mallopt = _of_c_library("mallopt")
    if mallopt is None:
        return False
    taken = any(mallopt(_M_MMAP_THRESHOLD, min(size, most)) for size in _LARGEST)
    return bool(taken and mallopt(_M_TRIM_THRESHOLD, most) and mallopt(_M_ARENA_MAX, 1))


def give_back_freed_memory() -> None:
    """Give back what this process has freed and keeps, to be called now and then.

    Small things that stay come to lie between large ones that go, which then fit no longer: what is kept grows slowly, a tenth
    in 10,000 images.
    """
    malloc_trim = _of_c_library("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(0)


def _of_c_library(name: str) -> Callable[..., int] | None:
    try:
        return cast("Callable[..., int]", getattr(ctypes.CDLL(None), name))
    except (AttributeError, OSError, TypeError):  # musl; macOS; Windows, where a name is needed
        return None
