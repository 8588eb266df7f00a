"""Puts table and figure of a finished studies/mini.toml into docs/study.md: python docs/study_example.py medprobe-mini."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from medprobe.report.style import save
from medprobe.study import show_study
from medprobe.study.figure import gain_figure
from medprobe.study.formats import to_text

DOCS = Path(__file__).parent


def main(folder: Path) -> None:
    """Write ``images/study-mini.svg`` and the table of ``study.md``."""
    table = show_study("mini", folder=folder)
    save(gain_figure(table), DOCS / "images" / "study-mini.svg")
    page = DOCS / "study.md"
    shown = f"<!-- table -->\n```\n{to_text(table)}```\n<!-- /table -->"
    text = re.sub(
        r"<!-- table -->.*<!-- /table -->", lambda _: shown, page.read_text(encoding="utf-8"), flags=re.DOTALL
    )
    page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
