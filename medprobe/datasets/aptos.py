"""APTOS 2019: grades of diabetic retinopathy."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from medprobe.datasets._layout import manifest_of, random_split, read_csv
from medprobe.manifest import Manifest


def read(root: Path) -> Manifest:
    """Return the manifest, with the study's 70/15/15 draw as ``split_study``."""
    table = read_csv(root / "train.csv", ("id_code", "diagnosis"))
    ids = "train_images/" + table["id_code"] + ".png"
    return manifest_of(
        "APTOS 2019",
        root,
        pd.DataFrame({"id": ids, "label": pd.to_numeric(table["diagnosis"]).astype("int64")}),
        group=None,
        study=lambda kept: random_split(len(kept), 0.70, 0.15),
        notes=["it names no patients: equal pictures are kept together, two eyes of one person cannot be"],
    )
