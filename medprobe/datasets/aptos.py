"""APTOS 2019: grades of diabetic retinopathy."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from medprobe.datasets._cells import Table
from medprobe.datasets._layout import images_below, manifest_of
from medprobe.datasets._study import drawn_split
from medprobe.manifest import Manifest


def read(root: Path) -> Manifest:
    """Return the manifest, with the study's 70/15/15 draw as ``split_study``."""
    table = Table.read(root / "train.csv", ("id_code", "diagnosis"))
    where = images_below(root, ("train_images",))
    samples = pd.DataFrame(
        {
            "id": [where.get(name, f"train_images/{name}.png") for name in table.names("id_code", unique=True)],
            "label": table.numbers("diagnosis", among=range(5), filled=True).astype("int64"),
            "split_study": drawn_split(len(table), 0.3),
        }
    )
    notes = ["it names no patients: equal pictures are kept together, two eyes of one person cannot be"]
    return manifest_of("APTOS 2019", root, samples, group=None, notes=notes)
