"""Manifests of folders, tables and MedMNIST files, at the edges."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from medprobe.errors import DataError, UsageError
from medprobe.images.sources import ArrayImages, FileImages
from medprobe.manifest import manifest_of, read_manifest


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def table(folder: Path, text: str, name: str = "m.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_images_in_the_root_have_no_label(tmp_path):
    manifest = read_manifest(touch(tmp_path, "b.png", "a.jpg"))
    assert manifest.samples.to_dict("list") == {"id": ["a.jpg", "b.png"]}
    assert manifest.roles.labels == ()
    assert manifest.notes == ()
    mixed = read_manifest(touch(tmp_path, "sick/c.tif")).samples
    assert dict(zip(mixed["id"], mixed["label"], strict=True)) == {"a.jpg": "", "b.png": "", "sick/c.tif": "sick"}


def test_split_folders_count_only_when_they_are_all_there_is(tmp_path):
    manifest = read_manifest(touch(tmp_path, "Train/x/deep/1.png", "VAL/y/2.png", "test/3.png"))
    assert manifest.roles.split == "split"
    assert dict(zip(manifest.samples["id"], manifest.samples["split"], strict=True)) == {
        "Train/x/deep/1.png": "train",
        "VAL/y/2.png": "val",
        "test/3.png": "test",
    }
    assert sorted(manifest.samples["label"]) == ["", "x", "y"]
    assert read_manifest(tmp_path, split_col="none").roles.split is None
    other = read_manifest(touch(tmp_path, "control/4.png"))
    assert "split" not in other.samples
    assert set(other.samples["label"]) == {"Train", "VAL", "test", "control"}


def test_links_to_folders_are_not_followed_and_said(tmp_path):
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    for folder in (root / "a", elsewhere):
        folder.mkdir(parents=True)
        Image.new("L", (4, 4)).save(folder / "x.png")
    (root / "circle").symlink_to(root)
    (root / "out").symlink_to(elsewhere)
    (root / "a" / "y.png").symlink_to(elsewhere / "x.png")
    manifest = read_manifest(root)
    assert manifest.samples["id"].tolist() == ["a/x.png", "a/y.png"]
    assert "2 links to folders were not followed: what they lead to is left out" in manifest.notes


@pytest.mark.parametrize("path", ["../x.png", "a/../../x.png", "./../x.png"])
def test_a_path_that_leaves_the_folder_of_its_table_is_refused(tmp_path, path):
    Image.new("L", (4, 4)).save(tmp_path / "x.png")
    (tmp_path / "t").mkdir()
    table = tmp_path / "t" / "m.csv"
    table.write_text(f"path,label\na/../y.png,0\n{path},1\n")
    with pytest.raises(DataError, match=r"'path' leaves the table's folder .* 1 rows \(first: data row 2\)"):
        read_manifest(table)
    table.write_text(f"path,mask,label\ny.png,{path},1\n")
    with pytest.raises(DataError, match="'mask' leaves the table's folder"):
        read_manifest(table, mask_col="mask")
    table.write_text(f"path,label\n{tmp_path}/x.png,1\n")
    assert len(read_manifest(table)) == 1


def test_files_that_are_no_images_are_counted(tmp_path):
    touch(tmp_path, "a/1.png", "a/x.csv", "a/y.csv", "b/README", ".DS_Store", ".hidden/2.png")
    manifest = read_manifest(tmp_path)
    assert list(manifest.samples["id"]) == ["a/1.png"]
    assert manifest.notes == (
        "3 files are no images by their names and were left out (2 .csv, 1 no suffix)",
    )  # fmt: skip
    (tmp_path / "a/1.png").unlink()
    with pytest.raises(DataError, match="no images in it"):
        read_manifest(tmp_path)


def test_stamps_and_payloads_are_of_the_files(tmp_path):
    images = read_manifest(touch(tmp_path, "a/1.png", "b/2.png")).images
    status = (tmp_path / "a/1.png").stat()
    assert images.stamp(0) == (1, status.st_mtime_ns)
    (tmp_path / "b/2.png").unlink()
    assert images.stamp(1) == (-1, -1)
    assert FileImages(["nul\0byte"]).stamp(0) == (-1, -1)
    assert len(images.head(1)) == 1


@pytest.mark.parametrize("name", ["path", "File", "FILENAME", "image_path"])
def test_the_path_column_is_found_by_its_name(tmp_path, name):
    manifest = read_manifest(table(tmp_path, f"y,{name}\n1,sub/a.png\n"))
    assert manifest.images.payload(0) == str(tmp_path / "sub/a.png")
    assert list(manifest.samples.columns) == ["id", "y"]


def test_columns_that_are_named_win(tmp_path):
    absolute = tmp_path / "elsewhere/a.png"
    text = f"path,scan,patient,site,fold,y\nno.png,{absolute},p,s,f,1\n"
    manifest = read_manifest(
        table(tmp_path, text), path_col="scan", group_col="site", split_col="fold", label_cols=["y"]
    )
    assert manifest.images.payload(0) == str(absolute)
    assert (manifest.roles.group, manifest.roles.split, manifest.roles.labels) == ("site", "fold", ("y",))
    assert "path" in manifest.samples


def test_an_id_column_names_the_samples(tmp_path):
    text = "id,path,label,label_b,y\n01,a.png,x,1,2\n02,a.png,y,0,3\n"
    manifest = read_manifest(table(tmp_path, text))
    assert list(manifest.samples["id"]) == ["01", "02"]
    assert manifest.roles.labels == ("label", "label_b")
    assert len(manifest.head(1)) == len(manifest.head(1).images) == 1
    assert manifest.head(None) is manifest
    with pytest.raises(DataError, match="column 'id' names 1 samples twice"):
        read_manifest(table(tmp_path, text.replace("02", "01")))
    with pytest.raises(DataError, match="column 'id' is empty in 1 rows"):
        read_manifest(table(tmp_path, text.replace("02", "")))


def test_patients_stay_as_they_are_written(tmp_path):
    names = ["007", "7", "1.10", "1.1", "1e3", "12345678901234567", "12345678901234568", ""]
    rows = "".join(f"{i}.png,{name}\n" for i, name in enumerate(names))
    for column in ("patient", "Subject_ID"):
        manifest = read_manifest(table(tmp_path, f"path,{column}\n{rows}"))
        assert manifest.roles.group == column
        assert list(manifest.samples[column]) == names
        assert any(f"'{column}' groups the images" in note for note in manifest.notes)
    chosen = read_manifest(table(tmp_path, f"path,slide\n{rows}"), group_col="slide")
    assert list(chosen.samples["slide"]) == names
    plain = read_manifest(table(tmp_path, "path,patient\na,7\nb,8\n"), group_col="none")
    assert plain.roles.group is None


def test_columns_get_the_type_that_loses_nothing(tmp_path):
    text = "path,whole,real,gap,zero,uid,word,empty\na,1,0.5,3,01,1234567890123456789,x,\nb,-2,1,,2,2,NA,\n"
    samples = read_manifest(table(tmp_path, text)).samples
    assert samples["whole"].tolist() == [1, -2]
    assert samples["real"].tolist() == [0.5, 1.0]
    assert samples["gap"].dtype == np.float64
    for name, values in {
        "zero": ["01", "2"],
        "uid": ["1234567890123456789", "2"],
        "word": ["x", ""],
        "empty": ["", ""],
    }.items():
        assert samples[name].tolist() == values


def test_parquet_rows_stay_together_whatever_the_index(tmp_path):
    frame = pd.DataFrame(
        {
            "path": list("abcd"),
            "y": [1, 2, 3, 4],
            "patient": [7, 7, 8, 9],
            "maybe": pd.array([1, 2, None, 4], dtype="Int64"),
            "day": pd.to_datetime(["2020-01-01"] * 4),
        }
    )
    frame.iloc[1:].to_parquet(tmp_path / "part.parquet")
    samples = read_manifest(tmp_path / "part.parquet").samples
    assert samples["y"].tolist() == [2, 3, 4]
    assert samples["patient"].tolist() == ["7", "8", "9"]
    np.testing.assert_array_equal(samples["maybe"], [2.0, np.nan, 4.0])
    assert samples["day"].str.startswith("2020-01-01").all()
    frame.set_index("y").to_parquet(tmp_path / "index.parquet")
    assert read_manifest(tmp_path / "index.parquet").samples["y"].tolist() == [1, 2, 3, 4]


def test_identifying_columns_stay_out_unless_asked_for(tmp_path):
    path = table(tmp_path, "path,Patient_Name,DOB,mrn,age\na,JANE,1970,5,50\n")
    manifest = read_manifest(path)
    assert list(manifest.samples.columns) == ["id", "age"]
    (note,) = manifest.notes
    assert "Patient_Name, DOB, mrn" in note
    assert "JANE" not in note
    assert list(read_manifest(path, keep_cols=["DOB"]).samples.columns) == ["id", "DOB", "age"]
    assert read_manifest(path, group_col="mrn").samples["mrn"].tolist() == ["5"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("path,y\na,1,\nb,2,\n", "more fields than the header"),
        ("", "could not be read as a table"),
        ("path,y\n,1\n,2\n", "'path' is empty in 2 rows"),
        ("path,y\nNA,1\n", "'path' is empty in 1 rows"),
    ],
)
def test_tables_with_a_wrong_shape(tmp_path, text, words):
    with pytest.raises(DataError, match=words):
        read_manifest(table(tmp_path, text))


@pytest.mark.parametrize(
    ("flag", "kwargs"),
    [
        ("--path-col", {"path_col": "gone"}),
        ("--label-col", {"label_cols": ["y", "gone"]}),
        ("--group-col", {"group_col": "gone"}),
        ("--split-col", {"split_col": "gone"}),
    ],
)
def test_a_missing_column_is_reported_with_its_flag_and_the_choices(tmp_path, flag, kwargs):
    with pytest.raises(UsageError, match=f"{flag} gone: .*there are: .*y"):
        read_manifest(table(tmp_path, "path,y\na,1\n"), **kwargs)


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (40, 16, 16), dtype=np.uint8)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_rows_of_an_npz_equal_numpys_in_any_order(tmp_path, save, dtype):
    rng = np.random.default_rng(1)
    arrays = {
        f"{s}_images": rng.integers(0, 60_000, (n, 6, 5, 3)).astype(dtype) for s, n in (("test", 9), ("train", 8))
    }
    save(tmp_path / "m.npz", **arrays)
    images = ArrayImages.open(tmp_path / "m.npz")
    expected = np.concatenate([arrays["train_images"], arrays["test_images"]])
    assert len(images) == 17
    for row in rng.permutation(17):
        got = images.payload(int(row))
        assert isinstance(got, np.ndarray)
        assert got.dtype == dtype
        np.testing.assert_array_equal(got, expected[row])
    with pytest.raises(IndexError):
        images.payload(17)
    status = (tmp_path / "m.npz").stat()
    assert images.stamp(3) == (status.st_size, status.st_mtime_ns)


def test_an_npz_without_splits_or_labels(tmp_path, pixels):
    np.savez(tmp_path / "m.npz", images=pixels)
    manifest = read_manifest(tmp_path / "m.npz")
    assert list(manifest.samples.columns) == ["id"]
    assert manifest.samples["id"].is_unique
    np.savez(tmp_path / "m.npz", images=pixels, labels=np.arange(40))
    assert read_manifest(tmp_path / "m.npz").samples["label"].tolist() == list(range(40))


def test_a_split_may_be_empty(tmp_path, pixels):
    labels = np.ones((40, 2), dtype=int)
    np.savez(tmp_path / "m.npz", train_images=pixels, train_labels=labels, val_images=pixels[:0], val_labels=labels[:0])
    assert read_manifest(tmp_path / "m.npz").roles.labels == ("label_0", "label_1")


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"images": np.asfortranarray(np.zeros((4, 3, 2), np.uint8))}, "Fortran order"),
        ({"images": np.zeros((4, 3, 2), np.float32)}, "expected uint8 or uint16"),
        ({"images": np.zeros((4, 3, 2, 4), np.uint8)}, "expected uint8 or uint16"),
        ({"x": np.zeros(3)}, "no array called"),
        ({"images": np.zeros((4, 3, 2), np.uint8), "labels": np.zeros(3)}, "3 rows for 4 images"),
        ({"images": np.zeros((2, 3, 2), np.uint8), "labels": np.array([{}, {}])}, "labels is damaged, or holds objects"),
        ({"images": np.array([{}, {}])}, "object"),
        (
            {"train_images": np.zeros((1, 2, 2), np.uint8), "val_images": np.zeros((1, 2, 2), np.uint8),
             "train_labels": np.zeros(1)},
            "labels are missing for a split",
        ),
    ],
)  # fmt: skip
def test_arrays_that_cannot_be_used_are_refused(tmp_path, arrays, words):
    np.savez(tmp_path / "m.npz", **arrays)
    with pytest.raises(DataError, match=words):
        read_manifest(tmp_path / "m.npz")


@pytest.mark.parametrize("place", range(0, 1000, 25))
def test_a_damaged_npz_raises_data_errors_alone(tmp_path, pixels, place):
    path = tmp_path / "m.npz"
    np.savez_compressed(path, images=pixels, labels=np.random.default_rng(0).integers(0, 9, 40))
    data = bytearray(path.read_bytes())
    start = len(data) * place // 1000
    data[start : start + 40] = bytes(b ^ 0x5A for b in data[start : start + 40])
    path.write_bytes(data)
    try:
        manifest = read_manifest(path)
        rows = [manifest.images.payload(i) for i in range(len(manifest))]
    except DataError:
        return
    pytest.fail(f"damage was not noticed: {len(rows)} rows")


def test_a_truncated_npz_is_refused(tmp_path, pixels):
    path = tmp_path / "m.npz"
    np.savez(path, images=pixels)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(DataError, match="damaged"):
        read_manifest(path)


def test_a_manifest_that_is_given_takes_other_roles_and_nothing_else(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.png", "b/2.png")
    (tmp_path / "t.csv").write_text("path,patient,site,fold\na/1.png,p,s,train\nb/2.png,q,t,test\n")
    given = read_manifest(tmp_path / "t.csv")
    assert manifest_of(given).roles == given.roles
    assert manifest_of(given, group_col="site", split_col="fold").roles == replace(
        given.roles, group="site", split="fold"
    )
    assert manifest_of(given, group_col="none").roles.group is None
    with pytest.raises(UsageError, match=r"--split-col sides: no such column; there are: id, patient, site, fold"):
        manifest_of(given, split_col="sides")
    with pytest.raises(UsageError, match="label_cols, frames: for data that are to be read"):
        manifest_of(given, label_cols=["site"], frames="all", keep_cols=())
    assert manifest_of(tmp_path / "t.csv", label_cols=["site"]).roles.labels == ("site",)
