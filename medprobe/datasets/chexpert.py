"""CheXpert: fourteen findings of chest X-rays, some of them uncertain."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from medprobe.datasets._cells import Table
from medprobe.datasets._layout import FINDINGS, findings, manifest_of
from medprobe.datasets._study import sorted_split
from medprobe.manifest import Manifest

_COLUMNS = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *FINDINGS)
_BATCHES = "CheXpert-v1.0 batch*"


def read(root: Path) -> Manifest:
    """Return the manifest: ``split`` tests on the official validation images, ``split_study`` cuts the sorted train.csv."""
    training = Table.read(root / "train.csv", _COLUMNS)
    parts = [_samples(training, "train")]
    if (root / "valid.csv").exists():
        parts.append(_samples(Table.read(root / "valid.csv", _COLUMNS), "test"))
    samples = pd.concat(parts, ignore_index=True)
    notes = []
    study = sorted_split(training.names("Path").tolist())
    if study is None:
        notes.append("train.csv has too few rows, or another order than the official one: there is no split_study")
    else:
        samples["split_study"] = np.concatenate([study, np.full(len(samples) - len(study), "", dtype=object)])
    official = samples.pop("side")
    file_of = _files(root)
    return manifest_of(
        "CheXpert",
        root,
        samples,
        files=[file_of(name) for name in samples["id"]],
        group="patient",
        official=official,
        notes=notes,
    )


def _samples(table: Table, side: str) -> pd.DataFrame:
    # The first folder of a path is the data set's own, whose name differs from copy to copy.
    parts = table.names("Path").str.extract(r"(?:^|/)((?:train|valid|test)/((patient\d+)/[^/]+)/[^/]+)$")
    table.refuse("Path", parts[0].isna(), "does not end in train/patient00001/study1/view1_frontal.jpg or the like")
    return pd.DataFrame(
        {
            "id": parts[0],
            "patient": parts[2],
            "study": parts[1],
            "sex": table.words("Sex"),
            "age": table.numbers("Age"),
            "view": table.words("Frontal/Lateral").str.lower(),
            "projection": table.words("AP/PA"),
            **findings(table, FINDINGS),
            "side": side,
        }
    )


def _files(root: Path) -> Callable[[str], str]:
    """Return what gives the file of an id: below the root, or in the batches of the full-size edition beside its tables."""
    root = root.resolve()
    batches = sorted([*root.glob(_BATCHES), *(root.parent.glob(_BATCHES) if root.match(_BATCHES) else ())])
    patients = {folder.name: folder for batch in batches for folder in batch.glob("patient*")}
    others = [batch for batch in batches if (batch / "valid").is_dir()]

    def file_of(name: str) -> str:
        side, patient, rest = name.split("/", 2)
        path = root / name
        if side == "train" and patient in patients:
            path = patients[patient] / rest
        elif side == "valid" and others and not (root / side).is_dir():
            path = others[0] / name
        lossless = path.with_suffix(".png")
        return str(lossless if lossless.is_file() and not path.is_file() else path)

    return file_of
