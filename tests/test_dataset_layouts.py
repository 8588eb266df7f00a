"""Known data sets as they lie about: copies in other folders, and tables with a wrong cell."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from dataset_helpers import CBIS, aptos, cbis, change, chestxray14, chexpert, ddsm, isic, mimic, picture
from PIL import Image

import medprobe
from medprobe.datasets._layout import FINDINGS
from medprobe.datasets.medmnist import NAMES, set_of
from medprobe.errors import DataError, UsageError
from medprobe.images.sources import FileImages
from medprobe.manifest import Manifest
from medprobe.probe.task import target_of

# ---- a wrong cell


def cbis_of(root: Path) -> None:
    cbis(root, as_named=True)


BUILDERS: dict[str, Callable[[Path], None]] = {
    "aptos": aptos, "isic": isic, "chexpert": chexpert, "chestxray14": chestxray14, "mimic": mimic, "cbis": cbis_of,
}  # fmt: skip
TRUTH, ABOUT = "ISIC_2019_Training_GroundTruth.csv", "ISIC_2019_Training_Metadata.csv"
NIH, MASS = "Data_Entry_2017_v2020.csv", "mass_case_description_train_set.csv"
MIMIC = "mimic-cxr-2.0.0-{}.csv.gz"


@pytest.mark.parametrize(
    ("data", "file", "row", "column", "value", "words"),
    [
        ("aptos", "train.csv", 3, "diagnosis", "", "is empty"),
        ("aptos", "train.csv", 3, "diagnosis", "mild", "is no number"),
        ("aptos", "train.csv", 3, "diagnosis", "inf", "is no number"),
        ("aptos", "train.csv", 3, "diagnosis", "5", "is none of 0, 1, 2, 3, 4"),
        ("aptos", "train.csv", 3, "id_code", "", "is empty"),
        ("aptos", "train.csv", 3, "id_code", "000000000000", "repeats an earlier row"),
        ("isic", TRUTH, 2, "NV", "yes", "is no number"),
        ("isic", TRUTH, 2, "NV", "", "is empty"),
        ("isic", TRUTH, 2, "NV", "0.5", "is none of 0, 1"),
        ("isic", TRUTH, 2, "NV", "1.0", "more than one diagnosis among MEL, NV"),
        ("isic", TRUTH, 2, "MEL", "0.0", "no diagnosis among MEL, NV"),
        ("isic", TRUTH, 2, "image", "ISIC_0000000", "repeats an earlier row"),
        ("isic", ABOUT, 2, "image", "ISIC_0000047", "repeats an earlier row"),
        ("isic", ABOUT, 2, "age_approx", "old", "is no number"),
        ("chexpert", "train.csv", 4, "Age", "forty", "is no number"),
        ("chexpert", "train.csv", 4, "Edema", "yes", "is no number"),
        ("chexpert", "train.csv", 4, "Edema", "2", "is none of -1, 0, 1"),
        ("chexpert", "valid.csv", 1, "Edema", "u", "is no number"),
        ("chexpert", "train.csv", 4, "Path", "", "is empty"),
        ("chexpert", "train.csv", 4, "Path", "x.jpg", "does not end in train/patient"),
        ("chestxray14", NIH, 2, "Patient Age", "old", "is no age"),
        ("chestxray14", NIH, 2, "Patient Age", "58X", "is no age"),
        ("chestxray14", NIH, 2, "Patient ID", "", "is empty"),
        ("chestxray14", NIH, 2, "Finding Labels", "", "is empty"),
        ("chestxray14", NIH, 2, "Image Index", "00000001_000.png", "repeats an earlier row"),
        ("mimic", MIMIC.format("chexpert"), 5, "Fracture", "?", "is no number"),
        ("mimic", MIMIC.format("chexpert"), 5, "study_id", "", "is empty"),
        ("mimic", MIMIC.format("split"), 5, "split", "dev", "is none of train, validate, test"),
        ("mimic", MIMIC.format("split"), 5, "dicom_id", "00000000-00000000", "repeats an earlier row"),
        ("mimic", MIMIC.format("metadata"), 5, "dicom_id", "00000000-00000000", "repeats an earlier row"),
        ("cbis", MASS, 2, "pathology", "UNSURE", "is none of MALIGNANT, BENIGN, BENIGN_WITHOUT_CALLBACK"),
        ("cbis", MASS, 2, "pathology", "", "is empty"),
        ("cbis", MASS, 2, "patient_id", "", "is empty"),
    ],
)
def test_a_wrong_cell_is_named_by_file_column_and_row(tmp_path, data, file, row, column, value, words):
    BUILDERS[data](tmp_path / "d")
    change(tmp_path / "d" / file, row, column, value)
    named = "image" if "diagnosis among" in words else column  # of several columns: the picture
    with pytest.raises(DataError) as caught:
        medprobe.read_manifest(tmp_path / "d")
    told = str(caught.value)
    assert all(part in told for part in (file, f"column '{named}'", words, f"in data row {row}"))
    assert "--dataset none" in told


def test_a_study_with_two_rows_of_labels(tmp_path):
    mimic(tmp_path)
    path = tmp_path / MIMIC.format("chexpert")
    table = pd.read_csv(path, dtype=str)
    pd.concat([table, table.iloc[:1]]).to_csv(path, index=False)
    with pytest.raises(DataError, match=r"column 'study_id' repeats an earlier row in data row 9"):
        medprobe.read_manifest(tmp_path)


@pytest.mark.parametrize("damage", [b"", b"\x00\xff", b'"Path\n', b"a,b\n1,2,3\n4,5,6\n"])
@pytest.mark.parametrize(("data", "file"), [("isic", TRUTH), ("chestxray14", NIH), ("cbis", MASS)])
def test_a_table_that_is_none(tmp_path, data, file, damage):
    BUILDERS[data](tmp_path / "d")
    (tmp_path / "d" / file).write_bytes(damage)
    with pytest.raises(DataError, match=f"{file}: (could not be read as a table|no column|rows have more fields)"):
        medprobe.read_manifest(tmp_path / "d")


def test_a_compressed_table_that_is_cut_short(tmp_path):
    mimic(tmp_path)
    path = tmp_path / MIMIC.format("split")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"split\.csv\.gz: could not be read as a table"):
        medprobe.read_manifest(tmp_path)


def test_ages_are_in_years(tmp_path):
    chestxray14(tmp_path)
    for row, age in enumerate(("058Y", "013M", "002D", "006W", "58", ""), 1):
        change(tmp_path / NIH, row, "Patient Age", age)
    ages = medprobe.read_manifest(tmp_path).samples["age"][:6]
    np.testing.assert_allclose(ages, [58, 13 / 12, 2 / 365.25, 42 / 365.25, 58, np.nan])


def test_an_image_of_both_lists_or_of_none(tmp_path):
    chestxray14(tmp_path)
    tested = tmp_path / "test_list.txt"
    listed = tested.read_text().split()
    tested.write_text("\n".join(listed[1:]))
    manifest = medprobe.read_manifest(tmp_path)
    assert (manifest.samples["split"] == "").sum() == 1
    assert any("1 images are in neither of its lists" in note for note in manifest.notes)
    tested.write_text("\n".join([*listed, "00000001_000.png"]))
    with pytest.raises(DataError, match=r"1 images are in train_val_list\.txt and in test_list\.txt"):
        medprobe.read_manifest(tmp_path)


# ---- copies in other folders


def all_there(manifest: Manifest, n: int) -> None:
    assert len(manifest) == n
    assert isinstance(manifest.images, FileImages)
    assert all(Path(path).is_file() for path in manifest.images.paths)


@pytest.mark.parametrize("folder", ["ISIC_2019_Training_Input/ISIC_2019_Training_Input", "train", "."])
@pytest.mark.parametrize("mark", ["", "_downsampled"])
def test_isic_in_other_folders(tmp_path, folder, mark):
    root = tmp_path / "i"
    isic(root)
    before = medprobe.read_manifest(root).samples
    aside = root.rename(tmp_path / "old") / "ISIC_2019_Training_Input"
    aside = aside.rename(tmp_path / "aside")
    (tmp_path / "old").rename(root)
    (root / folder).mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(sorted(aside.iterdir())):
        image.rename(root / folder / f"{image.stem}{mark if number % 2 else ''}.jpg")
    manifest = medprobe.read_manifest(root)
    all_there(manifest, 48)
    pd.testing.assert_frame_equal(manifest.samples.drop(columns="id"), before.drop(columns="id"))


def test_two_images_of_one_name(tmp_path):
    aptos(tmp_path / "a")
    picture(tmp_path / "a" / "train_images" / "again" / f"{3:012x}.png")
    with pytest.raises(DataError, match="have one name"):
        medprobe.read_manifest(tmp_path / "a")


@pytest.mark.parametrize("batches", [False, True])
def test_chexpert_above_and_in_batches(tmp_path, batches):
    chexpert(tmp_path / "one")
    expected = medprobe.read_manifest(tmp_path / "one").samples
    above = tmp_path / "above"
    above.mkdir()
    if not batches:
        (tmp_path / "one").rename(above / "CheXpert-v1.0-small")
    else:
        first = above / "CheXpert-v1.0 batch 1 (validate & csv)"
        (tmp_path / "one").rename(first)
        patients = sorted((first / "train").iterdir())
        for number, patient in enumerate(patients):
            batch = above / f"CheXpert-v1.0 batch {2 + number % 3} (train {1 + number % 3})"
            batch.mkdir(exist_ok=True)
            patient.rename(batch / patient.name)
        (first / "train").rmdir()
        all_there(medprobe.read_manifest(first), 35)
    manifest = medprobe.read_manifest(above)
    all_there(manifest, 35)
    pd.testing.assert_frame_equal(manifest.samples, expected)
    if batches:
        for name in ("train.csv", "valid.csv"):
            (first / name).rename(above / name)
        pd.testing.assert_frame_equal(medprobe.read_manifest(above).samples, expected)
    else:
        picture(above / "others" / "1.png")  # a folder of several things is not taken for one of them
        assert "label_Edema" not in medprobe.read_manifest(above).samples
        assert "label_Edema" in medprobe.read_manifest(above / "CheXpert-v1.0-small").samples


def test_chexpert_as_png(tmp_path):
    chexpert(tmp_path / "c")
    for path in sorted((tmp_path / "c").rglob("*.jpg")):
        path.rename(path.with_suffix(".png"))
    all_there(medprobe.read_manifest(tmp_path / "c"), 35)


@pytest.mark.parametrize("folder", ["manifest-1234/CBIS-DDSM", "."])
def test_cbis_below_the_folders_of_its_archive(tmp_path, folder):
    root = tmp_path / "c"
    cbis(root, as_named=False)
    expected = medprobe.read_manifest(root).samples
    (root / "CBIS-DDSM").rename(tmp_path / "cases")
    (root / folder).mkdir(parents=True, exist_ok=True)
    for number, case in enumerate(sorted((tmp_path / "cases").iterdir())):
        other = root / "manifest-5678" / "CBIS-DDSM"  # masses and calcifications are often fetched one after the other
        place = other if number % 2 and folder != "." else root / folder
        place.mkdir(parents=True, exist_ok=True)
        case.rename(place / case.name)
    manifest = medprobe.read_manifest(root)
    all_there(manifest, 24)
    pd.testing.assert_frame_equal(manifest.samples, expected)


def test_cbis_as_jpeg(tmp_path):
    rows, series = [], []
    for number, description in enumerate(("full mammogram images", "cropped images", "full mammogram images")):
        case = f"Mass-Training_P_0000{number // 2}_LEFT_CC" + ("_1" if description == "cropped images" else "")
        path = f"jpeg/1.3.6.{number}/1-00{number}.jpg"
        picture(tmp_path / path)
        series.append((f"CBIS-DDSM/dicom/1.3.6.{number}/1.dcm", f"CBIS-DDSM/{path}", case, description))
        if description != "cropped images":
            rows.append(
                (case[14:21], "LEFT", "CC", ("MALIGNANT", "BENIGN")[number // 2], f"{case}/1.3/1.4/000000.dcm\n")
            )
    (tmp_path / "csv").mkdir()
    pd.DataFrame(rows, columns=CBIS).to_csv(tmp_path / "csv" / MASS, index=False)
    columns = ["file_path", "image_path", "PatientID", "SeriesDescription"]
    pd.DataFrame(series, columns=columns).to_csv(tmp_path / "csv" / "dicom_info.csv", index=False)
    manifest = medprobe.read_manifest(tmp_path)
    all_there(manifest, 2)
    assert manifest.samples["patient"].tolist() == ["P_00000", "P_00001"]
    assert manifest.samples["label"].tolist() == [1, 0]
    assert isinstance(manifest.images, FileImages)
    assert [Path(path).name for path in manifest.images.paths] == ["1-000.jpg", "1-002.jpg"]
    assert any("calc_case_description_test_set.csv is not there" in note for note in manifest.notes)
    change(tmp_path / "csv" / "dicom_info.csv", 3, "image_path", "elsewhere/1-002.jpg")
    with pytest.raises(
        DataError, match=r"dicom_info\.csv: column 'image_path', .* is no path below jpeg/ in data row 3"
    ):
        medprobe.read_manifest(tmp_path)


# ---- MedMNIST


def medmnist(path: Path, labels: np.ndarray) -> Path:
    images = np.zeros((len(labels), 6, 6), dtype=np.uint8)
    np.savez(
        path,
        **{f"{s}_{what}": v for s in ("train", "val", "test") for what, v in (("images", images), ("labels", labels))},
    )
    return path


def test_the_words_of_medmnist_are_its_own():
    info = pytest.importorskip("medmnist").INFO
    own = {name: tuple(about["label"].values()) for name, about in info.items() if not name.endswith("3d")}
    assert own == NAMES
    assert [set_of(Path(f"{name}{size}.npz")) for name in NAMES for size in ("", "_64", "_128", "_224")] == [
        name for name in NAMES for _ in range(4)
    ]
    assert [set_of(Path(f"{name}.npz")) for name in ("my_pathmnist", "pathmnist_32", "organmnist3d")] == [None] * 3


@pytest.mark.parametrize("size", ["", "_224"])
def test_the_labels_of_medmnist(tmp_path, size):
    labels = np.arange(12)[:, None] % 9
    single = medprobe.read_manifest(medmnist(tmp_path / f"pathmnist{size}.npz", labels))
    assert single.samples["label"].tolist() == [*labels[:, 0]] * 3  # numbers, as everywhere else
    assert any("0 is adipose; 1 is background" in note for note in single.notes)
    graded = medprobe.read_manifest(medmnist(tmp_path / f"retinamnist{size}.npz", labels % 5))
    assert any("--metric quadratic_kappa" in note for note in graded.notes)
    marks = np.eye(14, dtype=int)
    several = medprobe.read_manifest(medmnist(tmp_path / f"chestmnist{size}.npz", marks))
    assert several.roles.labels == tuple(f"label_{name}" for name in NAMES["chestmnist"])
    assert several.samples["label_hernia"].tolist() == [*marks[:, 13]] * 3
    own = medprobe.read_manifest(medmnist(tmp_path / "mine.npz", marks))
    assert own.roles.labels == tuple(f"label_{i}" for i in range(14))
    odd = medprobe.read_manifest(medmnist(tmp_path / f"chestmnist{size}.npz", marks[:, :2]))
    assert odd.roles.labels == ("label_0", "label_1")


def test_a_folder_of_medmnist_files(tmp_path):
    medmnist(tmp_path / "breastmnist.npz", np.arange(6)[:, None] % 2)
    (tmp_path / "README.txt").touch()
    assert len(medprobe.read_manifest(tmp_path)) == 18
    medmnist(tmp_path / "pathmnist_64.npz", np.arange(6)[:, None])
    with pytest.raises(DataError, match=r"name one of its files: breastmnist\.npz, pathmnist_64\.npz"):
        medprobe.read_manifest(tmp_path)
    picture(tmp_path / "cells" / "1.png")  # then it is a folder of pictures
    assert medprobe.read_manifest(tmp_path).samples["id"].tolist() == ["cells/1.png"]


# ---- several findings of one's own


def own_table(folder: Path, text: str) -> Path:
    for name in "abc":
        Image.new("L", (4, 4)).save(folder / f"{name}.png")
    (folder / "own.csv").write_text(text)
    return folder / "own.csv"


def test_a_column_that_names_several_findings(tmp_path):
    path = own_table(tmp_path, "path,Finding Labels,age\na.png,Effusion|Mass/Nodule,1\nb.png,,2\nc.png,No Finding,3\n")
    manifest = medprobe.read_manifest(path, label_cols=["Finding Labels"])
    names = tuple(f"Finding Labels_{word}" for word in ("Effusion", "Mass_Nodule", "No Finding"))
    assert manifest.roles.labels == names
    np.testing.assert_array_equal(manifest.samples[list(names)], [[1, 1, 0], [np.nan] * 3, [0, 0, 1]])
    assert "Finding Labels" not in manifest.samples
    assert any("3 labels (-t 'Finding Labels')" in note for note in manifest.notes)
    target = target_of(manifest.samples, "Finding Labels")
    assert (target.task, target.rows.tolist(), target.classes) == ("multilabel", [0, 2], names)
    plain = medprobe.read_manifest(own_table(tmp_path, "path,label\na.png,x\nb.png,y\nc.png,x\n"))
    assert plain.roles.labels == ("label",)
    joined = medprobe.read_manifest(
        tmp_path, labels=own_table(tmp_path, "path,label\na.png,x|y\nb.png,y\nc.png,x\n"), label_cols=["label"]
    )
    assert joined.roles.labels == ("label_x", "label_y")
    twice = own_table(tmp_path, "path,label,label_x\na.png,x|y,1\nb.png,y,0\nc.png,x,1\n")
    with pytest.raises(DataError, match="column 'label' names a finding that is column 'label_x', too"):
        medprobe.read_manifest(twice)


def test_one_column_for_each_finding(tmp_path):
    path = own_table(tmp_path, "path,Edema,Mass\na.png,1,0\nb.png,-1,\nc.png,0,1\n")
    manifest = medprobe.read_manifest(path, label_cols=["Edema", "Mass"])
    assert manifest.roles.labels == ("Edema", "Mass")
    target = target_of(manifest.samples, "Edema,Mass", uncertain="ignore")
    np.testing.assert_array_equal(target.y, [[1, 0], [0, 1]])


def test_the_studys_rule_for_uncertain_labels():
    marks = [(np.nan, -1.0, 0.0), (0.0, 0.0, 1.0), (1.0, 0.0, 0.0), (np.nan, np.nan, np.nan), (0.0, 1.0, -1.0)]
    samples = pd.DataFrame(marks, columns=["label_No_Finding", "label_Edema", "label_Mass"])
    target = target_of(samples, "label", uncertain="huix2024")
    np.testing.assert_array_equal(target.y, [[1, 0, 0], [0, 0, 1], [1, 0, 0], [1, 0, 0], [0, 1, 0]])
    assert target.rows.tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(UsageError, match="has to be called No Finding"):
        target_of(samples, "label_Edema,label_Mass", uncertain="huix2024")
    with pytest.raises(DataError, match="holds 'maybe'"):
        target_of(samples.astype(object).fillna("maybe"), "label", uncertain="huix2024")


def test_the_studys_labels_of_chexpert(tmp_path):
    chexpert(tmp_path / "c")
    samples = medprobe.read_manifest(tmp_path / "c").samples
    table = pd.concat([pd.read_csv(tmp_path / "c" / name) for name in ("train.csv", "valid.csv")])
    expected = table[list(FINDINGS)].fillna(0).replace(-1, 0)
    expected.loc[expected.sum(axis=1).to_numpy() == 0, "No Finding"] = 1
    np.testing.assert_array_equal(target_of(samples, "label", uncertain="huix2024").y, expected)


def test_ddsm_is_not_cbis(tmp_path):
    ddsm(tmp_path)
    assert medprobe.read_manifest(tmp_path, dataset="ddsm").roles.labels == ("label", "pathology")
    with pytest.raises(DataError, match="not CBIS-DDSM"):
        medprobe.read_manifest(tmp_path, dataset="cbis-ddsm")


def test_names_that_leave_the_folder_are_refused(tmp_path):
    aptos(tmp_path)
    table = tmp_path / "train.csv"
    table.write_text(table.read_text() + "../../elsewhere,1\n")
    with pytest.raises(DataError, match=r"1 images outside of its folder"):
        medprobe.read_manifest(tmp_path)
