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
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.text import Text

from medprobe.demo_images import contact_sheet
from medprobe.errors import UsageError

IMAGES = Path(__file__).parent / "images"
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


def screenshot(page: str | Path, file: Path, size: tuple[int, int] = (1200, 900), milliseconds: int = 3000) -> None:
    """Write a PNG of a page as Chromium draws it, without a window and without any other machine.

    Args:
        page: A file, or an address on 127.0.0.1 such as the explorer's.
        file: The PNG.
        size: Width and height of the window; what is below is cut off.
        milliseconds: Time that scripts of the page have.

    Raises:
        UsageError: There is no browser, or it draws nothing.

    """
    browser = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if browser is None:
        raise UsageError(f"a picture of a page needs a browser: one of {', '.join(_BROWSERS)}")
    address = page if isinstance(page, str) else page.resolve().as_uri()
    with tempfile.TemporaryDirectory() as profile:
        options = [
            "--headless=new",
            "--no-sandbox",
            "--hide-scrollbars",
            "--disable-background-networking",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
            f"--user-data-dir={profile}",
            f"--window-size={size[0]},{size[1]}",
            f"--virtual-time-budget={milliseconds}",
            f"--screenshot={file.resolve()}",
        ]
        done = subprocess.run([browser, *options, address], capture_output=True, text=True, timeout=180, check=False)
    if done.returncode or not file.exists():
        raise UsageError(f"{address}: no picture of it: {done.stderr.strip()[-500:]}")
    with Image.open(file) as picture:
        picture.convert("RGB").quantize(128, dither=Image.Dither.NONE).save(file, optimize=True)


def main(demo: Path) -> None:
    """Write ``cells.png``, ``help.svg``, ``embed.svg``, ``leaderboard.svg`` and ``report.png``."""
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
        screenshot(folder / "report.html", IMAGES / "report.png", (1200, 1300))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
