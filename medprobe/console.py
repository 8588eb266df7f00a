"""What a person sees in a terminal: progress, leaderboards, the description of a store."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from medprobe.doctor import Check
    from medprobe.embed.pipeline import Progress
    from medprobe.encoders.catalogue import Entry
    from medprobe.finetune.trainings import Progress as Training
    from medprobe.probe.suspects import Suspects
    from medprobe.store import FeatureStore

_PLAIN_WIDTH = 150
_THUMBNAILS = "small images of every sample: share this store only where the images may be shared"
_PLAIN_SECONDS = 10.0


def console() -> Console:
    """Return a console on stdout; wide where nobody watches, so that nothing is cut off in a file."""
    return Console() if sys.stdout.isatty() else Console(width=_PLAIN_WIDTH)


@contextmanager
def counting(quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """Yield what shows, on a terminal, how many images of how many are done."""
    if quiet or not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.progress import Progress as Bar

    with Bar(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("reading", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class ProgressLine:
    """Progress of an embedding: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._bar: Any = None
        self._task: Any = None
        self._started = self._said = time.monotonic()

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, progress: Progress) -> None:
        """Show how far the embedding has come."""
        if self._quiet:
            return
        if sys.stderr.isatty():
            self._update_bar(progress)
        elif time.monotonic() - self._said > _PLAIN_SECONDS:
            self._said = time.monotonic()
            rate = progress.done / (self._said - self._started)
            left = (progress.total - progress.done) / rate if rate else math.inf
            failed = f", {progress.failures} failed" if progress.failures else ""
            said = f"{progress.done}/{progress.total} images, {rate:.0f}/s, {left:.0f} s left"
            print(f"{said}, {_shares(progress, self._said - self._started)}{failed}", file=sys.stderr)

    def _update_bar(self, progress: Progress) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        if self._bar is None:
            self._bar = Bar(
                TextColumn("embedding"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]:.0f} images/s"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[shares]}"),
                TextColumn("[red]{task.fields[failed]}"),
                console=Console(stderr=True),
            )
            self._bar.start()
            self._task = self._bar.add_task("embed", total=progress.total, rate=0.0, failed="", shares="")
        seconds = max(time.monotonic() - self._started, 1e-9)
        shares = _shares(progress, seconds)
        failed = f"{progress.failures} failed" if progress.failures else ""
        self._bar.update(
            self._task, completed=progress.done, rate=progress.done / seconds, failed=failed, shares=shares
        )


def _shares(progress: Progress, seconds: float) -> str:
    spent = {"reading": progress.reading, "encoding": progress.encoding, "writing": progress.writing}
    return ", ".join(f"{what} {of_it / seconds:.0%}" for what, of_it in spent.items())


class TrainingLine:
    """Progress of a fine-tuning: a bar of the epoch on a terminal, a line an epoch elsewhere."""

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> TrainingLine:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, progress: Training) -> None:
        """Show how far the training has come."""
        if self._quiet:
            return
        course = progress.course
        last = course.history[-1] if course.history else {}
        found = "".join(
            f", {name} {value:.4g}" for name, value in last.items() if "loss" in name or name.startswith("val_")
        )
        which = f"training {progress.training} of {progress.trainings}, " if progress.trainings > 1 else ""
        said = f"{which}rate {course.lr:.3g}, epoch {course.epoch}{found}"
        if not sys.stderr.isatty():
            if not progress.steps:
                print(said, file=sys.stderr)
            return
        if self._bar is None:
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._bar.start()
            self._task = self._bar.add_task(said, total=None)
        total = progress.epochs * progress.steps if progress.steps else None
        done = {"completed": course.epoch * progress.steps + progress.step, "total": total} if total else {}
        self._bar.update(self._task, description=said, **done)


def print_info(store: FeatureStore, *, as_json: bool) -> None:
    """Print what a store holds, what it was made with, and what failed."""
    plan, failures = store.plan, store.failures
    size = sum(path.stat().st_size for path in store.path.rglob("*") if path.is_file())
    bag = store.roles.get("bag")
    facts = {
        "encoder": store.encoder,
        "samples": plan.rows,
        **({} if bag is None else {f"{bag}s": store.manifest[bag].nunique()}),
        "blocks": f"{plan.n_blocks - len(store.missing_blocks)} of {plan.n_blocks} complete, {plan.block_rows} rows each",
        "failures": len(failures),
        "views": {view: f"{width} x {plan.dtypes[view]}" for view, width in store.views.items()},
        "default view": plan.default_view,
        "precision": plan.precision,
        "thumbnails": _THUMBNAILS if store.thumbnail_bytes else "none",
        "columns": [c for c in store.manifest.columns if c != "id"],
        "roles": dict(store.roles),
        "megabytes": round(size / 1e6, 1),
        "fingerprint": plan.fingerprint,
        "weights": plan.encoder["weights_sha256"],
        "preprocessing": plan.encoder["preprocess"],
        "card": dict(store.card),
        "versions": dict(store.versions),
    }
    if as_json:
        records = failures.to_dict(orient="records")
        print(json.dumps({**facts, "path": str(store.path), "failures": records}, indent=1, default=str))
        return
    print_pairs(str(store.path), "", {key: _lines(value) for key, value in facts.items()})
    if len(failures):
        table = Table(title="images without features", title_justify="left")
        for column in ("id", "stage", "reason"):
            table.add_column(column, overflow="fold")
        for row in failures.head(20).itertuples():
            table.add_row(str(row.id), str(row.stage), str(row.reason))
        console().print(table)
        if len(failures) > 20:
            print(f"... and {len(failures) - 20} more (--json lists all)")


def print_models(entries: Sequence[Entry]) -> None:
    """Print a table of encoders."""
    table = Table()
    table.add_column("model", overflow="fold")
    for column in ("M params", "GMACs", "input"):
        table.add_column(column, justify="right")
    table.add_column("views (* default)", overflow="fold")
    table.add_column("licence", overflow="fold")
    table.add_column("weights", no_wrap=True)
    for entry in entries:
        views = ", ".join(f"{v}{'*' * (v == entry.default_view)} {width}" for v, width in entry.views.items())
        table.add_row(
            entry.name,
            "" if entry.parameters is None else f"{entry.parameters / 1e6:.1f}",
            "" if entry.gmacs is None else f"{entry.gmacs:.1f}",
            "" if entry.input is None else "x".join(map(str, entry.input)),
            views or entry.line,
            entry.licence,
            entry.availability,
        )
    console().print(table)


def print_checks(checks: Sequence[Check]) -> None:
    """Print what was looked at, with what to do about it where something is missing."""
    marks = {"ok": "[green]ok[/]", "missing": "[dim]missing[/]", "warning": "[yellow]look[/]"}
    table = Table()
    for column in ("", "", "", "found", "what to do"):
        table.add_column(column, overflow="fold")
    before = ""
    for check in checks:
        if before and check.topic != before:
            table.add_section()
        topic = check.topic if check.topic != before else ""
        table.add_row(topic, check.name, marks[check.state], escape(check.found), escape(check.fix))
        before = check.topic
    console().print(table)


def print_suspects(found: Suspects, most: int) -> None:
    """Print the first lines of both tables of suspects."""
    labels = (
        f"{len(found.labels)} of {found.n_images} images: labels that are likely wrong ({found.how})",
        found.labels,
    )
    pairs = (f"{len(found.duplicates)} pairs nearly the same across {found.split}", found.duplicates)
    for title, whole in (labels, pairs):
        table = Table(title=escape(title), title_justify="left", title_style="bold")
        for column in whole.columns:
            table.add_column(column.replace("_", " "), overflow="fold")
        for row in whole.head(most).itertuples(index=False):
            table.add_row(*(escape(f"{cell:.4g}" if isinstance(cell, float) else str(cell)) for cell in row))
        console().print(table)
        if len(whole) > most:
            print(f"... and {len(whole) - most} more (--most, --out, --json)")


def print_pairs(first: str, second: str, pairs: Mapping[str, str]) -> None:
    """Print a table of two columns."""
    table = Table(title_justify="left")
    table.add_column(first, no_wrap=True)
    table.add_column(second, overflow="fold")
    for key, value in pairs.items():
        table.add_row(key, value)
    console().print(table)


def _lines(value: Any) -> str:
    if isinstance(value, Mapping):
        return "\n".join(f"{k}: {v}" for k, v in value.items() if v not in ("", None))
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
