"""Pixels from a decoding process to its caller through memory: a pipe hands them on 64 KB at a time, and costs ten times that.

Linux has memory that is opened like a file and has no name in any folder: it is gone with the last process that has it open,
however that ends. Elsewhere, and where that memory cannot be had or opened, pixels go through the pipe with all the rest.
"""

from __future__ import annotations

import math
import mmap
import os
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np

Shape = tuple[int, ...]

# Below, a pipe is good enough; and there are no more of these open than pixels may wait.
LEAST_BYTES = 1 << 20


class Memory:
    """Memory for the pixels of one task at a time.

    Attributes:
        place: Where another process of this user opens it.

    Raises:
        OSError: There is none to be had.

    """

    def __init__(self) -> None:
        self._file = os.memfd_create("medprobe-pixels")
        weakref.finalize(self, os.close, self._file)
        self.place = f"/proc/{os.getpid()}/fd/{self._file}"
        self._mapped: mmap.mmap | None = None

    def look(self, shapes: Sequence[Shape]) -> list[np.ndarray]:
        """Return the uint8 arrays of these shapes that :func:`leave` has put there, uncopied, until it puts others."""
        sizes = [math.prod(shape) for shape in shapes]
        if not sum(sizes):  # nothing is mapped of an empty file
            return [np.empty(shape, dtype=np.uint8) for shape in shapes]
        if self._mapped is None or len(self._mapped) < sum(sizes):
            self._mapped = mmap.mmap(self._file, sum(sizes))
        whole = np.frombuffer(self._mapped, dtype=np.uint8, count=sum(sizes))
        parts = np.split(whole, np.cumsum(sizes)[:-1])
        return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def memory_for(n_bytes: int, free: list[Memory]) -> Memory | None:
    """Return memory for so many bytes, of what is free or else new, or None where a pipe does, or has to do."""
    if n_bytes < LEAST_BYTES or not hasattr(os, "memfd_create"):
        return None
    try:
        return free.pop() if free else Memory()
    except OSError:
        return None


def leave(place: str, arrays: Sequence[np.ndarray]) -> list[Shape] | None:
    """Put uint8 arrays into another process's memory; return their shapes, or None if they do not get there."""
    try:
        with Path(place).open("r+b") as file:
            for array in arrays:
                file.write(array.reshape(-1).data)
    except OSError:
        return None
    return [array.shape for array in arrays]
