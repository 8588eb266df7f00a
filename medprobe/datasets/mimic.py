"""MIMIC-CXR-JPG: fourteen findings of chest X-rays, some of them uncertain."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from medprobe.datasets._cells import Table
from medprobe.datasets._layout import FINDINGS, findings, manifest_of
from medprobe.manifest import Manifest

_KEYS = ["subject_id", "study_id"]


def read(root: Path) -> Manifest:
    """Return the manifest of the images whose study has labels, with the official ``split``."""
    of_studies = Table.read(_path(root, "chexpert"), (*_KEYS, *FINDINGS))
    studies = pd.DataFrame({key: of_studies.names(key) for key in _KEYS})
    of_studies.refuse("study_id", studies.duplicated(), "repeats an earlier row")
    studies = studies.assign(**findings(of_studies, FINDINGS))
    split = Table.read(_path(root, "split"), ("dicom_id", *_KEYS, "split"))
    images = pd.DataFrame(
        {
            "dicom_id": split.names("dicom_id", unique=True),
            **{key: split.names(key) for key in _KEYS},
            "side": split.coded("split", {"train": "train", "validate": "val", "test": "test"}),
        }
    )
    about = Table.read(_path(root, "metadata"), ("dicom_id", "ViewPosition"))
    views = pd.Series(about.words("ViewPosition").to_numpy(), about.names("dicom_id", unique=True))
    table = images.merge(studies, on=_KEYS, how="inner")
    of_patient = "files/p" + table["subject_id"].str[:2] + "/p" + table["subject_id"]
    samples = pd.DataFrame(
        {
            "id": of_patient + "/s" + table["study_id"] + "/" + table["dicom_id"] + ".jpg",
            "patient": table["subject_id"],
            "study": table["study_id"],
            "view": table["dicom_id"].map(views).fillna(""),
            **{name: table[name] for name in studies.columns if name not in _KEYS},
        }
    )
    lacking = len(images) - len(table)
    notes = [f"{lacking} images are of studies without labels and were left out"] if lacking else []
    return manifest_of("MIMIC-CXR-JPG", root, samples, group="patient", official=table["side"], notes=notes)


def _path(root: Path, name: str) -> Path:
    path = root / f"mimic-cxr-2.0.0-{name}.csv"
    return path if path.exists() else path.with_name(f"{path.name}.gz")
