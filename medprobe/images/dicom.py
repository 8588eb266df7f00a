"""DICOM files to 8-bit RGB, and the few columns that a manifest wants of them.

Of a file's attributes only those that decide what its pixels look like are kept, and no message carries anything of a
file: neither a value, nor what a library says of it.
"""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO, TypeVar

import numpy as np

from medprobe.errors import UsageError
from medprobe.images.dicom_frames import Layout, stored_frame
from medprobe.images.dicom_header import Header, pixel_header, pixel_value, read_header, tag_numbers
from medprobe.images.dicom_meaning import grey_scale, palette, spacing
from medprobe.images.dicom_values import (
    DICOM_RULE,
    VoiWindow,
    to_colour,
    to_grey,
    to_palette,
    ybr_to_rgb,
)
from medprobe.images.frames import Frames, parse_frames
from medprobe.images.raster import ImageError, open_source, read_source, squared
from medprobe.images.window import FILE, Window, parse_window

__all__ = [
    "DICOM_RULE",
    "FILE",
    "Frames",
    "Window",
    "dicom_columns",
    "n_frames",
    "parse_frames",
    "parse_window",
    "read_dicom",
    "stored_values",
    "unit_values",
]

T = TypeVar("T")

_LONGEST_COLUMN = 1 << 10  # bytes; a longer text is no column of a table
_COLUMNS = {
    "modality": ("Modality",),
    "manufacturer": ("Manufacturer",),
    "view_position": ("ViewPosition",),
    "laterality": ("ImageLaterality", "Laterality"),
    "rows": ("Rows",),
    "columns": ("Columns",),
    "frames": ("NumberOfFrames",),
    "photometric": ("PhotometricInterpretation",),
    "bits": ("BitsStored",),
    "burned_in_annotation": ("BurnedInAnnotation",),
    "identity_removed": ("PatientIdentityRemoved",),
    "patient_id": ("PatientID",),
    "study_uid": ("StudyInstanceUID",),
    "series_uid": ("SeriesInstanceUID",),
    "sop_instance_uid": ("SOPInstanceUID",),
}
_TAG = re.compile(r"\(?([0-9a-fA-F]{4}),? ?([0-9a-fA-F]{4})\)?")
_NO_TEXT = {"SQ", "OB", "OW", "OD", "OF", "OL", "OV", "UN"}


def n_frames(source: str | bytes) -> int:
    """Return how many frames a file holds, given its path or its bytes; pixels are not decoded.

    Raises:
        ImageError: It has no pixels, or fewer bytes than so many frames take at least, or cannot be read.
        UsageError: A package for DICOM is not installed.

    """

    def count() -> int:
        with _opened(source) as file:
            return pixel_header(file, whole=False)[1].frames

    return _guarded(count)


def read_dicom(source: str | bytes, *, frame: int = 0, window: Window = FILE) -> np.ndarray:
    """Return one frame as uint8 RGB (H, W, 3), grey repeated over the three channels.

    What is done to the values is said by ``DICOM_RULE``. Overlays, ICC profiles and presentation states are left out.
    Non-square pixels are made square by PixelSpacing, else ImagerPixelSpacing, else NominalScannedPixelSpacing, else
    PixelAspectRatio.

    Args:
        source: A path, or a file's bytes.
        frame: Number of the frame, from 0.
        window: How grey values become 0..255; colour has no window.

    Raises:
        ImageError: The file cannot be used, with the reason; no other exception whatever the bytes.
        UsageError: A package for DICOM is not installed.

    """
    return _guarded(lambda: _read(source, frame, window))


def stored_values(source: str | bytes, *, frame: int = 0) -> np.ndarray:
    """Return one frame as it is stored: integers or floating point (H, W), or RGB (H, W, 3) of the file's depth.

    Palette indices stay indices; YBR becomes RGB, in 8 bits.

    Raises:
        ImageError: As :func:`read_dicom`.
        UsageError: As :func:`read_dicom`.

    """
    return _guarded(lambda: _stored(source, frame)[0])


def unit_values(source: bytes) -> tuple[np.ndarray, VoiWindow | None]:
    """Return a file's one grey frame in its units, float32 (H, W), NaN where it is padded, and its own window if it has one.

    Raises:
        ImageError: As :func:`read_dicom`, or the file is of colour or of several frames.
        UsageError: As :func:`read_dicom`.

    """
    return _guarded(lambda: _in_units(source))


def dicom_columns(source: str, tags: Sequence[str] = ()) -> dict[str, str]:
    r"""Return what a manifest wants to know of a file, by column; what the file does not say is empty.

    Pixels are not read, and of everything before them only what is asked for is kept. Several values of an attribute
    are joined by ``\``; a value of over 1 KiB is left out.

    Args:
        source: A path.
        tags: More attributes, by keyword (``StudyDate``) or number (``0008,0020``), each under the name given here.

    Raises:
        ImageError: The file cannot be read, or is no DICOM file.
        UsageError: There is no such attribute, or a package for DICOM is not installed.

    """
    return _guarded(lambda: _columns(source, tags))


def _guarded(read: Callable[[], T]) -> T:
    """Return what a reader returns, and turn whatever it raises into a reason without a trace of the file.

    The reason is raised outside of the handlers, so that it does not carry a library's own exception along.
    """
    log = logging.getLogger("pydicom")  # quotes values, in warnings too
    before, log.disabled = log.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return read()
    except UsageError:
        raise
    except ImageError as error:
        reason = error.reason
    except MemoryError:
        reason = "too large for the memory"
    except Exception:  # a hostile file may raise anything
        reason = "damaged"
    finally:
        log.disabled = before
    raise ImageError(reason)


def _opened(source: str | bytes) -> BinaryIO:
    return io.BytesIO(source) if isinstance(source, bytes) else open_source(source)


def _stored(source: str | bytes, frame: int) -> tuple[np.ndarray, Header, Layout]:
    data = source if isinstance(source, bytes) else read_source(source)
    header, layout = pixel_header(io.BytesIO(data), whole=True)
    if not 0 <= frame < layout.frames:
        raise ImageError("no such frame")
    offsets = header.dataset.get("ExtendedOffsetTable") or b""
    values, colours = stored_frame(layout, pixel_value(header, layout), frame, offsets)
    if colours.startswith("YBR"):
        values = ybr_to_rgb(to_colour(values, layout.stored))
    return values, header, layout


def _read(source: str | bytes, frame: int, window: Window) -> np.ndarray:
    values, header, layout = _stored(source, frame)
    if layout.colours == "PALETTE COLOR":
        pixels = to_palette(values, palette(header))
    elif layout.samples == 3:
        pixels = to_colour(values, min(layout.stored, 8 * values.itemsize))
    else:
        pixels = to_grey(values, grey_scale(header, layout, frame, voi=window.kind == "file"), window)
    pixels = squared(pixels, *spacing(header, frame))
    return np.ascontiguousarray(pixels) if pixels.ndim == 3 else np.repeat(pixels[:, :, None], 3, axis=2)


def _in_units(source: bytes) -> tuple[np.ndarray, VoiWindow | None]:
    values, header, layout = _stored(source, 0)
    if layout.frames > 1 or layout.colours != "MONOCHROME2":
        raise ImageError("no single picture of grey values, so no slice of an assembled volume")
    scale = grey_scale(header, layout, 0, voi=True)
    stored = values.astype(np.float64)
    found = scale.modality(stored) if scale.modality else stored * scale.slope + scale.intercept
    if scale.padding is not None:
        found[(stored >= scale.padding[0]) & (stored <= scale.padding[1])] = np.nan
    return found.astype(np.float32), scale.voi if isinstance(scale.voi, VoiWindow) else None


def _columns(source: str, tags: Sequence[str]) -> dict[str, str]:
    wanted = {name: tag_numbers(keywords) for name, keywords in _COLUMNS.items()}
    wanted |= {text: [_tag(text)] for text in tags}
    with _opened(source) as file:
        numbers = {number for several in wanted.values() for number in several}
        header = read_header(file, numbers, longest=_LONGEST_COLUMN, strict=False, whole=False)
    columns = {
        name: next((text for number in several if (text := _text(header.dataset, number))), "")
        for name, several in wanted.items()
    }
    columns["frames"] = columns["frames"] or ("1" if columns["rows"] else "")
    columns["transfer_syntax"] = header.syntax
    return columns


def _tag(text: str) -> int:
    if text and (found := tag_numbers([text])):  # some retired attributes have an empty keyword
        return found[0]
    if match := _TAG.fullmatch(text.strip()):
        return int(match[1] + match[2], 16)
    raise UsageError(f"DICOM attribute {text!r}: give a keyword (StudyDate) or a number (0008,0020)")


def _text(dataset: Any, tag: int) -> str:
    """Return the value of an attribute as one line of text, empty where it has none or is no text."""
    try:
        if tag not in dataset:
            return ""
        element = dataset[tag]
        if element.VR in _NO_TEXT or element.value is None:
            return ""
        values = element.value if element.VM > 1 else [element.value]
        return " ".join("\\".join(str(value) for value in values).split())
    except Exception:  # too long to be read, or not readable: the file may be fine otherwise
        return ""
