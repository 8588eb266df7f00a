"""A dry run: what is left to do, how large and how long, and nothing changed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import medprobe
from medprobe.cli import app
from medprobe.commands.embed import duration

N = 70


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(N):
        Image.fromarray(rng.integers(0, 255, (30, 30, 3), dtype=np.uint8)).save(root / f"{i:03d}.png")
    return root


def embed(images: Path, out: Path, **options):
    (report,) = medprobe.embed(
        images, "baseline/pixels", out, workers=0, block_rows=16, image_size=32, precision="fp32", **options
    )
    return report


def test_nothing_is_there_afterwards(images, tmp_path):
    report = embed(images, tmp_path / "out", dry_run=True)
    assert not (tmp_path / "out").exists()
    assert report.path == tmp_path / "out" / "baseline--pixels.zarr"
    assert (report.samples, report.embedded, report.expected.images) == (N, 0, N)
    assert report.expected.seconds > 0


def test_the_size_is_that_of_the_features(images, tmp_path):
    expected = embed(images, tmp_path / "out", dry_run=True).expected.bytes
    path = embed(images, tmp_path / "out").path
    chunks = sum(
        f.stat().st_size for name in ("features", "sources") for f in (path / name).rglob("c/**/*") if f.is_file()
    )
    assert expected == pytest.approx(chunks, rel=0.2)  # the last block has rows to spare, and each chunk a checksum


def test_only_what_is_left_counts(images, tmp_path):
    path = embed(images, tmp_path, rank=0, world_size=2).path
    before = {f: f.read_bytes() for f in path.rglob("*") if f.is_file()}
    assert embed(images, tmp_path, dry_run=True).expected.images == 32
    assert embed(images, tmp_path, dry_run=True, rank=0, world_size=2).expected.images == 0
    assert embed(images, tmp_path, dry_run=True, overwrite=True).expected.images == N
    assert {f: f.read_bytes() for f in path.rglob("*") if f.is_file()} == before


def test_unreadable_images_do_not_stop_it(tmp_path):
    (tmp_path / "in").mkdir()
    for i in range(12):
        (tmp_path / "in" / f"{i}.png").write_bytes(b"no image")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "in" / "12.png")
    assert embed(tmp_path / "in", tmp_path / "out", dry_run=True).expected.images == 13


def test_the_command_says_it(images, tmp_path):
    arguments = [
        "embed",
        str(images),
        "-m",
        "baseline/pixels",
        "-o",
        str(tmp_path / "o"),
        "--dry-run",
        "--workers",
        "0",
    ]
    said = CliRunner().invoke(app, arguments)
    assert said.exit_code == 0, said.output
    assert f"{N} of {N} images to embed in" in said.stdout
    (report,) = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert report["expected"]["images"] == N


@pytest.mark.parametrize(
    ("seconds", "words"), [(3, "3 s"), (119, "119 s"), (150, "2.5 min"), (9000, "2.5 h"), (864_000, "10.0 days")]
)
def test_durations(seconds, words):
    assert duration(seconds) == words
