"""medprobe explore."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medprobe.commands.options import Partial


def explore(
    stores: Annotated[
        list[str] | None, typer.Argument(metavar="STORE...", help="Feature stores: folders or URLs.")
    ] = None,
    demo: Annotated[
        bool, typer.Option("--demo", help="Open the stores of medprobe demo, and make them if they are absent.")
    ] = False,
    images: Annotated[
        Path | None,
        typer.Option(help="What was embedded, to show images that the stores keep no thumbnails of."),
    ] = None,
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1; 0 for any that is free.")] = 8123,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Open no browser.")] = False,
    partial: Partial = False,
) -> None:
    """Open stores as a page in the browser: what-if questions, figures that follow, the images behind them."""
    from medprobe.explore.run import explore as run

    run(
        stores or (),
        demo=demo,
        images=images,
        port=port,
        browser=not no_browser,
        partial=partial,
        ready=lambda address: typer.echo(f"medprobe explore: {address} (Ctrl-C ends it)", err=True),
    )
    typer.echo("medprobe explore: ended", err=True)
