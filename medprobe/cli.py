"""The command line: one thin command a verb. Heavy modules are imported by the command that needs them."""

from __future__ import annotations

import json as jsonlib
import logging
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from medprobe.errors import MedprobeError, UsageError

if TYPE_CHECKING:
    from medprobe.results import Row

FAILED, USAGE, SKIPPED, INTERRUPTED = 1, 2, 3, 4

DEFAULT_MODEL = "imagenet/efficientnet-lite0"


class _Group(TyperGroup):
    """Turns medprobe's errors into one line on stderr and the exit status that the documentation promises."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except MedprobeError as error:
            typer.secho(f"error: {error}", err=True, fg="red")
            raise typer.Exit(USAGE if isinstance(error, UsageError) else FAILED) from None
        except KeyboardInterrupt:
            typer.secho(
                "interrupted: what is finished is kept; run the same command again to go on", err=True, fg="yellow"
            )
            raise typer.Exit(INTERRUPTED) from None


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Is a foundation model any good on my medical images, and which one?",
    epilog="Exit status: 0 done, 1 failed, 2 wrong usage, 3 done with images skipped, 4 interrupted (run it again).",
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
StorePath = Annotated[Path, typer.Argument(metavar="STORE", help="A feature store (folder ending in .zarr).")]
Partial = Annotated[bool, typer.Option("--partial", help="Use the finished blocks of an incomplete store.")]


def main() -> None:
    """Run the command line."""
    app()


@app.callback(invoke_without_command=True)
def _start(
    ctx: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No notes and no progress.")] = False,
) -> None:
    if version:
        from medprobe import __version__

        typer.echo(__version__)
        raise typer.Exit
    log = logging.getLogger("medprobe")
    log.handlers = [logging.StreamHandler(sys.stderr)]
    log.setLevel(logging.ERROR if quiet else logging.INFO)
    ctx.obj = quiet


@app.command()
def embed(
    ctx: typer.Context,
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="Folder of images, CSV/TSV/Parquet table, or MedMNIST .npz.")
    ],
    model: Annotated[list[str], typer.Option("--model", "-m", help="Encoder, family/name[@tag]; may be repeated.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the stores, one an encoder.")],
    path_col: Annotated[str | None, typer.Option(help="Column of image paths in a table.")] = None,
    label_col: Annotated[list[str] | None, typer.Option(help="Column that is a label; may be repeated.")] = None,
    group_col: Annotated[str | None, typer.Option(help="Column of patients; 'none' for no grouping.")] = None,
    split_col: Annotated[str | None, typer.Option(help="Column with train, val and test; 'none' for none.")] = None,
    keep_col: Annotated[
        list[str] | None, typer.Option(help="Keep a column that looks as if it named a person.")
    ] = None,
    weights: Annotated[str | None, typer.Option(help="Checkpoint file for the one model.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Another input size than the encoder's own.")] = None,
    exact_decode: Annotated[bool, typer.Option("--exact-decode", help="Decode large JPEG files in full.")] = False,
    normalize: Annotated[
        str, typer.Option(help="Mean and std of the encoder, of the dataset, or six numbers (mean and std of R, G, B).")
    ] = "encoder",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16.")] = "auto",
    dtype: Annotated[str, typer.Option(help="How features are kept: auto, float16 or float32.")] = "auto",
    batch_size: Annotated[str, typer.Option(help="Images a forward pass, or auto.")] = "auto",
    workers: Annotated[str, typer.Option(help="Decoding processes, 0 for none, or auto.")] = "auto",
    block_rows: Annotated[int, typer.Option(help="Rows of a block, the unit of commit and of repeated work.")] = 1024,
    max_failures: Annotated[
        str | None,
        typer.Option(
            help="Stop above this number or share (0.01, 1%) of unreadable images. (default: 1%, at least 10)"
        ),
    ] = None,
    check: Annotated[
        str, typer.Option(help="How to tell that an image changed: stamp (size and time) or digest.")
    ] = "stamp",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Delete stores that are there and start again.")
    ] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many images.")] = None,
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
    signal.signal(signal.SIGTERM, _interrupt)
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
            weights=weights,
            image_size=image_size,
            exact_decode=exact_decode,
            normalize=normalize,
            device=device,
            precision=precision,
            dtype=dtype,
            batch_size=_number("--batch-size", batch_size),
            workers=_number("--workers", workers),
            block_rows=block_rows,
            max_failures=max_failures,
            check_digest=check == "digest",
            overwrite=overwrite,
            limit=limit,
            progress=progress.update,
        )
    if json:
        typer.echo(jsonlib.dumps([{**vars(r), "path": str(r.path)} for r in reports], indent=1))
    else:
        for r in reports:
            rate = f", {r.embedded / r.seconds:.0f} images/s" if r.embedded and r.seconds else ""
            done = "was complete" if not r.embedded else f"embedded {r.embedded} images in {r.precision}{rate}"
            failed = f"; {r.failures} could not be used (medprobe info {r.path})" if r.failures else ""
            typer.echo(f"{r.path}: {done}{failed}")
    if any(r.failures for r in reports):
        raise typer.Exit(SKIPPED)


@app.command()
def probe(
    ctx: typer.Context,
    stores: Annotated[list[Path], typer.Argument(metavar="STORE...", help="Feature stores.")],
    target: Annotated[
        str | None, typer.Option("--target", "-t", help="Column to predict, a list a,b,c or a pattern.")
    ] = None,
    probe: Annotated[
        list[str] | None,
        typer.Option(
            "--probe", "-p", help="logreg, knn, mlp, ridge, prototype; may be repeated. (default: the first three)"
        ),
    ] = None,
    view: Annotated[
        str | None, typer.Option(help="Which of the encoder's vectors. (default: the encoder's own pooling)")
    ] = None,
    metric: Annotated[str | None, typer.Option(help="Primary metric; quadratic_kappa for ordered grades.")] = None,
    group: Annotated[
        str | None, typer.Option(help="Column of patients; 'none' for no grouping. (default: as recorded)")
    ] = None,
    split_col: Annotated[
        str | None, typer.Option(help="Column with train, val and test. (default: as recorded)")
    ] = None,
    folds: Annotated[int | None, typer.Option(help="Test every image once, in so many folds.")] = None,
    test_size: Annotated[float | None, typer.Option(help="Share of the images to test on.")] = None,
    leave_out: Annotated[
        str | None, typer.Option(help="Column of sites or the like: each is tested by what the others teach.")
    ] = None,
    where: Annotated[str | None, typer.Option(help='SQL condition: only these samples, e.g. "age > 60".')] = None,
    train_where: Annotated[str | None, typer.Option(help="Learn from these samples alone.")] = None,
    test_where: Annotated[str | None, typer.Option(help="Test on these samples alone.")] = None,
    relabel: Annotated[
        list[str] | None, typer.Option(help="Merge classes (2,3,4=refer) or drop one (U=); may be repeated.")
    ] = None,
    uncertain: Annotated[
        str | None, typer.Option(help="What a label of -1 counts as, of several labels: zeros, ones or ignore.")
    ] = None,
    duplicates: Annotated[
        str, typer.Option(help="Equal pictures on two sides of a given split: error, drop (from training) or keep.")
    ] = "error",
    controls: Annotated[
        bool, typer.Option("--controls", help="Also probe columns alone and shuffled labels, for comparison.")
    ] = False,
    control_col: Annotated[
        list[str] | None, typer.Option(help="Column of that control; may be repeated. (default: all that describe)")
    ] = None,
    bootstrap: Annotated[int, typer.Option(help="Resamples of the intervals.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of splits, probes and resamples.")] = 0,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder in which the rows are kept.")] = None,
    partial: Partial = False,
    json: Json = False,
) -> None:
    """Probe stores: settings chosen on validation data, tested once, with intervals over patients."""
    from medprobe.probe.families import DEFAULT_FAMILIES
    from medprobe.probe.run import probe as run
    from medprobe.results import to_json, write_results

    rows = run(
        stores,
        target,
        probes=probe or DEFAULT_FAMILIES,
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
        duplicates=duplicates,
        controls=controls,
        control_cols=control_col or (),
        n_resamples=bootstrap,
        seed=seed,
        partial=partial,
        progress=None if ctx.obj or json else lambda line: typer.echo(line, err=True),
    )
    if out is not None:
        table = write_results(rows, out)
        typer.echo(f"results: {table}", err=True)
    if json:
        typer.echo(to_json(rows))
    else:
        _leaderboard(rows)


@app.command()
def compare(
    results: Annotated[
        list[Path], typer.Argument(metavar="RESULT...", help="Folders or tables that probe --out wrote.")
    ],
    json: Json = False,
) -> None:
    """Print the leaderboard of many results."""
    from medprobe.results import ranked, read_results, to_json

    rows = read_results(results)
    if json:
        typer.echo(to_json([row for table in ranked(rows).values() for row in table]))
    else:
        _leaderboard(rows)


@app.command()
def info(
    store: StorePath,
    missing: Annotated[bool, typer.Option("--missing", help="List the blocks that are still to be made.")] = False,
    json: Json = False,
) -> None:
    """Say what a store holds, what it was made with, and what failed."""
    from medprobe.console import print_info
    from medprobe.store import open_store

    opened = open_store(store, partial=True)
    if missing:
        lines = [jsonlib.dumps(opened.missing_blocks)] if json else map(str, opened.missing_blocks)
        for line in lines:
            typer.echo(line)
        return
    print_info(opened, as_json=json)


@app.command()
def verify(store: StorePath, json: Json = False) -> None:
    """Digest every block again and name what is damaged; exit status 1 if anything is."""
    from medprobe.store import open_store

    opened = open_store(store, partial=True)
    problems = list(opened.verify())
    if json:
        typer.echo(jsonlib.dumps(problems, indent=1))
    else:
        for problem in problems:
            typer.echo(problem)
        typer.echo(
            f"{store}: {len(problems)} problems; run the embed command again to make the damaged blocks anew"
            if problems
            else f"{store}: all {opened.plan.n_blocks} blocks are as they were written"
        )
    if problems:
        raise typer.Exit(FAILED)


@app.command()
def export(
    store: StorePath,
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write.")],
    file_format: Annotated[str, typer.Option("--format", "-f", help="npz, parquet or safetensors.")] = "npz",
    view: Annotated[list[str] | None, typer.Option(help="View to export; may be repeated. (default: all)")] = None,
    partial: Partial = False,
) -> None:
    """Write features, ids and columns for other tools."""
    from medprobe.export import export as run
    from medprobe.store import open_store

    typer.echo(run(open_store(store, partial=partial), out, file_format, tuple(view or ())))


@app.command()
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


@app.command()
def doctor(json: Json = False) -> None:
    """Say what is installed, what can be computed on, and how to mend what is missing."""
    from medprobe.doctor import examine

    checks = examine()
    if json:
        typer.echo(jsonlib.dumps([vars(check) for check in checks], indent=1))
    else:
        from medprobe.console import print_checks

        print_checks(checks)


@app.command()
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


def _leaderboard(rows: list[Row]) -> None:
    from medprobe.console import print_leaderboard

    print_leaderboard(rows)


def _number(flag: str, text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdigit():
        raise UsageError(f"{flag} {text}: a number, or auto")
    return int(text)


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
