"""--normalize: whose mean and standard deviation reach the encoder, and what a store says about it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from medprobe.embed import normalize
from medprobe.embed.normalize import channel_statistics, parse_normalize
from medprobe.embed.run import embed
from medprobe.encoders.base import fingerprint
from medprobe.errors import DataError, UsageError
from medprobe.images.decode import Decoder
from medprobe.images.raster import SIXTEEN_BIT_RULE
from medprobe.manifest import read_manifest
from medprobe.store import open_store
from medprobe.testing import FakeEncoder

N = 12


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Flat colours, brighter in the test part, of 256 x 256 pixels so that no resize changes them."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(N):
        split = "test" if i % 3 == 0 else "train"
        pixels = np.clip(rng.integers(0, 120, (256, 256, 3)) + (100 if split == "test" else 0), 0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"{i}.png")
        rows.append({"image": f"{i}.png", "split": split})
    pd.DataFrame(rows).to_csv(tmp_path / "table.csv", index=False)
    return tmp_path / "table.csv"


def pixels_of(table: Path, split: str | None) -> np.ndarray:
    rows = pd.read_csv(table)
    names = rows.image if split is None else rows.image[rows.split == split]
    return np.stack([np.asarray(Image.open(table.parent / name)) for name in names]).reshape(-1, 3) / 255


def stored(report: Any) -> dict[str, Any]:
    preprocess: dict[str, Any] = open_store(report.path).plan.encoder["preprocess"]
    return preprocess


def test_statistics_are_of_the_training_images_alone(table: Path) -> None:
    with Decoder(0) as decoder:
        mean, std, source = channel_statistics(read_manifest(table), decoder)
    expected = pixels_of(table, "train")
    np.testing.assert_allclose(mean, expected.mean(axis=0), atol=5.1e-5)
    np.testing.assert_allclose(std, expected.std(axis=0), atol=5.1e-5)
    assert source == "data set (8 of the training images)"


def test_statistics_are_of_all_images_without_a_split(table: Path) -> None:
    with Decoder(0) as decoder:
        mean, _, source = channel_statistics(read_manifest(table, split_col="none"), decoder)
    np.testing.assert_allclose(mean, pixels_of(table, None).mean(axis=0), atol=5.1e-5)
    assert source == "data set (12 of all images)"


def test_large_sets_are_sampled_over_their_whole_length(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(normalize, "MAX_IMAGES", 3)
    with Decoder(0) as decoder:
        mean, _, source = channel_statistics(read_manifest(table, split_col="none"), decoder)
    some = np.stack([np.asarray(Image.open(table.parent / f"{i}.png")) for i in (0, 6, 11)]).reshape(-1, 3) / 255
    np.testing.assert_allclose(mean, some.mean(axis=0), atol=5.1e-5)
    assert source == "data set (3 of all images)"


def test_the_encoder_sees_the_data_sets_numbers(table: Path, tmp_path: Path) -> None:
    encoder = FakeEncoder(image_size=256)
    (report,) = embed(table, encoder, tmp_path / "out", workers=0, normalize="dataset", dtype="float32")
    preprocess = stored(report)
    assert preprocess["normalization"] == "data set (8 of the training images)"
    images = np.stack([np.asarray(Image.open(table.parent / f"{i}.png")) for i in range(N)])
    import torch

    own = FakeEncoder(image_size=256)
    x = (torch.from_numpy(images) / 255 - torch.tensor(preprocess["mean"])) / torch.tensor(preprocess["std"])
    expected = own.encode(x.permute(0, 3, 1, 2).float())["cls"].numpy()
    np.testing.assert_allclose(open_store(report.path).features("cls"), expected, atol=1e-3)


def test_going_on_keeps_the_numbers_that_the_store_was_begun_with(table: Path, tmp_path: Path) -> None:
    """An image that could not be read at first would change them."""
    out = tmp_path / "out"
    (table.parent / "1.png").write_bytes(b"no picture yet")
    (first,) = embed(table, FakeEncoder(), out, workers=0, normalize="dataset", block_rows=4)
    before = stored(first)
    Image.new("RGB", (256, 256), (255, 255, 255)).save(table.parent / "1.png")
    (again,) = embed(table, FakeEncoder(), out, workers=0, normalize="dataset", block_rows=4)
    assert again.embedded == 4  # the block of the image that changed
    assert stored(again) == before
    with pytest.raises(DataError, match=r"made from something else: preprocess\.mean is \[0\.5, 0\.5, 0\.5\], was \["):
        embed(table, FakeEncoder(), out, workers=0)
    (anew,) = embed(table, FakeEncoder(), out, workers=0, normalize="dataset", overwrite=True)
    assert stored(anew)["mean"] != before["mean"]


def test_images_are_read_once_for_all_encoders(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(*arguments: Any) -> Any:
        calls.append(arguments)
        return channel_statistics(*arguments)

    monkeypatch.setattr("medprobe.embed.run.channel_statistics", counted)
    encoders = [FakeEncoder(name="fake/a"), FakeEncoder(name="fake/b")]
    reports = embed(table, encoders, tmp_path / "out", workers=0, normalize="dataset")
    assert len(calls) == 1
    assert stored(reports[0]) == stored(reports[1])
    embed(table, encoders, tmp_path / "out", workers=0, normalize="dataset")
    assert len(calls) == 1  # what the stores were begun with


def test_a_store_that_was_begun_otherwise_is_refused_before_images_are_read(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed(table, FakeEncoder(), tmp_path / "out", workers=0)
    monkeypatch.setattr("medprobe.embed.run.channel_statistics", lambda *_: pytest.fail("images were read"))
    with pytest.raises(
        DataError, match=r"fake--tiny.zarr was begun with another normalization \(encoder\).*--overwrite"
    ):
        embed(table, FakeEncoder(), tmp_path / "out", workers=0, normalize="dataset")


def test_six_numbers_are_taken_as_they_are(table: Path, tmp_path: Path) -> None:
    numbers = "0.415,0.221,0.073,0.275,0.150,0.081"
    (report,) = embed(table, FakeEncoder(), tmp_path / "out", workers=0, normalize=numbers)
    preprocess = stored(report)
    assert preprocess["mean"] == [0.415, 0.221, 0.073]
    assert preprocess["std"] == [0.275, 0.150, 0.081]
    assert preprocess["normalization"] == "given"


def test_by_default_the_encoders_own(table: Path, tmp_path: Path) -> None:
    (report,) = embed(table, FakeEncoder(), tmp_path / "out", workers=0)
    assert stored(report)["normalization"] == "encoder"
    assert stored(report)["mean"] == [0.5, 0.5, 0.5]


def test_a_store_says_how_colours_and_deep_grey_were_read(table: Path, tmp_path: Path) -> None:
    (report,) = embed(table, FakeEncoder(), tmp_path / "s", workers=0)
    preprocess = stored(report)
    assert SIXTEEN_BIT_RULE in preprocess["colour"]
    assert "alpha over black" in preprocess["colour"]
    provenance = FakeEncoder().provenance()
    other = provenance | {"preprocess": provenance["preprocess"] | {"colour": "alpha over white"}}
    assert fingerprint(provenance, "fp32") != fingerprint(other, "fp32")


def test_a_colour_that_never_changes_stays_finite(tmp_path: Path) -> None:
    Image.new("RGB", (300, 300), (10, 20, 30)).save(tmp_path / "a.png")
    with Decoder(0) as decoder:
        mean, std, _ = channel_statistics(read_manifest(tmp_path), decoder)
    np.testing.assert_allclose(mean, np.array([10, 20, 30]) / 255, atol=1e-4)
    np.testing.assert_allclose(std, 1 / 255, atol=1e-4)


def test_no_image_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="none of the images can be read"):
        embed(tmp_path / "images", FakeEncoder(), tmp_path / "out", workers=0, normalize="dataset")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["own", "1,2,3", "0.5,0.5,0.5,0,0,0", "0.5,0.5,0.5,0.2,0.2,nan", "a,b,c,d,e,f", ""])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--normalize"):
        parse_normalize(text)
