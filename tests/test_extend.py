"""Adding images to a store: old rows stay, bit for bit, new ones come behind them, and readers see one store or the other."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import medprobe
from medprobe import store_writer
from medprobe.cli import app
from medprobe.embed import extend
from medprobe.errors import DataError, UsageError
from medprobe.manifest import read_manifest
from medprobe.store import FeatureStore, open_store
from medprobe.store_extension import drafts_of
from medprobe.store_place import set_aside
from medprobe.testing import FakeEncoder

OLD, NEW, BLOCK = 17, 9, 5  # two rows in the last block of the old store, three of the new ones beside them


def draw(folder: Path, numbers: range) -> None:
    for i in numbers:
        pixels = np.random.default_rng(i).integers(0, 256, (16, 20, 3), dtype=np.uint8)
        name = f"{'b' if i < OLD else 'a'}{i:02d}.png"  # new ones come first in the folder
        Image.fromarray(pixels).save(folder / name)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    draw(folder, range(OLD))
    return folder


def encoder(**options) -> FakeEncoder:
    return FakeEncoder(width=8, views=("cls", "mean"), image_size=16, **options)


def embed(data, out: Path, *models, **options):
    options = {"workers": 0, "block_rows": BLOCK, "batch_size": 2, "device": "cpu", "precision": "fp32", **options}
    return medprobe.embed(data, list(models) or [encoder()], out, **options)


def contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def fresh(images: Path, out: Path, **options) -> FeatureStore:
    """Return a store that was never another, of all images in the order of an extended one."""
    manifest = read_manifest(images)
    rows = np.argsort([name[0] == "a" for name in manifest.samples["id"]], kind="stable")
    return open_store(embed(manifest.in_order(rows), out, **options)[0].path)


@pytest.mark.parametrize("old", [OLD, 3, 15])  # of which the last block is begun, the first alone, or none
def test_only_new_images_are_embedded_and_the_store_is_that_of_a_fresh_start(images, tmp_path, old):
    out = tmp_path / "out"
    (first,) = embed(images, out, limit=old, block_rows=BLOCK)
    before = open_store(first.path)
    features, stats = before.features("mean"), {file: file.stat().st_ino for file in first.path.rglob("c/0/0")}
    draw(images, range(OLD, OLD + NEW))
    counted = encoder()
    (report,) = embed(images, out, counted, extend=True)
    assert report.embedded == OLD + NEW - old
    assert sum(counted.batch_sizes) == OLD + NEW - old
    assert report.path == first.path
    store = open_store(report.path)
    assert list(store.verify()) == []
    np.testing.assert_array_equal(store.features("mean")[:old], features)
    assert list(store.samples["id"][:old]) == list(before.samples["id"]) if old == 0 else True
    assert [path.name for path in out.iterdir()] == [store.path.name]  # neither a draft nor the old store is left
    if old >= BLOCK:
        assert {file: file.stat().st_ino for file in stats} == stats  # linked, not copied
    if old == OLD:
        assert contents(store.path) == contents(fresh(images, tmp_path / "fresh").path)
    (again,) = embed(images, out)
    assert (again.embedded, again.samples) == (0, OLD + NEW)
