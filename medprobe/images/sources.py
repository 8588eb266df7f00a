"""Where the pixels of a manifest's rows lie: image files, slices of volumes, or arrays in a MedMNIST ``.npz``."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol, TypeVar

import numpy as np

from medprobe.errors import DataError
from medprobe.images.window import Window
from medprobe.storage import is_url

T = TypeVar("T")

# What zipfile and numpy raise for a damaged member; ValueError also for one that would need pickle.
_DAMAGE = (zipfile.BadZipFile, zlib.error, ValueError, EOFError, NotImplementedError)

NIFTI_SUFFIXES = (".nii", ".nii.gz")
NATIVE = "native"  # the axis along which a volume is stored

_MOST_CHANNELS = 4  # of an image; a longer last axis is the width of a volume

# What tells a file from a changed one: its size in bytes, and the time of its change in nanoseconds; see images/download.py.
Stamp = tuple[int, int]
UNKNOWN: Stamp = (-1, -1)  # of a file that is not there

Box = tuple[int, int, int, int]  # left, top, width and height, in pixels of the upright image


@dataclass(frozen=True)
class Part:
    """What of a file is meant: a frame of several, counted from 0, and a box or what a mask covers."""

    path: str
    frame: int | None = None
    box: Box | None = None
    mask: str | None = None


@dataclass(frozen=True)
class Volume:
    """What slices are cut from.

    Attributes:
        files: One NIfTI file, or the files of a DICOM series in the order of their places.
        axis: ``axial``, ``coronal``, ``sagittal``, or ``native``: the third axis of a NIfTI file, the files of a series.
        point: Number of a point in time, None for a volume without time.
        affine: Of a series: from row, column and number of the slice to millimetres in RAS+, three rows of four.

    """

    files: tuple[str, ...]
    axis: str = NATIVE
    point: int | None = None
    affine: tuple[tuple[float, ...], ...] | None = None

    @property
    def has_a_file_a_slice(self) -> bool:
        """Whether it is a series whose slices are its files, which need not be assembled."""
        return self.axis == NATIVE and not is_nifti(self.files[0])


@dataclass(frozen=True, eq=False)
class ArrayVolume:
    """A volume whose voxels are at hand, (slices, H, W)."""

    values: np.ndarray


@dataclass(frozen=True)
class Slice:
    """A slice of a volume, by its number along the volume's axis, from 0."""

    volume: Volume | ArrayVolume
    index: int


# What a decoding worker gets for a row: a path or part of a file that it opens itself, or the pixels.
Payload = str | Part | Slice | np.ndarray


class Drawn(Protocol):
    """What becomes pixels only once a window is chosen: a slice, whose volume decides where grey begins and ends."""

    def digest(self) -> np.ndarray:
        """Return the digest of what it is made from, uint8 (16,)."""
        ...

    def shown(self, window: Window) -> tuple[bytes | np.ndarray, Window]:
        """Return a file's bytes, or pixels, and the window that they are to be shown with."""
        ...


# What a picture is made from.
Source = bytes | np.ndarray | Drawn


class ImageSource(Protocol):
    """Images by row number."""

    def __len__(self) -> int: ...

    def payload(self, row: int) -> Payload:
        """Return the path of an image, part of a file, or an array (H, W), (H, W, 1) or (H, W, 3)."""
        ...

    def stamp(self, row: int) -> Stamp:
        """Return size in bytes and time of change in nanoseconds, ``UNKNOWN`` for a missing file."""
        ...

    def file(self, row: int) -> str:
        """Return the file that a row is in, or the first of several."""
        ...

    def head(self, limit: int) -> ImageSource:
        """Return the first ``limit`` images."""
        ...

    def unit(self, row: int) -> int:
        """Return the number of what is opened for a row: rows of one unit are best read by one process, in their order."""
        ...


@dataclass(frozen=True)
class FileImages:
    """One file an image, or part of a file.

    Attributes:
        paths: The file of each image.
        frames: The number of each one's frame, None for a file of one picture.
        boxes: What is cut out of each.
        masks: A file for each; what is cut out encloses its pixels above its lowest value.
        listed: The stamp of each, where a server has told them all at once.

    """

    paths: Sequence[str]
    frames: Sequence[int | None] | None = None
    boxes: Sequence[Box | None] | None = None
    masks: Sequence[str | None] | None = None
    listed: Sequence[Stamp] | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def payload(self, row: int) -> Payload:
        """Return the path, or part of the file."""
        part = Part(self.paths[row], _at(self.frames, row), _at(self.boxes, row), _at(self.masks, row))
        return part if part != Part(part.path) else part.path

    def file(self, row: int) -> str:
        """Return the file of a row."""
        return self.paths[row]

    def stamp(self, row: int) -> Stamp:
        """Return size and time of change of the file."""
        return file_stamp(self.paths[row]) if self.listed is None else self.listed[row]

    def head(self, limit: int) -> FileImages:
        """Return the first ``limit`` files."""
        return self.of(range(min(limit, len(self.paths))))

    def unit(self, row: int) -> int:
        """Return the row itself: each is a file of its own, or a frame of one."""
        return row

    def of(self, rows: Sequence[int]) -> FileImages:
        """Return the files of these rows."""
        return FileImages(
            [self.paths[row] for row in rows],
            _some(self.frames, rows),
            _some(self.boxes, rows),
            _some(self.masks, rows),
            _some(self.listed, rows),
        )


@dataclass(frozen=True)
class Rearranged:
    """Images in another order.

    Attributes:
        images: The images.
        order: Which of them each row is, (n,).

    """

    images: ImageSource
    order: np.ndarray

    def __len__(self) -> int:
        return len(self.order)

    def payload(self, row: int) -> Payload:
        """Return what the row is to be read from."""
        return self.images.payload(int(self.order[row]))

    def stamp(self, row: int) -> Stamp:
        """Return size and time of change of its file."""
        return self.images.stamp(int(self.order[row]))

    def file(self, row: int) -> str:
        """Return the file that a row is in, or the first of several."""
        return self.images.file(int(self.order[row]))

    def head(self, limit: int) -> Rearranged:
        """Return the first ``limit`` images."""
        return Rearranged(self.images, self.order[:limit])

    def unit(self, row: int) -> int:
        """Return the number of what is opened for the row."""
        return self.images.unit(int(self.order[row]))


def file_stamp(path: str) -> Stamp:
    """Return size and time of change of a file, ``UNKNOWN`` where it is missing."""
    if is_url(path):
        from medprobe.images.download import stamp_of

        return stamp_of(path)
    try:
        status = os.stat(path)  # noqa: PTH116 - a Path object costs as much as the call, for millions
    except (OSError, ValueError):
        return UNKNOWN
    return status.st_size, status.st_mtime_ns


def stamps_of(images: ImageSource, rows: Sequence[int]) -> list[Stamp]:
    """Return the stamps of some rows; servers are asked for several at once."""
    if not any(is_url(images.file(row)) for row in rows):
        return [images.stamp(row) for row in rows]
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(32) as pool:
        return list(pool.map(images.stamp, rows))


def is_nifti(path: str | Path) -> bool:
    """Return whether a file is called like a NIfTI file."""
    return str(path).lower().endswith(NIFTI_SUFFIXES)


def _at(values: Sequence[T | None] | None, row: int) -> T | None:
    return None if values is None else values[row]


def _some(values: Sequence[T] | None, rows: Sequence[int]) -> list[T] | None:
    return None if values is None else [values[row] for row in rows]


@dataclass
class ArrayImages:
    """Arrays ``<split>_images`` of an ``.npz`` file, one after the other, read as a stream so that memory stays flat.

    Rows are cheap in rising order; going back reads the member from its beginning.

    Attributes:
        path: The file.
        members: Prefix and rows of each array.
        depths: Slices of each array's volumes, the same for all; 0 for images.

    """

    path: Path
    members: list[tuple[str, int]]
    _stamp: tuple[int, int]
    depths: list[int] = field(default_factory=list)
    _stream: IO[bytes] | None = field(default=None, repr=False)
    _at: tuple[str, int] = ("", 0)
    _shape: tuple[int, ...] = ()
    _dtype: np.dtype = field(default_factory=lambda: np.dtype("uint8"))

    @classmethod
    def open(cls, path: Path) -> ArrayImages:
        """Return the images of an ``.npz`` file.

        Raises:
            DataError: It is no ``.npz``, holds no ``*images`` array, or one of another kind than 8- or 16-bit pixels.

        """
        status = path.stat()
        try:
            with zipfile.ZipFile(path) as archive:
                names = [n.removesuffix(".npy") for n in archive.namelist() if n.endswith("images.npy")]
        except zipfile.BadZipFile as error:
            raise DataError(f"{path}: not a .npz file, or a damaged one") from error
        order = {"train": 0, "val": 1, "test": 2}
        prefixes = sorted((n.removesuffix("images").rstrip("_") for n in names), key=lambda p: (order.get(p, 3), p))
        if not prefixes:
            raise DataError(f"{path}: no array called train_images, val_images, test_images or images")
        images = cls(path, [], (status.st_size, status.st_mtime_ns))
        for prefix in prefixes:
            try:
                shape, dtype = images._start(prefix)
            except _DAMAGE as error:
                raise DataError(f"{path}: {_member(prefix)} is damaged, or no array") from error
            is_volume = len(shape) == 4 and shape[3] > _MOST_CHANNELS
            is_image = len(shape) == 3 or (len(shape) == 4 and shape[3] in (1, 3))
            if dtype not in (np.uint8, np.uint16) or not (is_image or is_volume) or 0 in shape[1:]:
                raise DataError(
                    f"{path}: {_member(prefix)} is {dtype}{list(shape)}; expected uint8 or uint16 of shape (n, height, "
                    "width), (n, height, width, 1), (n, height, width, 3), or of volumes (n, depth, height, width)"
                )
            images.members.append((prefix, shape[0]))
            images.depths.append(shape[1] if is_volume else 0)
        if len(set(images.depths)) > 1:
            raise DataError(
                f"{path}: {', '.join(map(_member, prefixes))} differ in their shape: images, or another depth"
            )
        images._at = ("", 0)
        images._stream = None
        return images

    def __len__(self) -> int:
        return sum(count for _, count in self.members)

    def payload(self, row: int) -> Payload:
        """Return the pixels of a row."""
        for prefix, count in self.members:
            if row < count:
                return self._read(prefix, row)
            row -= count
        raise IndexError(row)

    def file(self, row: int) -> str:
        """Return the file, the same for every row."""
        return str(self.path)

    def stamp(self, row: int) -> Stamp:
        """Return size and time of change of the whole file, the same for every row."""
        return self._stamp

    def head(self, limit: int) -> ArrayImages:
        """Return the same file: rows beyond ``limit`` are never asked for."""
        return self

    def unit(self, row: int) -> int:
        """Return the row itself."""
        return row

    def labels(self, prefix: str) -> np.ndarray | None:
        """Return the labels of a split, or None where the file has none."""
        name = _member(prefix).replace("images", "labels")
        with np.load(self.path, allow_pickle=False) as arrays:
            try:
                return np.asarray(arrays[name]) if name in arrays.files else None
            except _DAMAGE as error:
                raise DataError(f"{self.path}: {name} is damaged, or holds objects instead of numbers") from error

    def _start(self, prefix: str) -> tuple[tuple[int, ...], np.dtype]:
        if self._stream is not None:
            self._stream.close()
        stream = zipfile.ZipFile(self.path).open(f"{_member(prefix)}.npy")  # noqa: SIM115 - read row by row, later
        version = np.lib.format.read_magic(stream)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        self._shape, fortran, self._dtype = read_header(stream)
        if fortran:
            raise DataError(
                f"{self.path}: {_member(prefix)} is in Fortran order; save it again with numpy's default order"
            )
        self._stream, self._at = stream, (prefix, 0)
        return self._shape, self._dtype

    def _read(self, prefix: str, row: int) -> np.ndarray:
        if self._stream is None or self._at[0] != prefix or row < self._at[1]:
            self._start(prefix)
        assert self._stream is not None
        size = int(np.prod(self._shape[1:])) * self._dtype.itemsize
        try:
            for _ in range(row - self._at[1]):
                self._stream.read(size)
            data = self._stream.read(size)
        except _DAMAGE as error:
            raise DataError(f"{self.path}: {_member(prefix)} is damaged") from error
        if len(data) != size:
            raise DataError(f"{self.path}: {_member(prefix)} ends early; the file is damaged")
        self._at = (prefix, row + 1)
        return np.frombuffer(data, self._dtype).reshape(self._shape[1:])


def _member(prefix: str) -> str:
    return f"{prefix}_images" if prefix else "images"
