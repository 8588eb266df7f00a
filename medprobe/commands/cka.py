"""medprobe cka."""

from __future__ import annotations

import json as jsonlib
from dataclasses import asdict
from typing import Annotated

import typer

from medprobe.commands.options import Json, Partial


def cka(
    first: Annotated[str, typer.Argument(metavar="STORE", help="A feature store.")],
    second: Annotated[str, typer.Argument(metavar="STORE", help="Another of the same images; or the same again.")],
    view: Annotated[
        list[str] | None, typer.Option(help="Only this view; may be repeated. (default: all, blocks one by one)")
    ] = None,
    partial: Partial = False,
    json: Json = False,
) -> None:
    """Compare the features of two encoders, layer by layer (centred kernel alignment): 1 is the same up to rotation."""
    from medprobe.probe.cka import cka as run

    found = run(first, second, views=view or (), partial=partial)
    if json:
        typer.echo(jsonlib.dumps({**asdict(found), "values": found.values.tolist()}, indent=1))
    else:
        from medprobe.leaderboard import print_alignment

        print_alignment(found)
