"""DDSM: mammograms, normal or not, by lists of files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from medprobe.datasets._layout import manifest_of
from medprobe.errors import DataError
from medprobe.manifest import Manifest

_LISTS, _IMAGES = "ddsm_raw_image_lists", "ddsm_raw"
_PATHOLOGIES = ("normal", "benign", "cancer")
# DDSM's own names, which say the case and what the film shows: A_1234_1.LEFT_CC
_OWN_NAME = r"(?:^|[^A-Za-z])([A-D]_\d{4})_\d\.(LEFT|RIGHT)_(CC|MLO)"


def read(root: Path) -> Manifest:
    """Return the manifest: ``label`` tells normal films (0) from others (1), the lists are the split, and ``split_study``.

    Raises:
        DataError: A list is missing or damaged, a file's name says no pathology, or none of the images are there.

    """
    parts = [_listed(root / _LISTS / f"{side}.txt").assign(side=side) for side in ("train", "val", "test")]
    table = pd.concat(parts, ignore_index=True)
    found = table["name"].str.split("/").str[-1].str.extract(_OWN_NAME).fillna("")
    grouped = (found[0] != "").to_numpy()
    samples = pd.DataFrame(
        {
            "id": _IMAGES + "/" + table["name"],
            "label": (table["pathology"] != "normal").astype("int64"),
            "pathology": table["pathology"],
            "patient": found[0],
            "side": found[1].str.lower(),
            "view": found[2],
            "split_study": table["side"],
        }
    )
    notes = []
    if not grouped.any():
        samples = samples.drop(columns=["patient", "side", "view"])
        notes.append(
            "its files are not called as DDSM's are (A_1234_1.LEFT_CC): which of them are of one patient is unknown"
        )
    elif not grouped.all():
        notes.append(
            f"{(~grouped).sum()} files are not called as DDSM's are (A_1234_1.LEFT_CC), and count as a patient each"
        )
    return manifest_of(
        "DDSM",
        root,
        samples,
        group="patient" if grouped.any() else None,
        official=table["side"],
        labels=("label", "pathology"),
        notes=notes,
    )


def _listed(path: Path) -> pd.DataFrame:
    """Return the name and the pathology of each file of a list, one a line."""
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: could not be read as a list of files: {error}") from error
    names = np.array([line.strip() for line in lines], dtype=object)
    pathologies = np.array([name.split("/")[-1].split("_")[0].lower() for name in names], dtype=object)
    wrong = np.flatnonzero((names != "") & ~np.isin(pathologies, _PATHOLOGIES))
    if len(wrong):
        raise DataError(
            f"{path}: the file of line {wrong[0] + 1} is not called {' or '.join(f'{p}_...' for p in _PATHOLOGIES)}"
        )
    return pd.DataFrame({"name": names, "pathology": pathologies}, dtype=object)[names != ""]
