"""medprobe embed."""

from __future__ import annotations

import json as jsonlib
import signal
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from medprobe.commands.options import (
    SKIPPED,
    BoxCols,
    DataPath,
    ExactDecode,
    FramesChoice,
    GroupCol,
    ImageSize,
    Json,
    KeepCol,
    KeepIds,
    KnownData,
    LabelCol,
    LabelsKey,
    LabelsTable,
    Limit,
    MaskCol,
    MaxFailures,
    PathCol,
    Precision,
    SliceAxis,
    SlicesChoice,
    SplitCol,
    Tags,
    VolumesChoice,
    WindowChoice,
    Workers,
    interrupted,
    number,
)
from medprobe.errors import UsageError


def embed(
    ctx: typer.Context,
    data: DataPath,
    model: Annotated[
        list[str], typer.Option("--model", "-m", help="Encoder, family/name or family/name@tag; may be repeated.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the stores, one an encoder.")],
    path_col: PathCol = None,
    label_col: LabelCol = None,
    group_col: GroupCol = None,
    split_col: SplitCol = None,
    keep_col: KeepCol = None,
    dataset: KnownData = None,
    labels: LabelsTable = None,
    labels_key: LabelsKey = None,
    tag: Tags = None,
    keep_ids: KeepIds = False,
    frames: FramesChoice = None,
    box_cols: BoxCols = None,
    mask_col: MaskCol = None,
    volumes: VolumesChoice = None,
    slice_axis: SliceAxis = None,
    slices: SlicesChoice = None,
    window: WindowChoice = "file",
    weights: Annotated[str | None, typer.Option(help="Checkpoint file for the one model.")] = None,
    image_size: ImageSize = None,
    exact_decode: ExactDecode = False,
    tokens: Annotated[
        bool, typer.Option("--tokens", help="Keep all patch tokens, too, for --probe attentive (large).")
    ] = False,
    thumbnails: Annotated[
        bool,
        typer.Option(
            "--thumbnails",
            help="Keep a small JPEG of each image in the store, to look at. WARNING: these are images of patients.",
        ),
    ] = False,
    normalize: Annotated[
        str, typer.Option(help="Mean and std of the encoder, of the dataset, or six numbers (mean and std of R, G, B).")
    ] = "encoder",
    device: Annotated[
        str, typer.Option(help="auto, cpu, cuda (all of them), cuda:1, mps, or several: cuda:0,cuda:1.")
    ] = "auto",
    engine: Annotated[str, typer.Option(help="local, or ray for the devices of a Ray cluster.")] = "local",
    precision: Precision = "auto",
    dtype: Annotated[str, typer.Option(help="How features are kept: auto, float16 or float32.")] = "auto",
    batch_size: Annotated[str, typer.Option(help="Images a forward pass, or auto.")] = "auto",
    workers: Workers = "auto",
    block_rows: Annotated[int, typer.Option(help="Rows of a block, the unit of commit and of repeated work.")] = 1024,
    max_failures: MaxFailures = None,
    check: Annotated[
        str, typer.Option(help="How to tell that an image changed: stamp (size and time) or digest.")
    ] = "stamp",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Delete stores that are there and start again.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Change nothing; say what is to be done, how long it takes, how large it gets."),
    ] = False,
    limit: Limit = None,
    rank: Annotated[
        int | None,
        typer.Option(help="Which of --world-size processes this is, from 0. (default: torchrun's or srun's)"),
    ] = None,
    world_size: Annotated[
        int | None, typer.Option(help="Processes that make one store together, each its own blocks.")
    ] = None,
    json: Json = False,
) -> None:
    """Embed every image with every encoder, once; run again, it finishes what is missing."""
    from medprobe.console import ProgressLine

    try:
        from medprobe.embed.run import embed as run
    except ModuleNotFoundError as error:
        raise UsageError(f"embed needs {error.name}, which is not installed: pip install 'medprobe[embed]'") from None
    if check not in {"stamp", "digest"}:
        raise UsageError(f"--check {check}: stamp or digest")
    signal.signal(signal.SIGTERM, interrupted)
    with ProgressLine(quiet=ctx.obj) as progress:
        reports = run(
            data,
            model,
            out,
            path_col=path_col,
            label_cols=label_col or (),
            group_col=group_col,
            split_col=split_col,
            keep_cols=keep_col or (),
            dataset=dataset,
            labels=labels,
            labels_key=labels_key,
            tags=tag or (),
            keep_ids=keep_ids,
            frames=frames,
            box_cols=() if box_cols is None else box_cols.split(","),
            mask_col=mask_col,
            volumes=volumes,
            slice_axis=slice_axis,
            slices=slices,
            window=window,
            weights=weights,
            image_size=image_size,
            exact_decode=exact_decode,
            tokens=tokens,
            thumbnails=thumbnails,
            normalize=normalize,
            device=device,
            engine=engine,
            precision=precision,
            dtype=dtype,
            batch_size=number("--batch-size", batch_size),
            workers=number("--workers", workers),
            block_rows=block_rows,
            max_failures=max_failures,
            check_digest=check == "digest",
            overwrite=overwrite,
            dry_run=dry_run,
            limit=limit,
            rank=rank,
            world_size=world_size,
            progress=progress.update,
        )
    if json:
        typer.echo(jsonlib.dumps([{**asdict(r), "path": str(r.path)} for r in reports], indent=1))
    elif dry_run:
        for r in reports:
            assert r.expected is not None
            todo = r.expected
            time = f"about {duration(todo.seconds)} on this machine" if todo.images else "nothing to do"
            typer.echo(
                f"{r.path}: {todo.images} of {r.samples} images to embed in {r.precision}: {time}, {todo.bytes / 1e6:.0f} MB"
            )
    else:
        for r in reports:
            rate = f", {r.embedded / r.seconds:.0f} images/s" if r.embedded and r.seconds else ""
            nothing = "nothing to do for this rank" if r.missing else "was complete"
            done = nothing if not r.embedded else f"embedded {r.embedded} images in {r.precision}{rate}"
            failed = f"; {r.failures} could not be used (medprobe info {r.path})" if r.failures else ""
            left = f"; {r.missing} blocks are still to be made (medprobe info --missing {r.path})" if r.missing else ""
            typer.echo(f"{r.path}: {done}{failed}{left}")
    if any(r.failures for r in reports):
        raise typer.Exit(SKIPPED)


def duration(seconds: float) -> str:
    """Return a time in words, to about a tenth."""
    for unit, size in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
