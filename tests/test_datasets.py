"""Known data sets in the layout in which they are handed out: counts, labels, patients, splits, and what leaks."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

import medprobe
from medprobe.cli import app
from medprobe.datasets import DATASETS
from medprobe.datasets._layout import FINDINGS, random_split, sorted_split
from medprobe.errors import DataError, UsageError

RNG = np.random.default_rng(0)


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 255, (8, 8), dtype=np.uint8)).save(path)


def aptos(root: Path, n: int = 40) -> None:
    rows = [(f"{i:012x}", i % 5) for i in range(n)]
    for name, _ in rows:
        picture(root / "train_images" / f"{name}.png")
    table = pd.DataFrame(rows, columns=["id_code", "diagnosis"])
    (root / "train.csv").write_bytes(b"\xef\xbb\xbf" + table.to_csv(index=False, lineterminator="\r\n").encode())
    (root / "test.csv").write_text("id_code\nabc\n")


def isic(root: Path, n: int = 48, *, metadata: bool = True) -> None:
    names = ["MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC", "UNK"]
    truth = pd.DataFrame(0.0, index=range(n), columns=names)
    for i in range(n):
        truth.loc[i, names[(i // 3) % 8]] = 1.0
    images = [f"ISIC_{i:07d}" for i in range(n)]
    truth.insert(0, "image", images)
    root.mkdir(parents=True)
    truth.to_csv(root / "ISIC_2019_Training_GroundTruth.csv", index=False)
    about = {
        "image": images[::-1],
        "age_approx": ["55.0" if i % 4 else "" for i in range(n)][::-1],
        "anatom_site_general": ["torso"] * n,
        "lesion_id": [f"HAM_{i // 3}" if i % 12 else "" for i in range(n)][::-1],
        "sex": ["female" if i % 2 else "male" for i in range(n)][::-1],
    }
    if metadata:
        pd.DataFrame(about).to_csv(root / "ISIC_2019_Training_Metadata.csv", index=False)
    for name in images:
        picture(root / "ISIC_2019_Training_Input" / f"{name}.jpg")


def chexpert(root: Path, patients: int = 20) -> None:
    for table, first, count in (("train", 1, patients), ("valid", 64541, 3)):
        rows = []
        for p in range(first, first + count):
            for view in ("view1_frontal", "view2_lateral")[: 1 + p % 2]:
                path = f"{table}/patient{p:05d}/study1/{view}.jpg"
                picture(root / path)
                marks = {name: ["", "1.0", "0.0", "-1.0"][(p + i) % 4] for i, name in enumerate(FINDINGS)}
                side = "Frontal" if "frontal" in view else "Lateral"
                about = {"Path": f"CheXpert-v1.0-small/{path}", "Sex": "Female", "Age": str(40 + p % 9)}
                rows.append({**about, "Frontal/Lateral": side, "AP/PA": "AP" if side == "Frontal" else "", **marks})
        pd.DataFrame(rows).to_csv(root / f"{table}.csv", index=False)


def chestxray14(root: Path) -> None:
    rows, train, test = [], [], []
    for p in range(10):
        for i in range(2):
            name = f"{p + 1:08d}_{i:03d}.png"
            picture(root / f"images_{1 + p // 5:03d}" / "images" / name)
            said = ["No Finding", "Effusion|Mass", "Hernia"][(p + i) % 3]
            rows.append((name, said, i, p + 1, f"{40 + p:03d}Y", "F", "PA"))
            (train if p < 7 else test).append(name)
    columns = [
        "Image Index",
        "Finding Labels",
        "Follow-up #",
        "Patient ID",
        "Patient Age",
        "Patient Gender",
        "View Position",
    ]
    pd.DataFrame(rows, columns=columns).to_csv(root / "Data_Entry_2017_v2020.csv", index=False)
    (root / "train_val_list.txt").write_text("\n".join(train))
    (root / "test_list.txt").write_text("\n".join(test))


def mimic(root: Path) -> None:
    labels, split, about = [], [], []
    for p in range(9):
        subject, study = str(10000000 + p), str(50000000 + p)
        for i in range(2):
            dicom = f"{p:08x}-{i:08x}"
            picture(root / "files" / f"p{subject[:2]}" / f"p{subject}" / f"s{study}" / f"{dicom}.jpg")
            split.append((dicom, study, subject, ["train", "validate", "test"][p % 3]))
            about.append((dicom, subject, study, "PA"))
        if p != 8:
            labels.append((subject, study, *[["", "1.0", "0.0", "-1.0"][(p + i) % 4] for i in range(14)]))
    tables = {
        "chexpert": pd.DataFrame(labels, columns=["subject_id", "study_id", *FINDINGS]),
        "split": pd.DataFrame(split, columns=["dicom_id", "study_id", "subject_id", "split"]),
        "metadata": pd.DataFrame(about, columns=["dicom_id", "subject_id", "study_id", "ViewPosition"]),
    }
    for name, table in tables.items():
        (root / f"mimic-cxr-2.0.0-{name}.csv.gz").write_bytes(gzip.compress(table.to_csv(index=False).encode()))


def cbis(root: Path, *, as_named: bool) -> None:
    pytest.importorskip("pydicom")
    from dicom_helpers import dataset, encoded

    root.mkdir(parents=True)
    for kind in ("mass", "calc"):
        for side in ("train", "test"):
            rows = []
            for p in range(6):
                # Patient 0 of the masses to learn from is tested on calcifications, as some of the real ones are.
                number = (
                    p if (kind, side) in {("mass", "train"), ("calc", "test")} else p + (20 if kind == "mass" else 40)
                )
                number += 60 if (kind, side) == ("calc", "test") and p else 0
                case = f"{kind.title()}-{'Training' if side == 'train' else 'Test'}_P_{number:05d}_LEFT_CC"
                named = f"{case}/1.3.6.1.4/1.3.6.2/000000.dcm"
                stored = named if as_named else f"{case}/07-20-2016-DDSM-NA/1.000000-full mammogram images-1/1-1.dcm"
                path = root / "CBIS-DDSM" / stored
                path.parent.mkdir(parents=True)
                path.write_bytes(encoded(dataset(RNG.integers(0, 4096, (9, 7)).astype(np.uint16), bits=12)))
                pathologies = [["MALIGNANT", "BENIGN"], ["BENIGN_WITHOUT_CALLBACK"], ["BENIGN"]][p % 3]
                rows += [(f"P_{number:05d}", "LEFT", "CC", pathology, f"{named}\n") for pathology in pathologies]
            columns = ["patient_id", "left or right breast", "image view", "pathology", "image file path"]
            pd.DataFrame(rows, columns=columns).to_csv(root / f"{kind}_case_description_{side}_set.csv", index=False)


def test_aptos(tmp_path):
    aptos(tmp_path / "a")
    manifest = medprobe.read_manifest(tmp_path / "a")
    assert len(manifest) == 40
    assert manifest.roles.labels == ("label",)
    assert (manifest.roles.group, manifest.roles.split) == (None, None)
    assert manifest.samples["label"].tolist() == [i % 5 for i in range(40)]
    assert manifest.samples["split_study"].value_counts().to_dict() == {"train": 28, "val": 6, "test": 6}
    assert any("names no patients" in note for note in manifest.notes)
    (tmp_path / "a" / "train_images" / f"{3:012x}.png").unlink()
    fewer = medprobe.read_manifest(tmp_path / "a")
    assert len(fewer) == 39
    assert any("1 images of its tables are not on the disk" in note for note in fewer.notes)
    plain = medprobe.read_manifest(tmp_path / "a", dataset="none")
    assert set(plain.samples["label"]) == {"train_images"}


def test_isic(tmp_path):
    isic(tmp_path / "i")
    manifest = medprobe.read_manifest(tmp_path / "i")
    samples = manifest.samples
    assert len(samples) == 48
    assert manifest.roles.group == "lesion"
    assert samples["label"].tolist()[:7] == ["MEL"] * 3 + ["NV"] * 3 + ["BCC"]
    assert samples["lesion"].tolist()[:4] == ["", "HAM_0", "HAM_0", "HAM_1"]  # the tables are in another order
    assert samples["sex"].tolist()[:2] == ["male", "female"]
    assert np.isnan(samples["age"][0])
    (leak,) = [note for note in manifest.notes if note.startswith("LEAK")]
    assert "split_study" in leak
    assert "'lesion'" in leak
    assert re.search(r"first: HAM_\d+", leak)


def test_chexpert(tmp_path):
    chexpert(tmp_path / "CheXpert-v1.0-small")
    manifest = medprobe.read_manifest(tmp_path / "CheXpert-v1.0-small")
    samples = manifest.samples
    assert len(manifest) == 30 + 5
    assert (manifest.roles.group, manifest.roles.split) == ("patient", "split")
    assert len(manifest.roles.labels) == 14
    assert samples["split"].value_counts().to_dict() == {"train": 30, "test": 5}
    assert set(samples["label_Pleural_Effusion"]) == {-1.0, 0.0, 1.0}
    first = samples[samples["id"].str.contains("patient00001/")].iloc[0]
    assert first["label_No_Finding"] == 1
    assert (first["patient"], first["view"], first["projection"]) == ("patient00001", "frontal", "AP")
    study = samples.loc[samples["split"] == "train", "split_study"]
    assert study.value_counts().to_dict() == {"train": 24, "val": 3, "test": 3}
    order = samples.loc[samples["split"] == "train"].sort_values("id")["split_study"]
    assert order.tolist() == ["train"] * 24 + ["val"] * 3 + ["test"] * 3
    assert (samples.loc[samples["split"] == "test", "split_study"] == "").all()


def test_chestxray14(tmp_path):
    chestxray14(tmp_path / "n")
    manifest = medprobe.read_manifest(tmp_path / "n")
    samples = manifest.samples
    assert (len(samples), samples["patient"].nunique(), len(manifest.roles.labels)) == (20, 10, 14)
    assert samples["split"].value_counts().to_dict() == {"train": 14, "test": 6}
    second = samples[samples["id"].str.endswith("00000001_001.png")].iloc[0]
    assert (second["label_Effusion"], second["label_Mass"], second["label_Hernia"], second["age"]) == (1, 1, 0, 40)
    table = tmp_path / "n" / "Data_Entry_2017_v2020.csv"
    table.write_text(table.read_text().replace("Hernia", "Hernie"))
    with pytest.raises(DataError, match="'Hernie' in 'Finding Labels'"):
        medprobe.read_manifest(tmp_path / "n")


def test_mimic(tmp_path):
    (tmp_path / "m").mkdir()
    mimic(tmp_path / "m")
    manifest = medprobe.read_manifest(tmp_path / "m")
    assert (len(manifest), manifest.samples["patient"].nunique()) == (16, 8)
    assert manifest.samples["split"].value_counts().to_dict() == {"train": 6, "val": 6, "test": 4}
    assert set(manifest.samples["label_Edema"]) == {-1.0, 0.0, 1.0}
    assert any("2 images are of studies without labels" in note for note in manifest.notes)


@pytest.mark.parametrize("as_named", [True, False])
def test_cbis_ddsm(tmp_path, as_named):
    cbis(tmp_path / "c", as_named=as_named)
    manifest = medprobe.read_manifest(tmp_path / "c")
    samples = manifest.samples
    assert len(samples) == 24
    assert samples["label"].sum() == 8  # one image of two lesions is malignant if one of them is
    assert samples["lesions"].sum() == 32
    assert (manifest.roles.group, manifest.roles.split) == ("patient", None)
    assert "split_official" in samples
    (leak,) = [note for note in manifest.notes if note.startswith("LEAK")]
    assert "1 of 23 of 'patient' on two sides (first: P_00000)" in leak
    found = medprobe.check(tmp_path / "c", workers=0)
    assert not found.unreadable


def test_a_data_set_that_is_not_there_says_where_it_is(tmp_path):
    with pytest.raises(DataError, match=r"not ISIC 2019, which is ISIC_2019.*isic-archive\.com"):
        medprobe.read_manifest(tmp_path, dataset="isic2019")
    with pytest.raises(UsageError, match="--dataset nothing: one of aptos2019"):
        medprobe.read_manifest(tmp_path, dataset="nothing")
    (tmp_path / "train_images").mkdir()
    (tmp_path / "train.csv").write_text("id_code,diagnosis\nabc,1\n")
    with pytest.raises(DataError, match=r"none of its 1 images is there \(first: abc\.png\)"):
        medprobe.read_manifest(tmp_path)
    (tmp_path / "train.csv").write_text("id,diagnosis\nabc,1\n")
    with pytest.raises(DataError, match=r"train\.csv: no column 'id_code'.*--dataset none"):
        medprobe.read_manifest(tmp_path)
    isic(tmp_path / "i", 6, metadata=False)
    with pytest.raises(DataError, match=r"ISIC_2019_Training_Metadata\.csv: could not be read"):
        medprobe.read_manifest(tmp_path / "i")


def test_splits_are_those_of_the_study():
    sides = random_split(1000, 0.7, 0.15)
    assert pd.Series(sides).value_counts().to_dict() == {"train": 700, "val": 150, "test": 150}
    assert (sides == random_split(1000, 0.7, 0.15)).all()
    assert (sides[:700] != "train").any()
    assert sorted_split(["b", "a", "d", "c", "e"], 0.6, 0.2).tolist() == ["train", "train", "val", "train", "test"]


def test_from_the_layout_to_a_result_with_the_studys_split_and_a_grouped_one(tmp_path):
    isic(tmp_path / "i", 96)
    (report,) = medprobe.embed(tmp_path / "i", "baseline/pixels", tmp_path / "s", workers=0, image_size=8)
    grouped = medprobe.probe(report.path, probes=["ridge"], metric="macro_recall", n_folds=2, n_resamples=20)
    # 32 lesions, and eight pictures without one
    assert (grouped[0].group, grouped[0].n_groups) == ("lesion", 40)
    with pytest.raises(DataError, match="both sides"):
        medprobe.probe(report.path, probes=["ridge"], split_col="split_study")
    leaky = medprobe.probe(report.path, probes=["ridge"], split_col="split_study", group="none", n_resamples=20)
    assert leaky[0].n_images == 10


def test_several_labels_with_uncertain_ones(tmp_path):
    chexpert(tmp_path / "c", 60)
    (report,) = medprobe.embed(tmp_path / "c", "baseline/pixels", tmp_path / "s", workers=0, image_size=8)
    with pytest.raises(DataError, match="--uncertain"):
        medprobe.probe(report.path, "label", probes=["ridge"])
    for rule in ("zeros", "ones", "ignore"):
        rows = medprobe.probe(report.path, "label", probes=["ridge"], uncertain=rule, n_folds=3, n_resamples=20)
        assert rows[0].task == "multilabel"


def test_the_list_of_data_sets():
    said = CliRunner().invoke(app, ["data"])
    assert said.exit_code == 0
    assert all(d.title in said.stdout and d.where in said.stdout for d in DATASETS.values())
    (one,) = json.loads(CliRunner().invoke(app, ["data", "chexpert", "--json"]).stdout)
    assert one["title"] == "CheXpert"
    assert CliRunner().invoke(app, ["data", "nothing"]).exit_code == 2
