"""What the cost model of docs/planning.md says an embedding takes, against what it then takes.

    python benchmarks/planning.py                                     # 20,000 drawn JPEG files, EfficientNet-Lite0
    python benchmarks/planning.py --model baseline/random-vits16 --images 2000 --size 2048x2048
    python benchmarks/planning.py --data cells.csv --box-cols x,y,width,height --model dinov2/vits14 --weights FILE

The parts are measured on a few images each: reading by a process on every core at once, the bare forward pass, and the
writing of a block. Then all images are embedded for real, and the ratio of the two is printed, for the time and for the disk.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
from embed import bare_forward, draw, fastest_batch, load

import medprobe
from medprobe.embed.precision import choose_device, choose_precision
from medprobe.encoders.base import Encoder
from medprobe.images.decode import decode, default_workers
from medprobe.images.geometry import Geometry
from medprobe.images.sources import Payload
from medprobe.memory import keep_freed_memory
from medprobe.store import APPEARANCE_ARRAY, DIGEST_ARRAY, STAMP_ARRAY
from medprobe.store_records import Plan
from medprobe.store_writer import create_store, write_block
from medprobe.tables import ids_digest

BLOCK_ROWS = 1024
A_ROW = 16 + 16 + 16  # digest, size and time of change, appearance: before compression
_ROUNDS = 3


def seconds_to_read(payloads: Sequence[Payload], geometry: Geometry) -> float:
    """Return core-seconds an image, digests and all, in this process."""
    started = time.perf_counter()
    decode(payloads, [geometry])
    return (time.perf_counter() - started) / len(payloads)


def seconds_to_write(encoder: Encoder, folder: Path, n_blocks: int = 8) -> float:
    """Return seconds of checking, writing, syncing and committing one block."""
    rng = np.random.default_rng(0)
    n = n_blocks * BLOCK_ROWS
    samples = pd.DataFrame({"id": [f"{i}.png" for i in range(n)]})
    name = {"name": encoder.name, "weights_sha256": "0" * 64, "preprocess": {}}
    views, dtypes = encoder.views, dict.fromkeys(encoder.views, "float16")
    plan = Plan(name, "0" * 64, "fp32", views, dtypes, encoder.default_view, n, BLOCK_ROWS, ids_digest(samples["id"]))
    roles = {"labels": [], "group": None, "split": None, "data": "drawn"}
    store = create_store(folder / "blocks.zarr", plan, samples, roles, card={}, versions={})
    features = {f"features/{v}": rng.standard_normal((BLOCK_ROWS, w), dtype=np.float32) for v, w in views.items()}
    others = {
        APPEARANCE_ARRAY: np.zeros((BLOCK_ROWS, 4)),
        STAMP_ARRAY: np.zeros((BLOCK_ROWS, 2)),
        DIGEST_ARRAY: np.zeros((BLOCK_ROWS, 16), np.uint8),
    }
    spent = []
    for index in range(n_blocks):
        started = time.perf_counter()
        write_block(store, index, {**features, **others}, (), {})
        spent.append(time.perf_counter() - started)
    return statistics.median(spent)


def main() -> None:
    """Print the parts, the prediction and what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="a folder or table, instead of drawn files")
    parser.add_argument("--model", default="imagenet/efficientnet-lite0")
    parser.add_argument("--weights")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--size", default="600x450", help="of drawn files")
    parser.add_argument("--format", default="JPEG", choices=("JPEG", "PNG"), help="of drawn files")
    parser.add_argument("--box-cols", help="of a table, as embed takes them: a sample is a part of an image")
    parser.add_argument("--image-size", type=int, help="another input size than the encoder's own")
    parser.add_argument("--out", type=Path, help="keep the store in this folder, which is not there yet")
    parser.add_argument("--quick", action="store_true", help="1,000 images")
    options = parser.parse_args()
    n = 1_000 if options.quick else options.images
    encoder = load(options.model, options.weights, options.image_size)
    device = choose_device(options.device)
    encoder.to(device)
    if device.type == "cpu":
        keep_freed_memory()  # as embed does
    precision, cores = choose_precision("auto", device), default_workers()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        data = options.data or folder / "images"
        if not options.data:
            draw(folder / "images", n, options.size, options.format)
        boxes = options.box_cols.split(",") if options.box_cols else ()
        manifest = medprobe.read_manifest(data, box_cols=boxes)
        out = options.out or folder / "stores"
        n = min(n, len(manifest))
        few = [manifest.images.payload(int(row)) for row in np.linspace(0, n - 1, 32)]
        batch = fastest_batch(encoder, few, precision)
        with ProcessPoolExecutor(cores, mp_context=get_context("spawn")) as pool:
            geometry = encoder.preprocess.geometry
            rounds = [
                (
                    statistics.mean(pool.map(seconds_to_read, [few] * cores, [geometry] * cores)),
                    bare_forward(encoder, few, precision, batch),
                )
                for _ in range(_ROUNDS + 1)
            ][1:]
        reading, forward = (statistics.median(part) for part in zip(*rounds, strict=True))
        block, n_blocks = seconds_to_write(encoder, folder), math.ceil(n / BLOCK_ROWS)
        on_cpu = device.type == "cpu"
        at_once = reading / cores + forward if on_cpu else max(reading / cores, forward)
        # On a GPU a block is written beside the next, and only the last is waited for.
        seconds, size = n * at_once + (n_blocks if on_cpu else 1) * block, n * (2 * sum(encoder.views.values()) + A_ROW)
        print(f"{encoder.name}, {precision}, {cores} cores, {n} images")
        print(f"reading    {1 / reading:10.1f} images/s a core")
        print(f"encoding   {1 / forward:10.1f} images/s")
        print(f"a block    {block * 1000:10.1f} ms, {n_blocks} blocks")
        print(f"a row      {size / n:10.0f} bytes", flush=True)
        started = time.perf_counter()
        (report,) = medprobe.embed(manifest, [encoder], out, device=options.device, precision=precision, limit=n)
        took = time.perf_counter() - started
        on_disk = sum(f.stat().st_size for f in out.rglob("*") if f.is_file())
        print(f"{report.embedded} embedded, {report.failures} failed")
        print(f"time: model / real {seconds / took:.2f} ({seconds:.0f} s, {took:.0f} s)")
        print(f"disk: model / real {size / on_disk:.2f} ({size / 1e6:.1f} MB, {on_disk / 1e6:.1f} MB)")


if __name__ == "__main__":
    main()
