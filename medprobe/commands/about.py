"""medprobe models, doctor and demo."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import Annotated

import typer

from medprobe.commands.options import Json

DEFAULT_MODEL = "imagenet/efficientnet-lite0"


def models(
    pattern: Annotated[str, typer.Argument(help="Only names with this in them.")] = "",
    family: Annotated[list[str] | None, typer.Option("--family", "-f", help="Only these; may be repeated.")] = None,
    here: Annotated[bool, typer.Option("--here", help="Only those that load without a network.")] = False,
    max_parameters: Annotated[float | None, typer.Option(help="Only those of so many million, or fewer.")] = None,
    json: Json = False,
) -> None:
    """List the encoders: size, cost, vectors, licence, and whether their weights are here."""
    from medprobe.encoders.catalogue import find

    found = find(pattern, families=family or (), here=here, max_parameters=max_parameters)
    if json:
        typer.echo(jsonlib.dumps([entry.to_dict() for entry in found], indent=1, ensure_ascii=False))
    else:
        from medprobe.console import print_models

        print_models(found)


def doctor(json: Json = False) -> None:
    """Say what is installed, what can be computed on, and how to mend what is missing."""
    from medprobe.doctor import examine

    checks = examine()
    if json:
        typer.echo(jsonlib.dumps([vars(check) for check in checks], indent=1))
    else:
        from medprobe.console import print_checks

        print_checks(checks)


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for images, stores and results.")] = Path(
        "medprobe-demo"
    ),
    data: Annotated[
        str, typer.Option(help="smears (drawn here), or a MedMNIST set such as breastmnist (fetched).")
    ] = "smears",
    model: Annotated[
        list[str] | None, typer.Option("--model", "-m", help="Encoders. (default: two that need no download)")
    ] = None,
) -> None:
    """Run the main job on a small image set: embed, probe, leaderboard."""
    from medprobe.demo import run_demo

    run_demo(out, data, tuple(model or (DEFAULT_MODEL, "baseline/pixels")))
