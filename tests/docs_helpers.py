"""The commands and programs that stand in the pages of the documentation."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]

# Before the word medprobe: a prompt of a scheduler, variables, python -m.
_CALL = re.compile(r"^\s*(?:[A-Z_]+=\S+ |srun |.* && |.* -m |.*-c, \")?medprobe ([a-z].*)$")


def page(name: str) -> str:
    """Return the text of a page of the documentation."""
    return (DOCS / name).read_text(encoding="utf-8")


def code(text: str) -> Iterator[str]:
    """Yield the lines of the blocks of code of a page, those that end in a backslash with the next one."""
    fenced = False
    for line in text.replace("\\\n", "").splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            yield line


def commands(text: str) -> Iterator[list[str]]:
    """Yield the arguments of each ``medprobe`` that a block of code of a page calls, in its order."""
    for line in code(text):
        called = _CALL.match(line)
        if called:
            yield shlex.split(called[1].removesuffix('"]'), comments=True)


def programs(text: str) -> list[str]:
    """Return the Python programs of a page."""
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
