"""medprobe study run and medprobe study show."""

from __future__ import annotations

import json as jsonlib
import signal
from pathlib import Path
from typing import Annotated

import typer

from medprobe.commands.options import FAILED, SKIPPED, Json, Workers, interrupted, number
from medprobe.errors import UsageError

app = typer.Typer(no_args_is_help=True, help="A grid of data sets, encoders and heads from one TOML file.")

StudyPath = Annotated[
    Path, typer.Argument(metavar="STUDY", help="A TOML file, or wacv2024, followup2025, medmnist, mini, ...")
]
Only = Annotated[
    list[str] | None,
    typer.Option(help="data=NAME, encoder=NAME or head=NAME, with * for any letters; may be repeated."),
]


@app.command()
def run(
    ctx: typer.Context,
    study: StudyPath,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of stores and cells. (default: medprobe-NAME)")
    ] = None,
    data_root: Annotated[
        Path | None, typer.Option(help="What the study's relative paths start from. (default: its own folder)")
    ] = None,
    only: Only = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the cells, and which are there.")] = False,
    engine: Annotated[str, typer.Option(help="local, or ray: a task for each data set and encoder.")] = "local",
    rank: Annotated[
        int | None, typer.Option(help="Which of --world-size processes this is. (default: torchrun's or srun's)")
    ] = None,
    world_size: Annotated[int | None, typer.Option(help="Processes that run the study together.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    workers: Workers = "auto",
    batch_size: Annotated[str, typer.Option(help="Images a forward pass, or auto.")] = "auto",
    json: Json = False,
) -> None:
    """Run what is not there yet; run again, it goes on. A cell that fails is reported, and the rest goes on."""
    from medprobe.console import ProgressLine
    from medprobe.study.run import FAILED as CELL_FAILED
    from medprobe.study.run import run_study

    signal.signal(signal.SIGTERM, interrupted)
    with ProgressLine(quiet=ctx.obj or dry_run) as embedding:
        report = run_study(
            study,
            out=out,
            data_root=data_root,
            only=only or (),
            dry_run=dry_run,
            engine=engine,
            rank=rank,
            world_size=world_size,
            device=device,
            workers=number("--workers", workers),
            batch_size=number("--batch-size", batch_size),
            embedding=embedding.update,
            progress=None if ctx.obj or json else lambda line: typer.echo(line, err=True),
        )
    if json:
        cells = [{**r.cell.arguments, "state": r.state, "reason": r.reason} for r in report.cells]
        typer.echo(jsonlib.dumps({"out": str(report.out), "cells": cells}, indent=1))
    else:
        for each in report.cells if dry_run else ():
            typer.echo(f"{each.cell}: {each.state}{f' ({each.reason})' if each.reason else ''}")
        states = dict.fromkeys(each.state for each in report.cells)
        counts = ", ".join(f"{report.count(state)} {state}" for state in states)
        typer.echo(f"{report.study.name}: {len(report.cells)} cells: {counts or 'none for this rank'}; in {report.out}")
    failed = report.count(CELL_FAILED)
    if failed:
        raise typer.Exit(FAILED if failed == len(report.cells) else SKIPPED)


@app.command()
def show(
    study: StudyPath,
    folder: Annotated[Path | None, typer.Option(help="Folder that run wrote to. (default: medprobe-NAME)")] = None,
    only: Only = None,
    file_format: Annotated[str, typer.Option("--format", "-f", help="text, csv, latex or json.")] = "text",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File to write. (default: the screen)")] = None,
    figure: Annotated[
        Path | None, typer.Option(help="File to draw the mean gains to: .svg, .png, .pdf or .html.")
    ] = None,
    bootstrap: Annotated[int | None, typer.Option(help="Resamples of the intervals. (default: the study's)")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the resamples.")] = 0,
) -> None:
    """Print the table of what is finished: values, gains over the baseline with intervals, ranks."""
    from medprobe.console import console
    from medprobe.study.formats import FORMATS, print_study
    from medprobe.study.show import show_study

    if file_format not in FORMATS:
        raise UsageError(f"--format {file_format}: one of {', '.join(FORMATS)}")
    table = show_study(study, folder=folder, only=only or (), n_resamples=bootstrap, seed=seed)
    if out is not None:
        out.write_text(FORMATS[file_format](table), encoding="utf-8")
        typer.echo(f"table: {out}", err=True)
    elif file_format == "text":
        print_study(table, console())
    else:
        typer.echo(FORMATS[file_format](table), nl=False)
    if figure is not None:
        from medprobe.report.style import save
        from medprobe.study.figure import gain_figure

        typer.echo(f"figure: {save(gain_figure(table), figure)}", err=True)
