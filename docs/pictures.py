"""Makes the pictures of the README from a finished demo: python docs/pictures.py medprobe-demo."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from rich.console import Console

from medprobe.demo_images import contact_sheet
from medprobe.leaderboard import print_leaderboard
from medprobe.results import read_results

IMAGES = Path(__file__).parent / "images"


def main(demo: Path) -> None:
    """Write ``cells.png`` and ``leaderboard.svg``."""
    contact_sheet(demo / "manifest.csv", columns=10, rows=2).save(IMAGES / "cells.png")
    console = Console(record=True, width=168, file=Path("/dev/null").open("w"))  # noqa: SIM115
    print_leaderboard(read_results([demo / "results"]), to=console)
    svg = console.export_svg(title="medprobe demo")
    # Rich names a web font; a picture in a README asks nothing of another machine.
    svg = re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL).replace("Fira Code", "ui-monospace, Menlo, Consolas")
    (IMAGES / "leaderboard.svg").write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
