"""What the readers of known data sets share: the images that are there, findings, and splits that are looked at twice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from medprobe.datasets._cells import Table
from medprobe.errors import DataError
from medprobe.images.sources import FileImages
from medprobe.manifest import Manifest, Roles
from medprobe.tables import leaves_folder

FINDINGS = (
    "No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation",
    "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture", "Support Devices",
)  # fmt: skip
_SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff"}


def findings(table: Table, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Return a label column for each finding: 1, 0, or -1 for uncertain; one that is not mentioned is 0.

    Raises:
        DataError: A cell holds something else.

    """
    return {
        f"label_{name.replace(' ', '_')}": np.nan_to_num(table.numbers(name, among=(-1.0, 0.0, 1.0))) for name in names
    }


def images_below(root: Path, folders: Sequence[str]) -> dict[str, str]:
    """Return the images below the first of some folders that has any: paths below the root, by name without ending.

    Args:
        root: The data set's folder.
        folders: Patterns of folders below it, the usual one first; an empty one is all of it.

    Raises:
        DataError: Two images have one name.

    """
    for folder in folders:
        found: dict[str, str] = {}
        for file in sorted(root.glob(f"{folder}/**/*" if folder else "**/*")):
            if file.suffix.lower() in _SUFFIXES and not file.name.startswith("."):
                path = file.relative_to(root).as_posix()
                if file.stem in found:
                    raise DataError(f"{root}: {found[file.stem]} and {path} have one name; leave one of them there")
                found[file.stem] = path
        if found:
            return found
    return {}


def manifest_of(
    title: str,
    root: Path,
    samples: pd.DataFrame,
    *,
    group: str | None,
    files: Sequence[str] | None = None,
    official: Sequence[str] | np.ndarray | pd.Series | None = None,
    labels: Sequence[str] | None = None,
    notes: Sequence[str] = (),
) -> Manifest:
    """Return the manifest of the samples whose images are there.

    Args:
        title: Of the data set.
        root: Its folder.
        samples: Columns of the manifest: ``id``, the path below the root, and ``split_study`` where the study has one.
        group: The column that keeps images together.
        files: Paths below the root, where the ids are others.
        official: The official sides; their column is called ``split`` where no group is on two of them, else
            ``split_official``.
        labels: Label columns, where they are not called so.
        notes: What else a user should be told.

    Raises:
        DataError: None of the images are there, or an id is double.

    """
    double = samples["id"][samples["id"].duplicated()]
    if len(double):
        raise DataError(f"{root}: {title} names {len(double)} images twice (first: {double.iloc[0]})")
    outside = np.flatnonzero(samples["id"].map(leaves_folder))
    if len(outside):
        raise DataError(f"{root}: {title} names {len(outside)} images outside of its folder ('..')")
    paths = [str(root / name) for name in (samples["id"] if files is None else files)]
    there = np.array([Path(path).is_file() for path in paths], dtype=bool)
    if not there.any():
        first = f" (first: {Path(paths[0]).name})" if paths else ""
        raise DataError(f"{root}: {title}, and none of its {len(samples)} images is there{first}")
    if official is not None:
        samples = samples.assign(split_official=np.asarray(official, dtype=object))
    samples = samples[there].reset_index(drop=True)
    of_groups = "" if group is None else f", {samples[group].replace('', np.nan).nunique()} of '{group}'"
    said = [f"{title}: {len(samples)} images{of_groups}", *notes]
    if not there.all():
        said.append(f"{(~there).sum()} images of its tables are not on the disk and were left out")
    if "split_study" in samples:
        said += _straddling(samples, "split_study", group)
    role = None
    if official is not None:
        leaks = _straddling(samples, "split_official", group)
        said += leaks
        if not leaks:
            role = "split"
            samples = samples.rename(columns={"split_official": role})
    if labels is None:
        labels = [name for name in samples.columns if name == "label" or name.startswith("label_")]
    images = FileImages([path for path, here in zip(paths, there, strict=True) if here])
    return Manifest(samples, images, Roles(tuple(labels), group, role), tuple(said))


def _straddling(samples: pd.DataFrame, split: str, group: str | None) -> list[str]:
    """Return a warning if a group is on several sides of a split."""
    if group is None:
        return []
    known = samples[(samples[group] != "") & (samples[split] != "")]
    sides = known.groupby(group)[split].nunique()
    several = sides.index[sides > 1]
    if not len(several):
        return []
    found = f"LEAK: {split} has {len(several)} of {len(sides)} of '{group}' on two sides (first: {several[0]})"
    return [f"{found}; to run it all the same: --split-col {split} --group none"]
