"""Slices of volumes as images by row number: of NIfTI files and DICOM series, or of arrays in an ``.npz``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from medprobe.images.sources import UNKNOWN, ArrayImages, ArrayVolume, Slice, Stamp, Volume, file_stamp


@dataclass(frozen=True)
class FileSlices:
    """Slices of volumes in files.

    Attributes:
        volumes: What slices are cut from.
        of: Which volume each row is a slice of, (n,).
        index: Number of each row's slice, from 0, (n,).

    """

    volumes: Sequence[Volume]
    of: np.ndarray
    index: np.ndarray

    def __len__(self) -> int:
        return len(self.of)

    def payload(self, row: int) -> Slice:
        """Return which slice of which volume a row is."""
        return Slice(self.volumes[self.of[row]], int(self.index[row]))

    def file(self, row: int) -> str:
        """Return the file of a row; of an assembled series the first one."""
        return self._files(row)[0]

    def stamp(self, row: int) -> Stamp:
        """Return size and time of change of the volume's file, or of the slice's own; of an assembled series of all."""
        stamps = [file_stamp(file) for file in self._files(row)]
        return UNKNOWN if UNKNOWN in stamps else (sum(size for size, _ in stamps), max(time for _, time in stamps))

    def head(self, limit: int) -> FileSlices:
        """Return the first ``limit`` slices."""
        return replace(self, of=self.of[:limit], index=self.index[:limit])

    def unit(self, row: int) -> int:
        """Return the number of the row's volume."""
        return int(self.of[row])

    @property
    def paths(self) -> list[str]:
        """The file of each row; of an assembled series the first one."""
        return [self.file(row) for row in range(len(self))]

    def _files(self, row: int) -> tuple[str, ...]:
        volume = self.volumes[self.of[row]]
        return (volume.files[self.index[row]],) if volume.has_a_file_a_slice else volume.files


@dataclass
class ArraySlices:
    """Slices, along their first axis, of volumes in an ``.npz``, which is read volume by volume."""

    images: ArrayImages
    of: np.ndarray
    index: np.ndarray
    _last: tuple[int, ArrayVolume] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.of)

    def payload(self, row: int) -> Slice:
        """Return a slice; those of one volume hold the same voxels."""
        number = int(self.of[row])
        if self._last is None or self._last[0] != number:
            voxels = self.images.payload(number)
            assert isinstance(voxels, np.ndarray)
            self._last = number, ArrayVolume(voxels)
        return Slice(self._last[1], int(self.index[row]))

    def file(self, row: int) -> str:
        """Return the file, the same for every row."""
        return self.images.file(row)

    def stamp(self, row: int) -> Stamp:
        """Return size and time of change of the whole file."""
        return self.images.stamp(row)

    def head(self, limit: int) -> ArraySlices:
        """Return the first ``limit`` slices."""
        return ArraySlices(self.images, self.of[:limit], self.index[:limit])

    def unit(self, row: int) -> int:
        """Return the number of the row's volume."""
        return int(self.of[row])
