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

from drawn import draw_store

MEDPROBE = str(Path(sys.executable).parent / "medprobe")
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "python -c 'import typer'": [sys.executable, "-c", "import typer"],
    "medprobe --help": [MEDPROBE, "--help"],
    "medprobe embed --help": [MEDPROBE, "embed", "--help"],
    "python -c 'import torch'": [sys.executable, "-c", "import torch"],
}


def main(repeats: int, n: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        draw_store(Path(folder) / "drawn.zarr", n, 768)
        probe = [MEDPROBE, "--quiet", "probe", str(Path(folder) / "drawn.zarr"), "--target", "sick", "--probe"]
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
