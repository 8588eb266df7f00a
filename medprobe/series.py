"""DICOM series as volumes: files of one SeriesInstanceUID in the order of their places along the normal of their plane."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from medprobe.images.slices import FileSlices
from medprobe.images.sources import NATIVE, Volume
from medprobe.volumes import Slicing, sliced_table

# What of a header says where a slice lies; asked for besides what makes columns.
TAGS = ("ImagePositionPatient", "ImageOrientationPatient", "InstanceNumber", "PixelSpacing")
_TO_RAS = np.array([-1.0, -1.0, 1.0])  # DICOM counts towards left, back and head
_SAME_DIRECTION = 1e-3  # of direction cosines
_SAME_PLACE = 1e-3  # mm
_GAP = 1.5  # of the middle distance of neighbours


@dataclass(frozen=True)
class Series:
    """Files of one series.

    Attributes:
        rows: The files in their order, as rows of the table of headers.
        shape: Height, width and number of slices.
        affine: From row, column and number of a slice to millimetres in RAS+, or None where that is not known well enough
            to put the files together.
        plane: Name of the plane that the slices lie in, empty where it is not known.
        remarks: What is unusual about it.

    """

    rows: np.ndarray
    shape: tuple[int, int, int]
    affine: np.ndarray | None
    plane: str
    remarks: tuple[str, ...]


def series_slices(
    samples: pd.DataFrame, paths: Sequence[str], headers: pd.DataFrame, slicing: Slicing
) -> tuple[pd.DataFrame, FileSlices, list[str]]:
    """Return the table, the images and notes of the chosen slices of series; a file without a series is one by itself.

    Where the axis is the one that a series was acquired along, its slices are its files; along another one the series is
    assembled. One that cannot be is left to fail when it is read, so that it is accounted for.

    Args:
        samples: Columns of a manifest, one row a file; ``series`` names the series where there is one.
        paths: The files.
        headers: What :func:`~medprobe.dicom_tree.read_tree` has read with ``TAGS``, empty where a file has no header.
        slicing: Which slices.

    """
    uids = headers["series_uid"].to_numpy(dtype=object)
    keys = np.array([uid or f"\0{row}" for row, uid in enumerate(uids)], dtype=object)
    volumes: list[Volume] = []
    names: list[str] = []
    counts: list[int] = []
    numbers: list[np.ndarray] = []
    first: list[np.ndarray] = []
    remarks: Counter[str] = Counter()
    for key, rows in pd.Series(np.arange(len(keys))).groupby(keys, sort=False):
        series = in_order(headers.iloc[rows.to_numpy()], rows.to_numpy())
        remarks.update(series.remarks)
        files = tuple(paths[row] for row in series.rows)
        as_files = slicing.axis in {NATIVE, series.plane}
        volumes.append(Volume(files) if as_files else Volume(files, slicing.axis, None, _nested(series.affine)))
        chosen = np.asarray(slicing.slices.of(_count(series, slicing.axis, as_files)), dtype=np.int64)
        names.append(str(samples["id" if str(key).startswith("\0") else "series"].iloc[series.rows[0]]))
        counts.append(len(chosen))
        numbers.append(chosen)
        first.append(series.rows[chosen] if as_files else np.full(len(chosen), series.rows[0]))
    of, index = np.repeat(np.arange(len(volumes)), counts), np.concatenate(numbers)
    table = sliced_table(samples, names, of, index, np.concatenate(first))
    notes = [f"{len(volumes)} series as volumes, {len(of)} slices ({slicing})"]
    notes += [f"{count} series: {remark}" for remark, count in remarks.items()]
    return table, FileSlices(volumes, of, index), notes


def in_order(headers: pd.DataFrame, rows: np.ndarray) -> Series:
    """Return the files of a series in the order of their places, or of their instance numbers where places do not tell.

    Places rise towards the patient's right, front or head, whichever is closest to the normal.

    Args:
        headers: Of the files.
        rows: What they are called in the result.

    """
    from medprobe.images.volume import AXES

    places = _numbers(headers["ImagePositionPatient"], 3) * _TO_RAS
    directions = _numbers(headers["ImageOrientationPatient"], 6) * np.tile(_TO_RAS, 2)
    instances = _numbers(headers["InstanceNumber"], 1)[:, 0]
    sizes = _numbers(headers["rows"], 1)[:, 0], _numbers(headers["columns"], 1)[:, 0]
    remarks = []
    one_size = all(len(np.unique(size)) == 1 and np.isfinite(size[0]) for size in sizes)
    if not one_size and len(rows) > 1:
        remarks.append("pictures of several sizes")
    stated = bool(np.isfinite(places).all() and np.isfinite(directions).all())
    parallel = stated and bool((np.abs(directions - directions[0]) < _SAME_DIRECTION).all())
    normal = np.cross(directions[0, :3], directions[0, 3:])
    if not parallel or np.linalg.norm(normal) < 0.5:
        if len(rows) > 1:
            remarks.append(f"{'several orientations' if stated else 'places not stated'}, so in the order of instances")
        order = np.lexsort((np.arange(len(rows)), instances))
        return Series(rows[order], (0, 0, len(rows)), None, "", tuple(remarks))
    main = int(np.abs(normal).argmax())
    along = places @ (normal * np.sign(normal[main]))
    order = np.lexsort((np.arange(len(rows)), instances, along))
    steps = np.diff(along[order])
    double = bool((steps < _SAME_PLACE).any())
    if double:
        remarks.append("several pictures at one place")
    elif len(steps) and steps.max() > _GAP * np.median(steps):
        remarks.append("gaps between slices")
    spacing = _numbers(headers["PixelSpacing"], 2)[order[0]]
    shape, affine = (0, 0, len(rows)), None
    if one_size:
        shape = int(sizes[0][0]), int(sizes[1][0]), len(rows)
    if one_size and not double and len(rows) > 1 and np.isfinite(spacing).all():
        affine = np.eye(4)
        affine[:3, 0] = directions[0, 3:] * spacing[0]
        affine[:3, 1] = directions[0, :3] * spacing[1]
        affine[:3, 2] = (places[order[-1]] - places[order[0]]) / (len(rows) - 1)
        affine[:3, 3] = places[order[0]]
    return Series(rows[order], shape, affine, AXES[main], tuple(remarks))


def _count(series: Series, axis: str, as_files: bool) -> int:
    from medprobe.images.nifti import MAX_SLICES
    from medprobe.images.raster import ImageError
    from medprobe.images.volume import slice_count

    if as_files:
        return len(series.rows)
    try:
        count = 1 if series.affine is None else slice_count(series.shape, series.affine, axis)
    except ImageError:
        count = 1
    return count if 0 < count <= MAX_SLICES else 1


def _nested(affine: np.ndarray | None) -> tuple[tuple[float, ...], ...] | None:
    return None if affine is None else tuple(tuple(row) for row in affine[:3].tolist())


def _numbers(column: pd.Series, n: int) -> np.ndarray:
    r"""Return so many numbers of each text, which are joined by ``\``, NaN where it holds something else, (rows, n)."""
    found = np.full((len(column), n), np.nan)
    for row, text in enumerate(column):
        try:
            values = [float(part) for part in str(text).split("\\")]
        except ValueError:
            continue
        if len(values) == n and np.isfinite(values).all():
            found[row] = values
    return found
