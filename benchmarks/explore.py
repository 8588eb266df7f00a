"""The explorer on 100,000 x 768: seconds from a control's change to the changed figure on the screen.

python benchmarks/explore.py            100,000 x 768, ten columns
python benchmarks/explore.py --quick    5,000 x 64

Headless Chromium turns each control in turn; the clock runs in the page, from the event to the drawn figure.
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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from drawn import draw_store
from playwright.sync_api import Page, sync_playwright

from medprobe.explore.state import State

TARGET = 1.0  # seconds
_LOOK = 2000  # milliseconds that a person looks at an answer before the next question


def settled(page: Page, what: str, after: int) -> None:
    """Wait for an answer of a question later than that number."""
    page.wait_for_function(
        "([after, what]) => { const s = document.querySelector('[data-testid=status]')?.dataset;"
        " return s && Number(s.turn) > after && eval(what); }",
        arg=[after, what],
        timeout=600_000,
    )


# Waits in the page for a figure that is drawn anew after the control was turned.
_CLOCK = """() => {
  const figure = document.querySelector('[data-testid=leaderboard] .figure'), was = figure.dataset.drawn;
  const start = performance.now();
  window.drawnAfter = new Promise(done => new MutationObserver((_, me) => {
    if (figure.dataset.drawn === was) return;
    me.disconnect();
    requestAnimationFrame(() => done((performance.now() - start) / 1000));
  }).observe(figure, {attributes: true, attributeFilter: ['data-drawn']}));
}"""


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
        with opened(path) as (page, address):
            measure(page, address, n, width)


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


def measure(page: Page, address: str, n: int, width: int) -> None:
    start = time.perf_counter()
    page.goto(f"{address}?{State(target='sick').to_query()}", timeout=600_000)
    settled(page, "s.done === 'true'", 0)
    print(f"{n} x {width}, {os.cpu_count()} cores, python {platform.python_version()}, numpy {np.__version__}")
    print(f"first answers, stores read: {time.perf_counter() - start:.1f} s")
    ridge, exact = [], []
    for name, turn in controls(page):
        page.wait_for_timeout(_LOOK)
        after = int(page.get_attribute("[data-testid=status]", "data-turn") or 0)
        page.evaluate(_CLOCK)
        began = time.perf_counter()
        turn()
        ridge.append(float(page.evaluate("window.drawnAfter")))
        settled(page, "s.probe === 'logreg'", after)
        exact.append(time.perf_counter() - began)
        settled(page, "s.done === 'true'", after)
        print(f"  {name:<28} ridge {ridge[-1]:6.2f} s   logreg {exact[-1]:6.2f} s")
    print(f"ridge p50 {np.median(ridge):.2f} s (target {TARGET:g} s), logreg p50 {np.median(exact):.2f} s")


def controls(page: Page) -> list[tuple[str, Any]]:
    def filtered(condition: str) -> Any:
        return lambda: page.fill("[data-testid=where-input]", condition)

    def nudged(times: int) -> Any:
        return lambda: [page.locator("[data-testid=budget] [tabindex='0']").press("ArrowRight") for _ in range(times)]

    def chosen(testid: str, option: str) -> Any:
        def turn() -> None:
            page.click(f"[data-testid={testid}] .q-field")
            page.click(f".q-menu .q-item:has-text('{option}')")

        return turn

    return [
        ("filter: a site less", filtered("site <> 'site3'")),
        ("filter: one sex", filtered("sex = 'F'")),
        ("filter: two devices and an age", filtered("device IN ('d0', 'd1') AND age > 30")),
        ("no filter", filtered("")),
        ("another target", chosen("target", "grade")),
        ("no grouping", chosen("group", "no grouping")),
        ("another target again", chosen("target", "view")),
        ("few labels", nudged(4)),
    ]


if __name__ == "__main__":
    main()
