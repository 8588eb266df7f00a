"""Known data sets, by the layout in which they are handed out: their labels, patients and splits as they are meant."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from medprobe.datasets.known import DATASETS, Dataset
from medprobe.errors import DataError, UsageError

if TYPE_CHECKING:
    from medprobe.manifest import Manifest

__all__ = ["DATASETS", "Dataset", "read_dataset", "recognise"]


def recognise(folder: Path) -> Manifest | None:
    """Return the manifest of a known data set in a folder, or None where there is none.

    Raises:
        DataError: It looks like one, and a table of it is damaged or none of its images are there.

    """
    for dataset in DATASETS.values():
        root = dataset.root_in(folder)
        if root is None:
            continue
        try:
            return dataset.read(root)
        except DataError as error:
            raise DataError(f"{error}. The folder looks like {dataset.title}; if it is not: --dataset none") from error
    return None


def read_dataset(name: str, folder: Path) -> Manifest:
    """Return the manifest of a data set that is known to be in a folder.

    Raises:
        UsageError: There is no data set of that name.
        DataError: The folder does not look like it.

    """
    if name not in DATASETS:
        raise UsageError(f"--dataset {name}: one of {', '.join(DATASETS)}")
    dataset = DATASETS[name]
    root = dataset.root_in(folder)
    if root is None:
        lacks = dataset.lacks(folder) if folder.is_dir() else "there is no such folder"
        raise DataError(
            f"{folder}: not {dataset.title}, which is {dataset.layout} ({lacks}). It is handed out at {dataset.where}."
        )
    return dataset.read(root)
