"""A newcomer's path: the demo, a report of it, and the explorer until an answer stands on the screen; three minutes in all.

python benchmarks/newcomer.py

Each step is a process as the README has it; the share of each in the three minutes is printed, and of importing torch.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from explore import opened, settled

MINUTES = 3
MEDPROBE = [sys.executable, "-m", "medprobe"]


def main() -> None:
    """Print the table."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    spent: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        demo = Path(folder) / "demo"

        def run(name: str, *command: object) -> None:
            started = time.perf_counter()
            subprocess.run(list(map(str, command)), check=True, capture_output=True)
            spent[name] = time.perf_counter() - started

        run("import torch", sys.executable, "-c", "import torch")
        unit = spent.pop("import torch")
        run("medprobe demo", *MEDPROBE, "demo", "-o", demo)
        stores = sorted((demo / "stores").glob("*.zarr"))
        run("medprobe report", *MEDPROBE, "report", demo / "results", "-o", demo / "report.html")
        started = time.perf_counter()
        with opened(*stores) as (page, address):
            page.goto(address)
            page.wait_for_selector("[data-testid=leaderboard] svg")
            spent["medprobe explore, first answer"] = time.perf_counter() - started
            settled(page, "s.done === 'true'", 0)
            spent["the chosen probe and all intervals"] = time.perf_counter() - started - list(spent.values())[-1]
    for name, seconds in spent.items():
        print(
            f"{name:<36} {seconds / (60 * MINUTES):6.1%} of {MINUTES} minutes, {seconds / unit:5.1f} times 'import torch'"
        )
    print(f"{'together':<36} {sum(spent.values()) / (60 * MINUTES):6.1%}")


if __name__ == "__main__":
    main()
