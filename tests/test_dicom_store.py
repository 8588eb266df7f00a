"""From DICOM files to a store: what is read, what is refused, and what stays out."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

import medprobe
from medprobe.errors import UsageError
from medprobe.images.dicom import read_dicom
from medprobe.images.geometry import Geometry
from medprobe.images.raster import ImageError, load_rgb

pydicom = pytest.importorskip("pydicom", reason="needs pydicom: pip install 'medprobe[dicom]'")
pytest.importorskip("imagecodecs")

FILES = Path(pydicom.__file__).parent / "data" / "test_files"
CANARY = "CANARY^NOBODY"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for label, names in (("ct", ["CT_small.dcm", "JPEG2000.dcm"]), ("mr", ["MR_small.dcm", "MR_small_RLE.dcm"])):
        (tmp_path / "images" / label).mkdir(parents=True)
        for name in names:
            header = pydicom.dcmread(FILES / name)
            header.PatientName = header.PatientID = CANARY
            header.save_as(tmp_path / "images" / label / name)
    film = pydicom.dcmread(FILES / "MR_small.dcm")
    film.NumberOfFrames, film.PixelData = 10, film.PixelData * 10
    film.save_as(tmp_path / "images" / "mr" / "ten_frames.dcm")
    return tmp_path / "images"


def test_a_folder_of_dicom_files_is_embedded(folder, tmp_path):
    (report,) = medprobe.embed(folder, "baseline/pixels", tmp_path / "out", workers=0, precision="fp32", keep_ids=True)
    store = medprobe.open_store(report.path)
    assert sorted(store.samples["id"]) == [
        "ct/CT_small.dcm", "ct/JPEG2000.dcm", "mr/MR_small.dcm", "mr/MR_small_RLE.dcm"
    ]  # fmt: skip
    (failure,) = store.failures.itertuples()
    assert failure.id == "mr/ten_frames.dcm"
    assert failure.reason.startswith("several frames (10)")
    rows = dict(zip(store.samples["id"], store.features(), strict=True))
    np.testing.assert_array_equal(rows["mr/MR_small.dcm"], rows["mr/MR_small_RLE.dcm"])  # the same pixels
    assert "window" in store.plan.encoder["preprocess"]["dicom"]
    assert store.plan.encoder["preprocess"]["window"] == "file"
    assert store.appearance()[:, :2].min() > 0


def test_its_pixels_are_those_of_its_own_window():
    data = (FILES / "CT_small.dcm").read_bytes()
    whole = read_dicom(data)
    (ours,) = load_rgb(data, [Geometry(whole.shape[:2], None, crop="none")])
    np.testing.assert_array_equal(ours, whole)


def test_damage_is_a_reason_and_a_missing_package_an_error(monkeypatch):
    data = (FILES / "CT_small.dcm").read_bytes()
    with pytest.raises(ImageError):
        load_rgb(data[:2000], [Geometry((8, 8), 8)])
    for name in [name for name in sys.modules if name.split(".")[0] == "pydicom"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match=r"medprobe\[dicom\]"):
        load_rgb(data, [Geometry((8, 8), 8)])


@pytest.mark.parametrize("package", ["pydicom", "pydicom-data"])
def test_every_file_of_a_collection_is_read_or_refused_with_a_reason(package, tmp_path):
    root = FILES
    if package == "pydicom-data":
        root = Path(pytest.importorskip("data_store", reason="needs pydicom-data").__file__).parent
    options = {"frames": "first", "keep_ids": True, "workers": 0}
    found = medprobe.check(root, **options)
    (report,) = medprobe.embed(root, "baseline/pixels", tmp_path, max_failures=1000, **options)
    store = medprobe.open_store(report.path)
    seen = [*store.samples["id"], *store.failures["id"]]
    assert len(seen) == len(set(seen)) == found.images
    assert np.isfinite(store.features()).all()
    assert dict(zip(store.failures["id"], store.failures["reason"], strict=True)) == found.unreadable
    assert all(reason and len(reason) < 100 for reason in found.unreadable.values())
    files = {path.relative_to(root).as_posix(): path for path in root.rglob("*") if path.is_file()}
    dicom = {n for n, path in files.items() if path.suffix == ".dcm" or path.read_bytes()[128:132] == b"DICM"}
    left_out = dicom - {name.split("#")[0] for name in seen}
    for name in left_out:
        header = pydicom.dcmread(files[name], force=True)
        assert not {"PixelData", "FloatPixelData", "DoubleFloatPixelData"} & {element.keyword for element in header}
    assert not left_out or f"{len(left_out)} DICOM files hold no image" in " ".join(found.notes)
    assert len(store.samples) > 60
