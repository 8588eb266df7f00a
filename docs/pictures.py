"""Makes the pictures of the documentation from real runs on the demo's images: python docs/pictures.py medprobe-demo.

``terminal`` runs a command as a person would and returns what the terminal showed; ``draw_terminal`` makes an SVG of
that; ``screenshot`` makes a PNG of a page, local or served on this machine.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import shlex
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright
from rich.console import Console
from rich.text import Text

from medprobe.demo_images import contact_sheet
from medprobe.errors import UsageError

IMAGES = Path(__file__).parent / "images"
_MILLISECONDS = 300_000
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_REDRAWN = re.compile(r"\r(?:\x1b\[2K)?(?!\n)")  # where a line is begun again: a frame of a progress bar


def terminal(command: str, folder: Path, width: int = 120) -> str:
    """Return what ``medprobe ...`` shows in a terminal of that width, colours and every frame of its bars included.

    Raises:
        UsageError: The command fails.

    """
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, width, 0, 0))
    line = re.sub(r"^medprobe", shlex.quote(str(Path(sys.executable).with_name("medprobe"))), command)
    surroundings = {**os.environ, "TERM": "xterm-256color", "COLUMNS": str(width)}
    surroundings["PYTHONPATH"] = str(IMAGES.parents[1])
    process = subprocess.Popen(line, shell=True, cwd=folder, env=surroundings, stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    shown = bytearray()
    try:
        while piece := os.read(master, 65536):
            shown += piece
    except OSError:  # how Linux says that nobody writes any more
        pass
    os.close(master)
    text = shown.decode(errors="replace").replace("\r\n", "\n")
    if process.wait() not in {0, 3}:  # 3: done, with images left out
        raise UsageError(f"{command}: {text}")
    return re.sub(r"\x1b\[\?25[lh]", "", text)


def halfway(shown: str) -> str:
    """Return what stood there when half of the frames of the last progress bar had been drawn."""
    lines = shown.split("\n")
    last = max(i for i, line in enumerate(lines) if len(_REDRAWN.split(line)) > 2)
    frames = [frame for frame in _REDRAWN.split(lines[last]) if frame.strip()]
    return "\n".join([*(_REDRAWN.split(line)[-1] for line in lines[:last]), frames[len(frames) // 2]])


def draw_terminal(runs: Sequence[tuple[str, str]], file: Path, title: str, width: int = 120) -> None:
    """Draw commands and what each showed as one SVG, in which no font of another machine is named."""
    with Path(os.devnull).open("w") as nowhere:
        console = Console(record=True, width=width, file=nowhere)
        for command, shown in runs:
            console.print(Text.assemble(("$ ", "bold green"), (command, "bold")))
            console.print(Text.from_ansi(shown.strip("\n")))
        svg = console.export_svg(title=title)
    svg = re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL).replace("Fira Code", "ui-monospace, Menlo, Consolas")
    file.write_text(svg, encoding="utf-8")


@contextmanager
def served(arguments: str, folder: Path) -> Iterator[str]:
    """Yield the address of ``medprobe explore`` with these arguments, for as long as the context lasts."""
    command = [
        Path(sys.executable).with_name("medprobe"),
        "explore",
        *shlex.split(arguments),
        "--no-browser",
        "--port",
        "0",
    ]
    process = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        yield next(word for line in process.stderr for word in line.split() if word.startswith("http://"))
    finally:
        process.kill()
        process.wait()


def screenshot(
    page: str | Path,
    file: Path,
    size: tuple[int, int],
    *,
    ready: str = "body",
    before: Callable[[Page], object] = lambda page: None,
) -> None:
    """Write a PNG of a page as Chromium draws it, without a window and without any other machine.

    Args:
        page: A file, or an address on 127.0.0.1 such as the explorer's.
        file: The PNG.
        size: Width and height of the window; what is below is cut off.
        ready: CSS selector of what has to be there.
        before: What is done to the page then.

    Raises:
        UsageError: There is no browser.

    """
    browser = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if browser is None:
        raise UsageError(f"a picture of a page needs a browser: one of {', '.join(_BROWSERS)}")
    with sync_playwright() as playwright:
        window = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"]).new_page(
            viewport={"width": size[0], "height": size[1]}
        )
        window.goto(page if isinstance(page, str) else page.resolve().as_uri())
        window.wait_for_selector(ready, timeout=_MILLISECONDS, state="attached")
        before(window)
        window.wait_for_timeout(1000)  # for what moves
        window.screenshot(path=file)
    with Image.open(file) as picture:
        picture.convert("RGB").quantize(128, dither=Image.Dither.NONE).save(file, optimize=True)


def choose_images(page: Page) -> None:
    """Show the explorer's map and drag a region of it."""
    page.click("[data-testid=tab-images]")
    page.wait_for_selector("[data-testid=map] svg .mark-symbol", timeout=_MILLISECONDS)
    box = page.locator("[data-testid=map] svg").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 0.55 * box["width"], box["y"] + 0.3 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.8 * box["width"], box["y"] + 0.6 * box["height"], steps=8)
    page.mouse.up()
    page.wait_for_selector("[data-testid=cards] .entry img", timeout=_MILLISECONDS)


def main(demo: Path) -> None:
    """Write ``cells.png``, those of terminals, of the report and of the explorer."""
    contact_sheet(demo / "manifest.csv", columns=10, rows=2).save(IMAGES / "cells.png")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(demo / "images", folder / "images")
        shutil.copy(demo / "manifest.csv", folder / "cells.csv")
        helped = "medprobe --help"
        draw_terminal([(helped, terminal(helped, folder))], IMAGES / "help.svg", "medprobe")
        embedded = (
            "medprobe embed cells.csv --group-col smear -m imagenet/efficientnet-lite0 -m baseline/pixels -o stores/"
        )
        shown = halfway(terminal(embedded, folder))
        draw_terminal([(embedded, shown)], IMAGES / "embed.svg", "embedding")
        probed = "medprobe probe stores/*.zarr -t cell -o results/"
        shown = terminal(probed, folder, width=168)
        draw_terminal([(probed, shown)], IMAGES / "leaderboard.svg", "probing", width=168)
        terminal("medprobe report results/ -o report.html", folder)
        screenshot(folder / "report.html", IMAGES / "report.png", (1240, 1300))
        stores = " ".join(str(path) for path in sorted((folder / "stores").iterdir()))
        with served(f"{stores} --images cells.csv", folder) as address:
            done = "[data-testid=status][data-sure=true][data-done=true]"
            screenshot(address, IMAGES / "explore.png", (1280, 800), ready=done)
            screenshot(address, IMAGES / "explore-images.png", (1280, 800), ready=done, before=choose_images)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
