"""``report``: from results to a file."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from medprobe.errors import UsageError
from medprobe.probe.atlas import Method
from medprobe.probe.compare import compare
from medprobe.report.build import build
from medprobe.report.content import Report
from medprobe.results import TABLE, Results, read_results
from medprobe.store import FeatureStore, open_store

FORMATS = {".html": "html", ".htm": "html", ".md": "md", ".pdf": "pdf", ".tex": "latex-table", ".json": "json"}
"""Formats by the end of the file's name."""


def report(
    results: Results | Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str] = "report.html",
    *,
    file_format: str | None = None,
    against: str | None = None,
    stores: Sequence[str | os.PathLike[str] | FeatureStore] = (),
    map_method: Method = "pca",
    n_resamples: int = 1000,
    seed: int = 0,
) -> Path:
    """Write a report of results and return its path.

    Args:
        results: Those of :func:`medprobe.probe`, or folders and tables that they were written to.
        out: File to write.
        file_format: ``html``, ``md`` (figures in a folder beside it), ``pdf``, ``latex-table`` (leaderboards) or ``json``; by
            default what the end of the file's name says.
        against: Encoder whose best row is compared with all others; the best one by default.
        stores: Stores of the results, or their paths: the report then says what was left out and why, what the columns
            hold and what the encoders are, and shows a map of the embeddings.
        map_method: How they are mapped: ``pca``, or ``umap``.
        n_resamples: Bootstrap resamples of differences and bands.
        seed: Seed of the resamples, and of maps.

    Raises:
        UsageError: The format is unknown, there is nothing to report, or figures are needed and Altair is missing.
        DataError: Results are missing or damaged.

    """
    out = Path(out)
    chosen = file_format or FORMATS.get(out.suffix.lower())
    if chosen is None or chosen not in FORMATS.values():
        names = ", ".join(dict.fromkeys(FORMATS.values()))
        asked = f"--format {chosen}" if chosen else f"{out.name}: the end of the name says no format"
        raise UsageError(f"{asked}; --format takes one of {names}")
    if map_method not in get_args(Method):
        raise UsageError(f"--map {map_method}: one of {', '.join(get_args(Method))}")
    opened = [store if isinstance(store, FeatureStore) else open_store(store, partial=True) for store in stores]
    sources: list[Path] = []
    if not isinstance(results, Results):
        sources = [Path(path) / TABLE if Path(path).is_dir() else Path(path) for path in results]
        results = read_results(sources)
    found = compare(results, against=against, n_resamples=n_resamples, seed=seed)
    contents = build(
        found,
        figures=chosen in {"html", "md", "pdf"},
        sources=sources,
        n_resamples=n_resamples,
        seed=seed,
        stores=opened,
        map_method=map_method,
    )
    draft = out.with_name(out.name + ".draft")
    draft.write_bytes(_written(contents, chosen, out))
    draft.replace(out)
    return out


def _written(contents: Report, chosen: str, out: Path) -> bytes:
    if chosen == "pdf":
        from medprobe.report.pdf import to_pdf

        return to_pdf(contents)
    if chosen == "html":
        from medprobe.report.html import to_html

        return to_html(contents).encode()
    if chosen == "json":
        return (json.dumps(contents.numbers, indent=1) + "\n").encode()
    from medprobe.report.text import to_latex, to_markdown

    if chosen == "latex-table":
        return to_latex(contents).encode()
    return to_markdown(contents, out.with_name(f"{out.stem}_figures")).encode()
