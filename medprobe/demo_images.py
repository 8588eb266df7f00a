"""Blood-smear cells drawn by the computer: a small labelled image set with patient-like groups, for a first try."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

CELLS = ("red", "white", "platelet")
_SIDE = 96
_DRAWN = 2 * _SIDE  # drawn at twice the size and halved, for smooth edges


def draw_blood_smears(
    folder: Path, *, n_smears: int = 24, cells_per_smear: int = 20, damaged: int = 4, seed: int = 0
) -> Path:
    """Draw cell crops as PNG files and return the path of their ``manifest.csv``.

    Each smear (the group: what a patient is elsewhere) has its own stain, light, focus and noise, so that images of one
    smear are alike for reasons that have nothing to do with the cell. Columns: path, cell (red, white or platelet),
    infected (a faint ring in a red cell; empty for other cells), smear, scanner. The same seed gives the same bytes.

    Args:
        folder: Where to draw; made if it is missing.
        n_smears: Number of groups.
        cells_per_smear: Images of each.
        damaged: How many files are then damaged on purpose: cut short, emptied, replaced by a web page.
        seed: Seed of everything.

    """
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    rows = []
    for smear in range(n_smears):
        look = _Look(rng, scanner=smear % 2)
        sick = smear % 3 != 0
        for index in range(cells_per_smear):
            cell = CELLS[int(rng.choice(3, p=[0.5, 0.3, 0.2]))]
            infected = cell == "red" and sick and rng.random() < 0.5
            name = f"images/smear{smear:02d}_{index:02d}.png"
            _draw(rng, look, cell, infected).save(folder / name)
            label = str(int(infected)) if cell == "red" else ""
            rows.append([name, cell, label, f"smear{smear:02d}", "AB"[look.scanner]])
    for k, row in enumerate(rng.choice(len(rows), size=damaged, replace=False)):
        _damage(folder / rows[row][0], k)
    manifest = folder / "manifest.csv"
    with manifest.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "cell", "infected", "smear", "scanner"])
        writer.writerows(rows)
    return manifest


def contact_sheet(manifest: Path, columns: int = 10, rows: int = 4, seed: int = 0) -> Image.Image:
    """Return some of the readable images side by side."""
    with manifest.open(newline="", encoding="utf-8") as file:
        names = [row["path"] for row in csv.DictReader(file)]
    np.random.default_rng(seed).shuffle(names)
    sheet = Image.new("RGB", (columns * (_SIDE + 4) - 4, rows * (_SIDE + 4) - 4), "white")
    place = 0
    for name in names:
        try:
            image = Image.open(manifest.parent / name).convert("RGB")
        except OSError:
            continue
        sheet.paste(image, ((place % columns) * (_SIDE + 4), place // columns * (_SIDE + 4)))
        place += 1
        if place == columns * rows:
            break
    return sheet


class _Look:
    """What all images of one smear have in common."""

    def __init__(self, rng: np.random.Generator, scanner: int) -> None:
        self.scanner = scanner
        tint = rng.normal(0, 12, 3) + (np.array([6, 0, -10]) if scanner else 0)
        self.background = np.clip(np.array([232, 222, 226]) + tint, 150, 255)
        self.red = np.clip(np.array([205, 140, 150]) + tint + rng.normal(0, 10, 3), 60, 240)
        self.purple = np.clip(np.array([108, 68, 140]) + tint + rng.normal(0, 12, 3), 20, 220)
        self.cytoplasm = np.clip(np.array([190, 182, 214]) + tint + rng.normal(0, 8, 3), 60, 245)
        self.blur = rng.uniform(0.8, 3.2)
        self.noise = rng.uniform(2, 7)
        self.brightness = rng.uniform(0.72, 1.08)
        self.light = rng.uniform(-0.22, 0.22, 2)


def _draw(rng: np.random.Generator, look: _Look, cell: str, infected: bool) -> Image.Image:
    canvas = np.tile(look.background, (_DRAWN, _DRAWN, 1))
    for _ in range(rng.integers(1, 4)):  # neighbours that the crop cuts through
        angle, far = rng.uniform(0, 2 * np.pi), rng.uniform(0.72, 0.95) * _DRAWN
        centre = _DRAWN / 2 + far * np.array([np.sin(angle), np.cos(angle)])
        _red_cell(rng, look, canvas, centre, rng.uniform(46, 62), infected=False)
    middle = _DRAWN / 2 + rng.normal(0, 12, 2)
    if cell == "red":
        _red_cell(rng, look, canvas, middle, rng.uniform(44, 66), infected)
    elif cell == "white":
        _white_cell(rng, look, canvas, middle)
    else:
        if rng.random() < 0.6:  # platelets lie between, and on, red cells
            _red_cell(rng, look, canvas, middle + rng.normal(0, 40, 2), rng.uniform(44, 62), infected=False)
        for _ in range(rng.integers(1, 4)):
            _blot(rng, canvas, middle + rng.normal(0, 14, 2), rng.uniform(7, 15), look.purple, 0.85, rough=0.25)
    rows, columns = np.mgrid[0 : 1 : _DRAWN * 1j, 0 : 1 : _DRAWN * 1j] - 0.5
    canvas *= (look.brightness * (1 + look.light[0] * rows + look.light[1] * columns))[:, :, None]
    image = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))
    image = image.filter(ImageFilter.GaussianBlur(look.blur)).resize((_SIDE, _SIDE), Image.Resampling.BOX)
    noisy = np.asarray(image) + rng.normal(0, look.noise, (_SIDE, _SIDE, 3))
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def _red_cell(
    rng: np.random.Generator, look: _Look, canvas: np.ndarray, centre: np.ndarray, radius: float, infected: bool
) -> None:
    colour = look.red + rng.normal(0, 5, 3)
    _blot(rng, canvas, centre, radius, colour, 0.95, rough=0.05)
    paler = 0.4 * colour + 0.6 * look.background
    _blot(rng, canvas, centre + rng.normal(0, 3, 2), radius * rng.uniform(0.3, 0.5), paler, 0.8, rough=0.05, soft=14)
    if infected:
        at = centre + rng.uniform(-0.45, 0.45, 2) * radius
        _blot(rng, canvas, at, 11, look.purple, 0.75, rough=0.1)
        _blot(rng, canvas, at, 7, colour, 0.9, rough=0.1)
        _blot(rng, canvas, at + np.array([10, 0]), 4, look.purple * 0.7, 0.95, rough=0.0)


def _white_cell(rng: np.random.Generator, look: _Look, canvas: np.ndarray, centre: np.ndarray) -> None:
    radius = rng.uniform(58, 80)
    _blot(rng, canvas, centre, radius, look.cytoplasm, 0.95, rough=0.08)
    for _ in range(60):  # granules
        at = centre + rng.normal(0, 0.42, 2) * radius
        _blot(rng, canvas, at, rng.uniform(1.5, 3.0), look.purple + 40, 0.35, rough=0.0, soft=1.5)
    turn = rng.uniform(0, 2 * np.pi)
    for lobe in range(rng.integers(2, 5)):
        angle = turn + lobe * rng.uniform(1.0, 1.6)
        at = centre + 0.38 * radius * np.array([np.sin(angle), np.cos(angle)])
        _blot(rng, canvas, at, radius * rng.uniform(0.3, 0.42), look.purple + rng.normal(0, 6, 3), 0.9, rough=0.12)


def _blot(
    rng: np.random.Generator,
    canvas: np.ndarray,
    centre: np.ndarray,
    radius: float,
    colour: np.ndarray,
    opacity: float,
    *,
    rough: float,
    soft: float = 3.0,
) -> None:
    """Lay a roundish patch of colour over the canvas, in place."""
    reach = radius * (1 + 2 * rough) + 6 * soft
    first = np.clip(np.floor(centre - reach), 0, _DRAWN).astype(int)
    last = np.clip(np.ceil(centre + reach), 0, _DRAWN).astype(int)
    rows, columns = np.mgrid[first[0] : last[0], first[1] : last[1]]
    down, right = rows - centre[0], columns - centre[1]
    angle = np.arctan2(down, right)
    edge = np.full(angle.shape, float(radius))
    for wave in (2, 3, 5):
        edge += radius * rough * rng.normal() / wave * np.cos(wave * angle + rng.uniform(0, 2 * np.pi))
    cover = opacity / (1 + np.exp(np.clip((np.hypot(down, right) - edge) / soft * 2, -30, 30)))
    window = canvas[first[0] : last[0], first[1] : last[1]]
    window += cover[:, :, None] * (colour - window)


def _damage(path: Path, kind: int) -> None:
    data = path.read_bytes()
    path.write_bytes([data[: len(data) // 2], b"", b"<!DOCTYPE html><title>404</title>", data[:-40]][kind % 4])
