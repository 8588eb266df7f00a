"""The main job from beginning to end on a small image set, as a person would type it."""

from __future__ import annotations

import hashlib
import logging
import urllib.error
import urllib.request
from pathlib import Path

import typer

from medprobe.console import ProgressLine, console
from medprobe.demo_images import draw_blood_smears
from medprobe.embed.run import embed
from medprobe.errors import DataError, UsageError
from medprobe.leaderboard import print_leaderboard
from medprobe.probe.run import probe
from medprobe.results import write_results

log = logging.getLogger("medprobe")

OUT = Path("medprobe-demo")
MODELS = ("imagenet/efficientnet-lite0", "baseline/pixels")  # two that need no download

_TIMEOUT = 20.0


def demo_stores(out: Path = OUT) -> tuple[list[Path], Path | None]:
    """Return the demo's stores and the table of its images, if it is still there; :func:`run_demo` makes what is absent."""
    stores, table = out / "stores", out / "manifest.csv"
    if not any(stores.glob("*.zarr")):
        run_demo(out, "smears", MODELS)
    return sorted(stores.glob("*.zarr")), table if table.is_file() else None


def run_demo(out: Path, data: str, models: tuple[str, ...]) -> None:
    """Draw or fetch images, embed them, probe the features, print the leaderboard and say what to type next.

    Raises:
        UsageError: A MedMNIST set is unknown, or cannot be fetched from here.

    """
    if data == "smears":
        typer.echo(f"1. Drawing blood cells of 24 smears into {out / 'images'} (four files are damaged on purpose)")
        source, target, group = draw_blood_smears(out), "cell", "smear"
    else:
        typer.echo(f"1. Fetching {data}")
        source, target, group = _fetch_medmnist(data, out), "label", "none"
    typer.echo(f"2. Embedding every image once with {' and '.join(models)}")
    with ProgressLine() as progress:
        reports = embed(source, models, out / "stores", group_col=group, progress=progress.update)
    for report in reports:
        skipped = f"; {report.failures} files could not be read and are listed in it" if report.failures else ""
        typer.echo(f"   {report.path}: {report.samples - report.failures} of {report.samples} images{skipped}")
    typer.echo("3. Probing the stored features: logistic regression, nearest neighbours, a small network")
    # Public sets hold a picture twice now and then, and not always on one side of their own split.
    rows = probe([report.path for report in reports], target, group=group, duplicates="drop")
    table = write_results(rows, out / "results")
    typer.echo("")
    print_leaderboard(rows)
    stores = out / "stores"
    lines = [
        "",
        f"Written: stores in {stores}, every number in {table}.",
        "What to type next:",
        f"  medprobe info {reports[0].path}",
        f"  medprobe compare {out / 'results'}",
        f"  medprobe explore {stores}/*.zarr --images {source}",
        f"  medprobe probe {stores}/*.zarr --target {target} --test-size 0.3",
        *([f"  medprobe probe {stores}/*.zarr --target infected"] if data == "smears" else []),
        f"  medprobe embed MY_IMAGES -m {models[0]} -o stores",
    ]
    console().print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)


def _fetch_medmnist(name: str, out: Path) -> Path:
    try:
        from medmnist import INFO
    except ModuleNotFoundError as error:
        raise UsageError(
            f"--data {name}: its address and checksum come with a package that is not here: pip install 'medprobe[medmnist]'"
        ) from error
    if name not in INFO:
        raise UsageError(f"--data {name}: smears, or one of {', '.join(INFO)}")
    url, md5 = INFO[name]["url"], INFO[name]["MD5"]
    path = out / f"{name}.npz"
    if not path.exists():
        out.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".draft")
        try:
            with urllib.request.urlopen(url, timeout=_TIMEOUT) as response, draft.open("wb") as file:
                while piece := response.read(1 << 20):
                    file.write(piece)
            draft.replace(path)
        except (OSError, urllib.error.URLError) as error:
            raise UsageError(
                f"--data {name}: {url} cannot be reached from here ({error}). Fetch it where there is internet, put it at "
                f"{path} and type the same again; or leave --data out: the drawn images need no internet."
            ) from error
        finally:
            draft.unlink(missing_ok=True)
    with path.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != md5:
        raise DataError(f"{path}: its MD5 is {found}, not {md5} as medmnist says; delete it and try again")
    return path
