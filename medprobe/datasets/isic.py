"""ISIC 2019: diagnoses of skin lesions."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from medprobe.datasets._layout import manifest_of, random_split, read_csv
from medprobe.errors import DataError
from medprobe.manifest import Manifest

_CLASSES = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC", "UNK")
_INPUT = "ISIC_2019_Training_Input"


def read(root: Path) -> Manifest:
    """Return the manifest, grouped by lesion, with the study's 80/10/10 draw as ``split_study``."""
    truth = read_csv(root / "ISIC_2019_Training_GroundTruth.csv", ("image", *_CLASSES[:-1]))
    classes = [name for name in _CLASSES if name in truth.columns]
    marks = truth[classes].astype(float)
    wrong = marks.sum(axis=1) != 1
    if wrong.any():
        raise DataError(
            f"{root}: row {int(wrong.idxmax()) + 1} of ISIC_2019_Training_GroundTruth.csv has no one diagnosis"
        )
    about = read_csv(
        root / "ISIC_2019_Training_Metadata.csv", ("image", "age_approx", "anatom_site_general", "lesion_id", "sex")
    ).set_index("image")
    about = about.reindex(truth["image"]).reset_index(drop=True)
    folder = f"{_INPUT}/" if (root / _INPUT).is_dir() else ""
    samples = pd.DataFrame(
        {
            "id": folder + truth["image"] + ".jpg",
            "label": marks.idxmax(axis=1),
            "lesion": about["lesion_id"].fillna(""),
            "sex": about["sex"].fillna(""),
            "age": pd.to_numeric(about["age_approx"]),
            "site": about["anatom_site_general"].fillna(""),
        }
    )
    return manifest_of(
        "ISIC 2019", root, samples, group="lesion", study=lambda kept: random_split(len(kept), 0.80, 0.10)
    )
