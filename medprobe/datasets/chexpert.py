"""CheXpert: fourteen findings of chest X-rays, some of them uncertain."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from medprobe.datasets._layout import FINDINGS, findings, manifest_of, read_csv, sorted_split
from medprobe.manifest import Manifest


def read(root: Path) -> Manifest:
    """Return the manifest: ``split`` tests on the official validation images, ``split_study`` cuts the sorted train.csv."""
    columns = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *FINDINGS)
    tables = [("train", read_csv(root / "train.csv", columns))]
    if (root / "valid.csv").exists():
        tables.append(("test", read_csv(root / "valid.csv", columns)))
    table = pd.concat([table.assign(side=side) for side, table in tables], ignore_index=True)
    ids = table["Path"].str.split("/", n=1).str[1]  # the first folder is the data set's own
    samples = pd.DataFrame(
        {
            "id": ids,
            "patient": ids.str.extract(r"(patient\d+)")[0].fillna(""),
            "study": ids.str.extract(r"(patient\d+/study\d+)")[0].fillna(""),
            "sex": table["Sex"].fillna(""),
            "age": pd.to_numeric(table["Age"]),
            "view": table["Frontal/Lateral"].str.lower().fillna(""),
            "projection": table["AP/PA"].fillna(""),
            **findings(table, FINDINGS),
        }
    )
    side = pd.Series(table["side"].to_numpy(), index=ids)

    def study(kept: pd.DataFrame) -> pd.Series:
        training = kept["id"].map(side) == "train"
        sides = pd.Series("", index=kept.index, dtype=object)
        sides[training] = sorted_split(kept["id"][training].tolist(), 0.80, 0.10)
        return sides

    return manifest_of("CheXpert", root, samples, group="patient", split=lambda kept: kept["id"].map(side), study=study)
