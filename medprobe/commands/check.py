"""medprobe check."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import Annotated

import typer

from medprobe.commands.options import SKIPPED, Json, number


def check(
    ctx: typer.Context,
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="Folder of images, CSV/TSV/Parquet table, or MedMNIST .npz.")
    ],
    path_col: Annotated[str | None, typer.Option(help="Column of image paths in a table.")] = None,
    label_col: Annotated[list[str] | None, typer.Option(help="Column that is a label; may be repeated.")] = None,
    group_col: Annotated[str | None, typer.Option(help="Column of patients; 'none' for no grouping.")] = None,
    split_col: Annotated[str | None, typer.Option(help="Column with train, val and test; 'none' for none.")] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Known data set that the folder is (medprobe data); none. (default: recognised)")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="Table of labels for a folder, joined by path, file name or DICOM identifier.")
    ] = None,
    labels_key: Annotated[str | None, typer.Option(help="Its column to join by. (default: found by its name)")] = None,
    keep_ids: Annotated[
        bool, typer.Option("--keep-ids", help="Show paths and patients of DICOM files, not keyed hashes of them.")
    ] = False,
    frames: Annotated[
        str | None, typer.Option(help="Of files of several frames: first, middle, all or every:N.")
    ] = None,
    box_cols: Annotated[
        str | None, typer.Option(help="Columns of left, top, width, height: only that of each image, e.g. x,y,w,h.")
    ] = None,
    mask_col: Annotated[
        str | None, typer.Option(help="Column of masks: only the box around each one's pixels above zero.")
    ] = None,
    window: Annotated[
        str, typer.Option(help="Grey values of DICOM files: file, lung, bone, mammo ..., -600,1500 or p1-99.")
    ] = "file",
    workers: Annotated[str, typer.Option(help="Decoding processes, 0 for none, or auto.")] = "auto",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="CSV of every image, which ties its id to its file.")
    ] = None,
    json: Json = False,
) -> None:
    """Read every image, and say what is there, what is not fit to use, and what would leak across a split."""
    from medprobe.console import counting
    from medprobe.survey import check as run

    with counting(quiet=ctx.obj or json) as progress:
        found = run(
            data,
            path_col=path_col,
            label_cols=label_col or (),
            group_col=group_col,
            split_col=split_col,
            dataset=dataset,
            labels=labels,
            labels_key=labels_key,
            keep_ids=keep_ids,
            frames=frames,
            box_cols=() if box_cols is None else box_cols.split(","),
            mask_col=mask_col,
            window=window,
            workers=number("--workers", workers),
            out=out,
            progress=progress,
        )
    typer.echo(jsonlib.dumps(found.to_dict(), indent=1) if json else "\n".join(found.lines()))
    if found.unreadable:
        raise typer.Exit(SKIPPED)
