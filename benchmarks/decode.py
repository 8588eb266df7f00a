"""Reading image files down to 224 x 224, against decoding all of the file and resizing it, in one thread."""

from __future__ import annotations

import argparse
import io
import platform
import statistics
import time
from collections.abc import Callable

import numpy as np
from PIL import Image, features
from PIL import __version__ as pillow_version

from medprobe.images.geometry import Geometry
from medprobe.images.raster import load_rgb

GEOMETRY = Geometry((224, 224), 256)
EXACT = Geometry((224, 224), 256, exact_decode=True)
# Width, height and standard deviation of the grain. What a reduced decode can save falls as the file grows: the
# entropy-coded stream has to be read in full whatever the size of the result.
PICTURES = {
    "224 x 224": (224, 224, 3.0),
    "600 x 450": (600, 450, 3.0),
    "2,048 x 2,048": (2048, 2048, 3.0),
    "12 Mpx": (4000, 3000, 3.0),
    "12 Mpx, grainy": (4000, 3000, 8.0),
}


def picture(width: int, height: int, grain: float, seed: int = 0) -> Image.Image:
    """Return discs on a tinted ground with texture of a photograph's spectrum (amplitude 1/f) and a sensor's grain."""
    rng = np.random.default_rng(seed)
    side = max(width, height)
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32) / side
    canvas = np.stack([205 - 40 * rows, 150 + 30 * columns, 175 + 20 * rows], axis=2)
    for _ in range(60):
        row, column = rng.uniform(0, height / side), rng.uniform(0, width / side)
        canvas[np.hypot(rows - row, columns - column) < rng.uniform(0.01, 0.07)] += rng.uniform(-70, 10, 3)
    cells = 4
    while cells < side / 2:
        coarse = Image.fromarray(rng.standard_normal((cells, cells), dtype=np.float32))
        octave = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC))[:height, :width]
        canvas += octave[:, :, None] * np.array([1.0, 0.9, 1.1]) * max(60 / cells, 2.5)
        cells *= 2
    canvas += rng.normal(0, grain, canvas.shape)
    return Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))


def encoded(image: Image.Image, file_format: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **({"quality": 90} if file_format == "JPEG" else {}))
    return buffer.getvalue()


def pillow(data: bytes) -> np.ndarray:
    return np.asarray(GEOMETRY.apply(Image.open(io.BytesIO(data)).convert("RGB")))


def medians(cases: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Return the median seconds of each case, the cases taken in turn."""
    spent: dict[str, list[float]] = {name: [] for name in cases}
    for repeat in range(repeats + 1):
        for name, function in cases.items():
            start = time.perf_counter()
            function()
            if repeat:  # the first round warms up
                spent[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in spent.items()}


def main(repeats: int) -> None:
    print(
        f"python {platform.python_version()}, numpy {np.__version__}, Pillow {pillow_version}, "
        f"libjpeg-turbo {features.version_feature('libjpeg_turbo')}; 1 thread; median of {repeats} interleaved repeats"
    )
    print(f"{'':22s}{'file kB':>9s}{'images/s a core':>17s}{'Pillow in full':>16s}{'ratio':>7s}  mean difference / 255")
    for name, (width, height, grain) in PICTURES.items():
        image = picture(width, height, grain)
        for file_format in ("JPEG", "PNG"):
            data = encoded(image, file_format)
            seconds = medians(
                {"ours": lambda d=data: load_rgb(d, [GEOMETRY]), "full": lambda d=data: pillow(d)}, repeats
            )
            ours, full = load_rgb(data, [GEOMETRY])[0], pillow(data)
            np.testing.assert_array_equal(load_rgb(data, [EXACT])[0], full)
            difference = np.abs(ours.astype(float) - full).mean()
            print(
                f"{file_format + ' ' + name:22s}{len(data) / 1000:9.0f}{1 / seconds['ours']:17.1f}"
                f"{1 / seconds['full']:16.1f}{seconds['full'] / seconds['ours']:7.2f}  {difference:.3f}"
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="three repeats")
    options = parser.parse_args()
    main(3 if options.quick else options.repeats)
