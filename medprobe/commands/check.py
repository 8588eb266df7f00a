"""medprobe check."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import Annotated

import typer

from medprobe.commands.options import (
    SKIPPED,
    BoxCols,
    DataPath,
    FramesChoice,
    GroupCol,
    Json,
    KnownData,
    LabelCol,
    LabelsKey,
    LabelsTable,
    MaskCol,
    PathCol,
    Root,
    SliceAxis,
    SlicesChoice,
    SplitCol,
    VolumesChoice,
    WindowChoice,
    Workers,
    number,
)


def check(
    ctx: typer.Context,
    data: DataPath,
    root: Root = None,
    path_col: PathCol = None,
    label_col: LabelCol = None,
    group_col: GroupCol = None,
    split_col: SplitCol = None,
    dataset: KnownData = None,
    labels: LabelsTable = None,
    labels_key: LabelsKey = None,
    keep_ids: Annotated[
        bool, typer.Option("--keep-ids", help="Show paths and patients of DICOM files, not keyed hashes of them.")
    ] = False,
    frames: FramesChoice = None,
    box_cols: BoxCols = None,
    mask_col: MaskCol = None,
    volumes: VolumesChoice = None,
    slice_axis: SliceAxis = None,
    slices: SlicesChoice = None,
    window: WindowChoice = "file",
    workers: Workers = "auto",
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
            root=root,
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
            volumes=volumes,
            slice_axis=slice_axis,
            slices=slices,
            window=window,
            workers=number("--workers", workers),
            out=out,
            progress=progress,
        )
    typer.echo(jsonlib.dumps(found.to_dict(), indent=1) if json else "\n".join(found.lines()))
    if found.unreadable:
        raise typer.Exit(SKIPPED)
