"""Volumes to slices: turned upright by their affine, shown by one window for all slices, one volume in memory at a time."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from medprobe.errors import UsageError
from medprobe.images.dicom_values import Doubles, GreyScale, VoiWindow, percentiles, to_grey
from medprobe.images.nifti import MAX_VOLUME_BYTES, read_voxels
from medprobe.images.raster import DIGEST_BYTES, ImageError, content_digest, read_source, squared
from medprobe.images.sources import NATIVE, ArrayVolume, Drawn, Slice, Volume, is_nifti
from medprobe.images.window import FILE, WHOLE_VOLUME, Window

AXES = ("sagittal", "coronal", "axial")  # what a slice is called whose normal is R, A or S
_PIECE = 1 << 22  # voxels that are counted at once
_LONGEST_PIXEL = 100  # times its width: beyond that a header is wrong, and squares would be many


def parse_axis(text: str) -> str:
    """Return the axis that a user names.

    Raises:
        UsageError: It is none.

    """
    if text not in {NATIVE, *AXES}:
        raise UsageError(f"--slice-axis {text}: axial, coronal, sagittal or native")
    return text


def closest_axes(affine: np.ndarray) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Return for R, A and S the voxel axis that is closest to it, and whether it rises (1) or falls (-1) along it.

    Of the six ways to pair the axes it is the one of the largest cosines, of the rotation that is closest to the affine
    (its polar factor), so that shears do not decide.

    Raises:
        ImageError: The affine does not say where the axes point.

    """
    columns = np.asarray(affine, dtype=np.float64)[:3, :3]
    lengths = _lengths(affine)
    if not np.isfinite([*columns.ravel(), *lengths]).all() or not (lengths > 0).all():
        raise ImageError("no usable affine")
    left, strength, right = np.linalg.svd(columns / lengths)
    if strength[2] < 1e-6:
        raise ImageError("no usable affine")
    cosines = left @ right
    best = max(itertools.permutations(range(3)), key=lambda axes: sum(abs(cosines[i, axes[i]]) for i in range(3)))
    signs = tuple(1 if cosines[i, best[i]] >= 0 else -1 for i in range(3))
    return (best[0], best[1], best[2]), (signs[0], signs[1], signs[2])


def plane_of(axis: str, affine: np.ndarray) -> str:
    """Return the name of the plane that an axis stands for: of ``native``, that of the third voxel axis."""
    return AXES[closest_axes(affine)[0].index(2)] if axis == NATIVE else axis


def slice_count(shape: Sequence[int], affine: np.ndarray, axis: str) -> int:
    """Return how many slices a volume has along an axis."""
    return shape[closest_axes(affine)[0][AXES.index(plane_of(axis, affine))]]


def as_planes(voxels: np.ndarray, affine: np.ndarray, axis: str) -> tuple[np.ndarray, tuple[float, float]]:
    """Return a volume as slices (n, H, W) that stand as radiologists look at them, and height and width of a pixel in mm.

    Slices rise towards the patient's right (sagittal), front (coronal) or head (axial). The patient's right is on the
    left of axial and coronal slices, the front on the left of sagittal ones; the front is at the top of axial slices, the
    head at the top of the others. Nothing is interpolated, and no voxel is copied.

    Args:
        voxels: (X, Y, Z).
        affine: From voxel numbers to millimetres in RAS+.
        axis: ``axial``, ``coronal``, ``sagittal``, or ``native`` for the one that is closest to the third axis.

    """
    axes, signs = closest_axes(affine)
    turned = voxels.transpose(axes)[tuple(slice(None, None, sign) for sign in signs)]
    lengths = _lengths(affine)[list(axes)]
    normal = AXES.index(plane_of(axis, affine))
    across, down = ((1, 2), (0, 2), (0, 1))[normal]
    planes = turned.transpose(normal, down, across)[:, ::-1, ::-1]
    return planes, (float(lengths[down]), float(lengths[across]))


def _lengths(affine: np.ndarray) -> Doubles:
    """Return the length of a voxel along each of its axes, (3,)."""
    with np.errstate(over="ignore"):
        return np.asarray(np.linalg.norm(np.asarray(affine, dtype=np.float64)[:3, :3], axis=0))


@dataclass
class Voxels:
    """A volume in memory.

    Attributes:
        planes: Stored values (n, H, W), as they are to be looked at.
        pixel: Height and width of a pixel.
        scale: What stored values mean.
        made_from: Digest of the files.

    """

    planes: np.ndarray
    pixel: tuple[float, float]
    scale: GreyScale
    made_from: bytes
    _ends: dict[tuple[float, float], tuple[float, float]] = field(default_factory=dict)

    def window(self, window: Window) -> Window:
        """Return what shows every slice alike: percentiles become a centre and a width of the whole volume."""
        narrow = self.scale.limits is not None and (self.scale.slope, self.scale.intercept) == (1.0, 0.0)
        if window.kind == "fixed" or (window == FILE and (narrow or self.scale.voi is not None)):
            return window
        low, high = self._percentiles(window.values or WHOLE_VOLUME.values or (0.0, 100.0))
        return Window("fixed", (low / 2 + high / 2, high - low))

    def image(self, index: int, window: Window) -> np.ndarray:
        """Return a slice as uint8 (H, W), its pixels square.

        Raises:
            ImageError: There is no such slice, or no voxel of the volume is finite.

        """
        if not 0 <= index < len(self.planes):
            raise ImageError("no such slice")
        if max(self.pixel) > _LONGEST_PIXEL * min(self.pixel):
            raise ImageError(f"voxels over {_LONGEST_PIXEL} times as long as wide")
        plane = np.ascontiguousarray(self.planes[index])
        plane = plane.astype(plane.dtype.newbyteorder("="), copy=False)
        shown = self.window(window)
        if plane.dtype.kind == "f" and not np.isfinite(plane).any():  # outside of the body
            grey = np.zeros(plane.shape, dtype=np.uint8)
        else:
            grey = to_grey(plane, self.scale, shown)
        return squared(grey, *self.pixel)

    def _percentiles(self, wanted: tuple[float, float]) -> tuple[float, float]:
        if wanted not in self._ends:
            low, high = _percentiles(
                self.planes, wanted if self.scale.slope > 0 else (100 - wanted[1], 100 - wanted[0])
            )
            ends = sorted(value * self.scale.slope + self.scale.intercept for value in (low, high))
            if not np.isfinite([*ends, ends[1] - ends[0]]).all():
                raise ImageError("voxels that are not finite")
            self._ends[wanted] = ends[0], ends[1]
        return self._ends[wanted]


def _percentiles(planes: np.ndarray, wanted: tuple[float, float]) -> tuple[float, float]:
    """Return two percentiles of the stored values, interpolated as numpy does; those that are not finite do not count."""
    if planes.dtype.kind == "f" or planes.dtype.itemsize > 2:
        finite = planes[np.isfinite(planes)].astype(np.float64 if planes.dtype.itemsize > 4 else np.float32)
        if not len(finite):
            raise ImageError("voxels that are not finite")
        low, high = np.percentile(finite, wanted, overwrite_input=True)
        return float(low), float(high)
    lowest = np.iinfo(planes.dtype).min
    counts = np.zeros(1 << 8 * planes.dtype.itemsize, dtype=np.int64)
    step = max(1, _PIECE // planes[0].size)
    for start in range(0, len(planes), step):
        counts += np.bincount(planes[start : start + step].reshape(-1).astype(np.int64) - lowest, minlength=len(counts))
    there = np.flatnonzero(counts)
    values: Doubles = (there + lowest).astype(np.float64)
    low, high = percentiles(values, counts[there], wanted)
    return low, high


@dataclass(frozen=True)
class _OfVoxels:
    """A slice of a volume in memory."""

    voxels: Voxels
    index: int
    what: str

    def digest(self) -> np.ndarray:
        """Return the digest of the volume's files and of which slice it is: black slices of two patients stay two."""
        said = hashlib.blake2b(self.voxels.made_from, digest_size=DIGEST_BYTES)
        said.update(self.what.encode())
        return np.frombuffer(said.digest(), dtype=np.uint8)

    def shown(self, window: Window) -> tuple[np.ndarray, Window]:
        """Return its pixels."""
        return self.voxels.image(self.index, window), window


@dataclass(frozen=True)
class _OfSeries:
    """A slice of a DICOM series that is a file of its own."""

    data: bytes
    volume: Volume

    def digest(self) -> np.ndarray:
        """Return the digest of the file."""
        return content_digest(self.data)

    def shown(self, window: Window) -> tuple[bytes, Window]:
        """Return the file, and the window; the rest of the series is read for percentiles alone."""
        if window.kind != "percentile":
            return self.data, window
        return self.data, _loaded(self.volume).window(window)


def open_slice(payload: Slice) -> Drawn:
    """Return a slice, ready to be shown.

    Raises:
        ImageError: Its volume cannot be read, or is too large.
        UsageError: A package that reads it is not installed.

    """
    volume, index = payload.volume, payload.index
    if isinstance(volume, Volume) and volume.has_a_file_a_slice:
        return _OfSeries(read_source(volume.files[index]), volume)
    voxels = _loaded(volume)
    axis = NATIVE if isinstance(volume, ArrayVolume) else f"{volume.axis} {volume.point}"
    return _OfVoxels(voxels, index, f"{axis} {index}")


# The volume that was opened last, or why it could not be: of a compressed one nothing can be read without the whole.
_last: tuple[object, Voxels | ImageError] | None = None


def _loaded(volume: Volume | ArrayVolume) -> Voxels:
    """Return a volume in memory: the last one stays there as long as its files do not change."""
    global _last
    key = volume if isinstance(volume, ArrayVolume) else (volume, [_stamp(file) for file in volume.files])
    if _last is None or _last[0] != key:
        _last = None  # the memory of the one before is needed for this one
        try:
            _last = key, _read(volume)
        except ImageError as error:
            _last = key, ImageError(error.reason)
        except MemoryError:
            _last = key, ImageError("too large for the memory")
    found = _last[1]
    if isinstance(found, ImageError):
        raise ImageError(found.reason)
    return found


def _stamp(file: str) -> tuple[int, int]:
    try:
        status = Path(file).stat()
    except (OSError, ValueError):
        return -1, -1
    return status.st_size, status.st_mtime_ns


def _read(volume: Volume | ArrayVolume) -> Voxels:
    if isinstance(volume, ArrayVolume):
        made_from = content_digest(volume.values).tobytes()
        return Voxels(volume.values, (1.0, 1.0), GreyScale(limits=_limits(volume.values.dtype)), made_from)
    if not is_nifti(volume.files[0]):
        return _assembled(volume)
    data = read_source(volume.files[0])
    stored, header = read_voxels(data, volume.point)
    if not (np.isfinite([header.slope, header.inter]).all() and header.slope):
        raise ImageError("unusable header: scl_slope")
    planes, pixel = as_planes(stored, header.affine, volume.axis)
    scale = GreyScale(header.slope, header.inter, limits=_limits(stored.dtype))
    return Voxels(planes, pixel, scale, content_digest(data).tobytes())


def _limits(dtype: np.dtype[Any]) -> tuple[int, int] | None:
    """Return what 8 bits can hold: they are shown as they are."""
    return (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)) if dtype.kind in "iu" and dtype.itemsize == 1 else None


def _assembled(volume: Volume) -> Voxels:
    """Return a DICOM series as one volume, in its units."""
    from medprobe.images.dicom import unit_values

    if volume.affine is None and volume.axis != NATIVE:
        raise ImageError("a series that cannot be assembled: places missing, double or askew, or several sizes")
    said = hashlib.blake2b(digest_size=DIGEST_BYTES)
    voxels = np.zeros((0, 0, 0), dtype=np.float32)
    middle: VoiWindow | None = None
    for i, file in enumerate(volume.files):
        data = read_source(file)
        said.update(content_digest(data).tobytes())
        values, window = unit_values(data)
        if i == 0:
            if values.nbytes * len(volume.files) > MAX_VOLUME_BYTES:
                raise ImageError(f"too large: over {MAX_VOLUME_BYTES >> 20} MiB")
            voxels = np.empty((*values.shape, len(volume.files)), dtype=np.float32, order="F")
        if values.shape != voxels.shape[:2]:
            raise ImageError("slices of several sizes")
        voxels[:, :, i] = values
        middle = window if i == len(volume.files) // 2 else middle
    planes, pixel = voxels.transpose(2, 0, 1), (1.0, 1.0)
    if volume.affine is not None:
        planes, pixel = as_planes(voxels, np.array(volume.affine), volume.axis)
    return Voxels(planes, pixel, GreyScale(voi=middle), said.digest())
