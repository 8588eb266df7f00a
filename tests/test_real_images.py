"""The main job on real images, with what is known to be reachable on them. Licences: the README beside the data."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

import medprobe
from medprobe.results import Row

LITE0, PIXELS = "imagenet/efficientnet-lite0", "baseline/pixels"


def embed_and_probe(data: Path, out: Path, models: list[str], target: str, group: str | None, **options) -> dict:
    reports = medprobe.embed(data, models, out, group_col=group)
    rows = medprobe.probe([r.path for r in reports], target, **options)
    return {(row.encoder, row.probe): row for row in rows if row.primary}


def has_interval(row: Row) -> bool:
    return row.ci_low < row.value < row.ci_high


def test_breast_ultrasound(shared_data, tmp_path):
    """The official split, in which one picture is both trained on (as malignant) and tested on (as benign)."""
    data = shared_data / "breastmnist.npz"
    found = embed_and_probe(data, tmp_path, [LITE0, PIXELS], "label", None, duplicates="drop")
    for probe, least in (("logreg", 0.87), ("knn", 0.80), ("mlp", 0.86)):
        row = found[LITE0, probe]
        assert (row.metric, row.split, row.n_images) == ("auroc", "split", 156)
        assert row.value >= least
        assert has_interval(row)
        assert row.value > found[PIXELS, probe].value
        assert any(note.startswith("1 images were left out of training") for note in row.notes)


def test_blood_cells(shared_data, tmp_path):
    found = embed_and_probe(
        shared_data / "bccd" / "manifest.csv", tmp_path, [LITE0], "cell", "smear", probes=["logreg"]
    )
    row = found[LITE0, "logreg"]
    assert (row.metric, row.group, row.n_failed) == ("balanced_accuracy", "smear", 0)
    assert row.value >= 0.97
    assert row.n_groups < row.n_images


def test_paediatric_chest_x_rays(shared_data, tmp_path):
    """A third of the patients: all of them take five minutes."""
    folder = shared_data / "chestxray_kermany224"
    table = pd.read_csv(folder / "manifest.csv")
    table = table[pd.factorize(table["patient"])[0] % 3 == 0]
    table.assign(path=[folder / path for path in table["path"]]).to_csv(tmp_path / "manifest.csv", index=False)
    found = embed_and_probe(tmp_path / "manifest.csv", tmp_path, [LITE0], "label", "patient", probes=["logreg"])
    row = found[LITE0, "logreg"]
    assert (row.metric, row.n_images + row.n_train) == ("auroc", len(table))
    assert row.value >= 0.9
    assert has_interval(row)
    assert 100 < row.n_groups < row.n_images


def test_full_size_chest_x_rays(shared_data, tmp_path):
    data = shared_data / "chestxray_hannover" / "manifest.csv"
    found = embed_and_probe(data, tmp_path, [LITE0, PIXELS], "icu", "patient", probes=["logreg"], n_folds=5)
    for row in found.values():
        assert (row.n_images, row.n_groups, row.split) == (243, 71, "5 folds")
        assert has_interval(row)
