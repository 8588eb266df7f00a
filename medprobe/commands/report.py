"""medprobe report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    results: Annotated[
        list[Path], typer.Argument(metavar="RESULT...", help="Folders or tables that probe --out wrote.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write.")] = Path("report.html"),
    format: Annotated[
        str | None,
        typer.Option(
            "--format", "-f", help="html, md, pdf, latex-table or json. (default: by the end of the file's name)"
        ),
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="Compare this encoder with all others. (default: the best one)")
    ] = None,
    store: Annotated[
        list[Path] | None,
        typer.Option(help="A store of the results: exclusions, columns, and a map of it; may be repeated."),
    ] = None,
    map_method: Annotated[str, typer.Option("--map", help="How stores are mapped: pca or umap.")] = "pca",
    bootstrap: Annotated[int, typer.Option(help="Resamples of differences and bands.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of the resamples.")] = 0,
) -> None:
    """Write what results say as one file: who wins, by how much, how sure, with figures and methods for a paper."""
    from medprobe.report.run import report as run

    path = run(
        results,
        out,
        file_format=format,
        against=against,
        stores=store or (),
        map_method=map_method,  # type: ignore[arg-type]
        n_resamples=bootstrap,
        seed=seed,
    )
    typer.echo(f"report: {path}", err=True)
