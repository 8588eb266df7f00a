"""PNG files whose stream of pixels is sound and too short, which Pillow reads as partly black without a word."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

_PIECE = 1 << 18  # bytes that are inflated at a time
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of each colour type
_MARK = (85, 170, 51, 204)
# First column, first row, and steps of the seven passes of an interlaced picture (PNG specification, 8.2).
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def mark_last_row(image: Image.Image) -> np.ndarray:
    """Put a mark where the last row of a PNG will be decoded to, and return it.

    Rows are decoded one after the other. A mark that is gone afterwards says for next to nothing that none is missing; one
    that is still there may be the row itself.
    """
    bands = len(image.getbands())
    colour = _MARK[:bands] if bands > 1 else 1 if image.mode == "1" else _MARK[0]
    canvas = Image.new(image.mode, image.size)
    row = Image.new(image.mode, (image.width, 1), colour)
    canvas.paste(row, (0, image.height - 1))
    image.im = canvas.im
    return np.asarray(row)


def lacks_pixels(image: Image.Image, data: bytes, mark: np.ndarray) -> bool:
    """Return whether the stream of a decoded PNG holds fewer pixels than its header says.

    Args:
        image: The decoded picture.
        data: The file.
        mark: What :func:`mark_last_row` gave before.

    """
    last = np.asarray(image.crop((0, image.height - 1, image.width, image.height)))
    if not image.info.get("interlace") and not np.array_equal(last, mark):
        return False
    expected = _stream_size(data)
    found = 0
    inflate = zlib.decompressobj()
    for part in _stream(data):
        while part and found < expected:
            found += len(inflate.decompress(part, min(_PIECE, expected - found)))
            part = inflate.unconsumed_tail
    # What is left inside the inflater comes without more input.
    while found < expected and (piece := inflate.decompress(b"", min(_PIECE, expected - found))):
        found += len(piece)
    return found < expected


def _stream_size(data: bytes) -> int:
    """Return the bytes that the inflated stream of a PNG has by its header: a filter byte and the pixels of each row."""
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    bits, interlaced = data[24] * _CHANNELS[data[25]], data[28]
    parts = (
        [(-(-(width - left) // across), -(-(height - top) // down)) for left, top, across, down in _PASSES]
        if interlaced
        else [(width, height)]
    )
    return sum(rows * (1 + (columns * bits + 7) // 8) for columns, rows in parts if columns > 0 and rows > 0)


def _stream(data: bytes) -> Iterator[bytes]:
    """Yield the parts of a PNG's compressed stream."""
    place = 8
    while place + 8 <= len(data):
        size = int.from_bytes(data[place : place + 4], "big")
        if data[place + 4 : place + 8] == b"IDAT":
            yield data[place + 8 : place + 8 + size]
        place += 12 + size
