"""What a DICOM file says of the meaning of its pixels: units, windows, padding, palettes and their shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from medprobe.images.dicom_frames import Layout
from medprobe.images.dicom_header import Header, numbers
from medprobe.images.dicom_values import GreyScale, Lut, VoiWindow, expand_segments
from medprobe.images.raster import ImageError

_PADDING = {0: "PixelPadding", 32: "FloatPixelPadding", 64: "DoubleFloatPixelPadding"}


def grey_scale(header: Header, layout: Layout, frame: int, *, voi: bool) -> GreyScale:
    """Return what the grey values of a frame mean.

    Args:
        header: Of the file.
        layout: Of its pixels.
        frame: Number of the frame.
        voi: Whether the file's own windows are wanted; else they are not looked at.

    Raises:
        ImageError: What the file says is not usable.

    """
    units = _group(header.dataset, frame, "PixelValueTransformationSequence")
    slope, intercept = (numbers(units, k) or [v] for k, v in (("RescaleSlope", 1.0), ("RescaleIntercept", 0.0)))
    if not (np.isfinite([slope[0], intercept[0]]).all() and slope[0]):
        raise ImageError("unusable header: RescaleSlope")
    bits, signed = layout.stored, layout.kind == "i"
    limits = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    name = _PADDING[layout.allocated if layout.kind == "f" else 0]
    ends = numbers(header.dataset, f"{name}Value")[:1]
    if ends:
        ends += numbers(header.dataset, f"{name}RangeLimit")[:1]
        if layout.kind != "f":  # written with or without a sign, whatever the pixels have
            lowest, n = (-(1 << layout.allocated - 1) if signed else 0), 1 << layout.allocated
            ends = [(int(v) - lowest) % n + lowest for v in ends]
    return GreyScale(
        slope=slope[0],
        intercept=intercept[0],
        modality=_first_table(header, header.dataset, "ModalityLUTSequence"),
        voi=_voi(header, frame) if voi else None,
        padding=(min(ends), max(ends)) if ends else None,
        limits=None if layout.kind == "f" else limits,
        inverted=layout.colours == "MONOCHROME1",
    )


def _voi(header: Header, frame: int) -> Lut | VoiWindow | None:
    group = _group(header.dataset, frame, "FrameVOILUTSequence")
    if table := _first_table(header, group, "VOILUTSequence"):
        return table
    centers, widths = numbers(group, "WindowCenter"), numbers(group, "WindowWidth")
    if not (centers and widths):
        return None
    window = VoiWindow(centers[0], widths[0], str(group.get("VOILUTFunction") or "LINEAR").strip().upper())
    return window if window.usable else None


def palette(header: Header) -> list[Lut]:
    """Return the red, green and blue table of a palette colour image.

    Raises:
        ImageError: They are not there, or damaged.

    """
    tables = []
    for colour in ("Red", "Green", "Blue"):
        table = f"{colour}PaletteColorLookupTable"
        descriptor = numbers(header.dataset, f"{table}Descriptor")
        data, segments = (header.dataset.get(f"{prefix}{table}Data") for prefix in ("", "Segmented"))
        tables.append(_table(header, descriptor, data, segments))
    return tables


def _first_table(header: Header, dataset: Any, keyword: str) -> Lut | None:
    items = dataset.get(keyword)
    if not items or "LUTData" not in items[0]:
        return None
    return _table(header, numbers(items[0], "LUTDescriptor"), items[0].get("LUTData"))


def _table(header: Header, descriptor: Sequence[float], data: Any, segments: bytes | None = None) -> Lut:
    if len(descriptor) != 3 or not (data or segments) or not 0 < descriptor[2] <= 16:
        raise ImageError("damaged lookup table")
    n, first, bits = int(descriptor[0]) & 0xFFFF or 1 << 16, int(descriptor[1]), int(descriptor[2])
    word = np.dtype("<u2" if header.little_endian else ">u2")
    if not data and segments:
        kind = word if bits > 8 else np.dtype("u1")
        entries = expand_segments(np.frombuffer(segments[: len(segments) // kind.itemsize * kind.itemsize], kind), n)
    elif isinstance(data, bytes):
        narrow = len(data) < 2 * n
        entries = np.frombuffer(data, "u1" if narrow else word, n if len(data) >= n else -1)
        bits = 8 if narrow else bits
    else:
        entries = np.atleast_1d(np.asarray(data, dtype=np.int64))[:n]
    if len(entries) < n:
        raise ImageError("damaged lookup table")
    return Lut(first, entries, 16 if bits == 8 and entries.max() > 255 else bits)


def spacing(header: Header, frame: int) -> tuple[float, float]:
    """Return height and width of a pixel, in the same unit, (1, 1) where the file does not tell.

    PixelSpacing comes first, then ImagerPixelSpacing, NominalScannedPixelSpacing and PixelAspectRatio.
    """
    measures = _group(header.dataset, frame, "PixelMeasuresSequence")
    for dataset, keyword in (
        (measures, "PixelSpacing"),
        (header.dataset, "ImagerPixelSpacing"),
        (header.dataset, "NominalScannedPixelSpacing"),
        (header.dataset, "PixelAspectRatio"),
    ):
        try:
            found = numbers(dataset, keyword)
        except ImageError:
            continue
        if len(found) == 2 and all(0 < v < np.inf for v in found):
            return found[0], found[1]
    return 1.0, 1.0


def _group(dataset: Any, frame: int, keyword: str) -> Any:
    """Return where attributes of a frame stand: its functional group, else that of all frames, else the dataset."""
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    for item in (*per_frame[frame : frame + 1], *shared[:1]):
        if group := item.get(keyword):
            return group[0]
    return dataset
