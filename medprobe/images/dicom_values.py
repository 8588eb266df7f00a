"""Stored DICOM values to 8-bit grey or colour: units, windows, lookup tables, padding (DICOM PS3.3 C.7.6.3, C.11.1, C.11.2).

Nothing in here knows of files. Grey of up to 16 bits is computed once for each value, not once for each pixel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medprobe.images.raster import ImageError
from medprobe.images.window import FILE, Window

Doubles = NDArray[np.float64]

# What a store says of how grey values were made, beside the window itself.
DICOM_RULE = (
    "modality LUT or rescale, then the window to 0..255; 'file' is the file's VOI LUT, else its first window, else the "
    "frame's own minimum..maximum (8 bits and fewer without rescale: all that the bits can hold); MONOCHROME1 inverted; "
    "padding black; non-square pixels made square along their longer side, bilinear"
)

_PIXELS = 1 << 20  # counted at a time
_RGB_FROM_YBR = np.array(
    [[1.0, 1.0, 1.0], [0.0, -0.114 * 1.772 / 0.587, 1.772], [1.402, -0.299 * 1.402 / 0.587, 0.0]], dtype=np.float32
)


@dataclass(frozen=True)
class Lut:
    """A lookup table of a file.

    Attributes:
        first: Input of the first entry; what lies below gets that entry, what lies above the last gets the last.
        entries: Outputs.
        bits: Width of the outputs.

    """

    first: int
    entries: NDArray[np.integer[Any]]
    bits: int

    def __call__(self, x: Doubles) -> Doubles:
        """Return the outputs for some inputs."""
        # The first input is written in 16 bits without a sign of its own: a table for values below 0 means one below 0.
        first = self.first - 65536 if self.first > 32767 and len(x) and x.min() < 0 else self.first
        outputs = np.take(self.entries, np.clip(np.rint(x) - first, 0, len(self.entries) - 1).astype(np.intp))
        return np.asarray(outputs, dtype=np.float64)

    @property
    def highest(self) -> int:
        """The largest output that the width allows."""
        return (1 << self.bits) - 1


@dataclass(frozen=True)
class VoiWindow:
    """A window of a file: centre, width and one of DICOM's three functions."""

    center: float
    width: float
    function: str = "LINEAR"

    @property
    def usable(self) -> bool:
        """Whether the standard gives this window a meaning; files carry placeholders of width 0."""
        known = self.function in {"LINEAR", "LINEAR_EXACT", "SIGMOID"}
        wide = self.width >= 1 if self.function == "LINEAR" else self.width > 0
        return known and wide and math.isfinite(self.center) and math.isfinite(self.width)

    def __call__(self, x: Doubles) -> Doubles:
        """Return where values lie in the window, 0 to 1 inside of it (PS3.3 C.11.2.1.2, C.11.2.1.3)."""
        if self.function == "SIGMOID":
            return np.asarray(1.0 / (1.0 + np.exp(np.clip(-4.0 * (x - self.center) / self.width, -700, 700))))
        shift, less = (0.5, 1.0) if self.function == "LINEAR" else (0.0, 0.0)
        half = (self.width - less) / 2
        return _spread(x, self.center - shift - half, self.center - shift + half)


@dataclass(frozen=True)
class GreyScale:
    """What a file says of the meaning of its grey values.

    Attributes:
        slope, intercept: Stored values to units, unless there is a ``modality`` table.
        modality: Stored values to units.
        voi: Units to what is shown: a table or a window.
        padding: Lowest and highest stored value that marks pixels outside of the picture.
        limits: Lowest and highest stored value that the bits can hold.
        inverted: Whether the lowest value is shown as white.

    """

    slope: float = 1.0
    intercept: float = 0.0
    modality: Lut | None = None
    voi: Lut | VoiWindow | None = None
    padding: tuple[float, float] | None = None
    limits: tuple[int, int] | None = None
    inverted: bool = False


def to_grey(values: np.ndarray, scale: GreyScale, window: Window = FILE) -> np.ndarray:
    """Return grey as uint8 (H, W).

    Args:
        values: Stored values, integers or floating point (H, W).
        scale: What the file says of them.
        window: What the user wants.

    Raises:
        ImageError: No value is finite, or none is once in units.

    """
    if values.dtype.kind == "f" or values.itemsize > 2:
        flat = values.reshape(-1)
        return _shown(flat, np.ones(len(flat), dtype=np.uint8), scale, window).reshape(values.shape)
    domain, index = _domain(values)
    counts = np.zeros(len(domain), dtype=np.int64)
    flat = index.reshape(-1)
    for start in range(0, len(flat), _PIXELS):
        counts += np.bincount(flat[start : start + _PIXELS], minlength=len(domain))
    return _look_up(_shown(domain, counts, scale, window), index)


def _domain(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return all values that integers of 8 or 16 bits can have, and the place of each pixel's among them."""
    patterns = np.dtype(f"u{values.itemsize}")
    domain = np.arange(1 << 8 * values.itemsize, dtype=patterns)
    return domain.view(values.dtype), np.ascontiguousarray(values).view(patterns)


def _look_up(table: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Return the rows of a table; a part at a time, since numpy turns an index into 64 bits first."""
    found = np.empty((index.size, *table.shape[1:]), dtype=table.dtype)
    flat = index.reshape(-1)
    for start in range(0, len(flat), _PIXELS):
        found[start : start + _PIXELS] = table[flat[start : start + _PIXELS]]
    return found.reshape(*index.shape, *table.shape[1:])


def _shown(domain: np.ndarray, counts: np.ndarray, scale: GreyScale, window: Window) -> np.ndarray:
    """Return the grey of some values, given how many pixels have each."""
    stored = domain.astype(np.float64)
    finite = np.isfinite(stored)
    if not finite[counts > 0].any():
        raise ImageError("pixels that are not finite")
    picture = finite
    if scale.padding is not None:
        picture = finite & ~((stored >= scale.padding[0]) & (stored <= scale.padding[1]))
    used = picture & (counts > 0)
    grey = np.zeros(len(domain), dtype=np.uint8)
    if not used.any():  # padding alone
        return grey
    x = np.where(finite, stored, 0.0)
    x = scale.modality(x) if scale.modality else x * scale.slope + scale.intercept
    if not np.isfinite(x[used]).all():
        raise ImageError("pixels that are not finite")
    levels = np.rint(255.0 * np.clip(_windowed(x, used, counts, scale, window), 0.0, 1.0)).astype(np.uint8)
    grey[picture] = (255 - levels if scale.inverted else levels)[picture]
    return grey


def _windowed(x: Doubles, used: np.ndarray, counts: np.ndarray, scale: GreyScale, window: Window) -> Doubles:
    """Return where each value lies between black at 0 and white at 1."""
    if window.values is not None and window.kind == "fixed":
        return VoiWindow(*window.values, "LINEAR_EXACT")(x)
    if window.values is not None:
        return _spread(x, *percentiles(x[used], counts[used], window.values))
    if isinstance(scale.voi, Lut):
        return np.asarray(scale.voi(x) / scale.voi.highest)
    if scale.voi is not None and scale.voi.usable:
        return scale.voi(x)
    if scale.limits is not None and scale.limits[1] - scale.limits[0] < 256 and scale.modality is None:
        ends = sorted(v * scale.slope + scale.intercept for v in scale.limits)
        return _spread(x, *ends)
    return _spread(x, float(x[used].min()), float(x[used].max()))


def _spread(x: Doubles, low: float, high: float) -> Doubles:
    """Put low at 0 and high at 1; where they are the same, everything above is 1."""
    if high > low:
        # Halves, so that the ends of what floating point holds have a distance.
        return np.asarray((x / 2 - low / 2) / (high / 2 - low / 2))
    return np.where(x > low, 1.0, 0.0)


def percentiles(x: Doubles, counts: np.ndarray, wanted: Sequence[float]) -> list[float]:
    """Return percentiles of values that occur so many times each, interpolated as numpy does by default."""
    order = np.argsort(x)
    x, upto = x[order], np.cumsum(counts[order], dtype=np.int64)
    found = []
    for percent in wanted:
        position = percent / 100 * (upto[-1] - 1)
        below = math.floor(position)
        low, high = x[np.searchsorted(upto, [below, min(below + 1, upto[-1] - 1)], side="right")]
        found.append(float(low + (high - low) * (position - below)))
    return found


def to_colour(values: np.ndarray, bits: int) -> np.ndarray:
    """Return colour of any depth as uint8, from all that the bits can hold."""
    if bits == 8 and values.dtype == np.uint8:
        return values
    return np.rint(values * (255.0 / ((1 << bits) - 1))).clip(0, 255).astype(np.uint8)


def ybr_to_rgb(pixels: np.ndarray) -> np.ndarray:
    """Return uint8 (H, W, 3) YBR_FULL as RGB (PS3.3 C.7.6.3.1.2, rounded as ITU-T T.871 has it)."""
    rgb = (pixels.astype(np.float32) - np.array([0, 128, 128], dtype=np.float32)) @ _RGB_FROM_YBR
    rgb += 0.5
    return np.asarray(np.floor(rgb).clip(0, 255).astype(np.uint8))


def to_palette(values: np.ndarray, tables: Sequence[Lut]) -> np.ndarray:
    """Return the colours uint8 (H, W, 3) of 8- or 16-bit values (H, W) under a red, a green and a blue table."""
    domain, index = _domain(values)
    x = domain.astype(np.float64)
    colours = np.stack([np.rint(255.0 * np.clip(t(x) / t.highest, 0, 1)) for t in tables], axis=-1).astype(np.uint8)
    return _look_up(colours, index)


def expand_segments(words: np.ndarray, n_entries: int) -> np.ndarray:
    """Return a palette table of so many entries from its segmented form (PS3.3 C.7.9.2).

    Args:
        words: The segments, uint8 or uint16.
        n_entries: Entries of the table; a longer one is cut there.

    Raises:
        ImageError: The segments are no table of that length.

    """
    entries: list[int] = []
    data = words.astype(np.int64).tolist()

    def expand(at: int, segments: int, nested: bool) -> None:
        while segments and at + 1 < len(data) and len(entries) < n_entries:
            kind, length = data[at : at + 2]
            at, segments = at + 2, segments - 1
            if length == 0:  # would let a small table ask for any number of steps
                raise ImageError("damaged lookup table")
            if kind == 0:
                entries.extend(data[at : at + length])
                at += length
            elif kind == 1 and entries and at < len(data):
                entries.extend(np.rint(np.linspace(entries[-1], data[at], length + 1)[1:]).astype(int).tolist())
                at += 1
            elif kind == 2 and not nested:
                parts = 4 if words.itemsize == 1 else 2
                offset = sum(word << 8 * words.itemsize * i for i, word in enumerate(data[at : at + parts]))
                expand(offset // words.itemsize, length, True)
                at += parts
            else:
                raise ImageError("damaged lookup table")

    expand(0, len(data), False)
    if len(entries) < n_entries:
        raise ImageError("damaged lookup table")
    return np.array(entries[:n_entries])
