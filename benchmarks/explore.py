"""The explorer on 100,000 x 768: seconds from a control's change to the changed figure on the screen.

python benchmarks/explore.py            100,000 x 768, eleven columns
python benchmarks/explore.py --quick    5,000 x 64

Headless Chromium turns each control in turn; the clock runs in the page, from the event to the drawn figure. It does so
twice: with all answers there, and while the exact probe and the intervals of the question before are worked out.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from drawn import draw_store
from playwright.sync_api import Page, sync_playwright

from medprobe.explore.state import State

TARGET = 1.0  # seconds
_LOOK = 2000  # milliseconds that a person looks at an answer before the next question
_REST = 300  # that a hand takes from bringing a control within reach to turning it


def settled(page: Page, what: str, after: int) -> None:
    """Wait for an answer of a question later than that number."""
    page.wait_for_function(
        "([after, what]) => { const s = document.querySelector('[data-testid=status]')?.dataset;"
        " return s && Number(s.turn) > after && eval(what); }",
        arg=[after, what],
        timeout=600_000,
    )


# Waits in the page for what is shown after the control was turned: the figure of a question later than that number, or
# new text.
_CLOCK = """([where, after]) => {
  const shown = document.querySelector(where), was = shown.innerText, start = performance.now();
  const there = () => after === null ? shown.innerText !== was : shown.dataset.question > after;
  window.drawnAfter = new Promise(done => new MutationObserver((_, me) => {
    if (!there()) return;
    me.disconnect();
    requestAnimationFrame(() => done((performance.now() - start) / 1000));
  }).observe(shown, {attributes: true, characterData: true, childList: true, subtree: true}));
}"""


@dataclass(frozen=True)
class Control:
    """What a person does: bring a control within reach, then turn it; the clock runs from the turn."""

    name: str
    turn: Callable[[], Any]
    reach: Callable[[], Any] = lambda: None
    fits: bool = True
    """Whether a probe is fitted; else the operating point alone follows."""
    asks: int = 0
    """Questions that are asked on the way to it."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--stores", type=Path, help="Folder to keep the store in. (default: a temporary one)")
    given = parser.parse_args()
    n, width = (5_000, 64) if given.quick else (100_000, 768)
    with tempfile.TemporaryDirectory() as folder:
        path = (given.stores or Path(folder)) / f"{n}x{width}.zarr"
        if not path.exists():
            draw_store(path, n, width)
        print(f"{n} x {width}, {os.cpu_count()} cores, python {platform.python_version()}, numpy {np.__version__}")
        with opened(path) as (page, address):
            shown, exact = measure(page, address, patient=True)
        with opened(path) as (page, address):
            busy, _ = measure(page, address, patient=False)
    print(f"{'seconds to the screen':<30} {'first answer':>12} {'while busy':>12} {'exact probe':>12}")
    for name in shown:
        print(f"{name:<30} {shown[name]:12.2f} {busy[name]:12.2f} {exact.get(name, np.nan):12.2f}")
    p50 = [float(np.median(list(found.values()))) for found in (shown, busy, exact)]
    print(f"{'p50':<30} {p50[0]:12.2f} {p50[1]:12.2f} {p50[2]:12.2f}")
    print(f"first answer over the target of {TARGET:g} s: {p50[0] / TARGET:.2f}, while busy {p50[1] / TARGET:.2f}")


@contextmanager
def opened(*stores: Path) -> Iterator[tuple[Page, str]]:
    """Yield a page of a browser, and the address of an explorer with these stores that was started for it."""
    command = [sys.executable, "-m", "medprobe", "explore", *map(str, stores), "--no-browser", "--port", "0"]
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright, subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            address = next(w for line in server.stderr for w in line.split() if w.startswith("http://"))
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            yield browser.new_page(viewport={"width": 1280, "height": 800}), address
            browser.close()
        finally:
            server.kill()


def measure(page: Page, address: str, *, patient: bool) -> tuple[dict[str, float], dict[str, float]]:
    """Return seconds to the first answer and to the exact probe's, by control.

    Args:
        page: Of the browser.
        address: Of the explorer.
        patient: Turn the next control when all has arrived, or else while the exact probe and intervals are worked out.

    """
    page.goto(f"{address}?{State(target='sick').to_query()}", timeout=600_000)
    settled(page, "s.done === 'true'", 0)
    shown, exact, asked = {}, {}, 1
    for control in controls(page):
        page.wait_for_timeout(_LOOK)
        control.reach()
        asked += control.asks
        page.wait_for_timeout(_REST)
        figure, point = "[data-testid=leaderboard] .figure", "[data-testid=confusion] .said"
        page.evaluate(_CLOCK, [figure, asked] if control.fits else [point, None])
        began = time.perf_counter()
        control.turn()
        shown[control.name] = float(page.evaluate("window.drawnAfter"))
        if control.fits:
            asked += 1
            if patient:
                settled(page, "s.probe === 'logreg'", asked - 1)
                exact[control.name] = time.perf_counter() - began
                settled(page, "s.done === 'true'", asked - 1)
    return shown, exact


def controls(page: Page) -> list[Control]:
    """Return each kind of control, those without a fit last."""

    def filtered(name: str, condition: str) -> Control:
        return Control(f"filter: {name}", lambda: page.fill("[data-testid=where-input]", condition))

    def pressed(name: str, testid: str, times: int, **more: Any) -> Control:
        def press(n: int) -> None:
            for _ in range(n):
                page.locator(f"[data-testid={testid}] [tabindex='0']").press("ArrowRight")

        return Control(name, lambda: press(1), lambda: press(times - 1), **more)

    def chosen(name: str, testid: str, option: str) -> Control:
        def pick() -> None:
            page.click(f".q-menu .q-item:has-text('{option}')")

        return Control(name, pick, lambda: page.click(f"[data-testid={testid}] .q-field"))

    def classes(name: str, button: str, *picked: str) -> Control:
        def mark() -> None:
            page.click("[data-testid=classes]")
            for each in picked:
                page.click(f".q-menu .q-item:has-text('{each}')")
            page.keyboard.press("Escape")
            page.fill("[data-testid=merged]", "either")

        return Control(name, lambda: page.click(f"[data-testid={button}]"), mark)

    return [
        filtered("a site less", "site <> 'site3'"),
        filtered("one sex", "sex = 'F'"),
        filtered("two devices and an age", "device IN ('d0', 'd1') AND age > 30"),
        filtered("none any more", ""),
        chosen("another target", "target", "grade"),
        classes("two classes merged", "merge", "g0", "g1"),
        classes("a class dropped", "drop", "g4"),
        chosen("no grouping", "group", "no grouping"),
        chosen("another target again", "target", "view"),
        pressed("few labels", "budget", 4, asks=3),
        pressed("threshold", "threshold-slider", 3, fits=False),
        pressed("prevalence", "prevalence-slider", 3, fits=False),
    ]


if __name__ == "__main__":
    main()
