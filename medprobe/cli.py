"""The command line: its verbs, and what becomes of errors. Heavy modules are imported by the command that needs them."""

from __future__ import annotations

import logging
import signal
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from medprobe.commands import (
    about,
    check,
    cka,
    data,
    embed,
    explore,
    finetune,
    probe,
    report,
    results,
    stores,
    study,
    suspects,
)
from medprobe.commands.options import FAILED, INTERRUPTED, USAGE
from medprobe.errors import MedprobeError, UsageError


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


def main() -> None:
    """Run the command line."""
    try:
        app()
    except SystemExit as ended:
        if ended.code == INTERRUPTED:  # one more while Python ends would change the exit status
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            # `python -m` ends by the signal if the interrupt came while Python ran a string (as making a
            # named tuple does), even though it was caught; running another forgets it.
            exec("")
        raise


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


for command in (
    check.check,
    embed.embed,
    probe.probe,
    finetune.finetune,
    results.compare,
    results.predict,
    report.report,
    explore.explore,
    stores.info,
    stores.verify,
    stores.export,
    suspects.suspects,
    cka.cka,
    data.data,
    about.models,
    about.doctor,
    about.demo,
):
    app.command()(command)
app.add_typer(study.app, name="study")


if __name__ == "__main__":
    main()
