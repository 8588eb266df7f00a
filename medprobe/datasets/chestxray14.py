"""NIH ChestX-ray14: fourteen findings of chest X-rays, mined from reports."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from medprobe.datasets._layout import manifest_of, read_csv
from medprobe.errors import DataError
from medprobe.manifest import Manifest

_FINDINGS = (
    "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Emphysema", "Fibrosis", "Hernia", "Infiltration",
    "Mass", "Nodule", "Pleural_Thickening", "Pneumonia", "Pneumothorax",
)  # fmt: skip


def read(root: Path) -> Manifest:
    """Return the manifest, with the official lists as ``split``."""
    path = sorted(root.glob("Data_Entry_2017*.csv"))[-1]
    table = read_csv(path, ("Image Index", "Finding Labels", "Patient ID", "Patient Age", "View Position"))
    where = {file.name: file.relative_to(root).as_posix() for file in sorted(root.glob("images*/**/*.png"))}
    sex = next((name for name in ("Patient Gender", "Patient Sex") if name in table.columns), None)
    said = table["Finding Labels"].fillna("").str.split("|")
    unknown = {name for names in said for name in names} - {*_FINDINGS, "No Finding", ""}
    if unknown:
        raise DataError(f"{path}: '{sorted(unknown)[0]}' in 'Finding Labels' is none of the 14 findings")
    samples = pd.DataFrame(
        {
            "id": [where.get(name, f"images/{name}") for name in table["Image Index"]],
            "patient": table["Patient ID"],
            "sex": "" if sex is None else table[sex].fillna(""),
            "age": pd.to_numeric(table["Patient Age"].str.extract(r"(\d+)")[0]),
            "view": table["View Position"].fillna(""),
            **{f"label_{name}": [int(name in names) for names in said] for name in _FINDINGS},
        }
    )
    lists = {"train": root / "train_val_list.txt", "test": root / "test_list.txt"}
    sides = {
        name: side
        for side, file in lists.items()
        if file.exists()
        for name in file.read_text("utf-8-sig").split()
        if name
    }
    return manifest_of(
        "NIH ChestX-ray14",
        root,
        samples,
        group="patient",
        split=(lambda kept: kept["id"].map(lambda name: sides.get(Path(name).name, ""))) if sides else None,
        notes=[] if sides else ["train_val_list.txt and test_list.txt are not there: no official split"],
    )
