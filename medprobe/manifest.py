"""The table of samples: which images there are, what is known about each, and where its pixels lie."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypedDict, Unpack

import numpy as np
import pandas as pd

from medprobe.errors import DataError, UsageError
from medprobe.images.sources import ArrayImages, FileImages, ImageSource, Rearranged
from medprobe.storage import AnyPlace, Url, located
from medprobe.tables import as_text, marks_of

_TABLE_NAMES = {"data", "index", "labels", "manifest", "metadata", "train"}  # which say nothing about the data
_TABLES = {".csv", ".tsv", ".parquet"}
GROUP_COLUMNS = ("patient", "patient_id", "patientid", "subject", "subject_id", "group")
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}


@dataclass(frozen=True)
class Roles:
    """Which columns of a manifest are labels, and which one is what else.

    Attributes:
        labels: Columns that are labels.
        group: The patient.
        split: The side of a given split.
        bag: What several rows are parts of: the volume of a slice.

    """

    labels: tuple[str, ...] = ()
    group: str | None = None
    split: str | None = None
    bag: str | None = None


@dataclass(frozen=True)
class Manifest:
    """Samples and their images, in a fixed order.

    Attributes:
        samples: One row a sample; column ``id`` (unique strings), then every column that goes into a store.
        images: Where the pixels of row ``i`` are.
        roles: Label, group and split columns.
        notes: What a user should be told about how the data were read.
        name: What the data are called in tables of results: by the folder, or the file unless it has any table's name.
        slicing: How volumes were cut into the rows, in words; empty for images.

    """

    samples: pd.DataFrame
    images: ImageSource
    roles: Roles
    notes: tuple[str, ...] = field(default=())
    name: str = ""
    slicing: str = ""

    def __len__(self) -> int:
        return len(self.samples)

    def head(self, limit: int | None) -> Manifest:
        """Return the first ``limit`` samples."""
        if limit is None or limit >= len(self):
            return self
        return replace(self, samples=self.samples.iloc[:limit].reset_index(drop=True), images=self.images.head(limit))

    def in_order(self, rows: np.ndarray) -> Manifest:
        """Return the same samples in the order of these row numbers, (n,)."""
        samples = self.samples.iloc[rows].reset_index(drop=True)
        return replace(self, samples=samples, images=Rearranged(self.images, rows))


class Reading(TypedDict, total=False):
    """How data are read: the arguments of :func:`read_manifest`, which explains them."""

    root: AnyPlace | None
    path_col: str | None
    label_cols: Sequence[str]
    group_col: str | None
    split_col: str | None
    keep_cols: Sequence[str]
    dataset: str | None
    labels: AnyPlace | None
    labels_key: str | None
    tags: Sequence[str]
    keep_ids: bool
    frames: str | None
    box_cols: Sequence[str]
    mask_col: str | None
    volumes: str | None
    slice_axis: str | None
    slices: str | None


def manifest_of(data: AnyPlace | Manifest, **reading: Unpack[Reading]) -> Manifest:
    """Return the manifest of data that are to be read, or the one that is given.

    Args:
        data: As for :func:`read_manifest`, or a manifest.
        reading: As for :func:`read_manifest`. Of a manifest that is given, ``group_col`` and ``split_col`` name other columns
            of patients and split, or ``"none"``; nothing else is asked of it.

    Raises:
        DataError: As for :func:`read_manifest`.
        UsageError: Likewise; or a manifest is given, and what is asked goes with data that are to be read.

    """
    if not isinstance(data, Manifest):
        return read_manifest(data, **reading)
    late = [name for name, value in reading.items() if value and name not in {"group_col", "split_col"}]
    if late:
        raise UsageError(f"{', '.join(late)}: for data that are to be read; this manifest has been read")
    group = _renamed(data, "--group-col", reading.get("group_col"), data.roles.group)
    split = _renamed(data, "--split-col", reading.get("split_col"), data.roles.split)
    return replace(data, roles=replace(data.roles, group=group, split=split))


def _renamed(manifest: Manifest, flag: str, column: str | None, recorded: str | None) -> str | None:
    columns = list(manifest.samples.columns)
    if column not in {None, "none", *columns}:
        raise UsageError(f"{flag} {column}: no such column; there are: {', '.join(columns)}")
    return recorded if column is None else None if column == "none" else column


def read_manifest(
    data: AnyPlace,
    *,
    root: AnyPlace | None = None,
    path_col: str | None = None,
    label_cols: Sequence[str] = (),
    group_col: str | None = None,
    split_col: str | None = None,
    keep_cols: Sequence[str] = (),
    dataset: str | None = None,
    labels: AnyPlace | None = None,
    labels_key: str | None = None,
    tags: Sequence[str] = (),
    keep_ids: bool = False,
    frames: str | None = None,
    box_cols: Sequence[str] = (),
    mask_col: str | None = None,
    volumes: str | None = None,
    slice_axis: str | None = None,
    slices: str | None = None,
) -> Manifest:
    """Return the manifest of a folder of images or volumes, a CSV or Parquet table, or a MedMNIST ``.npz`` file.

    A folder gives ``label`` from its first level of sub-folders (or the second where the first is train/val/test, which
    then gives ``split``), and of DICOM files ``patient``, ``study``, ``series``, ``modality``, ``manufacturer``,
    ``view_position`` and ``laterality``. A table needs a column of paths, relative to the table's own folder or absolute.

    Args:
        data: The folder or file, or its URL.
        root: Folder or URL that a table's paths are relative to, its own unless given; the paths may be URLs themselves.
        path_col: Column of paths in a table.
        label_cols: Columns that are labels; one whose cells name several findings (``Effusion|Mass``) becomes a column of
            0 and 1 for each.
        group_col: Column of patients, found by its name (patient, patient_id, subject, ...) unless given; ``"none"``
            switches it off.
        split_col: Column with train, val and test; ``"none"`` for none.
        keep_cols: Columns to keep although they look as if they named a person.
        dataset: Which known data set the folder is, recognised by its layout unless given; ``"none"`` for none.
        labels: A table of labels for a folder, joined by path, file name, or a DICOM identifier.
        labels_key: Its column to join by, found by its name unless given.
        tags: DICOM attributes of a folder's files that become columns, by keyword or number.
        keep_ids: Keep paths, patients, studies and series of a folder's DICOM files as they are, not as keyed hashes.
        frames: Which frames of files of several are samples: ``first``, ``middle``, ``all`` or ``every:N``.
        box_cols: Four columns of a table: left, top, width and height, in pixels, of what is cut out of each image.
        mask_col: Column of a table with a mask for each image: what encloses its pixels above its lowest value is cut.
        volumes: ``series`` takes the DICOM series of a folder as volumes, whose slices are the rows; NIfTI files and
            three-dimensional arrays always are.
        slice_axis: Of volumes: ``axial``, ``coronal``, ``sagittal``, or ``native`` (the default), as they are stored.
        slices: Of volumes: ``all`` (the default), ``every:N``, or ``N`` evenly spaced.

    Raises:
        DataError: Nothing is there, or a path, id or column is missing, empty or double.
        UsageError: A named column does not exist.

    """
    from medprobe.volumes import SERIES, Slicing, holds_volumes, sliced

    path = located(data)
    if isinstance(path, Url) and dataset not in {None, "none"}:
        raise UsageError(f"--dataset {dataset}: goes with a folder of this machine")
    if not path.exists() and dataset in {None, "none"}:
        hint = " (a web server lists no folders: give a table)" if isinstance(path, Url) and path.is_read_only else ""
        raise DataError(f"{path}: no such file or folder{hint}")
    slicing = Slicing.parse(slice_axis, slices)
    if volumes not in {None, SERIES}:
        raise UsageError(f"--volumes {volumes}: {SERIES}; NIfTI files and three-dimensional arrays always are volumes")
    if volumes is not None and frames is not None:
        raise UsageError(
            "--volumes: its files are of one frame each; of others, --frames makes rows (probe --pool-by series)"
        )
    given = {
        "--volumes": volumes,
        "--labels": labels,
        "--labels-key": labels_key,
        "--tag": tags,
        "--keep-ids": keep_ids,
        "--dataset": dataset,
    }
    if path.is_file() and (flag := next((flag for flag, value in given.items() if value), None)):
        raise UsageError(f"{flag}: goes with a folder of images")
    if root is not None and path.suffix.lower() not in _TABLES:
        raise UsageError("--root: goes with a table of images")
    if (box_cols or mask_col) and path.suffix.lower() not in _TABLES:
        raise UsageError(f"{'--box-cols' if box_cols else '--mask-col'}: goes with a table of images")
    if path.is_dir() or not path.exists():
        from medprobe.datasets import read_dataset, recognise
        from medprobe.folder import read_folder

        plain = dataset == "none" or labels is not None or volumes is not None or isinstance(path, Url)
        known = None
        if isinstance(path, Path):
            known = read_dataset(dataset, path) if dataset not in {None, "none"} else None if plain else recognise(path)
        manifest = known or read_folder(
            path,
            tags=tags,
            keep_ids=keep_ids,
            labels=None if labels is None else located(labels),
            labels_key=labels_key,
            keep_cols=keep_cols,
            series=None if volumes is None else slicing,
        )
    elif path.suffix.lower() in _TABLES:
        from medprobe.image_table import read_image_table

        beside = path.parent if root is None else located(root)
        manifest = read_image_table(
            path,
            root=beside,
            path_col=path_col,
            group_col=group_col,
            keep_cols=keep_cols,
            box_cols=box_cols,
            mask_col=mask_col,
        )
    elif path.suffix.lower() == ".npz" and isinstance(path, Url):
        raise UsageError(f"{path}: an .npz file is read from a folder of this machine; copy it there first")
    elif path.suffix.lower() == ".npz":
        assert isinstance(path, Path)
        manifest = _from_npz(path)
    else:
        raise DataError(
            f"{path}: DATA is a folder of images or volumes, a .csv, .tsv or .parquet table with a path column, or a MedMNIST "
            ".npz"
        )
    if not len(manifest):
        raise DataError(f"{path}: no images in it")
    if manifest.roles.bag is None and holds_volumes(manifest.images):
        manifest = sliced(manifest, slicing, frames)
    elif manifest.roles.bag is None and (slice_axis or slices):
        raise UsageError(f"--slice-axis and --slices: go with volumes (NIfTI, MedMNIST 3D, --volumes {SERIES})")
    elif frames is not None:
        manifest = _with_frames(manifest, frames)
    whole = path.resolve()
    name = whole.name if path.is_dir() else whole.parent.name if path.stem in _TABLE_NAMES else path.stem
    return _with_roles(replace(manifest, name=name), label_cols, group_col, split_col)


def _with_frames(manifest: Manifest, choice: str) -> Manifest:
    """Return a sample for each chosen frame of files that hold several; the others stay as they are."""
    from medprobe.images.frames import parse_frames
    from medprobe.images.raster import ImageError, count_frames

    frames = parse_frames(choice)
    if not isinstance(manifest.images, FileImages):
        raise UsageError("--frames: goes with image files")
    rows: list[int] = []
    numbers: list[int | None] = []
    for row, path in enumerate(manifest.images.paths):
        try:
            n = count_frames(path)
        except ImageError:  # it is accounted for when it is read
            n = 1
        chosen = [None] if n == 1 else [*frames.of(n)]
        rows += [row] * len(chosen)
        numbers += chosen
    samples = manifest.samples.iloc[rows].reset_index(drop=True)
    marks = ["" if number is None else f"#{number}" for number in numbers]
    samples["id"] = [f"{name}{mark}" for name, mark in zip(samples["id"], marks, strict=True)]
    return replace(manifest, samples=samples, images=replace(manifest.images.of(rows), frames=numbers))


def _with_roles(
    manifest: Manifest, label_cols: Sequence[str], group_col: str | None, split_col: str | None
) -> Manifest:
    columns = [c for c in manifest.samples.columns if c != "id"]
    for flag, named in (
        ("--label-col", label_cols),
        ("--group-col", [group_col]),
        ("--split-col", [split_col]),
    ):
        for column in named:
            if column is not None and column != "none" and column not in columns:
                raise UsageError(f"{flag} {column}: no such column; there are: {', '.join(columns)}")
    notes = list(manifest.notes)
    group = None if group_col == "none" else group_col
    if group_col is None and manifest.roles.group is not None:
        group = manifest.roles.group
    elif group_col is None:
        group = next((c for c in columns if c.lower() in GROUP_COLUMNS), None)
        if group is not None:
            notes.append(
                f"column '{group}' groups the images: no {group} will straddle a split (--group-col none: off)"
            )
    split = None if split_col == "none" else split_col
    if split_col is None and "split" in columns:
        split = "split"
    named = tuple(label_cols) or manifest.roles.labels
    named = named or tuple(c for c in columns if c == "label" or c.startswith("label_"))
    samples = manifest.samples
    labels: tuple[str, ...] = ()
    for column in named:
        marks = marks_of(samples[column], column)
        if len(marks.columns):
            double = [name for name in marks.columns if name in samples.columns]
            if double:
                raise DataError(f"column '{column}' names a finding that is column '{double[0]}', too; leave one out")
            samples = samples.drop(columns=[column]).join(marks)
            notes.append(f"'{column}' names several findings in a cell: {len(marks.columns)} labels (-t '{column}')")
        labels += tuple(marks.columns) or (column,)
    if group is not None:
        samples = samples.assign(**{group: samples[group].map(as_text).astype(object)})
    roles = replace(manifest.roles, labels=labels, group=group, split=split)
    return replace(manifest, samples=samples, roles=roles, notes=tuple(notes))


def _from_npz(path: Path) -> Manifest:
    from medprobe.datasets.medmnist import meaning

    images = ArrayImages.open(path)
    notes: tuple[str, ...] = ()
    samples: dict[str, list[np.ndarray]] = {"id": [], "split": []}
    labels: list[np.ndarray] = []
    for prefix, count in images.members:
        split = SPLIT_NAMES.get(prefix, prefix)
        samples["id"].append(np.array([f"{prefix or 'image'}_{i:06d}" for i in range(count)], dtype=object))
        samples["split"].append(np.full(count, split, dtype=object))
        values = images.labels(prefix)
        if values is not None:
            if len(values) != count:
                raise DataError(f"{path}: {prefix}_labels has {len(values)} rows for {count} images")
            labels.append(values.reshape(count, math.prod(values.shape[1:])))
    columns = {name: np.concatenate(parts) for name, parts in samples.items()}
    if all(prefix == "" for prefix, _ in images.members):
        del columns["split"]
    if labels:
        if len(labels) != len(images.members) or len({part.shape[1] for part in labels}) != 1:
            raise DataError(f"{path}: labels are missing for a split, or differ in width between splits")
        stacked = np.concatenate(labels)
        width = stacked.shape[1]
        known, said = meaning(path, width)
        names = known or (("label",) if width == 1 else tuple(f"label_{i}" for i in range(width)))
        columns |= {name: stacked[:, i] for i, name in enumerate(names)}
        notes = (said,) if said else ()
    return Manifest(pd.DataFrame(columns), images, Roles(), notes)
