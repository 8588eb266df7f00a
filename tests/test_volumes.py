"""NIfTI files to slices: upright whatever the order of their axes, one window a volume, damage and bombs refused."""

from __future__ import annotations

import gzip
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from volume_helpers import SHAPE, nibabel, phantom, save, scaled, stored_ways

import medprobe
from medprobe.errors import DataError, UsageError
from medprobe.images import volume
from medprobe.images.decode import chunks, decode
from medprobe.images.frames import parse_slices
from medprobe.images.geometry import Geometry
from medprobe.images.nifti import MAX_VOLUME_BYTES
from medprobe.images.raster import ImageError
from medprobe.images.sources import ArrayVolume, FileImages, Slice, Volume
from medprobe.images.volume import closest_axes, open_slice
from medprobe.images.window import FILE, Window, parse_window

ALL = parse_window("p0-100")


def shown(path: Path, index: int, axis: str = "axial", window: Window = ALL, point: int | None = None) -> np.ndarray:
    pixels, _ = open_slice(Slice(Volume((str(path),), axis, point), index)).shown(window)
    return pixels


def reason(path: Path, index: int = 0, axis: str = "axial", point: int | None = None) -> str:
    with pytest.raises(ImageError) as caught:
        shown(path, index, axis, point=point)
    assert str(path) not in caught.value.reason
    return caught.value.reason


def grey(values: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.rint(255 * np.clip((values.astype(float) - low) / (high - low), 0, 1)).astype(np.uint8)


# ---- what a user writes


def test_slices_are_chosen():
    assert [list(parse_slices(t).of(10)) for t in ("every:4", "middle", "2", "5", "20")] == [
        [0, 4, 8],
        [5],
        [2, 7],
        [1, 3, 5, 7, 9],
        list(range(10)),
    ]
    assert [str(parse_slices(t)) for t in ("ALL", "every:3", " 32 ")] == ["all", "every:3", "32"]
    for n in range(1, 40):
        for wanted in range(1, 40):
            chosen = list(parse_slices(str(wanted)).of(n))
            assert len(chosen) == min(n, wanted)
            assert chosen == sorted(set(chosen))
            assert chosen[0] == n - 1 - chosen[-1] or abs(chosen[0] - (n - 1 - chosen[-1])) <= 1  # in the middle


@pytest.mark.parametrize("text", ["", "0", "-1", "every:0", "some", "1.5"])
def test_other_slices_are_refused(text):
    with pytest.raises(UsageError, match="slices"):
        parse_slices(text)


# ---- orientation


@pytest.mark.parametrize("axis", ["axial", "coronal", "sagittal"])
def test_a_phantom_is_upright_whichever_of_the_48_ways_it_is_stored_in(tmp_path, axis):
    ras = phantom()
    # By hand: the patient's right on the left, the front or the head at the top; in sagittal slices the front on the left.
    wanted = {
        "axial": [ras[::-1, ::-1, k].T for k in range(SHAPE[2])],
        "coronal": [ras[::-1, j, ::-1].T for j in range(SHAPE[1])],
        "sagittal": [ras[i, ::-1, ::-1].T for i in range(SHAPE[0])],
    }[axis]
    for way, (stored, affine) in enumerate(stored_ways(ras)):
        file = save(tmp_path / f"{way}.nii", stored, affine)
        for index in (0, 2, len(wanted) - 1):
            np.testing.assert_array_equal(
                shown(file, index, axis), grey(wanted[index], ras.min(), ras.max()), f"{affine}"
            )
        assert reason(file, len(wanted), axis) == "no such slice"
    assert way == 47


def test_native_slices_are_those_of_the_third_axis(tmp_path):
    names = {10: "axial", 8: "coronal", 6: "sagittal"}
    for way, (stored, affine) in enumerate(stored_ways(phantom())):
        file = save(tmp_path / f"{way}.nii", stored, affine)
        np.testing.assert_array_equal(shown(file, 1, "native"), shown(file, 1, names[stored.shape[2]]))


def test_the_closest_axes_are_those_of_nibabel_however_a_volume_is_turned():
    random = np.random.default_rng(0)
    for _ in range(300):
        turned, _ = np.linalg.qr(random.normal(size=(3, 3)))
        affine = np.eye(4)
        affine[:3, :3] = turned * random.uniform(0.3, 6, 3)
        axes, signs = closest_axes(affine)
        theirs = nibabel.orientations.io_orientation(affine)
        cosines = np.sort(np.abs(turned), axis=0)
        if (cosines[2] - cosines[1]).min() < 0.2:  # nearly at 45 degrees: either answer is one
            continue
        assert [(axes.index(i), signs[axes.index(i)]) for i in range(3)] == [(int(a), int(s)) for a, s in theirs]


@pytest.mark.parametrize("bad", [np.zeros((4, 4)), np.diag([1.0, 0, 1, 1]), np.full((4, 4), np.nan), np.ones((4, 4))])
def test_an_affine_that_points_nowhere_is_refused(bad):
    with pytest.raises(ImageError, match="no usable affine"):
        closest_axes(bad)


def test_thick_slices_are_made_square(tmp_path):
    file = save(tmp_path / "ct.nii.gz", phantom((20, 30, 6)), np.diag([0.5, 0.5, 5, 1]))
    assert shown(file, 0, "axial").shape == (30, 20)
    assert shown(file, 0, "coronal").shape == (60, 20)
    assert shown(file, 0, "sagittal").shape == (60, 30)
    thread = save(tmp_path / "thread.nii", phantom((20, 30, 6)), np.diag([1e-3, 1, 1, 1]))
    assert reason(thread) == "voxels over 100 times as long as wide"
    assert shown(thread, 0, "sagittal").shape == (6, 30)


# ---- grey values


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", ">i2", "uint16", "int32", "float32", ">f4", "float64"])
@pytest.mark.parametrize("slope", [None, (2.0, -1024.0), (-1.0, 5.0)])
def test_a_ramp_stays_monotone_and_percentiles_are_numpys(tmp_path, dtype, slope):
    kind = np.dtype(dtype)
    low, high = (
        (-100, 100) if kind.itemsize == 1 and kind.kind == "i" else (0, 200) if kind.itemsize == 1 else (0, 3000)
    )
    values = np.linspace(low, high, 16 * 12 * 5).reshape(16, 12, 5).astype(kind)
    path = scaled(save(tmp_path / "ramp.nii", values), *(slope or (np.nan, np.nan)))
    units = np.asarray(nibabel.load(path).dataobj, dtype=np.float64)
    picked = [shown(path, k, window=parse_window("p5-95")) for k in range(5)]
    ends = np.percentile(units, [5, 95])
    for k, pixels in enumerate(picked):
        exact = 255 * np.clip((units[::-1, ::-1, k].T - ends[0]) / (ends[1] - ends[0]), 0, 1)
        assert np.abs(pixels - exact).max() <= 0.5 + 1e-3
    order = np.argsort(units, axis=None)
    levels = np.stack([p[::-1, ::-1].T for p in picked], axis=2).reshape(-1)[order].astype(int)
    assert (np.diff(levels) >= 0).all()
    assert len(np.unique(levels)) > 100


def test_the_default_is_percentiles_of_the_volume_and_eight_bits_stay_as_they_are(tmp_path):
    values = np.random.default_rng(0).normal(100, 30, (9, 8, 7)).astype(np.int16)
    file = save(tmp_path / "ct.nii.gz", values)
    low, high = np.percentile(values, [1, 99])
    np.testing.assert_array_equal(shown(file, 3, window=FILE), grey(values[::-1, ::-1, 3].T, low, high))
    eight = save(tmp_path / "eight.nii", values.clip(0, 255).astype(np.uint8))
    np.testing.assert_array_equal(shown(eight, 3, window=FILE), values.clip(0, 255).astype(np.uint8)[::-1, ::-1, 3].T)


def test_a_named_window_is_in_hounsfield_units(tmp_path):
    stored = np.arange(9 * 8 * 7).reshape(9, 8, 7).astype(np.int16)
    file = scaled(save(tmp_path / "ct.nii", stored), 4, -1000)
    np.testing.assert_array_equal(
        shown(file, 6, window=parse_window("lung")), grey(stored[::-1, ::-1, 6].T * 4.0 - 1000, -1350, 150)
    )


def test_values_that_are_not_finite_are_black_and_do_not_count(tmp_path):
    values = np.random.default_rng(0).uniform(1, 2, (6, 5, 4)).astype(np.float32)
    values[0], values[:, :, 2] = np.nan, np.inf
    file = save(tmp_path / "masked.nii", values)
    low, high = np.percentile(values[np.isfinite(values)], [1, 99])
    pixels = shown(file, 0, window=FILE)
    expected = values[::-1, ::-1, 0].T
    np.testing.assert_array_equal(pixels[:, :-1], grey(expected[:, :-1], low, high))
    assert (pixels[:, -1] == 0).all()  # the patient's left is NaN
    assert (shown(file, 2, window=FILE) == 0).all()
    assert reason(save(tmp_path / "none.nii", np.full((3, 3, 3), np.nan, np.float32))) == "voxels that are not finite"
    assert (shown(save(tmp_path / "flat.nii", np.full((3, 3, 3), 7, np.int16)), 1) == 0).all()


def test_sixteen_bit_arrays_are_shown_by_their_volume():
    values = np.random.default_rng(0).integers(0, 4000, (5, 9, 7)).astype(np.uint16)
    volume = ArrayVolume(values)
    pixels, _ = open_slice(Slice(volume, 2)).shown(FILE)
    np.testing.assert_array_equal(pixels, grey(values[2], *np.percentile(values, [1, 99])))
    assert (open_slice(Slice(volume, 2)).digest() != open_slice(Slice(volume, 3)).digest()).any()


# ---- several points in time


def test_of_four_dimensions_a_point_in_time_is_chosen(tmp_path):
    values = np.stack([phantom() + 1000 * t for t in range(3)], axis=3).astype(np.int16)
    file = save(tmp_path / "fmri.nii.gz", values)
    assert reason(file) == "3 points in time: --frames first, middle, all or every:N chooses"
    assert reason(file, point=3) == "no such point in time"
    np.testing.assert_array_equal(
        shown(file, 4, point=2, window=parse_window("3000,4000")), grey(values[::-1, ::-1, 4, 2].T, 1000, 5000)
    )
    save(tmp_path / "t1.nii.gz", phantom()[..., None])  # a fourth axis of one is none
    manifest = medprobe.read_manifest(tmp_path, frames="every:2", slice_axis="axial", slices="2")
    assert list(manifest.samples["id"]) == [
        *("fmri.nii.gz#0#2", "fmri.nii.gz#0#7", "fmri.nii.gz#2#2", "fmri.nii.gz#2#7", "t1.nii.gz#2", "t1.nii.gz#7")
    ]
    assert list(manifest.samples["file"]) == ["fmri.nii.gz"] * 4 + ["t1.nii.gz"] * 2
    assert manifest.roles.group == "file"  # points in time of one patient stay together
    without = medprobe.read_manifest(tmp_path)
    assert list(without.samples["volume"]) == ["fmri.nii.gz"] + ["t1.nii.gz"] * 10
    found = medprobe.check(tmp_path, workers=0)
    assert list(found.unreadable.items()) == [("fmri.nii.gz#0", reason(file))]
    vectors = save(tmp_path / "five" / "vectors.nii", np.zeros((3, 3, 3, 1, 3), np.float32))
    assert reason(vectors) == "a shape that is no volume's"


# ---- what is refused


def test_damaged_files_are_refused_with_a_reason(tmp_path):
    good = save(tmp_path / "good.nii", phantom())
    data = good.read_bytes()
    packed = gzip.compress(data)

    def written(name: str, content: bytes) -> Path:
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    assert reason(tmp_path / "none.nii") == "missing"
    assert reason(written("empty.nii", b"")) == "empty file"
    assert reason(written("text.nii", b"no volume at all" * 50)) == "no NIfTI file"
    assert reason(written("torn.nii", data[: len(data) // 2])) == "truncated"
    assert reason(written("header.nii", data[:300])) == "damaged"
    assert reason(written("torn.nii.gz", packed[: len(packed) // 2])) == "truncated"
    flipped = bytearray(packed)
    flipped[-6] ^= 1  # of the checksum
    assert reason(written("flipped.nii.gz", bytes(flipped))) == "damaged"
    assert reason(written("pair.nii", data[:344] + b"ni1\0" + data[348:])).startswith("no single-file NIfTI")
    assert reason(written("offset.nii", data[:108] + struct.pack("<f", 1e9) + data[112:])) == "damaged"
    assert reason(written("nan.nii", data[:108] + struct.pack("<f", np.nan) + data[112:])) == "damaged"
    colour = np.zeros((3, 3, 3), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    assert reason(save(tmp_path / "rgb.nii", colour)).startswith("voxels of colour")
    assert reason(save(tmp_path / "complex.nii", np.zeros((3, 3, 3), np.complex64))).startswith("voxels of colour")
    np.testing.assert_array_equal(shown(written("good.nii.gz", packed), 3), shown(good, 3))


def test_what_a_header_says_of_its_shape_is_not_believed(tmp_path, monkeypatch):
    data = bytearray(save(tmp_path / "good.nii", phantom()).read_bytes())
    struct.pack_into("<8h", data, 40, 3, 512, 512, 512, 1, 1, 1, 1)
    (tmp_path / "lie.nii").write_bytes(data)
    (tmp_path / "lie.nii.gz").write_bytes(gzip.compress(bytes(data)))
    assert reason(tmp_path / "lie.nii") == reason(tmp_path / "lie.nii.gz") == "truncated"
    struct.pack_into("<8h", data, 40, 3, 50, 50, 50, 1, 1, 1, 1)
    (tmp_path / "possible.nii.gz").write_bytes(gzip.compress(bytes(data)))
    struct.pack_into("<8h", data, 40, 4, 1, 1, 5000, 30000, 1, 1, 1)
    (tmp_path / "points.nii").write_bytes(data)
    assert reason(tmp_path / "points.nii", point=0).startswith("too large: over 1,048,576 slices")
    struct.pack_into("<8h", data, 40, 3, 32767, 32767, 32767, 1, 1, 1, 1)
    (tmp_path / "huge.nii").write_bytes(data)
    assert reason(tmp_path / "huge.nii").startswith(f"too large: over {MAX_VOLUME_BYTES >> 20} MiB")
    struct.pack_into("<8h", data, 40, 3, 1, 1, 32767, 1, 1, 1, 1)
    (tmp_path / "long.nii").write_bytes(data)
    struct.pack_into("<8h", data, 40, 3, -5, 1, 7, 1, 1, 1, 1)
    (tmp_path / "negative.nii").write_bytes(data)
    assert reason(tmp_path / "negative.nii") == "a shape that is no volume's"
    manifest = medprobe.read_manifest(tmp_path, slice_axis="axial", frames="all")
    rows_of = manifest.samples["volume"].value_counts()
    lies = ("lie.nii", "lie.nii.gz", "huge.nii", "long.nii", "points.nii")
    assert set(rows_of[[*lies]]) == {1}  # no row for each slice that they claim
    # One that claims no more than a file can inflate to is read no further than it goes, and once for all of its rows.
    assert rows_of["possible.nii.gz"] == 50
    opened = []
    read = volume.read_voxels
    monkeypatch.setattr(volume, "read_voxels", lambda *a: opened.append(1) or read(*a))
    rows = np.flatnonzero(manifest.samples["volume"] == "possible.nii.gz")
    found = decode([manifest.images.payload(int(row)) for row in rows], [Geometry((8, 8), (8, 8))])
    assert set(found.reasons) == {"truncated"}
    assert len(opened) == 1


BOMB = """
import resource, sys
from medprobe.images.sources import Slice, Volume
from medprobe.images.volume import open_slice
from medprobe.images.window import FILE
from medprobe.images.nifti import read_header
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(open_slice(Slice(Volume((sys.argv[1],), "axial"), 0)).shown(FILE)[0].shape)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_a_bomb_is_not_inflated_beyond_what_its_header_asks_for(tmp_path):
    data = save(tmp_path / "small.nii", phantom()).read_bytes()
    with gzip.open(tmp_path / "bomb.nii.gz", "wb", compresslevel=1) as file:
        file.write(data)
        for _ in range(512):  # half a GiB of zeros behind the voxels
            file.write(b"\0" * (1 << 20))
    ran = subprocess.run(
        [sys.executable, "-c", BOMB, tmp_path / "bomb.nii.gz"], capture_output=True, text=True, check=True
    )
    shape, megabytes = ran.stdout.splitlines()
    assert shape == "(8, 6)"
    assert int(megabytes) < 200


def test_free_text_of_a_header_is_in_no_store_and_in_no_message(tmp_path, capfd):
    canary = b"CANARYJANE"
    for i in range(3):
        save(
            tmp_path / "in" / f"{i}.nii.gz",
            phantom() + i,
            descrip=canary,
            aux_file=canary,
            intent_name=canary,
            db_name=canary,
        )
    (report,) = medprobe.embed(tmp_path / "in", "baseline/pixels", tmp_path / "out", workers=0)
    for file in report.path.rglob("*"):
        assert not file.is_file() or canary not in file.read_bytes()
    assert canary.decode() not in "".join(capfd.readouterr())


# ---- manifests


def test_a_folder_of_volumes_has_a_row_a_slice(tmp_path):
    for name in ("benign/p1.nii.gz", "benign/p2.nii", "malignant/p3.nii.gz"):
        save(tmp_path / name, phantom())
    manifest = medprobe.read_manifest(tmp_path, slice_axis="coronal", slices="every:3")
    assert list(manifest.samples.columns) == ["id", "volume", "slice", "label"]
    assert list(manifest.samples["id"][:4]) == [*(f"benign/p1.nii.gz#{k}" for k in (0, 3, 6)), "benign/p2.nii#0"]
    assert list(manifest.samples["slice"]) == [0, 3, 6] * 3
    assert (manifest.samples.groupby("label")["volume"].nunique() == [2, 1]).all()
    assert (manifest.roles.bag, manifest.roles.group, manifest.slicing) == ("volume", None, "coronal; every:3")
    (tmp_path / "labels.csv").write_text("id,age,patient\np1,61,a\np2.nii,52,b\np3,47,a\n")
    by_stem = tmp_path / "stems.csv"
    by_stem.write_text("file,age,subject\np1,61,a\np2,52,b\np3,47,a\n")
    joined = medprobe.read_manifest(tmp_path / "benign", labels=by_stem)
    assert joined.samples.groupby("volume")["age"].first().to_dict() == {"p1.nii.gz": 61, "p2.nii": 52}


def test_a_table_of_volumes_keeps_its_columns(tmp_path):
    for i in range(3):
        save(tmp_path / "nii" / f"{i}.nii.gz", phantom())
    table = pd.DataFrame({"path": [f"nii/{i}.nii.gz" for i in range(3)], "id": ["a", "b", "c"], "patient": [7, 7, 8]})
    table.assign(grade=[1, 1, 2]).to_csv(tmp_path / "t.csv", index=False)
    manifest = medprobe.read_manifest(tmp_path / "t.csv", label_cols=["grade"], slices="1")
    assert list(manifest.samples["id"]) == ["a#5", "b#5", "c#5"]
    assert list(manifest.samples["patient"]) == ["7", "7", "8"]
    assert manifest.roles.group == "patient"
    table.assign(volume=1).to_csv(tmp_path / "taken.csv", index=False)
    with pytest.raises(DataError, match="column 'volume'"):
        medprobe.read_manifest(tmp_path / "taken.csv")
    table.assign(mask="m.png").to_csv(tmp_path / "masks.csv", index=False)
    with pytest.raises(UsageError, match="--mask-col"):
        medprobe.read_manifest(tmp_path / "masks.csv", mask_col="mask")


def test_options_that_do_not_fit_are_refused(tmp_path):
    save(tmp_path / "both" / "a.nii", phantom())
    Image.new("L", (8, 8)).save(tmp_path / "both" / "b.png")
    with pytest.raises(DataError, match="1 NIfTI volumes among 2 files"):
        medprobe.read_manifest(tmp_path / "both")
    Image.new("L", (8, 8)).save(tmp_path / "b.png")
    (tmp_path / "both" / "a.nii").unlink()
    with pytest.raises(UsageError, match="--slices: go with volumes"):
        medprobe.read_manifest(tmp_path / "both", slices="3")
    with pytest.raises(UsageError, match="--slice-axis diagonal"):
        medprobe.read_manifest(tmp_path / "both", slice_axis="diagonal")
    with pytest.raises(UsageError, match="--volumes nifti"):
        medprobe.read_manifest(tmp_path / "both", volumes="nifti")
    with pytest.raises(UsageError, match="--frames makes rows"):
        medprobe.read_manifest(tmp_path / "both", volumes="series", frames="all")


def test_files_that_do_not_say_how_they_lie_are_named(tmp_path):
    image = nibabel.Nifti1Image(phantom(), None)
    nibabel.save(image, tmp_path / "a.nii")
    save(tmp_path / "b.nii", *list(stored_ways(phantom()))[8])  # its third axis goes from back to front
    notes = " ".join(medprobe.read_manifest(tmp_path).notes)
    assert "1 files state no orientation" in notes
    assert "slices of different planes: 1 axial, 1 coronal" in notes


# ---- a volume is opened once


def test_slices_of_a_volume_stay_together_and_a_volume_is_read_once(tmp_path, monkeypatch):
    for i in range(3):
        save(tmp_path / f"{i}.nii.gz", phantom((4, 4, 40)))
    images = medprobe.read_manifest(tmp_path, slice_axis="axial").images
    small, large = Geometry((8, 8), (8, 8)), Geometry((1024, 1024), (1024, 1024))
    assert [len(rows) for rows in chunks(images, range(120), [small])] == [40, 40, 40]
    assert [len(rows) for rows in chunks(images, range(30, 120), [small])] == [50, 40]
    lengths = [len(rows) for rows in chunks(images, range(120), [large])]
    assert max(lengths) == 5  # of large pictures no more than fit
    assert sum(lengths) == 120
    files = FileImages([str(i) for i in range(60)])
    assert [len(rows) for rows in chunks(files, range(60), [small])] == [24, 24, 12]
    opened = []
    read = volume.read_voxels
    monkeypatch.setattr(volume, "read_voxels", lambda *a: opened.append(1) or read(*a))
    for rows in chunks(images, range(120), [small]):
        assert decode([images.payload(row) for row in rows], [small]).readable.all()
    assert len(opened) == 3


def test_a_volume_that_changes_is_opened_again(tmp_path):
    file = save(tmp_path / "a.nii", phantom())
    before = shown(file, 2)
    save(tmp_path / "a.nii", phantom()[:, :, ::-1].copy())
    assert (shown(file, 2) != before).any()
