"""Volumes from files to results: embedded slice by slice, resumed, probed by volume, predicted, on every kind of data."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_series import CANARY, write_series
from typer.testing import CliRunner
from volume_helpers import nibabel, save

import medprobe
from medprobe.cli import app
from medprobe.errors import DataError, UsageError
from medprobe.probe.bags import Bags
from medprobe.store import FeatureStore, open_store
from medprobe.testing import FakeEncoder

N, DEPTH = 24, 6


def volume(i: int, depth: int = DEPTH) -> np.ndarray:
    """Return int16 voxels (12, 12, depth) with a bright spot in one slice of every second volume."""
    rng = np.random.default_rng(i)
    voxels = rng.integers(0, 300, (12, 12, depth)).astype(np.int16)
    voxels[..., 0] = 0  # an empty slice, the same in all volumes
    if i % 2:
        voxels[3:9, 3:9, 1 + rng.integers(depth - 1)] += 900
    return voxels


@pytest.fixture(scope="module")
def nifti(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("nifti")
    for i in range(N):
        save(root / ("healthy", "sick")[i % 2] / f"{i:02d}.nii.gz", volume(i, DEPTH + i % 3), np.diag([1.0, 1, 3, 1]))
    return root


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> tuple[Path, Path]:
    """Return a tree of DICOM series, two of each patient, and a table of labels by series."""
    root = tmp_path_factory.mktemp("archive")
    for i in range(N):
        where = root / "tree" / f"{CANARY}{i // 4}" / f"s{i:02d}"
        write_series(where, volume(i), str(100 + i), thickness=3.0, patient=str(i // 4))
    table = pd.DataFrame(
        {"SeriesInstanceUID": [f"1.2.3.{100 + i}" for i in range(N)], "sick": [i % 2 for i in range(N)]}
    )
    table.to_csv(root / "labels.csv", index=False)
    return root / "tree", root / "labels.csv"


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def embedded(data: Path, out: Path, **options: object) -> FeatureStore:
    model = options.pop("model", None) or FakeEncoder(width=8, image_size=16)
    (report,) = medprobe.embed(data, model, out, **{"workers": 0, "block_rows": 20, "batch_size": 8, **options})
    return open_store(report.path)


def test_a_folder_of_nifti_files_from_check_to_prediction(nifti, tmp_path):
    found = json.loads(run("check", nifti, "--json", "--workers", 0, "--slice-axis", "axial"))
    assert (found["volumes"], found["images"], found["unreadable"], found["duplicates"]) == (N, N * 7, {}, [])
    stores = tmp_path / "stores"
    run(
        "embed",
        nifti,
        "-m",
        "baseline/pixels",
        "-o",
        stores,
        "--slice-axis",
        "axial",
        "--window",
        "0,2000",
        "--workers",
        2,
    )
    store = open_store(stores / "baseline--pixels.zarr")
    assert (len(store.samples), store.roles["bag"]) == (N * 7, "volume")
    assert store.plan.encoder["preprocess"]["slices"] == "axial; all"
    assert "was complete" in run(
        *(
            "embed",
            nifti,
            "-m",
            "baseline/pixels",
            "--workers",
            0,
            "-o",
            stores,
            "--slice-axis",
            "axial",
            "--window",
            "0,2000",
        )
    )
    asked = ("probe", store.path, "-t", "label", "-p", "ridge", "--pool", "max", "--bootstrap", 50, "--folds", 3)
    rows = json.loads(run(*asked, "--json", "--save-model", tmp_path / "m"))
    assert rows[0]["n_images"] == N
    assert rows[0]["view"].endswith("(max)")
    assert rows[0]["value"] > 0.9
    assert json.loads(run("info", store.path, "--json"))["volumes"] == N
    run("export", store.path, "-o", tmp_path / "pooled.npz", "--pool", "mean+max", "--view", "pixels")
    with np.load(tmp_path / "pooled.npz") as arrays:
        assert len(arrays["id"]) == N
        pooled = Bags(store, "volume", ("mean+max",)).features("pixels (mean+max)")
        np.testing.assert_array_equal(arrays["view:pixels (mean+max)"], pooled)
    run("export", store.path, "-o", tmp_path / "slices.npz")
    with np.load(tmp_path / "slices.npz") as arrays:
        assert len(arrays["id"]) == N * 7
    assert "168 of 168 images to embed" in run(
        "embed", nifti, "-m", "baseline/pixels", "-o", tmp_path / "no", "--dry-run"
    )
    (model,) = (tmp_path / "m").iterdir()
    of_store = pd.read_csv(pd.io.common.StringIO(run("predict", model, store.path)))
    of_data = pd.read_csv(pd.io.common.StringIO(run("predict", model, nifti)))
    assert list(of_data["id"]) == sorted(str(p.relative_to(nifti)) for p in nifti.rglob("*.nii.gz"))
    pd.testing.assert_frame_equal(of_data, of_store, atol=1e-6)
    assert (of_data["predicted"] == of_data["id"].str.split("/").str[0]).mean() > 0.9


def test_a_tree_of_dicom_series_from_check_to_prediction(archive, tmp_path):
    tree, labels = archive
    options = ("--volumes", "series", "--labels", labels, "--label-col", "sick", "--workers", 0)
    found = json.loads(run("check", tree, *options, "--json"))
    assert (found["volumes"], found["images"], found["n_groups"], found["unreadable"]) == (N, N * DEPTH, N // 4, {})
    assert CANARY not in json.dumps(found)
    slices = ("--window", "0,2000", "--slices", "4")
    run("embed", tree, "-m", "baseline/pixels", "-o", tmp_path / "stores", *options, *slices)
    store = open_store(tmp_path / "stores" / "baseline--pixels.zarr")
    assert len(store.samples) == N * 4
    for file in store.path.rglob("*"):
        assert not file.is_file() or CANARY.encode() not in file.read_bytes()
    asked = ("probe", store.path, "-t", "sick", "-p", "ridge", "--pool", "max", "--bootstrap", 50, "--folds", 3)
    rows = json.loads(run(*asked, "--json", "--save-model", tmp_path / "m"))
    assert (rows[0]["n_images"], rows[0]["n_groups"], rows[0]["group"]) == (N, N // 4, "patient")
    (model,) = (tmp_path / "m").iterdir()
    table = pd.read_csv(pd.io.common.StringIO(run("predict", model, tree, "--volumes", "series")))
    assert list(table["id"]) == list(dict.fromkeys(store.samples["volume"]))
    with pytest.raises(UsageError, match="--volumes series"):
        medprobe.predict(next((tmp_path / "m").iterdir()), tree)


def test_a_medmnist_file_of_volumes(tmp_path):
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    for side, n in (("train", 30), ("val", 10), ("test", 12)):
        y = np.arange(n) % 2
        voxels = rng.integers(0, 120, (n, 9, 9, 9)).astype(np.uint8)
        voxels[:, 0] = 0
        voxels[y == 1, 4, 2:7, 2:7] = 250
        arrays |= {f"{side}_images": voxels, f"{side}_labels": y[:, None].astype(np.uint8)}
    np.savez_compressed(tmp_path / "mnist3d.npz", **arrays)
    store = embedded(tmp_path / "mnist3d.npz", tmp_path / "out", model="baseline/pixels", workers=2)
    assert list(store.samples.columns) == ["id", "volume", "slice", "split", "label"]
    assert len(store.samples) == 52 * 9
    assert (
        len(np.unique(store.image_digests(), axis=0)) == 52 * 9
    )  # the empty slices of two volumes are not one picture
    (report,) = medprobe.embed(  # slices are what they would be as images
        medprobe.read_manifest(_as_images(tmp_path, arrays)), "baseline/pixels", tmp_path / "flat", workers=0
    )
    np.testing.assert_array_equal(store.features(), open_store(report.path).features())
    (row, *_) = medprobe.probe(store, probes=["ridge"], pool="max", n_resamples=20)
    assert (row.n_images, row.split, row.value) == (12, "split, by volume", 1.0)
    few = medprobe.read_manifest(tmp_path / "mnist3d.npz", slices="3")
    assert list(few.samples["id"][:4]) == [*(f"train_000000#{k}" for k in (1, 4, 7)), "train_000001#1"]
    with pytest.raises(UsageError, match="--slice-axis axial"):
        medprobe.read_manifest(tmp_path / "mnist3d.npz", slice_axis="axial")
    np.savez(tmp_path / "mixed.npz", train_images=arrays["train_images"], test_images=arrays["test_images"][:, 0])
    with pytest.raises(DataError, match="differ in their shape"):
        medprobe.read_manifest(tmp_path / "mixed.npz")


def _as_images(folder: Path, arrays: dict[str, np.ndarray]) -> Path:
    images = {name: values.reshape(-1, 9, 9) for name, values in arrays.items() if name.endswith("images")}
    np.savez(folder / "flat.npz", **images)
    return folder / "flat.npz"


def test_other_slices_are_other_features(nifti, tmp_path):
    store = embedded(nifti, tmp_path, slice_axis="axial")
    for other in (
        {"slice_axis": "coronal"},
        {"slice_axis": "axial", "slices": "3"},
        {"slice_axis": "axial", "window": "p5-95"},
    ):
        with pytest.raises(DataError, match=r"made from something else: .*(slices|window)"):
            embedded(nifti, tmp_path, **other)
    assert open_store(store.path).plan.fingerprint == store.plan.fingerprint


KILLED = """
import sys, time, medprobe
from medprobe.testing import FakeEncoder
class Slow(FakeEncoder):
    def forward_views(self, pixels):
        time.sleep(0.1)
        return super().forward_views(pixels)
medprobe.embed(sys.argv[1], Slow(width=8, image_size=16), sys.argv[2], workers=0, block_rows=20, batch_size=8)
"""


def test_killed_in_the_middle_of_a_volume_and_run_again_it_is_the_same(nifti, tmp_path):
    reference = embedded(nifti, tmp_path / "whole")
    arguments = [sys.executable, "-c", KILLED, str(nifti), str(tmp_path / "killed")]
    process = subprocess.Popen(arguments)
    commits = tmp_path / "killed" / reference.path.name / "commits"
    deadline = time.monotonic() + 120
    while len(list(commits.glob("[0-9]*.json"))) < 2:  # 20 rows a block: volumes of 6 to 8 slices straddle it
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = open_store(commits.parent, partial=True)
    assert 0 < len(left.missing_blocks) < left.plan.n_blocks
    bags = Bags(left, "volume")
    slices = reference.samples["volume"].value_counts()
    cut = [name for name, n in left.samples["volume"].value_counts().items() if n < slices[name]]
    assert len(bags.samples) == left.samples["volume"].nunique()
    assert any(note.startswith("INCOMPLETE") for note in bags.notes) == bool(cut)
    finished = embedded(nifti, tmp_path / "killed")
    for view in ("cls", "mean"):
        np.testing.assert_array_equal(finished.features(view), reference.features(view))
    np.testing.assert_array_equal(finished.image_digests(), reference.image_digests())


def test_a_torn_volume_is_accounted_for_and_does_not_stop_the_rest(nifti, tmp_path):
    data = tmp_path / "data"
    for path in nifti.rglob("*.nii.gz"):
        target = data / path.relative_to(nifti)
        target.parent.mkdir(parents=True, exist_ok=True)
        content = path.read_bytes()
        target.write_bytes(content[: len(content) // 2] if path.name in {"02.nii.gz", "05.nii.gz"} else content)
    found = medprobe.check(data, workers=0)
    assert set(found.unreadable.values()) == {"truncated"}
    assert {name.split("#")[0] for name in found.unreadable} == {"healthy/02.nii.gz", "sick/05.nii.gz"}
    assert any("of 2 volumes" in line for line in found.lines())
    store = embedded(data, tmp_path / "out")  # 16 slices, more than ten, and no more than those of ten volumes
    assert len(store.failures) == 16
    (row, *_) = medprobe.probe(store, "label", probes=["ridge"], n_folds=2, n_resamples=20)
    assert (row.n_images, row.n_failed) == (N - 2, 2)
    again = embedded(nifti, tmp_path / "other")
    assert len(again.failures) == 0
    with pytest.raises(DataError, match="--max-failures"):
        embedded(data, tmp_path / "strict", max_failures=3)


def test_a_volume_that_has_changed_since_is_noticed(nifti, tmp_path):
    data = tmp_path / "data"
    for name in ("a", "b"):
        save(data / f"{name}.nii.gz", volume(1))
    store = embedded(data, tmp_path / "out")
    before = (data / "a.nii.gz").read_bytes()
    (data / "a.nii.gz").write_bytes(before)  # another time, the same bytes
    assert embedded(data, tmp_path / "out").path == store.path
    embedded(data, tmp_path / "out", check_digest=True)
    save(data / "a.nii.gz", volume(3))
    with pytest.raises(DataError, match=rf"{DEPTH} images have changed .*first: a.nii.gz#0"):
        embedded(data, tmp_path / "out")


def test_volumes_that_are_there_twice_are_found(nifti, tmp_path):
    for name, of in (("a", "00"), ("b", "00"), ("c", "04")):
        (tmp_path / f"{name}.nii.gz").write_bytes((nifti / "healthy" / f"{of}.nii.gz").read_bytes())
    found = medprobe.check(tmp_path, workers=0)
    assert found.duplicates == [["a.nii.gz", "b.nii.gz"]]
    assert any("1 are copies of another volume" in line for line in found.lines())


def test_without_nibabel_the_extra_is_named(nifti, monkeypatch):
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(UsageError, match=r"pip install 'medprobe\[nifti\]'"):
        medprobe.read_manifest(nifti)
    assert nibabel is not None
