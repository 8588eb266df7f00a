"""Thumbnails in a store: what they show, that they are committed with their block, and what a resumed command says."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import medprobe
from medprobe.cli import app
from medprobe.errors import DataError
from medprobe.images.decode import Decoder, Task, decode
from medprobe.images.geometry import Geometry
from medprobe.images.thumbnail import MAX_BYTES, SIDE, jpeg
from medprobe.store import FORMAT, THUMBNAIL_ARRAY, WITH_THUMBNAILS, FeatureStore, open_store
from medprobe.testing import FakeEncoder

N, BLOCK = 20, 8  # the last block is partly filled
BROKEN = 5


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Gradients of one colour each, wide and tall, in two formats; one of them damaged."""
    folder = tmp_path_factory.mktemp("images")
    for i in range(N):
        height, width = (200, 120) if i % 2 else (50, 400)
        pixels = np.zeros((height, width, 3), dtype=np.uint8)
        pixels[..., i % 3] = np.linspace(0, 10 * i, width).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02d}.{'jpg' if i % 4 == 1 else 'png'}", quality=95)
    (folder / "05.jpg").write_bytes(b"\xff\xd8\xff no image")
    return folder


def embed(images: Path, out: Path, **options: object) -> FeatureStore:
    settings: dict[str, object] = {"workers": 0, "block_rows": BLOCK, "batch_size": 4, **options}
    encoder = FakeEncoder(width=8, views=("cls",), image_size=16)
    (report,) = medprobe.embed(images, [encoder], out, **settings)
    return open_store(report.path, partial=True)


@pytest.fixture(scope="module")
def store(images: Path, tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return embed(images, tmp_path_factory.mktemp("with"), thumbnails=True)


@pytest.fixture(scope="module")
def without(images: Path, tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return embed(images, tmp_path_factory.mktemp("without"))


def tree(store: FeatureStore) -> dict[str, bytes]:
    return {str(p.relative_to(store.path)): p.read_bytes() for p in sorted(store.path.rglob("*")) if p.is_file()}


def test_a_thumbnail_is_the_whole_image_made_small(images, store):
    files = store.thumbnails(range(N))
    for row, name in enumerate(store.manifest["id"]):
        if row == BROKEN:
            assert files[row] is None
            continue
        assert files[row].endswith(b"\xff\xd9")
        with Image.open(io.BytesIO(files[row])) as small, Image.open(images / name) as whole:
            assert (small.format, small.mode) == ("JPEG", "RGB")
            assert small.size == ((58, 96) if row % 2 else (96, 12))
            expected = np.asarray(whole.convert("RGB").resize(small.size, Image.Resampling.LANCZOS), dtype=float)
            assert np.abs(np.asarray(small, dtype=float) - expected).mean() < 5


def test_rows_are_those_of_the_manifest_in_any_order(store):
    every = store.thumbnails(range(N))
    assert store.thumbnails([19, 0, 0, BROKEN, 8]) == [every[19], every[0], every[0], None, every[8]]
    assert store.thumbnails(np.array([], dtype=int)) == []
    for row in (-1, N):
        with pytest.raises(IndexError, match="rows 0 to 19"):
            store.thumbnails([row])


def test_a_store_keeps_none_unless_asked(store, without):
    assert without.thumbnails(range(N)) == [None] * N
    assert not (without.path / THUMBNAIL_ARRAY).exists()
    formats = [
        json.loads((s.path / "zarr.json").read_text())["attributes"]["medprobe"]["format"] for s in (without, store)
    ]
    assert formats == [FORMAT, WITH_THUMBNAILS]


def test_everything_else_is_the_same_with_and_without(store, without):
    mine = {name: data for name, data in tree(store).items() if name.startswith(("features", "samples", "sources"))}
    others = {name: data for name, data in tree(without).items() if name.startswith(("features", "samples", "sources"))}
    assert {name for name in mine if not name.startswith(THUMBNAIL_ARRAY)} == set(others)
    assert all(mine[name] == data for name, data in others.items())
    assert store.plan == without.plan


def test_large_jpegs_are_reduced_alike_with_and_without(tmp_path):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (900, 700, 3), dtype=np.uint8)).save(tmp_path / "large.jpg")
    small = Geometry((16, 16), (16, 16))
    plain, beside = (decode([str(tmp_path / "large.jpg")], [small], thumbnails) for thumbnails in (False, True))
    assert np.array_equal(plain.pixels[0], beside.pixels[0])
    assert plain.thumbnails == []
    assert len(beside.thumbnails) == 1


def test_worker_processes_make_the_same(images, store, tmp_path):
    assert tree(embed(images, tmp_path, thumbnails=True, workers=2)) == tree(store)


def test_images_that_are_read_one_by_one_keep_their_thumbnails(images):
    payloads = [str(images / "00.png"), str(images / "02.png")]
    whole = decode(payloads, [Geometry((8, 8), (8, 8))], True)
    with Decoder(1) as decoder:
        one_by_one = decoder._one_by_one(Task(payloads, [Geometry((8, 8), (8, 8))], True))
    assert one_by_one.thumbnails == whole.thumbnails


def test_the_worst_image_stays_within_its_bytes():
    rng = np.random.default_rng(0)
    for pixels in (rng.integers(0, 256, (SIDE, SIDE, 3)), 255 * rng.integers(0, 2, (SIDE, SIDE, 3))):
        data = jpeg(pixels.astype(np.uint8))
        assert len(data) <= MAX_BYTES
        assert Image.open(io.BytesIO(data)).size == (SIDE, SIDE)


def test_damage_is_found_and_healed(images, store, tmp_path):
    mine = embed(images, tmp_path, thumbnails=True)
    chunk = mine.chunk_path(THUMBNAIL_ARRAY, 1)
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 1
    chunk.write_bytes(data)
    assert list(mine.verify()) == [f"block 1: {THUMBNAIL_ARRAY}: chunk file has changed (SHA-256 differs)"]
    with pytest.raises(DataError, match=r"sources/thumbnail is damaged"):
        mine.thumbnails([9])
    assert all(mine.thumbnails([0, 19]))
    assert tree(embed(images, tmp_path)) == tree(store)


def test_a_block_without_its_thumbnails_does_not_exist(images, store, tmp_path):
    mine = embed(images, tmp_path, thumbnails=True)
    mine.chunk_path(THUMBNAIL_ARRAY, 2).unlink()
    left = open_store(mine.path, partial=True)
    assert left.missing_blocks == [2]
    assert left.thumbnails([0, 16])[1] is None
    assert tree(embed(images, tmp_path, thumbnails=True)) == tree(store)


def test_a_store_begun_without_says_what_to_do(images, without):
    before = tree(without)
    with pytest.raises(DataError, match=r"it was begun without them\. Use another folder \(-o\), or --overwrite"):
        embed(images, without.path.parent, thumbnails=True)
    assert tree(without) == before


def test_a_store_begun_with_them_goes_on_with_them_and_says_so(images, store, tmp_path, caplog):
    mine = embed(images, tmp_path, thumbnails=True, rank=0, world_size=2)
    assert mine.missing_blocks == [1]
    with caplog.at_level("INFO", logger="medprobe"):
        mine = embed(images, tmp_path, rank=1, world_size=2)
    assert "goes on with thumbnails, as it was begun" in caplog.text
    assert tree(mine) == tree(store)


def test_overwrite_makes_the_other_kind(images, tmp_path):
    embed(images, tmp_path, thumbnails=True)
    assert embed(images, tmp_path, overwrite=True).thumbnail_bytes == 0
    assert embed(images, tmp_path, overwrite=True, thumbnails=True).thumbnail_bytes == MAX_BYTES


def test_a_dry_run_counts_them(images, store, tmp_path):
    encoder = FakeEncoder(width=8, views=("cls",), image_size=16)
    plain, beside = (
        medprobe.embed(images, [encoder], tmp_path, workers=0, dry_run=True, thumbnails=thumbnails)[0].expected.bytes
        for thumbnails in (False, True)
    )
    assert beside - plain == pytest.approx(sum(len(file or b"") for file in store.thumbnails(range(N))), rel=0.05)


def test_the_command_warns_and_info_tells(images, tmp_path):
    said = CliRunner().invoke(app, ["embed", "--help"], env={"COLUMNS": "200"}).stdout
    assert "WARNING: these are images of patients" in " ".join(said.split())
    arguments = ["embed", str(images), "-m", "baseline/pixels", "-o", str(tmp_path), "--workers", "0", "--thumbnails"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 3, done.stderr
    path = str(tmp_path / "baseline--pixels.zarr")
    assert "small images of every sample" in CliRunner().invoke(app, ["info", path]).stdout
    assert CliRunner().invoke(app, ["verify", path]).exit_code == 0
    told = json.loads(CliRunner().invoke(app, ["info", path, "--json"]).stdout)
    assert "share this store only where the images may be shared" in told["thumbnails"]
