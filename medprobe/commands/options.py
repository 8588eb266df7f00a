"""Options and exit statuses that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NoReturn

import typer

from medprobe.errors import UsageError

FAILED, USAGE, SKIPPED, INTERRUPTED = 1, 2, 3, 4

Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
StorePath = Annotated[str, typer.Argument(metavar="STORE", help="A feature store (folder ending in .zarr, or a URL).")]
Partial = Annotated[bool, typer.Option("--partial", help="Use the finished blocks of an incomplete store.")]

# Of every command that reads images.
DataPath = Annotated[
    str,
    typer.Argument(metavar="DATA", help="Folder of images or volumes, CSV/TSV/Parquet table, MedMNIST .npz, or a URL."),
]
Root = Annotated[
    str | None, typer.Option(help="Folder or URL that a table's paths are relative to. (default: its own)")
]
PathCol = Annotated[str | None, typer.Option(help="Column of image paths in a table.")]
LabelCol = Annotated[list[str] | None, typer.Option(help="Column that is a label; may be repeated.")]
GroupCol = Annotated[str | None, typer.Option(help="Column of patients; 'none' for no grouping.")]
SplitCol = Annotated[str | None, typer.Option(help="Column with train, val and test; 'none' for none.")]
KnownData = Annotated[
    str | None, typer.Option(help="Known data set that the folder is (medprobe data); none. (default: recognised)")
]
LabelsTable = Annotated[
    Path | None, typer.Option(help="Table of labels for a folder, joined by path, file name or DICOM identifier.")
]
LabelsKey = Annotated[str | None, typer.Option(help="Its column to join by. (default: found by its name)")]
FramesChoice = Annotated[str | None, typer.Option(help="Of files of several frames: first, middle, all or every:N.")]
BoxCols = Annotated[
    str | None, typer.Option(help="Columns of left, top, width, height: only that of each image, e.g. x,y,w,h.")
]
MaskCol = Annotated[
    str | None, typer.Option(help="Column of masks: only the box around each one's pixels above its lowest value.")
]
WindowChoice = Annotated[
    str, typer.Option(help="Grey values of DICOM files and volumes: file, lung, bone, mammo ..., -600,1500 or p1-99.")
]
VolumesChoice = Annotated[
    str | None,
    typer.Option(help="series: DICOM series of a folder are volumes, as NIfTI files and 3D arrays always are."),
]
SliceAxis = Annotated[
    str | None, typer.Option(help="Of volumes: axial, coronal, sagittal or native. (default: native, as stored)")
]
SlicesChoice = Annotated[
    str | None, typer.Option("--slices", help="Of volumes: all, every:N, or N evenly spaced. (default: all)")
]
KeepCol = Annotated[list[str] | None, typer.Option(help="Keep a column that looks as if it named a person.")]
Tags = Annotated[
    list[str] | None, typer.Option(help="DICOM attribute that becomes a column, e.g. StudyDate; may be repeated.")
]
KeepIds = Annotated[
    bool, typer.Option("--keep-ids", help="Keep paths and patients of DICOM files, not keyed hashes of them.")
]
ImageSize = Annotated[int | None, typer.Option(help="Another input size than the encoder's own.")]
ExactDecode = Annotated[bool, typer.Option("--exact-decode", help="Decode large JPEG files in full.")]
MaxFailures = Annotated[
    str | None,
    typer.Option(help="Stop above this number or share (0.01, 1%) of unreadable images. (default: 1%, at least 10)"),
]
Limit = Annotated[int | None, typer.Option(min=1, help="Only the first so many images.")]
Precision = Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16.")]
Workers = Annotated[str, typer.Option(help="Decoding processes, 0 for none, or auto.")]


def number(flag: str, text: str) -> int | None:
    """Return the number of an option that may be ``auto``, which is None."""
    if text == "auto":
        return None
    if not text.isdigit():
        raise UsageError(f"{flag} {text}: a number, or auto")
    return int(text)


def numbers(flag: str, text: str) -> tuple[int, ...]:
    """Return the numbers of an option that is a list."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"{flag} {text}: numbers such as 1,5,10") from None


def rates(text: str | None) -> str | tuple[float, ...] | None:
    """Return the learning rates that are named, or ``auto``."""
    if text is None or text == "auto":
        return text
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--lr {text}: a rate such as 1e-4, several, or auto") from None


def interrupted(*_: object) -> NoReturn:
    """Take a signal as Ctrl-C: what is finished is kept, and the exit status says that there is more to do."""
    raise KeyboardInterrupt
