"""A report as a PDF, set by Typst: no browser and no network takes part, and no name is read as markup."""

from __future__ import annotations

import json
import re
import tempfile
from importlib import resources
from itertools import count
from pathlib import Path
from typing import Any

from medprobe.errors import UsageError
from medprobe.report.content import Block, Figure, Items, Report, Section, Table, Text
from medprobe.report.style import pdf

_BREAK = "\N{ZERO WIDTH SPACE}"
_LONG = re.compile(r"([/_\-.,=]|\w{18})(?=\w)")


def to_pdf(report: Report) -> bytes:
    """Return a report as a PDF with its figures as vectors and its numbers attached as ``numbers.json``.

    Raises:
        UsageError: Typst is not installed.

    """
    try:
        import typst
    except ImportError as error:
        raise UsageError(
            "a PDF needs the package typst, which is not installed: pip install 'medprobe[report]'"
        ) from error
    files: dict[str, bytes] = {}
    figures = count(1)

    def content(section: Section) -> dict[str, Any]:
        return {"title": section.title, "blocks": [_block(block, files, figures) for block in section.blocks]}

    told = {
        "title": report.title,
        "summary": [content(part) for part in report.summary],
        "sections": [content(section) for section in report.sections],
    }
    files["report.json"] = json.dumps(told).encode()
    files["numbers.json"] = json.dumps(report.numbers, indent=1).encode()
    files["report.typ"] = resources.files("medprobe.report").joinpath("report.typ").read_bytes()
    with tempfile.TemporaryDirectory(prefix="medprobe-") as folder:  # Typst reads nothing outside of it
        for name, data in files.items():
            (Path(folder) / name).write_bytes(data)
        made: bytes = typst.compile(str(Path(folder) / "report.typ"), root=folder, format="pdf")
    return made


def _block(block: Block, files: dict[str, bytes], figures: count[int]) -> dict[str, Any]:
    if isinstance(block, Text):
        return {"kind": "text", "text": block.text}
    if isinstance(block, Items):
        return {"kind": "items", "items": list(block.items)}
    if isinstance(block, Table):
        return {
            "kind": "table",
            "caption": block.caption,
            "header": [_breakable(name) for name in block.header],
            "rows": [[_breakable(cell) for cell in row] for row in block.rows],
            "numeric": sorted(block.numeric),
        }
    return _figure(block, files, figures)


def _figure(figure: Figure, files: dict[str, bytes], figures: count[int]) -> dict[str, Any]:
    if figure.chart is None:
        return {"kind": "figure", "file": None, "caption": f"Missing figure, {figure.name}: {figure.missing}."}
    place = next(figures)
    file = f"figure{place}.pdf"
    files[file] = pdf(figure.chart)
    name = figure.name[:1].upper() + figure.name[1:]
    return {"kind": "figure", "file": file, "caption": f"Figure {place}. {name}. {figure.caption}"}


def _breakable(text: str) -> str:
    """Return a cell's text that may be broken where a long word has a sign, or goes on for ever."""
    return _LONG.sub(rf"\1{_BREAK}", text)
