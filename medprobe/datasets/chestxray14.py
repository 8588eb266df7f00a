"""NIH ChestX-ray14: fourteen findings of chest X-rays, mined from reports."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from medprobe.datasets._cells import Table
from medprobe.datasets._layout import images_below, manifest_of
from medprobe.errors import DataError
from medprobe.manifest import Manifest

_FINDINGS = (
    "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Emphysema", "Fibrosis", "Hernia", "Infiltration",
    "Mass", "Nodule", "Pleural_Thickening", "Pneumonia", "Pneumothorax",
)  # fmt: skip
_LISTS = {"train": "train_val_list.txt", "test": "test_list.txt"}
_A_YEAR = {"Y": 1.0, "M": 12.0, "W": 365.25 / 7, "D": 365.25}  # in each unit of an age


def read(root: Path) -> Manifest:
    """Return the manifest, with the official lists as ``split``."""
    path = sorted(root.glob("Data_Entry_2017*.csv"))[-1]
    table = Table.read(path, ("Image Index", "Finding Labels", "Patient ID", "Patient Age", "View Position"))
    names = table.names("Image Index", unique=True)
    where = images_below(root, ("images*",))
    sex = next((name for name in ("Patient Gender", "Patient Sex") if name in table.frame.columns), None)
    said = table.names("Finding Labels").str.split("|")
    unknown = {name for found in said for name in found} - {*_FINDINGS, "No Finding"}
    if unknown:
        raise DataError(f"{path}: '{sorted(unknown)[0]}' in 'Finding Labels' is none of the 14 findings")
    samples = pd.DataFrame(
        {
            "id": [where.get(Path(name).stem, f"images/{name}") for name in names],
            "patient": table.names("Patient ID"),
            "sex": "" if sex is None else table.words(sex),
            "age": _years(table, "Patient Age"),
            "view": table.words("View Position"),
            **{f"label_{name}": [int(name in found) for found in said] for name in _FINDINGS},
        }
    )
    sides = _sides(root)
    official = names.map(lambda name: sides.get(name, ""))
    notes = [] if sides else ["train_val_list.txt and test_list.txt are not there: no official split"]
    if sides and (unlisted := int((official == "").sum())):
        notes.append(f"{unlisted} images are in neither of its lists, and on no side of the split")
    return manifest_of(
        "NIH ChestX-ray14", root, samples, group="patient", official=official if sides else None, notes=notes
    )


def _years(table: Table, column: str) -> np.ndarray:
    """Return ages in years, float64 (n,): 058Y, 013M, 002W, 010D, or a plain number of years."""
    parts = table.words(column).str.extract(r"^(\d+)([YMWD]?)$")
    table.refuse(column, parts[0].isna() & (table.words(column) != ""), "is no age")
    units = parts[1].replace("", "Y").map(_A_YEAR)
    return np.asarray(pd.to_numeric(parts[0]) / units, dtype=np.float64)


def _sides(root: Path) -> dict[str, str]:
    """Return the side of each listed image; nothing where there are no lists."""
    listed = {
        side: set((root / name).read_text("utf-8-sig").split())
        for side, name in _LISTS.items()
        if (root / name).exists()
    }
    twice = set.intersection(*listed.values()) if len(listed) > 1 else set()
    if twice:
        raise DataError(f"{root}: {len(twice)} images are in {' and in '.join(_LISTS.values())} (first: {min(twice)})")
    return {name: side for side, names in listed.items() for name in names}
