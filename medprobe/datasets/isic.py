"""ISIC 2019: diagnoses of skin lesions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from medprobe.datasets._cells import Table
from medprobe.datasets._layout import images_below, manifest_of
from medprobe.datasets._study import drawn_split
from medprobe.manifest import Manifest

_CLASSES = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC", "UNK")
_INPUT = "ISIC_2019_Training_Input"
_REDUCED = "_downsampled"


def read(root: Path) -> Manifest:
    """Return the manifest, grouped by lesion, with the study's 80/10/10 draw as ``split_study``."""
    truth = Table.read(root / "ISIC_2019_Training_GroundTruth.csv", ("image", *_CLASSES[:-1]))
    images = truth.names("image", unique=True)
    classes = [name for name in _CLASSES if name in truth.frame.columns]
    marks = np.stack([truth.numbers(name, among=(0.0, 1.0), filled=True) for name in classes], axis=1)
    several = f"has {{}} diagnosis among {', '.join(classes)}"
    truth.refuse("image", marks.sum(axis=1) < 1, several.format("no"))
    truth.refuse("image", marks.sum(axis=1) > 1, several.format("more than one"))
    about = Table.read(
        root / "ISIC_2019_Training_Metadata.csv", ("image", "age_approx", "anatom_site_general", "lesion_id", "sex")
    )
    known = pd.DataFrame(
        {
            "lesion": about.words("lesion_id"),
            "sex": about.words("sex"),
            "age": about.numbers("age_approx"),
            "site": about.words("anatom_site_general"),
        }
    ).set_index(about.names("image", unique=True).to_numpy())
    known = known.reindex(images).reset_index(drop=True)
    words = ["lesion", "sex", "site"]
    where = images_below(root, (_INPUT, "train", ""))
    # Some copies leave the mark of a reduced picture out of its name, some put it there.
    plain = {name.removesuffix(_REDUCED): path for name, path in where.items()}
    samples = pd.DataFrame(
        {
            "id": [
                where.get(name) or plain.get(name.removesuffix(_REDUCED)) or f"{_INPUT}/{name}.jpg" for name in images
            ],
            "label": np.array(classes, dtype=object)[marks.argmax(axis=1)],
            **known.assign(**{name: known[name].fillna("") for name in words}),
            "split_study": drawn_split(len(truth), 0.2),
        }
    )
    return manifest_of("ISIC 2019", root, samples, group="lesion")
