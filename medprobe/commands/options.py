"""Options and exit statuses that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medprobe.errors import UsageError

FAILED, USAGE, SKIPPED, INTERRUPTED = 1, 2, 3, 4

Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
StorePath = Annotated[Path, typer.Argument(metavar="STORE", help="A feature store (folder ending in .zarr).")]
Partial = Annotated[bool, typer.Option("--partial", help="Use the finished blocks of an incomplete store.")]


def number(flag: str, text: str) -> int | None:
    """Return the number of an option that may be ``auto``, which is None."""
    if text == "auto":
        return None
    if not text.isdigit():
        raise UsageError(f"{flag} {text}: a number, or auto")
    return int(text)
