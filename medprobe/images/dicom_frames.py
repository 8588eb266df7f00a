"""One frame of a DICOM file's pixel data, native or compressed, to what was stored (DICOM PS3.5 section 8 and annex A).

Sizes are checked against the header before anything is decoded: against the bytes that are there, and against what a
compressed picture says of itself.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from medprobe.errors import UsageError
from medprobe.images.raster import ImageError

INSTALL = "reading DICOM files needs packages that are not there: pip install 'medprobe[dicom]'"

_RLE = "1.2.840.10008.1.2.5"
_JPEG = "1.2.840.10008.1.2.4."
_FAMILIES = {
    "1.2.840.10008.1.2": "native",
    "1.2.840.10008.1.2.1": "native",
    "1.2.840.10008.1.2.2": "native",
    "1.2.840.10008.1.2.1.99": "native",  # deflated as a whole
    _RLE: "rle",
    **dict.fromkeys((_JPEG + end for end in ("50", "51", "57", "70")), "jpeg"),
    **dict.fromkeys((_JPEG + end for end in ("80", "81")), "jpegls"),
    **dict.fromkeys((_JPEG + end for end in ("90", "91", "201", "202", "203")), "jpeg2000"),
}

_ITEM, _DELIMITER = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
_MAX_FRAGMENTS = 500_000
_END_OF_IMAGE = b"\xff\xd9"
_START_OF_CODESTREAM = b"\xff\x4f\xff\x51"


@dataclass(frozen=True)
class Layout:
    """How a file stores its pixels.

    Attributes:
        rows, columns, samples, frames: Extent; samples are 1 or 3 a pixel.
        allocated, stored, high: Bits that a sample takes, bits that count, and the position of the highest of these.
        kind: ``u`` for integers, ``i`` for those with a sign, ``f`` for floating point.
        planar: Colours one after the other instead of pixel by pixel, where they are not compressed.
        colours: The photometric interpretation.
        syntax: UID of the transfer syntax.
        little_endian: Byte order of the file.
        words: 8-bit samples stand in 16-bit words of the other byte order.

    """

    rows: int
    columns: int
    samples: int
    frames: int
    allocated: int
    stored: int
    high: int
    kind: str
    planar: bool
    colours: str
    syntax: str
    little_endian: bool
    words: bool = False

    @property
    def supported(self) -> bool:
        """Whether there is a decoder for the transfer syntax."""
        return self.syntax in _FAMILIES

    @property
    def native(self) -> bool:
        """Whether the pixels are not compressed."""
        return _FAMILIES.get(self.syntax) == "native"

    @property
    def frame_samples(self) -> int:
        """Number of samples of a native frame as it is stored."""
        if self.colours == "YBR_FULL_422":
            return self.rows * self.columns * 2
        return self.rows * self.columns * self.samples

    @property
    def least_bytes(self) -> int:
        """The fewest bytes that pixel data of this layout can have."""
        if not self.native:
            return 8 * self.frames  # the head of an item
        return -(-self.frame_samples * self.allocated * self.frames // 8)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of a stored sample, in the file's byte order."""
        return np.dtype(f"{'<' if self.little_endian else '>'}{self.kind}{max(self.allocated // 8, 1)}")


def stored_frame(layout: Layout, value: memoryview, frame: int, offsets: bytes) -> tuple[np.ndarray, str]:
    """Return the stored values of a frame, (H, W) or (H, W, 3), and the colours that they are in.

    Args:
        layout: Of the file, within the caller's limits.
        value: The pixel data element's value.
        frame: Number of the frame, from 0.
        offsets: The extended offset table, empty where there is none.

    Raises:
        ImageError: The pixel data is truncated, damaged, or contradicts the layout.
        UsageError: A package that decodes is not installed.

    """
    if len(value) < layout.least_bytes:
        raise ImageError("truncated")
    if layout.native:
        return _native(layout, value, frame)
    coded = _coded_frame(value, frame, layout.frames, offsets)
    family = _FAMILIES[layout.syntax]
    if family == "rle":
        return _run_lengths(layout, coded), layout.colours
    return _picture(layout, coded, family)


def _native(layout: Layout, value: memoryview, frame: int) -> tuple[np.ndarray, str]:
    samples = layout.frame_samples
    if layout.allocated == 1:
        start, skip = divmod(samples * frame, 8)
        packed = np.frombuffer(value[start : -(-samples * (frame + 1) // 8)], dtype=np.uint8)
        bits = np.unpackbits(packed, bitorder="little")[skip : skip + samples]
        return bits.reshape(layout.rows, layout.columns), layout.colours
    size = samples * layout.dtype.itemsize
    start = size * frame
    if layout.words:
        if len(value) % 2:
            raise ImageError("truncated")
        even = start - start % 2
        pairs = np.frombuffer(value[even : start + size + (start + size) % 2], dtype=np.uint16)
        values = pairs.byteswap().view(layout.dtype)[start - even :][:samples]
    else:
        values = np.frombuffer(value[start : start + size], dtype=layout.dtype)
    values = values.astype(layout.dtype.newbyteorder("="), copy=False)
    if layout.kind != "f":
        values = _counting_bits(values, layout)
    if layout.colours == "YBR_FULL_422":  # two luminances, then the two colours that their pixels share
        four = values.reshape(-1, 4)
        full = np.empty((len(four), 2, 3), dtype=values.dtype)
        full[:, :, 0] = four[:, :2]
        full[:, :, 1:] = four[:, None, 2:]
        return full.reshape(layout.rows, layout.columns, 3), "YBR_FULL"
    return _shaped(values, layout, layout.planar), layout.colours


def _counting_bits(values: np.ndarray, layout: Layout) -> np.ndarray:
    """Return samples without the bits around those that count, whatever these hold: overlays, or a missing sign."""
    left = layout.allocated - 1 - layout.high
    right = layout.allocated - layout.stored
    if left:
        values = np.left_shift(values, left)
    return np.right_shift(values, right, out=values if left else None) if right else values


def _shaped(values: np.ndarray, layout: Layout, planar: bool) -> np.ndarray:
    if layout.samples == 1:
        return values.reshape(layout.rows, layout.columns)
    if planar:
        return np.moveaxis(values.reshape(layout.samples, layout.rows, layout.columns), 0, -1)
    return values.reshape(layout.rows, layout.columns, layout.samples)


def _coded_frame(value: memoryview, frame: int, frames: int, extended: bytes) -> bytes:
    """Return the compressed bytes of a frame, from its fragments (PS3.5 A.4, PS3.3 C.7.6.3.1.8)."""
    heads: list[int] = []
    at = 0
    while at < len(value) and value[at : at + 4] != _DELIMITER:
        if value[at : at + 4] != _ITEM or len(heads) > _MAX_FRAGMENTS:
            raise ImageError("damaged")
        heads.append(at)
        at += 8 + int.from_bytes(value[at + 4 : at + 8], "little")
        if at > len(value):
            raise ImageError("truncated")
    if len(heads) < 2:
        raise ImageError("truncated")
    table, ends = value[8 : heads[1]], [*heads[2:], at]
    fragments = [value[head + 8 : end] for head, end in zip(heads[1:], ends, strict=True)]
    places = {head - heads[1]: i for i, head in enumerate(heads[1:])}
    for code, size, offsets in (("Q", 8, extended), ("I", 4, table)):
        found = [offset for (offset,) in struct.iter_unpack(f"<{code}", offsets[: len(offsets) // size * size])]
        # Some writers leave tables that are too short or point nowhere; then the fragments themselves must tell.
        if len(found) == frames and all(offset in places for offset in found):
            starts = [places[offset] for offset in found]
            break
    else:
        starts = _starts(fragments, frames)
    if frame >= len(starts):
        raise ImageError("truncated")
    end = starts[frame + 1] if frame + 1 < len(starts) else len(fragments)
    return b"".join(fragments[starts[frame] : end])


def _starts(fragments: list[memoryview], frames: int) -> list[int]:
    """Return the first fragment of each frame where no table tells."""
    if frames == 1:
        return [0]
    if len(fragments) == frames:
        return list(range(frames))
    ends = [i + 1 for i, fragment in enumerate(fragments) if _END_OF_IMAGE in bytes(fragment[-10:])]
    return [0, *ends][: len(ends)]


def _run_lengths(layout: Layout, coded: bytes) -> np.ndarray:
    """Return the samples of a frame in DICOM's run-length encoding (PS3.5 annex G)."""
    decode = _imagecodecs("dicomrle_decode")
    size = layout.rows * layout.columns * layout.samples * layout.dtype.itemsize
    try:
        data = decode(coded, layout.dtype.str, out=size)
    except Exception:
        data = b""
    if len(data) != size:
        raise ImageError("damaged")
    values = np.frombuffer(data, dtype=layout.dtype).astype(layout.dtype.newbyteorder("="), copy=False)
    return _shaped(_counting_bits(values, layout), layout, planar=True)


@dataclass(frozen=True)
class _Coded:
    """What a compressed picture says of itself."""

    rows: int
    columns: int
    samples: int
    bits: int
    colours: str = ""


def _picture(layout: Layout, coded: bytes, family: str) -> tuple[np.ndarray, str]:
    try:
        said = _codestream(coded) if family == "jpeg2000" else _scan_header(coded)
    except (IndexError, struct.error):
        said = None
    if said is None:
        raise ImageError("damaged")
    if (said.rows, said.columns, said.samples) != (layout.rows, layout.columns, layout.samples):
        raise ImageError("a compressed picture of another size than the header's")
    if said.bits > layout.allocated:
        raise ImageError("a compressed picture of more bits than the header's")
    if coded.rfind(_END_OF_IMAGE, len(coded) // 2) < 0:
        raise ImageError("truncated")  # decoders fill up with grey without a word
    options: dict[str, Any] = {}
    if family == "jpeg" and layout.samples == 3:
        options = {"colorspace": "RGB", "outcolorspace": "RGB"}  # as they are: whether to convert is decided here
    decode = _imagecodecs({"jpeg": "jpeg8_decode", "jpegls": "jpegls_decode", "jpeg2000": "jpeg2k_decode"}[family])
    try:
        values = decode(coded, **options)
    except MemoryError:
        raise
    except Exception:
        values = None
    if values is None or values.size != layout.rows * layout.columns * layout.samples:
        raise ImageError("damaged")
    # Only JPEG 2000 knows signs, and not all of its writers use them: the header decides, by the bits of the picture.
    values = values.view(f"{layout.kind}{values.itemsize}")
    shift = 8 * values.itemsize - (min(said.bits, layout.stored) if family == "jpeg" else said.bits)
    if shift > 0:
        values = np.left_shift(values, shift)
        np.right_shift(values, shift, out=values)
    colours = said.colours or layout.colours
    if colours in {"YBR_ICT", "YBR_RCT"}:  # undone by the decoder
        colours = "RGB"
    return values.reshape(layout.rows, layout.columns, *([3] if layout.samples == 3 else [])), colours


def _scan_header(coded: bytes) -> _Coded | None:
    """Return what the frame header of a JPEG or JPEG-LS picture says (ITU-T T.81 B.2.2)."""
    if coded[:2] != b"\xff\xd8":
        return None
    colours, at = "", 2
    for _ in range(1000):
        if coded[at] != 0xFF:
            return None
        marker = coded[at + 1]
        if marker == 0xFF:  # fill
            at += 1
            continue
        (length,) = struct.unpack_from(">H", coded, at + 2)
        segment = coded[at + 4 : at + 2 + length]
        if marker == 0xEE and segment[:5] == b"Adobe" and len(segment) >= 12:
            colours = {0: "RGB", 1: "YBR_FULL"}.get(segment[11], colours)
        elif marker == 0xE0 and segment[:4] == b"JFIF" and not colours:
            colours = "YBR_FULL"
        elif marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            bits, rows, columns, samples = struct.unpack_from(">BHHB", segment)
            if bytes(segment[6 : 6 + 3 * samples : 3]).upper() == b"RGB":
                colours = "RGB"
            return _Coded(rows, columns, samples, bits, colours if samples == 3 else "")
        at += 2 + length
    return None


def _codestream(coded: bytes) -> _Coded | None:
    """Return what the header of a JPEG 2000 codestream says (ITU-T T.800 A.5.1)."""
    at = coded.find(_START_OF_CODESTREAM, 0, 1 << 16)  # after the boxes of a JP2 file, if there are any
    if at < 0:
        return None
    right, bottom, left, top = struct.unpack_from(">4I", coded, at + 8)
    samples, depth = struct.unpack_from(">HB", coded, at + 40)
    depths = {coded[at + 42 + 3 * i] for i in itertools.islice(range(samples), 4)}
    spacings = {tuple(coded[at + 43 + 3 * i : at + 45 + 3 * i]) for i in itertools.islice(range(samples), 4)}
    if len(depths) != 1 or spacings != {(1, 1)}:
        return None
    return _Coded(bottom - top, right - left, samples, (depth & 0x7F) + 1)


def _imagecodecs(name: str) -> Callable[..., Any]:
    try:
        import imagecodecs
    except ImportError:
        raise UsageError(INSTALL) from None
    decode: Callable[..., Any] = getattr(imagecodecs, name)
    return decode
