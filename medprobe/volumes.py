"""Volumes as samples: a manifest of NIfTI files or of three-dimensional arrays becomes one of their slices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from medprobe.errors import DataError, UsageError
from medprobe.images.frames import Frames, parse_frames, parse_slices
from medprobe.images.slices import ArraySlices, FileSlices
from medprobe.images.sources import NATIVE, ArrayImages, FileImages, ImageSource, Volume, is_nifti
from medprobe.manifest import GROUP_COLUMNS, Manifest

BAG, NUMBER = "volume", "slice"
SERIES = "series"
_FILE = "file"


@dataclass(frozen=True)
class Slicing:
    """How volumes become slices.

    Attributes:
        axis: ``axial``, ``coronal``, ``sagittal`` or ``native``.
        slices: Which of those along the axis.

    """

    axis: str
    slices: Frames

    @classmethod
    def parse(cls, axis: str | None, slices: str | None) -> Slicing:
        """Return what a user asks for; None stands for the default.

        Raises:
            UsageError: An axis or a choice of slices that there is not.

        """
        from medprobe.images.volume import parse_axis

        return cls(parse_axis(axis or NATIVE), parse_slices(slices or "all"))

    def __str__(self) -> str:
        """Return it as a store keeps it, and :meth:`read` takes it apart."""
        return f"{self.axis}; {self.slices}"

    @classmethod
    def read(cls, text: str) -> Slicing:
        """Return what :meth:`__str__` has written."""
        axis, slices = text.split("; ")
        return cls.parse(axis, slices)


def holds_volumes(images: ImageSource) -> bool:
    """Return whether some images are volumes without being asked for as such."""
    if isinstance(images, ArrayImages):
        return any(images.depths)
    return isinstance(images, FileImages) and any(map(is_nifti, images.paths))


def sliced(manifest: Manifest, slicing: Slicing, frames: str | None) -> Manifest:
    """Return a manifest whose rows are the chosen slices of volumes; columns ``volume`` and ``slice`` say which.

    Args:
        manifest: Of NIfTI files, or of arrays (n, depth, height, width); one row a volume.
        slicing: Which slices.
        frames: Which points in time of files that hold several; each is a volume of its own.

    Raises:
        DataError: Volumes and images are mixed, or a column is called like one that is made here.
        UsageError: An option does not go with such volumes, or nibabel is not installed.

    """
    if isinstance(manifest.images, ArrayImages):
        return _of_arrays(manifest, manifest.images, slicing, frames)
    assert isinstance(manifest.images, FileImages)
    paths = manifest.images.paths
    n_volumes = sum(map(is_nifti, paths))
    if n_volumes < len(paths):
        raise DataError(
            f"{n_volumes} NIfTI volumes among {len(paths)} files: volumes and images are embedded each by themselves"
        )
    if manifest.images.boxes is not None or manifest.images.masks is not None:
        raise UsageError("--box-cols and --mask-col: go with images, not with volumes")
    return _of_files(manifest, paths, slicing, None if frames is None else parse_frames(frames))


def sliced_table(
    samples: pd.DataFrame, names: Sequence[str], of: np.ndarray, numbers: np.ndarray, first: np.ndarray
) -> pd.DataFrame:
    """Return one row a slice: ``id`` (``name#number``), ``volume``, ``slice`` and the other columns.

    Args:
        samples: Columns, one row a file.
        names: Of the volumes.
        of: The volume of each slice, (n,).
        numbers: Of the slices, (n,).
        first: The row of ``samples`` that each slice has its columns from, (n,).

    Raises:
        DataError: A column is called like one that is made here.

    """
    taken = [name for name in (BAG, NUMBER) if name in samples.columns]
    if taken:
        raise DataError(f"column '{taken[0]}' is made for volumes: call yours something else")
    table = samples.iloc[first].reset_index(drop=True)
    bags = np.array(names, dtype=object)[of]
    table["id"] = [f"{bag}#{number}" for bag, number in zip(bags, numbers, strict=True)]
    table.insert(1, BAG, bags)
    table.insert(2, NUMBER, numbers)
    return table


def few_volumes(manifest: Manifest, n: int) -> int:
    """Return how many images ``n`` volumes are at most, or ``n`` where the manifest is of images."""
    if manifest.roles.bag is None:
        return n
    return int(manifest.samples[manifest.roles.bag].value_counts().iloc[:n].sum())


def _of_files(manifest: Manifest, paths: Sequence[str], slicing: Slicing, frames: Frames | None) -> Manifest:
    from medprobe.images.nifti import read_header
    from medprobe.images.raster import ImageError
    from medprobe.images.volume import plane_of, slice_count

    volumes: list[Volume] = []
    names: list[str] = []
    rows: list[int] = []
    chosen: list[Sequence[int]] = []
    planes: Counter[str] = Counter()
    unstated = several = 0
    for row, (path, name) in enumerate(zip(paths, manifest.samples["id"], strict=True)):
        points: Sequence[int | None] = (None,)
        numbers: Sequence[int] = (0,)
        try:
            header = read_header(path)
            plane = plane_of(slicing.axis, header.affine)
            numbers = slicing.slices.of(slice_count(header.shape, header.affine, slicing.axis))
        except ImageError:  # it is accounted for when it is read
            pass
        else:
            planes[plane] += 1
            unstated += not header.oriented
            if header.points > 1:
                points = (None,) if frames is None else frames.of(header.points)
                numbers = (0,) if frames is None else numbers
            several += len(points) > 1
        volumes += [Volume((path,), slicing.axis, point) for point in points]
        names += [name if point is None else f"{name}#{point}" for point in points]
        rows += [row] * len(points)
        chosen += [numbers] * len(points)
    of = np.repeat(np.arange(len(volumes)), [len(numbers) for numbers in chosen])
    numbers_of_all = np.concatenate([np.asarray(numbers, dtype=np.int64) for numbers in chosen])
    samples, roles = manifest.samples, replace(manifest.roles, bag=BAG)
    notes = [*manifest.notes, f"{len(volumes)} volumes, {len(of)} slices ({slicing})"]
    if len(planes) > 1:
        notes.append(f"slices of different planes: {', '.join(f'{n} {plane}' for plane, n in planes.most_common())}")
    if unstated:
        notes.append(f"{unstated} files state no orientation (neither sform nor qform): left and right may be swapped")
    if several and roles.group is None and not any(c.lower() in GROUP_COLUMNS for c in samples.columns):
        samples, roles = samples.assign(**{_FILE: samples["id"]}), replace(roles, group=_FILE)
        notes.append(f"points in time of one file are kept together (column '{_FILE}')")
    return replace(
        manifest,
        samples=sliced_table(samples, names, of, numbers_of_all, np.array(rows)[of]),
        images=FileSlices(volumes, of, numbers_of_all),
        roles=roles,
        notes=tuple(notes),
        slicing=str(slicing),
    )


def _of_arrays(manifest: Manifest, images: ArrayImages, slicing: Slicing, frames: str | None) -> Manifest:
    if slicing.axis != NATIVE:
        raise UsageError(
            f"--slice-axis {slicing.axis}: an .npz does not say how its volumes lie; native is the first axis"
        )
    if frames is not None:
        raise UsageError("--frames: goes with files; --slices chooses among the slices of volumes")
    numbers = np.asarray(slicing.slices.of(images.depths[0]), dtype=np.int64)
    of = np.repeat(np.arange(len(manifest)), len(numbers))
    index = np.tile(numbers, len(manifest))
    return replace(
        manifest,
        samples=sliced_table(manifest.samples, list(manifest.samples["id"]), of, index, of),
        images=ArraySlices(images, of, index),
        roles=replace(manifest.roles, bag=BAG),
        notes=(*manifest.notes, f"{len(manifest)} volumes, {len(of)} slices ({slicing})"),
        slicing=str(slicing),
    )
