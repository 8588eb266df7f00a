"""Features that are larger than memory: read once, block by block, into a scratch file that the system pages in and out."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import numpy as np

from medprobe.probe.targets import Floats


@runtime_checkable
class FeatureBlocks(Protocol):
    """Features (n, D) that are read a block of rows at a time, such as :meth:`medprobe.FeatureStore.feature_blocks`."""

    shape: tuple[int, int]

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield the blocks, each (rows, D), in their order."""


def scratch(shape: tuple[int, ...], dtype: Any) -> Floats:
    """Return an array in a file without a name, which goes with the array: under ``TMPDIR``, which should be a disk."""
    with tempfile.TemporaryFile(prefix="medprobe-") as file:
        found: Floats = np.memmap(file, dtype=dtype, mode="w+", shape=shape)
        return found


def spooled(features: FeatureBlocks, dtype: Any = np.float32) -> Floats:
    """Return all features in a scratch file.

    Raises:
        ValueError: A value is not finite, or the blocks do not add up to the shape.

    """
    out = scratch(features.shape, dtype)
    start = 0
    for block in features.blocks():
        if not np.isfinite(block).all():
            raise ValueError(f"features hold NaN or infinity in rows {start} to {start + len(block)}")
        out[start : start + len(block)] = block
        start += len(block)
    if start != len(out):
        raise ValueError(f"blocks of {start} rows, not {len(out)}")
    return out
