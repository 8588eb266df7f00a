"""Reads every DICOM test file that is installed and writes docs/dicom-outcomes.md: python docs/dicom_outcomes.py.

The files are pydicom's own, and those of the package pydicom-data where that is installed. What pydicom, with the decoders
that it finds, makes of the first frame stands beside what medprobe makes of it.
"""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from pydicom import dcmread
from pydicom.data import get_testdata_files
from pydicom.pixels import pixel_array
from pydicom.uid import UID

from medprobe.images.dicom import dicom_columns, n_frames, read_dicom, stored_values
from medprobe.images.raster import ImageError

TABLE = Path(__file__).with_name("dicom-outcomes.md")
_PACKAGES = (
    "pydicom",
    "imagecodecs",
    "pydicom-data",
    "pillow",
    "pylibjpeg-libjpeg",
    "pylibjpeg-openjpeg",
    "python-gdcm",
)
_HEAD = """\
# DICOM test files

What medprobe makes of the DICOM files that pydicom is tested with. "Equal" means that every stored value of the first
frame, before any window, is the one that pydicom gives; YBR is compared after conversion to RGB.
Written by `python docs/dicom_outcomes.py` with {versions}.

In all: {summary}.

| file | transfer syntax | photometric interpretation | bits | outcome | pydicom |
|---|---|---|---:|---|---|
"""


def main() -> None:
    """Write the table."""
    logging.disable()
    warnings.simplefilter("ignore")
    rows, verdicts, others = [], Counter[str](), Counter[str]()
    for path in sorted((Path(name) for name in get_testdata_files()), key=lambda path: path.name.lower()):
        if path.is_dir():
            continue
        try:
            columns = dicom_columns(str(path))
        except ImageError as error:
            others[error.reason] += 1
            continue
        outcome = read(path)
        if outcome == "no pixel data":
            others[outcome] += 1
            continue
        verdict = compared(path)
        verdicts[verdict] += 1
        about = UID(columns["transfer_syntax"]).name, columns["photometric"], columns["bits"]
        rows.append(f"| {' | '.join((path.name, *(text or '-' for text in about), outcome, verdict))} |")
    head = _HEAD.format(versions=", ".join(versions()), summary=counted(verdicts))
    text = f"{head}{chr(10).join(rows)}\n\nOther files, all refused: {counted(others)}.\n"
    TABLE.write_text(text, encoding="utf-8")


def counted(reasons: Counter[str]) -> str:
    """Return how often each reason was given."""
    return ", ".join(f"{reason} ({n})" for reason, n in reasons.most_common())


def read(path: Path) -> str:
    """Return what reading a file comes to."""
    try:
        height, width, _ = read_dicom(str(path)).shape
        frames = n_frames(str(path))
    except ImageError as error:
        return error.reason
    return f"{height} × {width}" + (f", {frames} frames" if frames > 1 else "")


def compared(path: Path) -> str:
    """Return how the stored values of the first frame compare with pydicom's."""
    try:
        expected = pixel_array(dcmread(path, force=True), index=0)
    except Exception:  # one of the many ways in which it refuses a file
        expected = None
    try:
        values = stored_values(str(path))
    except ImageError:
        return "refuses too" if expected is None else "reads it"
    if expected is None:
        return "does not read it"
    if values.shape != expected.shape:
        return "another shape"
    difference = np.abs(values.astype(np.float64) - expected).max()
    return "equal" if difference == 0 else f"at most {difference:g} apart"


def versions() -> list[str]:
    """Return the packages that take part, as far as they are installed."""
    found = []
    for package in _PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    main()
