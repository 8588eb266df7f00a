"""NIfTI files: what the header says of shape, units and orientation, and the voxels, in bounded memory.

nibabel reads the header. The voxels are read here, since a file may say anything of its size and a compressed one may
grow without end: no more is inflated than the header asks for, and that is limited. Free text of the header is not looked at.
"""

from __future__ import annotations

import gzip
import io
import logging
import zlib
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from medprobe.errors import UsageError
from medprobe.images.raster import ImageError, open_source

INSTALL = "NIfTI files need nibabel, which is not installed: pip install 'medprobe[nifti]'"
MAX_VOLUME_BYTES = 1 << 30  # of one point in time, once inflated
MAX_SLICES = 1 << 13  # along any axis
_MAX_ROWS = 1 << 20  # slices of all points in time
_HEADERS = {348: "Nifti1Header", 540: "Nifti2Header"}
_MAX_EXTENSIONS = 64 << 20  # bytes between header and voxels
_PIECE = 1 << 20
# DEFLATE makes no more than this of a byte (RFC 1951: 258 bytes for two bits).
_MOST_INFLATED = 1032

_Stream = BinaryIO | gzip.GzipFile


@dataclass(frozen=True)
class NiftiHeader:
    """What is wanted of a file's header.

    Attributes:
        shape: Voxels along the three axes of the file.
        points: Points in time.
        dtype: Of the stored voxels.
        offset: Where the voxels begin.
        slope, inter: Stored values to units.
        affine: From voxel numbers to millimetres in RAS+, float64 (4, 4).
        oriented: Whether the file states it; else it is taken for one from left to right, as nibabel does.

    """

    shape: tuple[int, int, int]
    points: int
    dtype: np.dtype[Any]
    offset: int
    slope: float
    inter: float
    affine: np.ndarray
    oriented: bool

    @property
    def n_bytes(self) -> int:
        """Bytes of one point in time."""
        return int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize


def read_header(path: str) -> NiftiHeader:
    """Return the header of a file; no voxel is read.

    Raises:
        ImageError: It cannot be used, or is beyond the limits.
        UsageError: nibabel is not installed.

    """
    with open_source(path) as file:
        stream = _inflated(file)
        header = _header(stream)
        _check_size(header, stream, file.seek(0, io.SEEK_END))
    return header


def read_voxels(data: bytes, point: int | None) -> tuple[np.ndarray, NiftiHeader]:
    """Return the stored voxels of one point in time (X, Y, Z), and the header.

    Args:
        data: The file.
        point: Its number; None where there is one only.

    Raises:
        ImageError: The file cannot be used, is beyond the limits or damaged, or holds several points and none is named.
        UsageError: nibabel is not installed.

    """
    stream = _inflated(io.BytesIO(data))
    header = _header(stream)
    if point is None and header.points > 1:
        raise ImageError(f"{header.points} points in time: --frames first, middle, all or every:N chooses")
    at = point or 0
    if at >= header.points:
        raise ImageError("no such point in time")
    _check_size(header, stream, len(data))
    _skip(stream, header.offset + at * header.n_bytes - stream.tell())
    voxels = np.empty(header.n_bytes, dtype=np.uint8)
    filled = 0
    while filled < len(voxels):
        piece = _read(stream, min(_PIECE, len(voxels) - filled))
        if not piece:
            raise ImageError("truncated")
        voxels[filled : filled + len(piece)] = np.frombuffer(piece, dtype=np.uint8)
        filled += len(piece)
    _read(stream, 1)  # at the end of a compressed file its checksum is looked at
    return voxels.view(header.dtype).reshape(header.shape, order="F"), header


def _check_size(header: NiftiHeader, stream: _Stream, n_bytes: int) -> None:
    """Raise an ImageError where a file of so many bytes cannot hold what its header asks for."""
    there = n_bytes * (_MOST_INFLATED if isinstance(stream, gzip.GzipFile) else 1)
    if header.offset + header.points * header.n_bytes > there:
        raise ImageError("truncated")


def _inflated(file: BinaryIO) -> _Stream:
    compressed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    return gzip.GzipFile(fileobj=file) if compressed else file


def _read(stream: _Stream, n: int) -> bytes:
    try:
        return stream.read(n)
    except EOFError:
        reason = "truncated"
    except (OSError, zlib.error, ValueError):
        reason = "damaged"
    raise ImageError(reason)


def _skip(stream: _Stream, n: int) -> None:
    while n > 0:
        piece = _read(stream, min(_PIECE, n))
        if not piece:
            raise ImageError("truncated")
        n -= len(piece)


def _header(stream: _Stream) -> NiftiHeader:
    try:
        import nibabel
    except ImportError:
        raise UsageError(INSTALL) from None
    block = _read(stream, 4)
    size = next((n for n in _HEADERS if block in {n.to_bytes(4, "little"), n.to_bytes(4, "big")}), 0)
    if not size:
        raise ImageError("no NIfTI file")
    block += _read(stream, size - 4)
    log = logging.getLogger("nibabel.global")
    before, log.disabled = log.disabled, True
    try:
        with np.errstate(all="ignore"):
            return _meaning(getattr(nibabel, _HEADERS[size])(block, check=False), size)
    except ImageError as error:
        reason = error.reason
    except Exception:  # a hostile header may raise anything
        reason = "damaged"
    finally:
        log.disabled = before
    raise ImageError(reason)


def _meaning(header: Any, size: int) -> NiftiHeader:
    if bytes(header["magic"])[:3] not in {b"n+1", b"n+2"}:
        raise ImageError("no single-file NIfTI: of an .hdr and an .img, make a .nii")
    shape = [int(n) for n in header.get_data_shape()]
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    shape += [1] * (3 - len(shape))
    if len(shape) > 4 or min(shape) < 1:
        raise ImageError("a shape that is no volume's")
    dtype = header.get_data_dtype()
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise ImageError("voxels of colour or complex numbers, or unknown ones")
    slope, inter = header.get_slope_inter()
    affine = np.asarray(header.get_best_affine(), dtype=np.float64)
    offset = int(header.get_data_offset())
    if not size <= offset <= _MAX_EXTENSIONS:
        raise ImageError("damaged")
    x, y, z, *points = shape
    found = NiftiHeader(
        (x, y, z),
        points[0] if points else 1,
        dtype,
        offset,
        1.0 if slope is None else float(slope),
        0.0 if inter is None else float(inter),
        affine,
        bool(header["sform_code"] > 0 or header["qform_code"] > 0),
    )
    if max(found.shape) > MAX_SLICES or found.n_bytes > MAX_VOLUME_BYTES:
        raise ImageError(f"too large: over {MAX_VOLUME_BYTES >> 20} MiB, or {MAX_SLICES:,} slices")
    if max(found.shape) * found.points > _MAX_ROWS:
        raise ImageError(f"too large: over {_MAX_ROWS:,} slices of all points in time")
    return found
