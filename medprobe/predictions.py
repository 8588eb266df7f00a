"""What a probe predicted for each tested image: kept beside the rows, so that two probes can be compared in pairs."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medprobe.errors import DataError


@dataclass(frozen=True)
class Predictions:
    """Probabilities of the tested images, in the order of their ids.

    Attributes:
        ids: Of the images, (n,).
        groups: Number of each image's group (patient), (n,); its name is not kept.
        y: Class codes (n,), or labels 0, 1 and NaN (n, L).
        proba: Probabilities, float32 (draws, n, K): one draw, or several of few labels.
        task: ``binary``, ``multiclass``, ``ordinal`` or ``multilabel``.
        classes: Names of the classes, or of the labels, (K,).

    """

    ids: np.ndarray
    groups: np.ndarray
    y: np.ndarray
    proba: np.ndarray
    task: str
    classes: np.ndarray

    def write(self, path: Path) -> None:
        """Write them to an ``.npz`` file, whole or not at all."""
        draft = path.with_suffix(".draft")
        with draft.open("wb") as file:
            np.savez_compressed(
                file,
                ids=self.ids.astype(str),
                groups=self.groups,
                y=self.y,
                proba=self.proba.astype(np.float32),
                task=np.array(self.task),
                classes=self.classes.astype(str),
            )
        draft.replace(path)


def read_predictions(path: Path) -> Predictions:
    """Return the predictions of a file.

    Raises:
        DataError: It is damaged, or no such file.

    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in ("ids", "groups", "y", "proba", "classes")}
            predictions = Predictions(**found, task=str(arrays["task"]))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: damaged predictions; run the probe command again, or delete the file") from error
    n = len(predictions.ids)
    if {len(predictions.groups), len(predictions.y), predictions.proba.shape[1]} != {n}:
        raise DataError(f"{path}: damaged predictions; run the probe command again, or delete the file")
    return predictions
