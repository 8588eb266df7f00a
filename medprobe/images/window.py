"""Which grey values of a DICOM file or a volume are shown: the file's own choice, a centre and a width, or percentiles."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from medprobe.errors import UsageError


@dataclass(frozen=True)
class Window:
    """How grey values become 0..255.

    Attributes:
        kind: ``file`` follows the file, ``fixed`` is a centre and a width in the file's units (Hounsfield units in CT),
            ``percentile`` a low and a high percentile of each frame, or of a slice's whole volume, without padding.
        values: Centre and width, or the two percentiles.

    """

    kind: Literal["file", "fixed", "percentile"] = "file"
    values: tuple[float, float] | None = None

    def __str__(self) -> str:
        """Return what :func:`parse_window` reads."""
        if self.values is None:
            return self.kind
        first, second = (f"{v:.12g}" for v in self.values)
        return f"{first},{second}" if self.kind == "fixed" else f"p{first}-{second}"


FILE = Window()
# What a NIfTI file is shown with, which has no window of its own.
WHOLE_VOLUME = Window("percentile", (1.0, 99.0))
# What a store says of how slices were made, beside the window itself.
VOLUME_RULE = (
    "voxels in the file's units; percentiles are of the whole volume; 'file' shows a DICOM slice as its own file does, an "
    "assembled series with its middle slice's window, all else from its 1st to its 99th percentile (8 bits without scaling: "
    "as they are); NaN and padding black; along a named axis turned to RAS+ by the affine and shown as radiologists do; "
    "pixels made square along their longer side, bilinear"
)

# Centres and widths in Hounsfield units, as radiologists commonly set them for CT.
WINDOWS = {
    "abdomen": Window("fixed", (50.0, 400.0)),
    "bone": Window("fixed", (400.0, 1800.0)),
    "brain": Window("fixed", (40.0, 80.0)),
    "liver": Window("fixed", (30.0, 150.0)),
    "lung": Window("fixed", (-600.0, 1500.0)),
    # Mammograms have no common unit: a centre and width would suit one maker's machine and ruin another's.
    "mammo": Window("percentile", (0.1, 99.9)),
    "mediastinum": Window("fixed", (50.0, 350.0)),
    "subdural": Window("fixed", (75.0, 215.0)),
}

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)"
_FIXED = re.compile(rf"({_NUMBER}),({_NUMBER})")
_PERCENTILE = re.compile(r"p(\d+(?:\.\d+)?)-(\d+(?:\.\d+)?)")


def parse_window(text: str) -> Window:
    """Return the window that a user writes: ``file``, a name such as ``lung``, ``-600,1500`` or ``p1-99``.

    Raises:
        UsageError: It is none of these, a width that is not above 0, or percentiles that do not rise within 0..100.

    """
    plain = text.strip().lower().replace(" ", "")
    if plain == "file":
        return FILE
    if plain in WINDOWS:
        return WINDOWS[plain]
    if (match := _FIXED.fullmatch(plain)) and float(match[2]) > 0:
        return Window("fixed", (float(match[1]), float(match[2])))
    if (match := _PERCENTILE.fullmatch(plain)) and 0 <= float(match[1]) < float(match[2]) <= 100:
        return Window("percentile", (float(match[1]), float(match[2])))
    raise UsageError(
        f"window {text!r}: give 'file', a name ({', '.join(WINDOWS)}), a centre and a width (-600,1500) or two "
        "percentiles (p1-99)"
    )
