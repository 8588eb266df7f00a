"""Volumes made for tests: one asymmetric phantom in every way that a file can store it."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

nibabel = pytest.importorskip("nibabel", reason="needs nibabel: pip install 'medprobe[nifti]'")

SHAPE, SPACING = (6, 8, 10), (1.0, 1.0, 1.0)  # towards right, front and head


def phantom(shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """Return int16 voxels in RAS+ that rise towards the right, the front and the head, each by another step."""
    i, j, k = np.indices(shape)
    return (i + 10 * j + 100 * k).astype(np.int16)


def save(path: Path, values: np.ndarray, affine: np.ndarray | None = None, **header: object) -> Path:
    """Write a NIfTI file (.nii or .nii.gz)."""
    image = nibabel.Nifti1Image(values, np.eye(4) if affine is None else affine)
    for name, value in header.items():
        image.header[name] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)
    return path


def scaled(path: Path, slope: float, inter: float) -> Path:
    """Write a slope and an intercept into a file's header, of which nibabel would make other stored values."""
    data = bytearray(path.read_bytes())
    order = "<" if data[:4] == (348).to_bytes(4, "little") else ">"
    data[112:120] = struct.pack(f"{order}ff", slope, inter)
    path.write_bytes(data)
    return path


def stored_ways(
    voxels: np.ndarray, spacing: tuple[float, float, float] = SPACING
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield RAS+ voxels and their affine, stored in each of the 48 orders and directions of the axes."""
    for order in itertools.permutations(range(3)):
        for flips in itertools.product((1, -1), repeat=3):
            stored = voxels.transpose(order)[tuple(slice(None, None, flip) for flip in flips)]
            affine = np.zeros((4, 4))
            for new, (old, flip) in enumerate(zip(order, flips, strict=True)):
                affine[old, new] = flip * spacing[old]
                affine[old, 3] += 0 if flip > 0 else (voxels.shape[old] - 1) * spacing[old]
            affine[3, 3] = 1
            yield np.ascontiguousarray(stored), affine
