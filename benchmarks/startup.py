"""How long a command takes to answer, against what it cannot avoid: ratios of medians, the commands taken in turn."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "python -c 'import typer'": [sys.executable, "-c", "import typer"],
    "medprobe --help": [str(Path(sys.executable).parent / "medprobe"), "--help"],
    "medprobe embed --help": [str(Path(sys.executable).parent / "medprobe"), "embed", "--help"],
    "python -c 'import torch'": [sys.executable, "-c", "import torch"],
}


def main(repeats: int) -> None:
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(repeats):
        for name, command in COMMANDS.items():
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
    main(3 if options.quick else options.repeats)
