"""How long a command takes to answer, against what it cannot avoid: ratios of medians, the commands taken in turn.

The last ones probe a store of 20,000 images and 768 features, as whole processes (bar: 1.5 times importing torch).
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from medprobe.store import APPEARANCE_ARRAY, DIGEST_ARRAY, STAMP_ARRAY
from medprobe.store_records import Plan
from medprobe.store_writer import create_store, write_block
from medprobe.tables import ids_digest

MEDPROBE = str(Path(sys.executable).parent / "medprobe")
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "python -c 'import typer'": [sys.executable, "-c", "import typer"],
    "medprobe --help": [MEDPROBE, "--help"],
    "medprobe embed --help": [MEDPROBE, "embed", "--help"],
    "python -c 'import torch'": [sys.executable, "-c", "import torch"],
}


def make_store(path: Path, n: int) -> None:
    """Features with a power-law spectrum, two classes, patients of two images, a split."""
    rng = np.random.default_rng(0)
    scale = np.arange(1, 769) ** -0.5
    X = (rng.standard_normal((n, 768)) * scale).astype(np.float32)
    signal = X @ rng.standard_normal(768)
    samples = pd.DataFrame(
        {
            "id": [f"{i}.png" for i in range(n)],
            "label": (signal / signal.std() + rng.standard_normal(n) > 0).astype(int),
            "patient": np.arange(n) // 2,
            "split": np.repeat(["train", "val", "test"], [n - 2 * (n // 5), n // 5, n // 5]),
        }
    )
    plan = Plan(
        {"name": "drawn/features", "weights_sha256": "0" * 64, "preprocess": {}}, "0" * 64, "fp32", {"cls": 768},
        {"cls": "float16"}, "cls", n, 1024, ids_digest(samples["id"]),
    )  # fmt: skip
    roles = {"labels": ["label"], "group": "patient", "split": "split", "data": "drawn"}
    store = create_store(path, plan, samples, roles, card={}, versions={})
    for index in range(plan.n_blocks):
        rows = plan.block(index)
        size = rows.stop - rows.start
        arrays = {"features/cls": X[rows], APPEARANCE_ARRAY: np.zeros((size, 4)), STAMP_ARRAY: np.zeros((size, 2))}
        write_block(store, index, {**arrays, DIGEST_ARRAY: np.zeros((size, 16), np.uint8)}, (), {})


def main(repeats: int, n: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        make_store(Path(folder) / "drawn.zarr", n)
        probe = [MEDPROBE, "--quiet", "probe", str(Path(folder) / "drawn.zarr"), "--probe"]
        measure({**COMMANDS, **{f"medprobe probe -p {p}": [*probe, p] for p in ("logreg", "ridge", "knn")}}, repeats)


def measure(commands: dict[str, list[str]], repeats: int) -> None:
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(repeats):
        for name, command in commands.items():
            started = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            seconds[name].append(time.perf_counter() - started)
    unit = statistics.median(seconds["python -c 'import torch'"])
    print(f"median of {repeats} runs in turn, Python {sys.version.split()[0]}; 'import torch' = 1")
    for name, runs in seconds.items():
        print(f"{statistics.median(runs) / unit:6.3f}  {statistics.median(runs):6.3f} s  {name}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    main(3 if options.quick else options.repeats, 2_000 if options.quick else 20_000)
