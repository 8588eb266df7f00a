"""medprobe compare and medprobe predict."""

from __future__ import annotations

import json as jsonlib
import math
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from medprobe.commands.options import SKIPPED, FramesChoice, Json, VolumesChoice


def compare(
    results: Annotated[
        list[Path], typer.Argument(metavar="RESULT...", help="Folders or tables that probe --out wrote.")
    ],
    against: Annotated[
        str | None, typer.Option(help="Compare this encoder with all others. (default: the best one)")
    ] = None,
    every_pair: Annotated[bool, typer.Option("--every-pair", help="Compare all with all.")] = False,
    bootstrap: Annotated[int, typer.Option(help="Resamples of the intervals.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of the resamples.")] = 0,
    json: Json = False,
) -> None:
    """Print the leaderboard of many results, and which of their differences are more than chance."""
    from medprobe.probe.compare import compare as run
    from medprobe.results import ranked

    found = run(results, against=against, every_pair=every_pair, n_resamples=bootstrap, seed=seed)
    if json:
        rows = [row.to_dict() for table in ranked(found.rows).values() for row in table]
        pairs = [
            {**asdict(d), "question": d.question._asdict(), "first": d.first.to_dict(), "second": d.second.to_dict()}
            for d in found.differences
        ]
        ranks = found.ranks and {**asdict(found.ranks), "tasks": [task._asdict() for task in found.ranks.tasks]}
        typer.echo(jsonlib.dumps(_plain({"rows": rows, "differences": pairs, "ranks": ranks}), indent=1))
    else:
        from medprobe.leaderboard import print_comparison, print_leaderboard

        print_leaderboard(found.rows)
        print_comparison(found.differences, found.ranks)


def predict(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A probe that probe --save-model wrote.")],
    data: Annotated[
        list[str],
        typer.Argument(metavar="DATA", help="Store (one for each encoder of the probe), or images as for embed."),
    ],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="CSV to write. (default: the screen)")] = None,
    weights: Annotated[str | None, typer.Option(help="Checkpoint file of the encoder, for images.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps, for images.")] = "auto",
    frames: FramesChoice = None,
    volumes: VolumesChoice = None,
    json: Json = False,
) -> None:
    """Apply a saved probe to stored features of the same encoder, or to images."""
    from medprobe.probe.deploy import predict as run

    table = run(model, data, weights=weights, device=device, frames=frames, volumes=volumes)
    if out is not None:
        table.to_csv(out, index=False)
        typer.echo(f"{out}: {len(table)} predictions", err=True)
    elif json:
        typer.echo(table.to_json(orient="records", indent=1, double_precision=15))
    else:
        typer.echo(table.to_csv(index=False).rstrip("\n"))
    if table.isna().any(axis=None):
        raise typer.Exit(SKIPPED)


def _plain(value: Any) -> Any:
    """Return JSON types; a number that is not defined is None."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
