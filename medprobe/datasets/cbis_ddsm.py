"""CBIS-DDSM: mammograms with masses and calcifications, malignant or not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from medprobe.datasets._cells import Table
from medprobe.datasets._layout import manifest_of
from medprobe.manifest import Manifest

_PATHOLOGIES = {"MALIGNANT": 1, "BENIGN": 0, "BENIGN_WITHOUT_CALLBACK": 0}
_COLUMNS = ("patient_id", "left or right breast", "image view", "pathology", "image file path")
_TABLES = {
    f"{kind}_case_description_{side}_set.csv": (kind, side) for kind in ("mass", "calc") for side in ("train", "test")
}
_OF_CASES = ("*_P_*", "CBIS-DDSM/*_P_*", "manifest-*/CBIS-DDSM/*_P_*")


def read(root: Path) -> Manifest:
    """Return the manifest of the whole mammograms, one row a film, with the official tables as a split."""
    tables = root / "csv" if (root / "csv").is_dir() else root
    there = [name for name in _TABLES if (tables / name).exists()]
    lesions = pd.concat([_lesions(tables / name, *_TABLES[name]) for name in there], ignore_index=True)
    films = lesions.groupby("film", sort=True)
    both = films["kind"].nunique() > 1
    torn = films["side"].nunique() > 1
    samples = pd.DataFrame(
        {
            "id": films.size().index.to_numpy(),
            "label": films["malignant"].max().to_numpy(),
            "patient": films["patient"].first().to_numpy(),
            "side": films["breast"].first().str.lower().to_numpy(),
            "view": films["view"].first().to_numpy(),
            "abnormality": films["kind"].agg(lambda kinds: "+".join(sorted(set(kinds)))).to_numpy(),
            "lesions": films.size().to_numpy(),
        }
    )
    file_of = _files(root)
    paths = films["path"].agg(lambda named: next((file for path in named if (file := file_of(path))), named.iloc[0]))
    notes = [f"{name} is not there" for name in _TABLES if name not in there]
    if both.any():
        notes.append(f"{both.sum()} films show a mass and a calcification: one row each, malignant if one of them is")
    if torn.any():
        notes.append(f"{torn.sum()} films are in a table to train and in one to test: they are for training here")
    return manifest_of(
        "CBIS-DDSM",
        root,
        samples,
        files=paths.tolist(),
        group="patient",
        official=films["side"].agg(lambda sides: "train" if "train" in set(sides) else "test"),
        notes=notes,
    )


def _lesions(path: Path, kind: str, side: str) -> pd.DataFrame:
    table = Table.read(path, _COLUMNS)
    lesions = pd.DataFrame(
        {
            "patient": table.names("patient_id"),
            "breast": table.names("left or right breast").str.upper(),
            "view": table.names("image view").str.upper(),
            "malignant": table.coded("pathology", _PATHOLOGIES),
            "path": table.names("image file path").str.replace("\\", "/"),
            "kind": kind,
            "side": side,
        }
    )
    # A film with a mass and a calcification is handed out twice, as two cases.
    return lesions.assign(film=lesions["patient"] + "_" + lesions["breast"] + "_" + lesions["view"])


def _files(root: Path) -> Callable[[str], str | None]:
    """Return what gives the film of a case: as its table names it, the one file of its folder, or a JPEG by its list."""
    folders = {folder.name: folder for pattern in _OF_CASES for folder in sorted(root.glob(pattern)) if folder.is_dir()}
    listed = _jpegs(root)

    def file_of(named: str) -> str | None:
        case = named.split("/")[0]
        if case in listed:
            return listed[case]
        if case not in folders:
            return None
        if (file := folders[case].parent / named).is_file():
            return str(file)
        found = sorted(folders[case].glob("**/*.dcm"))
        return str(found[0]) if len(found) == 1 else None

    return file_of


def _jpegs(root: Path) -> dict[str, str]:
    """Return the JPEG files of whole films below ``jpeg/``, by case, where there is a list of them."""
    path = root / "csv" / "dicom_info.csv"
    if not path.exists():
        return {}
    table = Table.read(path, ("PatientID", "SeriesDescription", "image_path"))
    whole = (table.words("SeriesDescription") == "full mammogram images").to_numpy()
    files = table.words("image_path").str.replace("\\", "/").str.extract(r"(?:^|/)(jpeg/.*)$")[0]
    table.refuse("image_path", whole & files.isna(), "is no path below jpeg/")
    return dict(zip(table.words("PatientID")[whole], files[whole], strict=True))
