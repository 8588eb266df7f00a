"""``report``: from results to a file."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from medprobe.errors import UsageError
from medprobe.probe.compare import compare
from medprobe.report.build import build
from medprobe.results import TABLE, Results, read_results

FORMATS = {".html": "html", ".htm": "html", ".md": "md", ".tex": "latex-table", ".json": "json"}
"""Formats by the end of the file's name."""


def report(
    results: Results | Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str] = "report.html",
    *,
    file_format: str | None = None,
    against: str | None = None,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Path:
    """Write a report of results and return its path.

    Args:
        results: Those of :func:`medprobe.probe`, or folders and tables that they were written to.
        out: File to write.
        file_format: ``html``, ``md`` (figures in a folder beside it), ``latex-table`` (leaderboards) or ``json``; by default
            what the end of the file's name says.
        against: Encoder whose best row is compared with all others; the best one by default.
        n_resamples: Bootstrap resamples of differences and bands.
        seed: Seed of the resamples.

    Raises:
        UsageError: The format is unknown, there is nothing to report, or figures are needed and Altair is missing.
        DataError: Results are missing or damaged.

    """
    out = Path(out)
    chosen = file_format or FORMATS.get(out.suffix.lower())
    if chosen == "pdf" or (chosen is None and out.suffix.lower() == ".pdf"):
        raise UsageError(f"{out.name}: no PDF without a browser; write HTML, open it and print it to a file")
    if chosen not in FORMATS.values():
        names = ", ".join(dict.fromkeys(FORMATS.values()))
        asked = f"--format {chosen}" if chosen else f"{out.name}: the end of the name says no format"
        raise UsageError(f"{asked}; --format takes one of {names}")
    sources: list[Path] = []
    if not isinstance(results, Results):
        sources = [Path(path) / TABLE if Path(path).is_dir() else Path(path) for path in results]
        results = read_results(sources)
    found = compare(results, against=against, n_resamples=n_resamples, seed=seed)
    contents = build(
        found, figures=chosen in {"html", "md"}, sources=sources, n_resamples=n_resamples, seed=seed
    )  # fmt: skip
    if chosen == "html":
        from medprobe.report.html import to_html

        text = to_html(contents)
    elif chosen == "json":
        text = json.dumps(contents.numbers, indent=1) + "\n"
    else:
        from medprobe.report.text import to_latex, to_markdown

        text = (
            to_latex(contents)
            if chosen == "latex-table"
            else to_markdown(contents, out.with_name(f"{out.stem}_figures"))
        )
    draft = out.with_name(out.name + ".draft")
    draft.write_text(text, encoding="utf-8")
    draft.replace(out)
    return out
