"""Equal and nearly equal pictures across a split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import medprobe
from medprobe.errors import DataError, UsageError
from medprobe.probe.leaks import image_codes, joined, near_duplicates, without_shared_images
from medprobe.probe.splits import Part, Split
from medprobe.testing import FakeEncoder

IDS = np.array(list("abcdefgh"))


def split_of(words: str) -> Split:
    """One letter a row: r for train, v for validation, t for test."""
    rows = {side: np.array([i for i, w in enumerate(words) if w == side], dtype=int) for side in "rvt"}
    return Split("given", (Part(rows["r"], rows["v"] if len(rows["v"]) else None, rows["t"]),))


def test_codes_are_equal_for_equal_digests_alone() -> None:
    digests = np.array([[1, 2], [3, 4], [1, 2], [0, 0], [0, 0]], dtype=np.uint8)
    codes = image_codes(digests)
    assert codes[0] == codes[2]
    assert len(set(codes.tolist())) == 4  # unknown images equal no other


def test_groups_with_a_common_picture_are_joined() -> None:
    groups = np.array(["p", "p", "q", "q", "r", "s"])
    codes = np.array([0, 1, 2, 3, 1, 4])
    together = joined(groups, codes)
    assert together is not None
    assert together[0] == together[1] == together[4]
    assert len({int(together[i]) for i in (0, 2, 5)}) == 3
    assert together[2] == together[3]


def test_nothing_is_joined_without_need() -> None:
    groups = np.array(["p", "p", "q"])
    assert joined(None, np.arange(3)) is None
    assert joined(groups, np.arange(3)) is groups
    assert joined(groups, np.array([0, 0, 1])) is groups
    np.testing.assert_array_equal(joined(None, np.array([0, 0, 1])), [0, 0, 1])


def test_a_picture_on_both_sides_is_an_error_that_names_it() -> None:
    codes = np.array([0, 1, 2, 3, 4, 0, 5, 3])
    with pytest.raises(DataError, match=r"2 images of 'given'.*a = f; d = h.*--duplicates drop"):
        without_shared_images(split_of("rrrrvttt"), codes, IDS, "error")


def test_copies_are_dropped_from_the_side_that_learns() -> None:
    codes = np.array([0, 1, 2, 3, 4, 0, 5, 6])
    codes[1] = codes[4]  # in training and validation
    split, notes = without_shared_images(split_of("rrrrvvtt"), codes, IDS, "drop")
    (part,) = split.parts
    assert part.train.tolist() == [2, 3]
    assert part.val is not None
    assert part.val.tolist() == [4, 5]
    assert part.test.tolist() == [6, 7]
    assert "2 images were left out" in notes[0]


def test_keeping_them_is_said_loudly() -> None:
    codes = np.array([0, 1, 2, 3, 4, 0, 5, 3])
    before = split_of("rrrrvttt")
    split, notes = without_shared_images(before, codes, IDS, "keep")
    assert split is before
    assert notes[0].startswith("LEAK: 2 images")
    with pytest.raises(UsageError, match="--duplicates hide"):
        without_shared_images(before, codes, IDS, "hide")


def test_a_clean_split_says_nothing() -> None:
    before = split_of("rrrrvvtt")
    codes = np.array([0, 0, 1, 1, 2, 2, 3, 3])
    assert without_shared_images(before, codes, IDS, "error") == (before, ())


def test_near_duplicates_are_named() -> None:
    rng = np.random.default_rng(0)
    X = (rng.normal(size=(8, 32)) + 50).astype(np.float32)  # far from the origin all cosines are near 1
    split = split_of("rrrrvttt")
    assert near_duplicates(X, split, IDS) == ()
    X[6] = X[2] + 1e-4 * rng.normal(size=32)
    (note,) = near_duplicates(X, split, IDS)
    assert "1 tested images look the same" in note
    assert "(g and c)" in note


def test_validation_images_are_learned_from_as_well() -> None:
    """The chosen settings are fitted to training and validation rows together."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(8, 32)).astype(np.float32)
    X[6] = X[4]
    (note,) = near_duplicates(X, split_of("rrrrvttt"), IDS)
    assert "(g and e)" in note


def test_large_sets_are_not_searched_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medprobe.probe.leaks._MOST_COMPARISONS", 5)
    (note,) = near_duplicates(np.eye(8, dtype=np.float32), split_of("rrrrvttt"), IDS)
    assert "too many images" in note


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """40 pictures of two classes; the first four stand in the test part again under other names."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(40):
        pixels = rng.integers(0, 200, (24, 24, 3)) + 50 * (i % 2)
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"{i}.png")
        rows.append({"image": f"{i}.png", "label": i % 2, "split": "train" if i < 26 else "test"})
    for i in range(4):
        (tmp_path / f"copy{i}.png").write_bytes((tmp_path / f"{i}.png").read_bytes())
        rows.append({"image": f"copy{i}.png", "label": i % 2, "split": "test"})
    pd.DataFrame(rows).to_csv(tmp_path / "table.csv", index=False)
    (report,) = medprobe.embed(
        tmp_path / "table.csv", FakeEncoder(image_size=24), tmp_path / "out", workers=0, label_cols=["label"]
    )
    return Path(report.path)


def rows_of(store: Path, **options: Any) -> Any:
    return medprobe.probe(store, "label", probes=["knn"], n_resamples=50, **options)[0]


def test_probing_a_given_split_with_copies(store: Path) -> None:
    with pytest.raises(DataError, match=r"4 images of 'split'.* = copy0.png"):
        rows_of(store)
    dropped = rows_of(store, duplicates="drop")
    assert (dropped.n_train, dropped.n_images) == (22, 18)
    assert any("left out of training" in note for note in dropped.notes)
    kept = rows_of(store, duplicates="keep")
    assert kept.n_train == 26
    assert any(note.startswith("LEAK") for note in kept.notes)
    assert any("4 tested images look the same" in note for note in kept.notes)


def test_folds_keep_copies_together_and_count_every_image(store: Path) -> None:
    row = rows_of(store, n_folds=4)
    assert row.n_images == 44
    assert not any("LEAK" in note or "look the same" in note for note in row.notes)
