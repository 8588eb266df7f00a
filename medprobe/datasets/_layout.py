"""What the readers of known data sets share: their tables, the images that are there, and splits that are looked at twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from medprobe.errors import DataError
from medprobe.images.sources import FileImages
from medprobe.manifest import Manifest, Roles

FINDINGS = (
    "No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation",
    "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture", "Support Devices",
)  # fmt: skip


def read_csv(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Return a table as text, empty cells missing.

    Raises:
        DataError: It cannot be read, or lacks a column.

    """
    try:
        table = pd.read_csv(path, dtype=str, encoding="utf-8-sig", keep_default_na=False, na_values=[""])
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: could not be read as a table: {error}") from error
    table.columns = [column.strip() for column in table.columns]
    lacking = [column for column in columns if column not in table.columns]
    if lacking:
        raise DataError(f"{path}: no column '{lacking[0]}'; there are: {', '.join(table.columns)}")
    return table


def findings(table: pd.DataFrame, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Return a label column for each finding: 1, 0, or -1 for uncertain; one that is not mentioned is 0."""
    return {
        f"label_{name.replace(' ', '_')}": pd.to_numeric(table[name], errors="coerce").fillna(0).to_numpy()
        for name in names
    }


def random_split(n: int, train: float, val: float) -> np.ndarray:
    """Return train, val or test for each of n rows: drawn image by image, without a look at groups."""
    order = np.random.default_rng(42).permutation(n)
    return _cut(order, train, val)


def sorted_split(paths: Sequence[str], train: float, val: float) -> np.ndarray:
    """Return train, val or test for each path, the first of the sorted ones for training."""
    return _cut(np.argsort(np.asarray(paths, dtype=str), kind="stable"), train, val)


def _cut(order: np.ndarray, train: float, val: float) -> np.ndarray:
    n = len(order)
    sides = np.full(n, "test", dtype=object)
    sides[order[: round(n * (train + val))]] = "val"
    sides[order[: round(n * train)]] = "train"
    return sides


def manifest_of(
    title: str,
    root: Path,
    samples: pd.DataFrame,
    *,
    group: str | None,
    files: Sequence[str] | None = None,
    split: Callable[[pd.DataFrame], pd.Series] | None = None,
    study: Callable[[pd.DataFrame], np.ndarray] | None = None,
    notes: Sequence[str] = (),
) -> Manifest:
    """Return the manifest of the samples whose images are there.

    Args:
        title: Of the data set.
        root: Its folder.
        samples: Columns of the manifest, ``id`` the path below the root.
        group: The column that keeps images together.
        files: Paths below the root, where the ids are others.
        split: Gives the official sides; the column is called ``split`` where no group is on two of them, else
            ``split_official``.
        study: Gives the sides of ``split_study``, the study's own.
        notes: What else a user should be told.

    Raises:
        DataError: None of the images are there, or an id is double.

    """
    paths = [str(root / name) for name in (samples["id"] if files is None else files)]
    there = np.array([Path(path).is_file() for path in paths], dtype=bool)
    if not there.any():
        raise DataError(
            f"{root}: {title}, and none of its {len(samples)} images is there (first: {Path(paths[0]).name})"
        )
    samples = samples[there].reset_index(drop=True)
    if samples["id"].duplicated().any():
        raise DataError(f"{root}: {title} names {samples['id'].duplicated().sum()} images twice")
    of_groups = "" if group is None else f", {samples[group].replace('', np.nan).nunique()} of '{group}'"
    said = [f"{title}: {len(samples)} images{of_groups}", *notes]
    if not there.all():
        said.append(f"{(~there).sum()} images of its tables are not on the disk and were left out")
    if study is not None:
        samples["split_study"] = study(samples)
        said += _straddling(samples, "split_study", group)
    role = None
    if split is not None:
        sides = split(samples)
        leaks = _straddling(samples.assign(split_official=sides), "split_official", group)
        role = None if leaks else "split"
        samples["split_official" if leaks else "split"] = sides
        said += leaks
    labels = tuple(name for name in samples.columns if name == "label" or name.startswith("label_"))
    images = FileImages([path for path, here in zip(paths, there, strict=True) if here])
    return Manifest(samples, images, Roles(labels, group, role), tuple(said))


def _straddling(samples: pd.DataFrame, split: str, group: str | None) -> list[str]:
    """Return a warning if a group is on several sides of a split."""
    if group is None:
        return []
    known = samples[samples[group] != ""]
    sides = known.groupby(group)[split].nunique()
    several = sides.index[sides > 1]
    if not len(several):
        return []
    found = f"LEAK: {split} has {len(several)} of {len(sides)} of '{group}' on two sides (first: {several[0]})"
    return [f"{found}; to run it all the same: --split-col {split} --group none"]
