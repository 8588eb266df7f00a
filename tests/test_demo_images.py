"""The drawn blood smears."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from medprobe.demo_images import CELLS, contact_sheet, draw_blood_smears
from medprobe.images.decode import decode
from medprobe.images.geometry import Geometry
from medprobe.manifest import read_manifest

WHOLE = Geometry((96, 96), None, crop="none")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    return draw_blood_smears(tmp_path_factory.mktemp("smears"), n_smears=6, cells_per_smear=10, damaged=5, seed=3)


def contents(manifest: Path) -> dict[str, bytes]:
    return {p.relative_to(manifest.parent).as_posix(): p.read_bytes() for p in manifest.parent.rglob("*.*")}


def test_the_seed_decides_every_byte(tmp_path):
    first, again, other = (
        draw_blood_smears(tmp_path / name, n_smears=2, cells_per_smear=4, damaged=1, seed=seed)
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert contents(first) == contents(again)
    assert contents(first) != contents(other)


def test_each_smear_and_every_image_is_in_the_manifest(drawn):
    table = pd.read_csv(drawn, dtype=str, keep_default_na=False)
    assert list(table.columns) == ["path", "cell", "infected", "smear", "scanner"]
    assert table["smear"].value_counts().to_dict() == {f"smear{i:02d}": 10 for i in range(6)}
    assert set(table["path"]) == contents(drawn).keys() - {"manifest.csv"}
    assert (table.groupby("smear")["scanner"].nunique() == 1).all()
    assert set(table["scanner"]) == {"A", "B"}


def test_labels_are_those_of_cells(drawn):
    table = pd.read_csv(drawn, dtype=str, keep_default_na=False)
    assert set(table["cell"]) == set(CELLS)
    red = table["cell"] == "red"
    assert set(table.loc[red, "infected"]) == {"0", "1"}
    assert set(table.loc[~red, "infected"]) == {""}
    healthy = table["smear"].isin(["smear00", "smear03"]) & red
    assert set(table.loc[healthy, "infected"]) == {"0"}


@pytest.mark.parametrize("damaged", [0, 5])
def test_as_many_files_are_damaged_as_asked(tmp_path, damaged):
    manifest = read_manifest(draw_blood_smears(tmp_path, n_smears=2, cells_per_smear=6, damaged=damaged))
    result = decode([manifest.images.payload(i) for i in range(12)], [WHOLE])
    assert int(result.readable.sum()) == 12 - damaged
    assert set(result.reasons) == ({"truncated", "empty file", "not an image"} if damaged else set())
    assert result.pixels[0].std() > 5


def test_the_contact_sheet_leaves_damaged_files_out(drawn):
    sheet = contact_sheet(drawn, columns=5, rows=2)
    assert sheet.size == (5 * 100 - 4, 2 * 100 - 4)
    assert isinstance(sheet, Image.Image)
    cells = np.asarray(sheet)[:96, :96]
    assert cells.min() < 250
