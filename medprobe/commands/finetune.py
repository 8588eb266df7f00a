"""medprobe finetune."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from medprobe.commands.asking import (
    Bootstrap,
    Duplicates,
    Folds,
    LabelNoise,
    LeaveOut,
    MetricName,
    Relabel,
    Repeats,
    Shots,
    Subgroups,
    Target,
    TestSize,
    TestWhere,
    TrainWhere,
    Uncertain,
    Where,
)
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
    Root,
    SplitCol,
    Tags,
    WindowChoice,
    Workers,
    number,
    numbers,
    rates,
)
from medprobe.errors import UsageError

_DATA = "Images"
_HOW = "How it is trained"
_WHERE = "Where it is computed"


def finetune(
    ctx: typer.Context,
    data: DataPath,
    model: Annotated[str, typer.Option("--model", "-m", help="Encoder, family/name or family/name@tag.")],
    target: Target = None,
    mode: Annotated[
        str,
        typer.Option(
            help="full, partial (--unfreeze-from), linear (the encoder frozen), lora, or deit-head (patch tokens "
            "through the blocks of a DeiT-B)."
        ),
    ] = "full",
    unfreeze_from: Annotated[int | None, typer.Option(help="First block that is trained, from 0.")] = None,
    freeze: Annotated[bool, typer.Option("--freeze/--no-freeze", help="The encoder below a deit-head.")] = True,
    lora_rank: Annotated[int, typer.Option(help="Rank of the adapters of lora.")] = 8,
    head_weights: Annotated[str | None, typer.Option(help="Checkpoint of the DeiT-B. (default: fetched)")] = None,
    view: Annotated[
        str | None,
        typer.Option(help="Which of the encoder's vectors a linear head is given. (default: its own pooling)"),
    ] = None,
    preset: Annotated[str | None, typer.Option(help="huix2024: the settings of that study.")] = None,
    metric: MetricName = None,
    root: Root = None,
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
    window: WindowChoice = "file",
    weights: Annotated[str | None, typer.Option(help="Checkpoint file of the encoder.", rich_help_panel=_DATA)] = None,
    image_size: ImageSize = None,
    exact_decode: ExactDecode = False,
    normalize: Annotated[
        str | None,
        typer.Option(help="Mean and std of the encoder, of the dataset, or six numbers.", rich_help_panel=_DATA),
    ] = None,
    limit: Limit = None,
    max_failures: MaxFailures = None,
    folds: Folds = None,
    test_size: TestSize = None,
    leave_out: LeaveOut = None,
    duplicates: Duplicates = "error",
    where: Where = None,
    train_where: TrainWhere = None,
    test_where: TestWhere = None,
    relabel: Relabel = None,
    uncertain: Uncertain = None,
    label_noise: LabelNoise = None,
    shots: Shots = None,
    repeats: Repeats = 5,
    subgroup: Subgroups = None,
    lr: Annotated[
        str | None,
        typer.Option(
            help="Learning rate, several (1e-5,1e-4), or auto: a grid from 1e-5 to 1e-2. (default: 1e-4)",
            rich_help_panel=_HOW,
        ),
    ] = None,
    lr_epochs: Annotated[
        int | None,
        typer.Option(help="Epochs for which each of several rates is tried. (default: 5)", rich_help_panel=_HOW),
    ] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Of AdamW. (default: 1e-5)", rich_help_panel=_HOW)] = None,
    epochs: Annotated[int | None, typer.Option(help="At most so many. (default: 100)", rich_help_panel=_HOW)] = None,
    patience: Annotated[
        int | None,
        typer.Option(
            help="Stop after so many epochs without a better validation metric; 0: never. (default: 10)",
            rich_help_panel=_HOW,
        ),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Images a step, over all processes. (default: 64)", rich_help_panel=_HOW)
    ] = None,
    accumulate: Annotated[
        int | None, typer.Option(help="Passes that a step is spread over. (default: 1)", rich_help_panel=_HOW)
    ] = None,
    clip: Annotated[
        float | None, typer.Option(help="Largest norm of the gradient; 0: none. (default: 1)", rich_help_panel=_HOW)
    ] = None,
    warmup_epochs: Annotated[
        float | None, typer.Option(help="Epochs in which the rate rises. (default: 5)", rich_help_panel=_HOW)
    ] = None,
    warmup_steps: Annotated[int | None, typer.Option(help="The same in steps.", rich_help_panel=_HOW)] = None,
    schedule: Annotated[
        str | None, typer.Option(help="cosine, plateau or constant. (default: cosine)", rich_help_panel=_HOW)
    ] = None,
    layer_decay: Annotated[
        float | None,
        typer.Option(help="Rate of each block relative to the one after it. (default: 1)", rich_help_panel=_HOW),
    ] = None,
    balance: Annotated[
        bool,
        typer.Option("--balance", help="Weigh classes by the inverse of how often they are.", rich_help_panel=_HOW),
    ] = False,
    ema: Annotated[
        float | None, typer.Option(help="Decay of an average of the weights, e.g. 0.999.", rich_help_panel=_HOW)
    ] = None,
    augment: Annotated[
        str | None,
        typer.Option(
            help="crop, flips and jitter, some of them (crop,jitter), or none. (default: all)", rich_help_panel=_HOW
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.", rich_help_panel=_WHERE)] = "auto",
    precision: Precision = "auto",
    workers: Workers = "auto",
    memory: Annotated[
        float,
        typer.Option(
            help="Gigabytes of decoded images to keep; else they are decoded each epoch.", rich_help_panel=_WHERE
        ),
    ] = 8.0,
    checkpoint_every: Annotated[
        int, typer.Option(help="Epochs from one checkpoint to the next.", rich_help_panel=_WHERE)
    ] = 1,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write the epochs for TensorBoard, too.", rich_help_panel=_WHERE)
    ] = False,
    bootstrap: Bootstrap = 1000,
    seed: Annotated[int, typer.Option(help="Seed of splits, head, order, augmentation and resamples.")] = 0,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for weights, checkpoint, curves, rows and predictions.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Delete what is in that folder and start again.")
    ] = False,
    json: Json = False,
) -> None:
    """Train an encoder, or a head on it, on the splits of probe; run again, it goes on where it was stopped."""
    from medprobe.console import TrainingLine

    try:
        from medprobe.finetune.run import finetune as run
    except ModuleNotFoundError as error:
        raise UsageError(
            f"finetune needs {error.name}, which is not installed: pip install 'medprobe[finetune]'"
        ) from None
    is_first = os.environ.get("RANK", "0") == "0"
    with TrainingLine(quiet=ctx.obj or not is_first) as progress:
        rows = run(
            data,
            model,
            target,
            mode=mode,
            unfreeze_from=unfreeze_from,
            freeze=freeze,
            lora_rank=lora_rank,
            head_weights=head_weights,
            view=view,
            preset=preset,
            root=root,
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
            window=window,
            weights=weights,
            image_size=image_size,
            exact_decode=exact_decode,
            normalize=normalize,
            limit=limit,
            metric=metric,
            n_folds=folds,
            test_size=test_size,
            leave_out=leave_out,
            where=where,
            train_where=train_where,
            test_where=test_where,
            relabel=relabel or (),
            uncertain=uncertain,
            label_noise=label_noise,
            shots=() if shots is None else numbers("--shots", shots),
            repeats=repeats,
            subgroups=subgroup or (),
            duplicates=duplicates,
            lr=rates(lr),
            lr_epochs=lr_epochs,
            weight_decay=weight_decay,
            epochs=epochs,
            patience=patience,
            batch_size=batch_size,
            accumulate=accumulate,
            clip=clip,
            warmup_epochs=warmup_epochs,
            warmup_steps=warmup_steps,
            schedule=schedule,
            layer_decay=layer_decay,
            balance=balance,
            ema=ema,
            augment=None if augment is None else () if augment == "none" else augment.split(","),
            device=device,
            precision=precision,
            workers=number("--workers", workers),
            memory=memory,
            max_failures=max_failures,
            checkpoint_every=checkpoint_every,
            tensorboard=tensorboard,
            n_resamples=bootstrap,
            seed=seed,
            out=out,
            overwrite=overwrite,
            progress=progress.update,
        )
    if not is_first:
        return
    if out is not None:
        typer.echo(f"results: {out}", err=True)
    if json:
        from medprobe.results import to_json

        typer.echo(to_json(rows))
    else:
        from medprobe.leaderboard import print_leaderboard

        print_leaderboard(rows)
    if any(row.n_failed for row in rows):
        raise typer.Exit(SKIPPED)
