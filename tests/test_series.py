"""DICOM series as volumes: in the order of their places, by files along their own axis, assembled along another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from dicom_helpers import dataset, encoded
from volume_helpers import SHAPE, phantom, save

import medprobe
from medprobe.errors import UsageError
from medprobe.images.decode import decode, opened
from medprobe.images.geometry import Geometry
from medprobe.images.window import FILE, parse_window
from medprobe.pseudonyms import own_pseudonyms

CANARY = "CANARYJANE"
AXIAL, CORONAL, SAGITTAL = [1, 0, 0, 0, 1, 0], [1, 0, 0, 0, 0, -1], [0, 1, 0, 0, 0, -1]
ALL = parse_window("p0-100")


def write_slice(path: Path, pixels: np.ndarray, place: list[float], series: str = "1", **attributes: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    ds = dataset(pixels)
    ds.PatientName, ds.PatientID = CANARY, f"{CANARY}{attributes.pop('patient', '')}"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2.3", f"1.2.3.{series}"
    ds.SOPInstanceUID, ds.Modality = f"1.2.3.{series}.{len(list(path.parent.glob('*')))}", "CT"
    ds.ImagePositionPatient, ds.ImageOrientationPatient, ds.PixelSpacing = place, AXIAL, [1, 1]
    for name, value in attributes.items():
        if value is None:
            delattr(ds, name)
        else:
            setattr(ds, name, value)
    path.write_bytes(encoded(ds))


def write_series(root: Path, ras: np.ndarray, series: str = "1", thickness: float = 1.0, **attributes: object) -> Path:
    """Write RAS+ voxels as axial slices (rows towards the back, columns towards the left), files in another order."""
    n = ras.shape[2]
    for name, k in enumerate(np.random.default_rng(5).permutation(n)):
        pixels = np.ascontiguousarray(ras[::-1, ::-1, k].T)
        instance = {"InstanceNumber": int(n - k)}  # counted from the head, as scanners may
        write_slice(root / f"{name:03d}", pixels, [-3.0, -5.0, k * thickness], series, **{**instance, **attributes})
    return root


def images_of(manifest: medprobe.manifest.Manifest, window=ALL) -> list[np.ndarray]:
    return [opened(manifest.images.payload(row))[0].shown(window)[0] for row in range(len(manifest))]


def drawn(manifest: medprobe.manifest.Manifest, shape: tuple[int, int], window=ALL) -> np.ndarray:
    geometry = Geometry(shape, None, crop="none", window=window)
    found = decode([manifest.images.payload(row) for row in range(len(manifest))], [geometry])
    assert found.reasons == []
    return found.pixels[0][..., 0]


def test_slices_stand_in_the_order_of_their_places_whatever_the_files_are_called(tmp_path):
    write_series(tmp_path / "in", phantom())
    manifest = medprobe.read_manifest(tmp_path / "in", volumes="series")
    names = own_pseudonyms()
    volume = names.of("series", "1.2.3.1")
    assert list(manifest.samples["id"]) == [f"{volume}#{k}" for k in range(SHAPE[2])]
    assert (manifest.samples["series"] == volume).all()
    assert (manifest.roles.bag, manifest.roles.group) == ("volume", "patient")
    assert CANARY not in manifest.samples.to_csv() + str(manifest.notes)
    pixels = drawn(manifest, (8, 6))
    assert (np.diff(pixels[:, 0, 0].astype(int)) > 0).all()  # from the feet to the head
    few = medprobe.read_manifest(tmp_path / "in", volumes="series", slices="2", keep_ids=True)
    assert list(few.samples["id"]) == ["1.2.3.1#2", "1.2.3.1#7"]
    np.testing.assert_array_equal(drawn(few, (8, 6)), pixels[[2, 7]])


@pytest.mark.parametrize("axis", ["axial", "coronal", "sagittal"])
def test_a_series_and_a_nifti_file_of_one_volume_give_the_same_slices(tmp_path, axis):
    thick = np.diag([1.0, 1, 2, 1])
    write_series(tmp_path / "dicom", phantom(), thickness=2.0)
    save(tmp_path / "nifti" / "a.nii.gz", phantom(), thick)
    series = medprobe.read_manifest(tmp_path / "dicom", volumes="series", slice_axis=axis)
    nifti = medprobe.read_manifest(tmp_path / "nifti", slice_axis=axis)
    shape = {"axial": (8, 6), "coronal": (20, 6), "sagittal": (20, 8)}[axis]
    assert len(series) == len(nifti) == {"axial": 10, "coronal": 8, "sagittal": 6}[axis]
    for window in (ALL, parse_window("p5-95"), parse_window("400,600")):
        np.testing.assert_array_equal(drawn(series, shape, window), drawn(nifti, shape, window))


@pytest.mark.parametrize(("plane", "name"), [(CORONAL, "coronal"), (SAGITTAL, "sagittal")])
def test_a_plane_is_recognised_and_rises_as_that_of_nifti(tmp_path, plane, name):
    for k in range(4):  # coronal: from front to back; sagittal: from right to left, in DICOM's directions
        place = [0.0, 3.0 * k, 0.0] if name == "coronal" else [3.0 * k, 0.0, 0.0]
        write_slice(tmp_path / f"{k}", np.full((6, 5), k, np.int16), place, ImageOrientationPatient=plane)
    manifest = medprobe.read_manifest(tmp_path, volumes="series", slice_axis=name)
    values = drawn(manifest, (6, 5), parse_window("1.5,3"))[:, 0, 0]
    assert list(values) == [255, 170, 85, 0]  # towards the front, and towards the right
    axial = medprobe.read_manifest(tmp_path, volumes="series", slice_axis="axial")
    assert len(axial) == 6


def test_a_files_own_window_is_kept_and_padding_does_not_count(tmp_path):
    write_series(tmp_path / "in", phantom(), WindowCenter=500, WindowWidth=1000, PixelPaddingValue=0)
    own = medprobe.read_manifest(tmp_path / "in", volumes="series")
    across = medprobe.read_manifest(tmp_path / "in", volumes="series", slice_axis="coronal")
    ras = phantom().astype(float)
    shown = np.rint(255 * np.clip((ras - 499.5) / 999 + 0.5, 0, 1))
    np.testing.assert_allclose(drawn(own, (8, 6), FILE)[4], shown[::-1, ::-1, 4].T, atol=1)
    np.testing.assert_allclose(drawn(across, (10, 6), FILE)[3], shown[::-1, 3, ::-1].T, atol=1)
    low = drawn(across, (10, 6), ALL)
    np.testing.assert_array_equal(low[0, -1, -1], 0)  # the padded voxel
    ends = np.rint(255 * (ras[::-1, 3, ::-1].T - 1) / (ras.max() - 1))  # from the smallest value that is not padding
    np.testing.assert_array_equal(low[3], ends)


def test_what_is_unusual_about_a_series_is_said(tmp_path):
    write_series(tmp_path / "good", phantom(), "1")
    write_series(tmp_path / "double", phantom(), "2")
    write_slice(tmp_path / "double" / "again", np.zeros((8, 6), np.int16), [-3, -5, 4.0], "2", InstanceNumber=99)
    write_series(tmp_path / "gap", phantom(), "3")
    (tmp_path / "gap" / "004").unlink()
    (tmp_path / "gap" / "002").unlink()
    write_series(tmp_path / "unplaced", phantom(), "4", ImagePositionPatient=None)
    for i, plane in enumerate([AXIAL, CORONAL, SAGITTAL]):
        write_slice(
            tmp_path / "scout" / f"{i}", np.zeros((8, 6), np.int16), [0, 0, 0], "5", ImageOrientationPatient=plane
        )
    write_series(tmp_path / "sizes", phantom(), "6")
    write_slice(tmp_path / "sizes" / "large", np.zeros((16, 12), np.int16), [-3, -5, 77.0], "6")
    manifest = medprobe.read_manifest(tmp_path, volumes="series", keep_ids=True)
    said = " | ".join(manifest.notes)
    for remark in (
        "6 series as volumes",
        "1 series: several pictures at one place",
        "2 series: gaps between slices",
        "1 series: places not stated, so in the order of instances",
        "1 series: several orientations, so in the order of instances",
        "1 series: pictures of several sizes",
    ):
        assert remark in said
    counts = manifest.samples["volume"].value_counts()
    assert [counts[f"1.2.3.{i}"] for i in range(1, 7)] == [10, 11, 8, 10, 3, 11]
    unplaced = manifest.samples["volume"] == "1.2.3.4"
    assert len(set(np.array(manifest.images.paths)[unplaced])) == 10
    across = medprobe.check(tmp_path, volumes="series", keep_ids=True, slice_axis="coronal", workers=0)
    reason = "a series that cannot be assembled: places missing, double or askew, or several sizes"
    assert set(across.unreadable) == {f"1.2.3.{i}#0" for i in (2, 4, 5, 6)}
    assert set(across.unreadable.values()) == {reason}
    assert (across.volumes, across.images) == (6, 8 + 8 + 4)


def test_files_of_no_series_are_volumes_by_themselves_and_damage_is_accounted_for(tmp_path):
    write_series(tmp_path, phantom())
    write_slice(tmp_path / "alone", np.arange(48, dtype=np.int16).reshape(8, 6), [0, 0, 0], SeriesInstanceUID=None)
    (tmp_path / "torn").write_bytes((tmp_path / "003").read_bytes()[:600])
    found = medprobe.check(tmp_path, volumes="series", keep_ids=True, workers=0)
    assert found.volumes in {2, 3}  # a torn file may have told its series
    assert len(found.unreadable) == 1
    assert any(
        name.startswith("alone#0")
        for name in medprobe.read_manifest(tmp_path, volumes="series", keep_ids=True).samples["id"]
    )


def test_volumes_go_with_a_folder_of_series(tmp_path):
    save(tmp_path / "nifti" / "a.nii", phantom())
    with pytest.raises(UsageError, match="holds NIfTI files"):
        medprobe.read_manifest(tmp_path / "nifti", volumes="series")
    (tmp_path / "t.csv").write_text("path\na.dcm\n")
    with pytest.raises(UsageError, match="--volumes: goes with a folder"):
        medprobe.read_manifest(tmp_path / "t.csv", volumes="series")
