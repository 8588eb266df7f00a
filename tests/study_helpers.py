"""A tiny study over drawn images, for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

SMALL = """
[study]
name = "small"
baseline = "baseline/pixels"
seeds = [0, 1]
resamples = 50

[[data]]
name = "bright ones"
path = "a/manifest.csv"
target = "label"
metric = "auroc"
n_folds = 3

[[data]]
name = "grades"
path = "b/manifest.csv"
target = "grade"
metric = "quadratic_kappa"
split_col = "split"

[[encoder]]
name = "baseline/pixels"

[[encoder]]
name = "baseline/random-test_vit"
views = ["cls", "mean"]
image_size = 32

[[head]]
probe = "ridge"

[[head]]
name = "means"
probe = "prototype"
shots = [1, 3]
repeats = 2
"""


def draw_images(folder: Path, n: int, seed: int) -> None:
    """Draw n images, two a patient, whose brightness tells label and grade, beside a table of them."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    lines = ["path,label,grade,patient,split"]
    for i in range(n):
        label = int(i // 2 % 2)
        pixels = rng.normal(110 + 25 * label, 40, (12, 12, 3)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:03d}.png")
        split = ("train", "val", "test")[i // 2 % 5 // 2]
        lines.append(f"{i:03d}.png,{label},{(label * 2 + (rng.random() < 0.3))},p{i // 2},{split}")
    (folder / "manifest.csv").write_text("\n".join(lines))


def small_study(folder: Path, text: str = SMALL) -> Path:
    """Write a study and the images of its two data sets; return the file."""
    for name, n, seed in (("a", 48, 0), ("b", 80, 1)):
        if not (folder / name).exists():
            draw_images(folder / name, n, seed)
    path = folder / "small.toml"
    path.write_text(text)
    return path
