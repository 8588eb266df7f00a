"""medprobe info, verify and export."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import Annotated

import typer

from medprobe.commands.options import FAILED, Json, Partial, StorePath


def info(
    store: StorePath,
    missing: Annotated[bool, typer.Option("--missing", help="List the blocks that are still to be made.")] = False,
    json: Json = False,
) -> None:
    """Say what a store holds, what it was made with, and what failed."""
    from medprobe.console import print_info
    from medprobe.store import open_store

    opened = open_store(store, partial=True)
    if missing:
        lines = [jsonlib.dumps(opened.missing_blocks)] if json else map(str, opened.missing_blocks)
        for line in lines:
            typer.echo(line)
        return
    print_info(opened, as_json=json)


def verify(store: StorePath, json: Json = False) -> None:
    """Digest every block again and name what is damaged; exit status 1 if anything is."""
    from medprobe.store import open_store

    opened = open_store(store, partial=True)
    problems = list(opened.verify())
    if json:
        typer.echo(jsonlib.dumps(problems, indent=1))
    else:
        for problem in problems:
            typer.echo(problem)
        typer.echo(
            f"{store}: {len(problems)} problems; run the embed command again to make the damaged blocks anew"
            if problems
            else f"{store}: all {opened.plan.n_blocks} blocks are as they were written"
        )
    if problems:
        raise typer.Exit(FAILED)


def export(
    store: StorePath,
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write.")],
    file_format: Annotated[str, typer.Option("--format", "-f", help="npz, parquet or safetensors.")] = "npz",
    view: Annotated[list[str] | None, typer.Option(help="View to export; may be repeated. (default: all)")] = None,
    pool: Annotated[
        str | None, typer.Option(help="Pool slices to volumes: mean, max, mean+max. (default: slices as they are)")
    ] = None,
    pool_by: Annotated[
        str | None, typer.Option(help="Column whose rows are pooled, by their mean unless told.")
    ] = None,
    partial: Partial = False,
) -> None:
    """Write features, ids and columns for other tools."""
    from medprobe.export import export as run
    from medprobe.probe.bags import NONE, Bags, bags_of, pooled_name
    from medprobe.store import open_store

    by = NONE if pool is None and pool_by is None else pool_by
    rows = bags_of(open_store(store, partial=partial), pool, by)
    views = view or ()
    if isinstance(rows, Bags):
        views = [pooled_name(name, each) for name in views for each in rows.pools]
    typer.echo(run(rows, out, file_format, tuple(views)))
