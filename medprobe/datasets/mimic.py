"""MIMIC-CXR-JPG: fourteen findings of chest X-rays, some of them uncertain."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from medprobe.datasets._layout import FINDINGS, findings, manifest_of, read_csv
from medprobe.manifest import Manifest

_KEYS = ("subject_id", "study_id")


def read(root: Path) -> Manifest:
    """Return the manifest of the images whose study has labels, with the official ``split``."""
    labels = read_csv(_table(root, "chexpert"), (*_KEYS, *FINDINGS))
    split = read_csv(_table(root, "split"), ("dicom_id", *_KEYS, "split"))
    about = read_csv(_table(root, "metadata"), ("dicom_id", "ViewPosition"))[["dicom_id", "ViewPosition"]]
    table = split.merge(labels, on=list(_KEYS), how="inner").merge(about, on="dicom_id", how="left")
    of_patient = "files/p" + table["subject_id"].str[:2] + "/p" + table["subject_id"]
    ids = of_patient + "/s" + table["study_id"] + "/" + table["dicom_id"] + ".jpg"
    samples = pd.DataFrame(
        {
            "id": ids,
            "patient": table["subject_id"],
            "study": table["study_id"],
            "view": table["ViewPosition"].fillna(""),
            **findings(table, FINDINGS),
        }
    )
    sides = pd.Series(table["split"].replace("validate", "val").to_numpy(), index=ids)
    lacking = len(split) - len(table)
    notes = [f"{lacking} images are of studies without labels and were left out"] if lacking else []
    return manifest_of(
        "MIMIC-CXR-JPG", root, samples, group="patient", split=lambda kept: kept["id"].map(sides), notes=notes
    )


def _table(root: Path, name: str) -> Path:
    path = root / f"mimic-cxr-2.0.0-{name}.csv"
    return path if path.exists() else path.with_name(f"{path.name}.gz")
