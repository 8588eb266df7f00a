"""medprobe data."""

from __future__ import annotations

import json as jsonlib
from dataclasses import asdict
from typing import Annotated

import typer

from medprobe.commands.options import Json
from medprobe.errors import UsageError


def data(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="One of them; all unless given.")] = None,
    json: Json = False,
) -> None:
    """List the data sets that are known by their layout: where they are handed out, what a folder looks like, what to ask."""
    from medprobe.datasets import DATASETS

    if name is not None and name not in DATASETS:
        raise UsageError(f"{name}: one of {', '.join(DATASETS)}")
    chosen = [d for d in DATASETS.values() if name in {None, d.name}]
    if json:
        typer.echo(jsonlib.dumps([asdict(d) for d in chosen], indent=1))
        return
    for d in chosen:
        typer.echo(f"{d.name}: {d.title}, {d.images}")
        said = {
            "from": d.where,
            "layout": d.layout,
            "target": d.target,
            "probe": d.metric,
            "grouped": d.groups,
            "splits": d.splits,
            "study": d.study,
            "note": d.note,
        }
        for what, text in said.items():
            if text:
                typer.echo(f"  {what:9}{text}")
