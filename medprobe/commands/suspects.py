"""medprobe suspects."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import Annotated

import typer

from medprobe.commands.asking import WHAT, WHO, Relabel, Target, Uncertain, Where
from medprobe.commands.options import Json, Partial, StorePath


def suspects(
    store: StorePath,
    target: Target = None,
    probe: Annotated[
        str, typer.Option("--probe", "-p", help="What predicts: logreg, knn, mlp, ridge or prototype.")
    ] = "logreg",
    view: Annotated[
        str | None, typer.Option(help="Which of the encoder's vectors. (default: the encoder's own pooling)")
    ] = None,
    group: Annotated[
        str | None,
        typer.Option(help="Column of patients; 'none' for no grouping. (default: as recorded)", rich_help_panel=WHO),
    ] = None,
    folds: Annotated[int, typer.Option(help="Folds of the predictions.", rich_help_panel=WHO)] = 5,
    split_col: Annotated[
        str | None,
        typer.Option(
            help="Column whose sides are searched for near-duplicates. (default: as recorded, else the folds)",
            rich_help_panel=WHO,
        ),
    ] = None,
    where: Where = None,
    relabel: Relabel = None,
    uncertain: Uncertain = None,
    pool: Annotated[
        str | None, typer.Option(help="How slices become a volume: mean, max, mean+max.", rich_help_panel=WHAT)
    ] = None,
    pool_by: Annotated[
        str | None, typer.Option(help="Column whose images are one sample.", rich_help_panel=WHAT)
    ] = None,
    most: Annotated[int, typer.Option(help="Lines of each table that are printed.")] = 20,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder in which both tables are kept whole, as CSV.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of folds and probe.")] = 0,
    partial: Partial = False,
    json: Json = False,
) -> None:
    """Name labels that are likely wrong, and pictures that are nearly the same on two sides of a split."""
    from medprobe.probe.suspects import suspects as run

    found = run(
        store,
        target,
        probe=probe,
        view=view,
        group=group,
        n_folds=folds,
        split_col=split_col,
        where=where,
        relabel=relabel or (),
        uncertain=uncertain,
        pool=pool,
        pool_by=pool_by,
        seed=seed,
        partial=partial,
    )
    if out is not None:
        found.write(out)
        typer.echo(f"suspects: {out}", err=True)
    if json:
        typer.echo(jsonlib.dumps(found.to_dict(), indent=1))
    else:
        from medprobe.console import print_suspects

        print_suspects(found, most)
