"""What a DICOM file says before its pixels: read with limits, and no more of it than is asked for."""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from medprobe.errors import UsageError
from medprobe.images.dicom_frames import INSTALL, Layout
from medprobe.images.raster import MAX_PIXELS, ImageError

# A frame's bytes once decoded: a picture of MAX_PIXELS in 8-bit colour.
MAX_FRAME_BYTES = 3 * MAX_PIXELS
MAX_FRAMES = 100_000
MAX_INFLATED = 256 << 20
# What may be read of a file before its pixels, and in how many pieces: an attribute takes two or three.
MAX_HEADER_BYTES = 64 << 20
MAX_HEADER_READS = 1_000_000
LONGEST_VALUE = 16 << 20

PIXEL_KEYWORDS = (
    *("Rows", "Columns", "SamplesPerPixel", "NumberOfFrames", "BitsAllocated", "BitsStored", "HighBit"),
    *("PixelRepresentation", "PlanarConfiguration", "PhotometricInterpretation", "ExtendedOffsetTable"),
    *("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "VOILUTSequence", "WindowCenter", "WindowWidth"),
    *("VOILUTFunction", "PixelPaddingValue", "PixelPaddingRangeLimit"),
    *("FloatPixelPaddingValue", "FloatPixelPaddingRangeLimit"),
    *("DoubleFloatPixelPaddingValue", "DoubleFloatPixelPaddingRangeLimit"),
    *("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio"),
    *(
        f"{segmented}{colour}PaletteColorLookupTable{part}"
        for colour in ("Red", "Green", "Blue")
        for segmented, part in (("", "Descriptor"), ("", "Data"), ("Segmented", "Data"))
    ),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
)

_IMPLICIT, _EXPLICIT, _BIG_ENDIAN = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
_DEFLATED = "1.2.840.10008.1.2.1.99"
_TRANSFER_SYNTAX = 0x00020010
_PIXEL_DATA = {0x7FE00008: 32, 0x7FE00009: 64, 0x7FE00010: 0}  # bits of floating point, 0 for integers
_UNDEFINED = 0xFFFFFFFF
_CHUNK = 1 << 16


@dataclass(frozen=True)
class Header:
    """A file up to its pixels.

    Attributes:
        dataset: The attributes that were asked for, as pydicom's Dataset.
        syntax: UID of the transfer syntax.
        implicit, little_endian: How attributes are written.
        content: The file, or what was deflated in it.
        at: Where the pixel data element begins in it, if there is one.
        size: Bytes of the content.

    """

    dataset: Any
    syntax: str
    implicit: bool
    little_endian: bool
    content: BinaryIO
    at: int
    size: int

    def pixel_element(self) -> tuple[int, str, int, int]:
        """Return tag, VR, start and length of the pixel data; the length is 0xFFFFFFFF where it is not told.

        Raises:
            ImageError: There is no pixel data.

        """
        self.content.seek(self.at)
        head = self.content.read(12).ljust(12, b"\0")
        order = "<" if self.little_endian else ">"
        group, element, length = struct.unpack(f"{order}HHI", head[:8])
        tag = group << 16 | element
        if tag not in _PIXEL_DATA:
            raise ImageError("no pixel data")
        if self.implicit:
            return tag, "", self.at + 8, length
        return tag, head[4:6].decode("latin-1"), self.at + 12, struct.unpack(f"{order}I", head[8:])[0]


class _Metered:
    """A file of which no more than the limits can be read; pydicom itself believes what a file says of its lengths."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._bytes, self._reads = MAX_HEADER_BYTES, MAX_HEADER_READS
        self.seek, self.tell = file.seek, file.tell

    def read(self, n: int) -> bytes:
        self._bytes -= n
        self._reads -= 1
        if self.spent:
            raise ImageError("header too large")
        return self._file.read(n)

    @property
    def spent(self) -> bool:
        return self._bytes < 0 or self._reads < 0


def read_header(file: BinaryIO, tags: Iterable[int], *, longest: int, strict: bool, whole: bool) -> Header:
    """Return the header of a file with some of its attributes.

    Args:
        file: The file.
        tags: Attributes to keep.
        longest: Bytes of a value beyond which it is not read.
        strict: Whether a file with a longer value is refused.
        whole: Whether what follows the header is wanted too.

    Raises:
        ImageError: It is no DICOM file, or one with a header beyond the limits.
        UsageError: pydicom is not installed.

    """
    try:
        from pydicom.filereader import read_dataset
        from pydicom.tag import BaseTag
    except ImportError:
        raise UsageError(INSTALL) from None
    start = file.read(132)
    if start[128:] != b"DICM":  # older files begin with the attributes, of group 2 or 8
        if start[:2] not in (b"\x02\x00", b"\x08\x00", b"\x00\x08"):
            raise ImageError("not a DICOM file")
        file.seek(0)
    meter: Any = _Metered(file)
    meta = read_dataset(meter, False, True, stop_when=lambda tag, *_: tag >> 16 != 2, specific_tags=[_TRANSFER_SYNTAX])
    syntax = str(meta.get("TransferSyntaxUID") or "").strip() or _guess(file)
    if syntax == _DEFLATED:
        file = _inflated(file, whole)
        meter = _Metered(file)
    little_endian = syntax != _BIG_ENDIAN
    wanted = {BaseTag(tag) for tag in tags}

    def at_pixels(tag: int, _: str | None, length: int) -> bool:
        if strict and tag in wanted and longest < length < _UNDEFINED:
            raise ImageError("header too large")
        return tag in _PIXEL_DATA

    try:
        dataset = read_dataset(
            meter,
            syntax == _IMPLICIT,
            little_endian,
            stop_when=at_pixels,
            defer_size=longest,
            specific_tags=list(wanted),
        )
    except Exception:
        if meter.spent:  # pydicom turns some exceptions into its own
            raise ImageError("header too large") from None
        raise
    at = file.tell()
    implicit = bool(dataset.original_encoding[0])
    return Header(dataset, syntax, implicit, little_endian, file, at, file.seek(0, io.SEEK_END))


def _guess(file: BinaryIO) -> str:
    """Return the transfer syntax that a file without one most likely has, from its first attribute."""
    at = file.tell()
    start = file.read(6)
    file.seek(at)
    if not re.fullmatch(rb"[A-Z]{2}", start[4:]):
        return _IMPLICIT
    return _BIG_ENDIAN if start[:1] == b"\0" else _EXPLICIT


def _inflated(file: BinaryIO, whole: bool) -> BinaryIO:
    """Return what is deflated in the rest of a file; without its pixels, as much as a header may take."""
    limit = MAX_INFLATED if whole else MAX_HEADER_BYTES
    inflater, content = zlib.decompressobj(-zlib.MAX_WBITS), io.BytesIO()
    while content.tell() <= limit and (chunk := file.read(_CHUNK)):
        content.write(inflater.decompress(chunk, limit + 1 - content.tell()))
    if whole and content.tell() > limit:
        raise ImageError(f"too large: over {limit >> 20} MiB once inflated")
    if whole and not inflater.eof:
        raise ImageError("truncated")
    content.seek(0)
    return content


def pixel_header(file: BinaryIO, *, whole: bool) -> tuple[Header, Layout]:
    """Return a file's header, with what decides its pixels, and their layout.

    Raises:
        ImageError: The file cannot be used, or its pixels are beyond the limits or fewer than it says.
        UsageError: pydicom is not installed.

    """
    header = read_header(file, tag_numbers(PIXEL_KEYWORDS), longest=LONGEST_VALUE, strict=True, whole=whole)
    tag, representation, start, length = header.pixel_element()
    layout = _layout(header, _PIXEL_DATA[tag], representation)
    if whole or header.syntax != _DEFLATED:
        there = header.size - start
        if layout.least_bytes > there or (length != _UNDEFINED and length > there):
            raise ImageError("truncated")
    return header, layout


def pixel_value(header: Header, layout: Layout) -> memoryview:
    """Return the value of the pixel data element, of a header whose content is in memory.

    Raises:
        ImageError: It is written in another way than the transfer syntax has it.

    """
    assert isinstance(header.content, io.BytesIO)
    _, _, start, length = header.pixel_element()
    content = memoryview(header.content.getvalue())
    if length == _UNDEFINED:
        if layout.native:
            raise ImageError("damaged")
        return content[start:]
    if layout.native and layout.colours == "YBR_FULL_422" and length * 2 >= layout.least_bytes * 3:
        raise ImageError("more pixel data than its photometric interpretation has")
    return content[start : start + length]


def tag_numbers(keywords: Iterable[str]) -> list[int]:
    """Return the tags of some keywords of the DICOM dictionary."""
    try:
        from pydicom.datadict import tag_for_keyword
    except ImportError:
        raise UsageError(INSTALL) from None
    return [tag for keyword in keywords if (tag := tag_for_keyword(keyword)) is not None]


def _layout(header: Header, float_bits: int, representation: str) -> Layout:
    def number(keyword: str, default: int | None = None) -> int:
        found = numbers(header.dataset, keyword)
        if found or default is None:
            return _whole(found, keyword)
        return default

    allocated = float_bits or number("BitsAllocated")
    stored = allocated if float_bits else number("BitsStored", allocated)
    high = stored - 1 if float_bits else number("HighBit", stored - 1)
    colours = str(header.dataset.get("PhotometricInterpretation") or "").strip().upper()
    layout = Layout(
        rows=number("Rows"),
        columns=number("Columns"),
        samples=number("SamplesPerPixel", 1),
        frames=max(1, number("NumberOfFrames", 1)),
        allocated=allocated,
        stored=stored,
        high=high if stored - 1 <= high < allocated else stored - 1,
        kind="f" if float_bits else "ui"[number("PixelRepresentation", 0) & 1],
        planar=number("PlanarConfiguration", 0) == 1,
        colours=colours,
        syntax=header.syntax,
        little_endian=header.little_endian,
        words=allocated == 8 and not header.little_endian and representation == "OW",
    )
    _check(layout)
    return layout


def _allocated_well(layout: Layout) -> bool:
    if layout.allocated == 1:
        return layout.native and layout.samples == 1
    if layout.kind == "f":
        return layout.native and layout.colours != "PALETTE COLOR"
    return layout.allocated in (8, 16) or (layout.allocated == 32 and layout.colours != "PALETTE COLOR")


_SAMPLES = {
    **dict.fromkeys(("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR"), 1),
    **dict.fromkeys(("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"), 3),
}


def _check(layout: Layout) -> None:
    if not layout.supported:
        from pydicom.uid import UID

        known = UID(layout.syntax).name
        raise ImageError(f"unsupported transfer syntax: {'not in the standard' if known == layout.syntax else known}")
    if layout.colours not in _SAMPLES:
        raise ImageError("unsupported photometric interpretation")
    for keyword, good in {
        "Rows": 0 < layout.rows < 65536,
        "Columns": 0 < layout.columns < 65536 and not (layout.colours == "YBR_FULL_422" and layout.columns % 2),
        "SamplesPerPixel": layout.samples == _SAMPLES[layout.colours],
        "BitsAllocated": _allocated_well(layout),
        "BitsStored": 0 < layout.stored <= layout.allocated,
        "PixelRepresentation": layout.samples == 1 or layout.kind == "u",
    }.items():
        if not good:
            raise ImageError(f"unusable header: {keyword}")
    if layout.frames > MAX_FRAMES:
        raise ImageError(f"too large: over {MAX_FRAMES:,} frames")
    if layout.rows * layout.columns > MAX_PIXELS:
        raise ImageError(f"too large: over {MAX_PIXELS:,} pixels")
    if layout.rows * layout.columns * layout.samples * layout.dtype.itemsize > MAX_FRAME_BYTES:
        raise ImageError(f"too large: over {MAX_FRAME_BYTES >> 20} MiB once decoded")


def numbers(dataset: Any, keyword: str) -> list[float]:
    """Return the numbers of an attribute, none where it is missing or empty.

    Raises:
        ImageError: They are no numbers.

    """
    try:
        value = dataset.get(keyword)
        if isinstance(value, bytes):  # 16-bit numbers of which the file does not say whether they have a sign
            return [float(v) for v in np.frombuffer(value, "<u2" if dataset.original_encoding[1] else ">u2")]
        if value is None or value == "":
            return []
        return [float(v) for v in (value if isinstance(value, Sequence) and not isinstance(value, str) else [value])]
    except Exception:
        raise ImageError(f"unreadable header: {keyword}") from None


def _whole(found: Sequence[float], keyword: str) -> int:
    if len(found) != 1 or not found[0].is_integer():
        raise ImageError(f"{'unreadable' if found else 'incomplete'} header: {keyword}")
    return int(found[0])
