"""A tree of DICOM files as a manifest: pseudonyms, labels by any identifier, frames and windows."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from dicom_helpers import dataset, encoded
from PIL import Image
from typer.testing import CliRunner

import medprobe
from medprobe.cli import app
from medprobe.errors import DataError, UsageError
from medprobe.images.dicom import read_dicom
from medprobe.images.window import parse_window
from medprobe.pseudonyms import Pseudonyms, key_path, own_pseudonyms

CANARY = "CANARYJANE"
RNG = np.random.default_rng(0)


def write(path: Path, patient: str, study: str, number: int, *, frames: int = 1, **attributes: object) -> None:
    """Write a CT slice of a patient whose name and number are the canary's."""
    shape = (20, 24) if frames == 1 else (frames, 20, 24)
    ds = dataset(RNG.integers(0, 4096, shape).astype(np.uint16), bits=12)
    ds.PatientName, ds.PatientID = f"{CANARY}^{patient}", f"{CANARY}-{patient}"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = f"1.2.{study}", f"1.2.{study}.7"
    ds.SOPInstanceUID, ds.AccessionNumber = f"1.2.{study}.7.{number}", f"{CANARY}{study}"
    ds.Modality, ds.Manufacturer, ds.ViewPosition = "CT", "Maker", "AP"
    ds.RescaleSlope, ds.RescaleIntercept = 1, -1024
    for name, value in attributes.items():
        setattr(ds, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(ds))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Four patients with two studies each of two images; folders and files carry the patients' names."""
    root = tmp_path / "tree"
    for p in range(4):
        for s in range(2):
            for i in range(2):
                study = f"{p + 1}{s}"
                suffix = ".dcm" if i else ""
                write(root / f"{CANARY}_{p}" / f"study{s}" / f"{CANARY}{study}.{i}{suffix}", str(p), study, i)
    (root / f"{CANARY}_0" / "notes.txt").write_text("no image")
    return root


def embedded(data: Path, out: Path, **options: object) -> medprobe.FeatureStore:
    (report,) = medprobe.embed(data, "baseline/pixels", out, workers=0, precision="fp32", image_size=16, **options)
    return medprobe.open_store(report.path)


def test_the_columns_are_those_of_the_headers_under_pseudonyms(tree):
    manifest = medprobe.read_manifest(tree)
    samples = manifest.samples
    assert len(samples) == 16
    assert set(samples.columns) == {"id", "patient", "study", "series", "modality", "manufacturer", "view_position"}
    assert (samples["patient"].nunique(), samples["study"].nunique(), samples["id"].nunique()) == (4, 8, 16)
    assert manifest.roles.group == "patient"
    names = own_pseudonyms()
    assert set(samples["patient"]) == {names.of("patient", f"{CANARY}-{p}") for p in range(4)}
    assert (samples.groupby("patient")["study"].nunique() == 2).all()
    assert CANARY not in samples.to_csv() + str(manifest.notes)
    assert any("keyed hashes" in note for note in manifest.notes)
    assert any("1 files are no images" in note for note in manifest.notes)
    kept = medprobe.read_manifest(tree, keep_ids=True).samples
    assert set(kept["patient"]) == {f"{CANARY}-{p}" for p in range(4)}
    assert kept["id"].str.startswith(CANARY).all()


def test_a_canary_is_in_no_file_of_a_store_and_in_no_message(tree, tmp_path, caplog, capfd):
    (tree / f"{CANARY}_1" / f"{CANARY}broken.dcm").write_bytes(b"\0" * 128 + b"DICM" + CANARY.encode())
    labels = tmp_path / "labels.csv"
    rows = [(f"{CANARY}-{p}", f"{CANARY} {p}", p % 2) for p in range(4)]
    pd.DataFrame(rows, columns=["PatientID", "PatientName", "ill"]).to_csv(labels, index=False)
    store = embedded(tree, tmp_path / "out", labels=labels, label_cols=["ill"])
    results = medprobe.probe(store, probes=["ridge"], n_folds=2, n_resamples=20)
    said = CliRunner().invoke(app, ["check", str(tree), "--labels", str(labels), "--workers", "0"])
    assert said.exit_code == 3, said.output
    files = b"".join(path.read_bytes() + path.name.encode() for path in store.path.rglob("*") if path.is_file())
    everything = files.decode("latin1") + caplog.text + "".join(capfd.readouterr()) + said.output + str(list(results))
    assert CANARY not in everything.replace(str(tree), "")
    assert len(store.failures) == 1
    assert results[0].n_groups == 4


def test_one_key_gives_one_pseudonym_and_another_key_another(tree, monkeypatch, tmp_path):
    first = medprobe.read_manifest(tree).samples
    monkeypatch.setenv("MEDPROBE_ID_KEY", "another secret of the tests")
    assert not set(first["patient"]) & set(medprobe.read_manifest(tree).samples["patient"])
    monkeypatch.setenv("MEDPROBE_ID_KEY", "short")
    with pytest.raises(UsageError, match="at least 16"):
        medprobe.read_manifest(tree)
    monkeypatch.delenv("MEDPROBE_ID_KEY")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))
    made = medprobe.read_manifest(tree).samples
    assert key_path().stat().st_mode & 0o077 == 0
    assert medprobe.read_manifest(tree).samples.equals(made)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "file"))
    with pytest.raises(UsageError, match="MEDPROBE_ID_KEY"):
        medprobe.read_manifest(tree)


def test_pseudonyms_differ_by_kind_and_leave_nothing_for_nothing():
    names = Pseudonyms(b"key")
    assert names.of("patient", "7") != names.of("study", "7")
    assert names.of("patient", "") == ""


@pytest.mark.parametrize(
    "by", ["SOPInstanceUID", "SeriesInstanceUID", "study_uid", "Accession Number", "PatientID", "file"]
)
def test_labels_are_joined_by_any_identifier(tree, tmp_path, by):
    rows = []
    for p in range(4):
        for s in range(2):
            for i in range(2):
                study = f"{p + 1}{s}"
                suffix = ".dcm" if i else ""
                keys = {
                    "SOPInstanceUID": f"1.2.{study}.7.{i}",
                    "SeriesInstanceUID": f"1.2.{study}.7",
                    "study_uid": f"1.2.{study}",
                    "Accession Number": f"{CANARY}{study}",
                    "PatientID": f"{CANARY}-{p}",
                    "file": f"{CANARY}{study}.{i}{suffix}",
                }
                rows.append((keys[by], p))
    table = pd.DataFrame([*dict.fromkeys(rows), ("none of them", 9)], columns=[by, "grade"])
    table.to_csv(tmp_path / "labels.csv", index=False)
    manifest = medprobe.read_manifest(tree, labels=tmp_path / "labels.csv", label_cols=["grade"])
    raw = medprobe.read_manifest(tree, keep_ids=True).samples["patient"].str.removeprefix(f"{CANARY}-").astype(int)
    assert manifest.samples["grade"].tolist() == raw.tolist()
    assert by not in manifest.samples
    assert any("16 of 16 images have labels" in note for note in manifest.notes)
    assert any("1 rows are of no image" in note for note in manifest.notes)


def test_labels_that_do_not_fit_are_refused_without_naming_anyone(tree, tmp_path):
    path = tmp_path / "labels.csv"

    def refused(text: str, kind: type[Exception] = DataError, **options: str) -> str:
        path.write_text(text)
        with pytest.raises(kind) as error:
            medprobe.read_manifest(tree, labels=path, **options)
        return str(error.value)

    assert "no column that identifies" in refused("grade\n1\n")
    assert "its column 'patient' holds none of the images' identifiers (patient_id)" in refused(f"patient\n{CANARY}9\n")
    double = refused(f"PatientID,grade\n{CANARY}-0,1\n{CANARY}-0,2\n")
    assert "1 values twice (first: data row 2)" in double
    assert CANARY not in double
    assert "--labels-key wrong" in refused("patient\n1\n", UsageError, labels_key="wrong")
    path.write_text(f"who,grade\n{CANARY}-0,1\n")
    joined = medprobe.read_manifest(tree, labels=path, labels_key="who").samples
    assert joined["grade"].notna().sum() == 4
    with pytest.raises(UsageError, match="--labels: goes with a folder"):
        medprobe.read_manifest(path, labels=path)


def test_a_table_beside_a_folder_of_pictures(tmp_path):
    for name in ("a.png", "b.png", "c.jpg"):
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(RNG.integers(0, 255, (8, 8), dtype=np.uint8)).save(tmp_path / "images" / name)
    (tmp_path / "labels.csv").write_text("image_id,diagnosis,patient,split\na,1,p1,train\nb,0,p2,test\n")
    manifest = medprobe.read_manifest(tmp_path / "images", labels=tmp_path / "labels.csv", label_cols=["diagnosis"])
    samples = manifest.samples
    assert samples["id"].tolist() == ["a.png", "b.png", "c.jpg"]
    assert samples["diagnosis"].tolist()[:2] == [1, 0]
    assert np.isnan(samples["diagnosis"][2])
    assert (manifest.roles.group, manifest.roles.split) == ("patient", "split")
    assert samples["patient"].tolist() == ["p1", "p2", ""]


def test_folders_are_labels_only_where_they_hold_several_patients(tmp_path):
    for p in range(4):
        write(tmp_path / "t" / ("ill" if p < 2 else "well") / f"{p}.dcm", str(p), f"{p + 1}0", 0)
    manifest = medprobe.read_manifest(tmp_path / "t")
    assert manifest.samples["label"].tolist() == ["ill", "ill", "well", "well"]
    for p in range(2):
        (tmp_path / "t" / "well" / f"{p + 2}.dcm").unlink()
        write(tmp_path / "t" / "well" / f"{p}.dcm", "9", "90", p)
    assert "label" not in medprobe.read_manifest(tmp_path / "t").samples


def test_folders_of_files_without_patients_are_labels(tmp_path):
    for i in range(4):
        write(tmp_path / "t" / ("ill" if i < 2 else "well") / f"{i}.dcm", "0", "10", i, PatientID="")
    manifest = medprobe.read_manifest(tmp_path / "t")
    assert manifest.samples["label"].tolist() == ["ill", "ill", "well", "well"]
    assert manifest.roles.group is None


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_in_a_folder_does_not_stop_anything(tree):
    os.mkfifo(tree / "pipe")
    assert len(medprobe.read_manifest(tree)) == 16


def test_the_next_identifier_is_tried_where_the_finest_is_none_of_ours(tree, tmp_path):
    rows = [(f"visit {p}", f"{CANARY}-{p}", p) for p in range(4)]
    pd.DataFrame(rows, columns=["study", "patient", "grade"]).to_csv(tmp_path / "labels.csv", index=False)
    samples = medprobe.read_manifest(tree, labels=tmp_path / "labels.csv").samples
    assert samples.groupby("patient")["grade"].nunique().tolist() == [1] * 4
    assert samples["grade"].nunique() == 4
    assert CANARY not in samples.to_csv()


def test_attributes_become_columns_and_reports_are_left_out(tree):
    write(tree / "more.dcm", "4", "40", 0, PatientAge="045Y", KVP="120")
    from pydicom.dataset import Dataset

    report = Dataset()
    report.Modality, report.SOPClassUID = "SR", "1.2.840.10008.5.1.4.1.1.88.11"
    (tree / "report.dcm").write_bytes(encoded(report))
    manifest = medprobe.read_manifest(tree, tags=["PatientAge", "KVP"])
    assert len(manifest) == 17
    assert sorted(manifest.samples["PatientAge"].unique()) == ["", "045Y"]
    assert manifest.samples["KVP"].dropna().tolist() == [120]
    assert any("1 DICOM files hold no image" in note for note in manifest.notes)
    with pytest.raises(UsageError, match="NoSuchTag"):
        medprobe.read_manifest(tree, tags=["NoSuchTag"])


@pytest.mark.parametrize(
    ("choice", "numbers"), [("first", [0]), ("middle", [3]), ("all", range(6)), ("every:4", [0, 4])]
)
def test_frames_are_samples_of_their_own(tmp_path, choice, numbers):
    write(tmp_path / "t" / "many.dcm", "0", "90", 0, frames=6)
    write(tmp_path / "t" / "one.dcm", "1", "10", 0)
    (tmp_path / "t" / "bad.png").write_bytes(b"no image")
    store = embedded(tmp_path / "t", tmp_path / "out", frames=choice, keep_ids=True, max_failures=1)
    assert store.samples["id"].tolist() == [*(f"many.dcm#{i}" for i in numbers), "one.dcm"]
    for row, number in enumerate(numbers):
        whole = read_dicom(str(tmp_path / "t" / "many.dcm"), frame=number)
        (direct,) = medprobe.embed(
            _picture(whole, tmp_path / f"p{number}"),
            "baseline/pixels",
            tmp_path / f"o{number}",
            workers=0,
            image_size=16,
        )
        np.testing.assert_array_equal(medprobe.open_store(direct.path).features()[0], store.features()[row])
    assert len(np.unique(store.image_digests(), axis=0)) == len(numbers) + 1
    # Run again: frames are told apart and nothing is embedded anew.
    again = medprobe.embed(
        tmp_path / "t", "baseline/pixels", tmp_path / "out", workers=0, image_size=16, frames=choice, keep_ids=True,
        check_digest=True,
    )  # fmt: skip
    assert again[0].embedded == 0


def _picture(pixels: np.ndarray, folder: Path) -> Path:
    folder.mkdir()
    Image.fromarray(pixels).save(folder / "p.png")
    return folder


def test_pages_of_a_tiff_are_frames_too(tmp_path):
    pages = [Image.fromarray(RNG.integers(0, 255, (9, 9), dtype=np.uint8)) for _ in range(3)]
    (tmp_path / "t").mkdir()
    pages[0].save(tmp_path / "t" / "pages.tif", save_all=True, append_images=pages[1:])
    store = embedded(tmp_path / "t", tmp_path / "out", frames="all")
    assert store.samples["id"].tolist() == ["pages.tif#0", "pages.tif#1", "pages.tif#2"]
    refused = medprobe.check(tmp_path / "t", workers=0)
    assert list(refused.unreadable.values()) == ["several frames (3): --frames first, middle, all or every:N chooses"]


def test_a_window_is_applied_recorded_and_repeated_by_predict(tree, tmp_path):
    labels = tmp_path / "labels.csv"
    pd.DataFrame({"PatientID": [f"{CANARY}-{p}" for p in range(4)], "ill": [0, 1, 0, 1]}).to_csv(labels, index=False)
    options = {"labels": labels, "label_cols": ["ill"]}
    lung, plain = (embedded(tree, tmp_path / w, window=w, **options) for w in ("lung", "file"))
    assert lung.plan.encoder["preprocess"]["window"] == "-600,1500"
    assert lung.plan.fingerprint != plain.plan.fingerprint
    path = next(tree.rglob("*.dcm"))
    name = own_pseudonyms().of("path", path.relative_to(tree).as_posix())
    pixels = read_dicom(str(path), window=parse_window("lung"))
    direct = embedded(_picture(pixels, tmp_path / "picture"), tmp_path / "d")
    row = lung.samples["id"].tolist().index(name)
    np.testing.assert_array_equal(direct.features()[0], lung.features()[row])
    medprobe.probe(lung, probes=["ridge"], n_folds=2, n_resamples=20, save_model=tmp_path / "probes")
    (probe,) = (tmp_path / "probes").iterdir()
    pd.testing.assert_frame_equal(medprobe.predict(probe, lung), medprobe.predict(probe, tree))
    with pytest.raises(DataError, match="preprocess"):
        embedded(tree, tmp_path / "lung", window="bone", **options)


def test_check_names_what_is_wrong(tree, tmp_path):
    files = sorted(path for path in tree.rglob("*") if path.is_file() and path.suffix != ".txt")
    copy = files[0].with_name("copy.dcm")
    copy.write_bytes(files[0].read_bytes())
    (tree / "torn.dcm").write_bytes(files[1].read_bytes()[:600])
    write(tree / "burned.dcm", "5", "50", 0, BurnedInAnnotation="YES", PatientIdentityRemoved="NO")
    table = tmp_path / "table.csv"
    found = medprobe.check(tree, workers=0, out=table)
    assert (found.images, found.n_groups, found.groups) == (19, 5, "patient")
    assert len(found.unreadable) == 1
    (twice,) = found.duplicates
    written = pd.read_csv(table)
    assert {Path(p).name for p in written.loc[written["id"].isin(twice), "path"]} == {files[0].name, "copy.dcm"}
    assert found.sizes == {"20x24": 18}
    assert found.described["BurnedInAnnotation"]["YES"] == 1
    assert any(line.startswith("! BurnedInAnnotation") for line in found.lines())
    said = CliRunner().invoke(app, ["check", str(tree), "--json", "--workers", "0"])
    assert said.exit_code == 3
    assert json.loads(said.stdout)["images"] == 19


def test_check_counts_classes_and_names_leaks(tmp_path):
    for i in range(8):
        pixels = RNG.integers(0, 255, (8, 8 + i % 2), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    (tmp_path / "7.png").write_bytes((tmp_path / "0.png").read_bytes())
    rows = [(f"{i}.png", f"p{i // 2}", "abc"[i % 3], "train" if i < 5 else "test") for i in range(8)]
    pd.DataFrame(rows, columns=["path", "patient", "label", "split"]).to_csv(tmp_path / "m.csv", index=False)
    found = medprobe.check(tmp_path / "m.csv", workers=0)
    assert found.labels == {"label": {"a": 3, "b": 3, "c": 2}}
    assert found.straddling == ["p2"]
    assert found.shared == ["0.png"]
    assert found.splits == {"train": {"images": 5, "of patient": 3}, "test": {"images": 3, "of patient": 2}}
    assert found.sizes == {"8x8": 5, "8x9": 3}
    assert not found.unreadable
    said = CliRunner().invoke(app, ["check", str(tmp_path / "m.csv"), "--workers", "0"])
    assert said.exit_code == 0
    assert "on several sides of the split (first: p2)" in said.stdout
    alone = medprobe.check(tmp_path / "m.csv", workers=0, group_col="none")
    assert any("no column of patients is known" in line for line in alone.lines())
