"""Boxes and masks: what is cut out of an image before it is resized."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import medprobe
from medprobe.errors import DataError, UsageError
from medprobe.images.raster import ImageError, mask_box

RNG = np.random.default_rng(0)


@pytest.fixture
def table(tmp_path: Path) -> pd.DataFrame:
    """Three cells of one picture and one of another, with masks that enclose the same as the boxes."""
    for name in ("a.png", "b.jpg"):
        Image.fromarray(RNG.integers(0, 255, (300, 400, 3), dtype=np.uint8)).save(tmp_path / name, quality=95)
    boxes = [("a.png", 0, 0, 50, 40), ("a.png", 350, 260, 50, 40), ("a.png", 100, 20, 30, 60), ("b.jpg", 8, 16, 64, 32)]
    rows = pd.DataFrame(boxes, columns=["path", "x", "y", "w", "h"])
    masks = []
    for i, (_, x, y, w, h) in enumerate(boxes):
        mask = np.zeros((300, 400), np.uint8)
        mask[y, x : x + w] = mask[y : y + h, x + w // 2] = mask[y + h - 1, x] = 1 + 50 * i
        Image.fromarray(mask).save(tmp_path / f"mask{i}.png")
        masks.append(f"mask{i}.png")
    return rows.assign(mask=masks, label=[0, 1, 0, 1])


def embedded(table: pd.DataFrame, folder: Path, name: str, **options: object) -> medprobe.FeatureStore:
    table.to_csv(folder / f"{name}.csv", index=False)
    (report,) = medprobe.embed(
        folder / f"{name}.csv", "baseline/pixels", folder / name, workers=0, image_size=16, precision="fp32", **options
    )
    return medprobe.FeatureStore(report.path)


def test_a_box_is_the_picture_that_was_cut_out_beforehand(table, tmp_path):
    store = embedded(table, tmp_path, "boxes", box_cols=["x", "y", "w", "h"])
    assert store.samples["id"].tolist()[:2] == ["a.png@0,0,50,40", "a.png@350,260,50,40"]
    names = []
    for i, row in table.iterrows():
        with Image.open(tmp_path / row.path) as image:
            image.convert("RGB").crop((row.x, row.y, row.x + row.w, row.y + row.h)).save(tmp_path / f"cut{i}.png")
        names.append(f"cut{i}.png")
    cut = embedded(pd.DataFrame({"path": names}), tmp_path, "cut")
    np.testing.assert_array_equal(store.features(), cut.features())
    assert store.appearance()[:, :2].tolist() == [[40, 50], [40, 50], [60, 30], [32, 64]]
    assert len(np.unique(store.image_digests(), axis=0)) == 4  # parts of one file are no copies of each other


def test_a_mask_is_the_box_around_it(table, tmp_path):
    named = table.assign(id=["one", "two", "three", "four"])
    by_box = embedded(named, tmp_path, "boxes", box_cols=["x", "y", "w", "h"])
    by_mask = embedded(named.drop(columns=["x", "y", "w", "h"]), tmp_path, "masks", mask_col="mask")
    np.testing.assert_array_equal(by_box.features(), by_mask.features())
    assert "mask" not in by_mask.samples
    again = medprobe.embed(
        tmp_path / "masks.csv", "baseline/pixels", tmp_path / "masks", workers=0, image_size=16, precision="fp32",
        mask_col="mask", check_digest=True,
    )  # fmt: skip
    assert again[0].embedded == 0
    Image.fromarray(np.eye(300, 400, dtype=np.uint8)).save(tmp_path / "mask0.png")
    with pytest.raises(DataError, match="1 images have changed"):
        medprobe.embed(
            tmp_path / "masks.csv", "baseline/pixels", tmp_path / "masks", workers=0, image_size=16, mask_col="mask",
            check_digest=True,
        )  # fmt: skip


def test_boxes_and_masks_that_cannot_be_are_reasons(table, tmp_path):
    bad = table.copy()
    bad.loc[0, ["x", "w"]] = [390, 20]
    bad.loc[1, "h"] = 0
    store = embedded(bad, tmp_path, "bad", box_cols=["x", "y", "w", "h"])
    assert store.failures["reason"].tolist() == ["a box that is not inside the image"] * 2
    Image.fromarray(np.zeros((300, 400), np.uint8)).save(tmp_path / "mask0.png")
    (tmp_path / "mask1.png").unlink()
    masked = embedded(table.assign(id=list("abcd")), tmp_path, "masked", mask_col="mask")
    assert masked.failures["reason"].tolist() == ["mask: nothing in it", "mask: missing"]


def test_columns_that_are_no_boxes_are_named(table, tmp_path):
    path = tmp_path / "t.csv"
    table.assign(x=["1", "", "3", "4"]).to_csv(path, index=False)
    with pytest.raises(DataError, match=r"no box in 1 rows \(first: data row 2\)"):
        medprobe.read_manifest(path, box_cols=["x", "y", "w", "h"])
    with pytest.raises(UsageError, match="four columns"):
        medprobe.read_manifest(path, box_cols=["x", "y"])
    with pytest.raises(UsageError, match="no column 'left'"):
        medprobe.read_manifest(path, box_cols=["left", "y", "w", "h"])
    with pytest.raises(UsageError, match="--mask-col nothing"):
        medprobe.read_manifest(path, mask_col="nothing")
    with pytest.raises(UsageError, match="--mask-col: goes with a table"):
        medprobe.read_manifest(tmp_path, mask_col="mask")


def test_the_box_of_a_mask_is_tight():
    for _ in range(20):
        mask = np.zeros((20, 30), np.uint8)
        left, top = RNG.integers(0, 20), RNG.integers(0, 10)
        width, height = RNG.integers(1, 10, 2)
        mask[top : top + height, left : left + width] = 255
        assert mask_box(_png(mask)) == (left, top, width, height)
    with pytest.raises(ImageError, match="nothing in it"):
        mask_box(_png(np.full((4, 4), 9, np.uint8)))


def _png(values: np.ndarray) -> bytes:
    from io import BytesIO

    buffer = BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    return buffer.getvalue()
