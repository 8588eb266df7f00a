"""CBIS-DDSM: mammograms with masses and calcifications, malignant or not."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from medprobe.datasets._layout import manifest_of, read_csv
from medprobe.errors import DataError
from medprobe.manifest import Manifest

_PATHOLOGIES = {"MALIGNANT": 1, "BENIGN": 0, "BENIGN_WITHOUT_CALLBACK": 0}
_COLUMNS = ("patient_id", "left or right breast", "image view", "pathology", "image file path")


def read(root: Path) -> Manifest:
    """Return the manifest of the whole mammograms, with the official training and test tables as a split."""
    parts = []
    for path in sorted(root.glob("*_case_description_*_set.csv")):
        kind, _, _, side, _ = path.stem.split("_")
        parts.append(read_csv(path, _COLUMNS).assign(kind=kind, side=side))
    lesions = pd.concat(parts, ignore_index=True)
    wrong = ~lesions["pathology"].isin([*_PATHOLOGIES])
    if wrong.any():
        raise DataError(
            f"{root}: pathology '{lesions['pathology'][wrong].iloc[0]}' is none of {', '.join(_PATHOLOGIES)}"
        )
    lesions["malignant"] = lesions["pathology"].map(_PATHOLOGIES)
    paths = lesions["image file path"].str.strip().str.replace("\\", "/")
    lesions["case"] = paths.str.split("/").str[0]
    # One mammogram with a mass and a calcification is handed out twice, under two names: both are its patient's.
    cases = lesions.groupby("case", sort=True)
    samples = pd.DataFrame(
        {
            "id": cases.size().index.to_numpy(),
            "label": cases["malignant"].max().to_numpy(),
            "patient": cases["patient_id"].first().to_numpy(),
            "side": cases["left or right breast"].first().str.lower().to_numpy(),
            "view": cases["image view"].first().to_numpy(),
            "abnormality": cases["kind"].first().to_numpy(),
            "lesions": cases.size().to_numpy(),
        }
    )
    folder = root / "CBIS-DDSM" if (root / "CBIS-DDSM").is_dir() else root
    named = dict(zip(lesions["case"], paths, strict=True))
    sides = cases["side"].first().map({"train": "train", "test": "test"})
    return manifest_of(
        "CBIS-DDSM",
        folder,
        samples,
        files=[_file(folder, case, named[case]) for case in samples["id"]],
        group="patient",
        split=lambda kept: kept["id"].map(sides),
    )


def _file(folder: Path, case: str, named: str) -> str:
    """Return the mammogram of a case, below the folder: as its table names it, or the one file that is there."""
    if (folder / named.strip()).is_file():
        return named.strip()
    found = sorted((folder / case).glob("**/*.dcm")) if (folder / case).is_dir() else []
    return found[0].relative_to(folder).as_posix() if len(found) == 1 else named.strip()
