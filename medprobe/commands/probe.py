"""medprobe probe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medprobe._later import load_later
from medprobe.commands.asking import (
    SURE,
    WHAT,
    WHO,
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
from medprobe.commands.options import Json, Partial, numbers


def probe(
    ctx: typer.Context,
    stores: Annotated[list[str], typer.Argument(metavar="STORE...", help="Feature stores: folders or URLs.")],
    target: Target = None,
    probe: Annotated[
        list[str] | None,
        typer.Option(
            "--probe",
            "-p",
            help="logreg, knn, mlp, ridge, prototype, attentive; may be repeated. (default: the first three)",
        ),
    ] = None,
    view: Annotated[
        str | None,
        typer.Option(help="Which of the encoder's vectors; auto chooses. (default: the encoder's own pooling)"),
    ] = None,
    pool: Annotated[
        str | None,
        typer.Option(help="How slices become a volume: mean, max, mean+max; auto chooses. (default: mean)"),
    ] = None,
    pool_by: Annotated[
        str | None,
        typer.Option(
            help="Column whose images are one sample; 'none': each by itself. (default: the volume, where there is one)"
        ),
    ] = None,
    metric: MetricName = None,
    preset: Annotated[
        str | None, typer.Option(help="A published protocol: huix2024, medmnist-plus, dinov2 or clip.")
    ] = None,
    group: Annotated[
        str | None,
        typer.Option(help="Column of patients; 'none' for no grouping. (default: as recorded)", rich_help_panel=WHO),
    ] = None,
    split_col: Annotated[
        str | None,
        typer.Option(help="Column with train, val and test. (default: as recorded)", rich_help_panel=WHO),
    ] = None,
    folds: Folds = None,
    test_size: TestSize = None,
    leave_out: LeaveOut = None,
    duplicates: Duplicates = "error",
    where: Where = None,
    train_where: TrainWhere = None,
    test_where: TestWhere = None,
    relabel: Relabel = None,
    uncertain: Uncertain = None,
    shots: Shots = None,
    repeats: Repeats = 5,
    label_noise: LabelNoise = None,
    concat: Annotated[
        list[str] | None,
        typer.Option(help="Store whose features are put beside each store's; may be repeated.", rich_help_panel=WHAT),
    ] = None,
    pca: Annotated[
        float | None,
        typer.Option(help="Keep so many principal components, or so much of the variance.", rich_help_panel=WHAT),
    ] = None,
    subgroup: Subgroups = None,
    controls: Annotated[
        bool,
        typer.Option(
            "--controls",
            help="Also probe shuffled labels, size and brightness, and columns alone.",
            rich_help_panel=SURE,
        ),
    ] = False,
    control_col: Annotated[
        list[str] | None,
        typer.Option(
            help="Column of that control; may be repeated. (default: all that describe)", rich_help_panel=SURE
        ),
    ] = None,
    bootstrap: Bootstrap = 1000,
    seed: Annotated[int, typer.Option(help="Seed of splits, probes and resamples.", rich_help_panel=SURE)] = 0,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder in which rows and predictions are kept.")
    ] = None,
    save_model: Annotated[
        Path | None, typer.Option(help="Folder in which the probes are kept for medprobe predict.")
    ] = None,
    partial: Partial = False,
    json: Json = False,
) -> None:
    """Probe stores: settings chosen on validation data, tested once, with intervals over patients."""
    # scikit-learn imports it for a function that no probe calls: a third of the time until a probe begins.
    load_later("scipy.stats")
    from medprobe.probe.run import probe as run
    from medprobe.results import to_json, write_results

    rows = run(
        stores,
        target,
        probes=probe or (),
        view=view,
        metric=metric,
        group=group,
        split_col=split_col,
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
        concat=concat or (),
        pca=pca,
        subgroups=subgroup or (),
        preset=preset,
        pool=pool,
        pool_by=pool_by,
        duplicates=duplicates,
        controls=controls,
        control_cols=control_col or (),
        n_resamples=bootstrap,
        seed=seed,
        save_model=save_model,
        partial=partial,
        progress=None if ctx.obj or json else lambda line: typer.echo(line, err=True),
    )
    if out is not None:
        table = write_results(rows, out)
        typer.echo(f"results: {table}", err=True)
    if json:
        typer.echo(to_json(rows))
    else:
        from medprobe.leaderboard import print_leaderboard

        print_leaderboard(rows)
