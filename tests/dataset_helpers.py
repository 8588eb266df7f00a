"""Small copies of known data sets, in the layout in which they are handed out."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from medprobe.datasets._layout import FINDINGS

RNG = np.random.default_rng(0)


CBIS = ["patient_id", "left or right breast", "image view", "pathology", "image file path"]


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 255, (8, 8), dtype=np.uint8)).save(path)


def change(path: Path, row: int, column: str, value: str) -> None:
    """Set a cell of a table, by its data row from 1."""
    table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    table.loc[row - 1, column] = value
    table.to_csv(path, index=False)


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
    root.mkdir(parents=True, exist_ok=True)
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
                # In the other view: a film that is in two tables is one row.
                view = "MLO" if (kind, side, p) == ("calc", "test", 0) else "CC"
                case = f"{kind.title()}-{'Training' if side == 'train' else 'Test'}_P_{number:05d}_LEFT_{view}"
                named = f"{case}/1.3.6.1.4/1.3.6.2/000000.dcm"
                stored = named if as_named else f"{case}/07-20-2016-DDSM-NA/1.000000-full mammogram images-1/1-1.dcm"
                path = root / "CBIS-DDSM" / stored
                path.parent.mkdir(parents=True)
                path.write_bytes(encoded(dataset(RNG.integers(0, 4096, (9, 7)).astype(np.uint16), bits=12)))
                pathologies = [["MALIGNANT", "BENIGN"], ["BENIGN_WITHOUT_CALLBACK"], ["BENIGN"]][p % 3]
                rows += [(f"P_{number:05d}", "LEFT", view, pathology, f"{named}\n") for pathology in pathologies]
            pd.DataFrame(rows, columns=CBIS).to_csv(root / f"{kind}_case_description_{side}_set.csv", index=False)


def ddsm(root: Path, *, own_names: bool = True) -> None:
    for s, side in enumerate(("train", "val", "test")):
        names = []
        for i in range(6):
            case = 100 * s + i // 2
            own = f"{'ABCD'[case % 4]}_{case:04d}_1.{('LEFT', 'RIGHT')[i % 2]}_CC.LJPEG.1"
            names.append(f"{('normal', 'benign', 'cancer')[i // 2]}_0{s}-{own if own_names else i}.png")
            picture(root / "ddsm_raw" / names[-1])
        (root / "ddsm_raw_image_lists").mkdir(exist_ok=True)
        (root / "ddsm_raw_image_lists" / f"{side}.txt").write_text("\n".join(names) + "\n\n")
