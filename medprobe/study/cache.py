"""What is kept of the cells that were run: one folder each, there whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medprobe.errors import DataError
from medprobe.results import Results, read_results, write_results
from medprobe.study.schema import Cell

CELLS, FAILURES, STORES, FINETUNED = "cells", "failures", "stores", "finetuned"
_RECORD = "cell.json"


class Cache:
    """The finished cells in a study's folder.

    A cell's folder is named by a digest of its arguments; its record says what features or images it was computed from,
    so that a cell of other ones is not there. A record is written last, with the sizes of the files beside it, and the
    folder then gets its name.

    Args:
        out: The study's folder.

    """

    def __init__(self, out: Path) -> None:
        self.out = out

    def folder(self, cell: Cell) -> Path:
        """Return where a cell is kept."""
        return self.out / CELLS / digest(cell.arguments)[:16]

    def holds(self, cell: Cell, source: Mapping[str, Any] | None = None) -> bool:
        """Return whether a cell is finished, and computed from that source where one is given."""
        folder = self.folder(cell)
        try:
            record = json.loads((folder / _RECORD).read_bytes())
            whole = all((folder / name).stat().st_size == size for name, size in record["files"].items())
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return False
        return whole and (source is None or record["source"] == source)

    def read(self, cell: Cell) -> Results | None:
        """Return the rows and predictions of a cell, or None where it is not finished, or damaged."""
        if not self.holds(cell):
            return None
        try:
            return read_results([self.folder(cell)])
        except DataError:
            return None

    def write(self, cell: Cell, source: Mapping[str, Any], rows: Results) -> None:
        """Keep the rows of a cell, in place of those from another source."""
        folder = self.folder(cell)
        draft = folder.with_name(f".{folder.name}.{os.getpid()}.draft")
        shutil.rmtree(draft, ignore_errors=True)
        write_results(rows, draft)
        written = [path for path in sorted(draft.rglob("*")) if path.is_file()]
        record = {
            "cell": cell.arguments,
            "source": dict(source),
            "files": {path.relative_to(draft).as_posix(): path.stat().st_size for path in written},
        }
        (draft / _RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")
        for path in (*written, draft / _RECORD):
            _to_disk(path)
        shutil.rmtree(folder, ignore_errors=True)
        draft.rename(folder)
        self._failure(cell).unlink(missing_ok=True)
        for left in folder.parent.glob(f".{folder.name}.*.draft"):  # by runs that were killed
            shutil.rmtree(left, ignore_errors=True)

    def checkpoints(self, cell: Cell, source: Mapping[str, Any]) -> Path:
        """Return where a fine-tuning keeps its checkpoints, to go on from."""
        return self.out / FINETUNED / f"{self.folder(cell).name}-{digest(dict(source))[:8]}"

    def fail(self, cell: Cell, reason: str) -> None:
        """Keep the reason why a cell could not be run."""
        path = self._failure(cell)
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(f".{os.getpid()}.draft")
        draft.write_text(json.dumps({"cell": cell.arguments, "reason": reason}, indent=1), encoding="utf-8")
        draft.replace(path)

    def failure(self, cell: Cell) -> str:
        """Return why a cell could not be run, or nothing."""
        try:
            return str(json.loads(self._failure(cell).read_bytes())["reason"])
        except (OSError, ValueError, TypeError, KeyError):
            return ""

    def _failure(self, cell: Cell) -> Path:
        return self.out / FAILURES / f"{digest(cell.arguments)[:16]}.json"


def digest(value: object) -> str:
    """Return the SHA-256 of JSON types."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _to_disk(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
