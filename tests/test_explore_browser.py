"""The explorer in a real browser: what a person does there, and that nothing leaves the machine."""

from __future__ import annotations

import json
import re
import shlex
import signal
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from explore_helpers import FORMULA, SCRIPT, chromium, hostile, samples, served, stores
from typer.testing import CliRunner

from medprobe.cli import app
from medprobe.explore.state import State

pytest.importorskip("nicegui")
pytest.importorskip("duckdb")

WAIT = 180_000  # milliseconds that a loaded machine may take

_TEXTS = "[...document.querySelectorAll('[data-testid=leaderboard] svg text')]"
# The number in the line of a name.
_VALUE = f"""name => {{
  const texts = {_TEXTS}, height = text => text.getBoundingClientRect().y;
  const line = height(texts.find(text => text.textContent === name));
  return texts.find(text => /^0\\.\\d{{3}} \\(/.test(text.textContent) && Math.abs(height(text) - line) < 6).textContent;
}}"""


class Tab:
    """A page of the explorer, and all that it asked for."""

    def __init__(self, page: Any, address: str) -> None:
        self.page, self.address = page, address
        self.requests: list[str] = []
        self.errors: list[str] = []
        page.set_default_timeout(WAIT)
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("websocket", lambda socket: self.requests.append(socket.url))
        page.on("pageerror", lambda error: self.errors.append(str(error)))

    def open(self, state: State | str = "") -> Tab:
        query = state.to_query() if isinstance(state, State) else state
        self.page.goto(f"{self.address}?{query}")
        return self.settled()

    def settled(self, turn: int = 1) -> Tab:
        """Wait for the last answer of the question of that number, or a later one."""
        self.page.wait_for_function(
            """turn => { const s = document.querySelector('[data-testid=status]');
                         return s && Number(s.dataset.turn) >= turn && s.dataset.done === 'true'; }""",
            arg=turn,
        )  # fmt: skip
        return self

    @property
    def turn(self) -> int:
        return int(self.page.get_attribute("[data-testid=status]", "data-turn"))

    def text(self, testid: str) -> str:
        return str(self.page.inner_text(f"[data-testid={testid}]"))

    def value(self, method: str) -> str:
        """Return the number that the leaderboard shows for a method."""
        self.page.wait_for_function(f"name => {_TEXTS}.some(t => t.textContent === name)", arg=method)
        return str(self.page.evaluate(_VALUE, method))

    def slide(self, testid: str, value: float) -> None:
        """Turn a slider by its keys until it stands at a value: a page that is being drawn anew may miss a key."""
        slider = self.page.locator(
            f"[data-testid={testid}][aria-valuenow], [data-testid={testid}] [aria-valuenow]"
        ).first
        self.page.locator(f"[data-testid={testid}] [tabindex='0']").focus()
        for _ in range(1000):
            if abs((now := float(slider.get_attribute("aria-valuenow"))) - value) > 1e-6:
                self.page.keyboard.press("ArrowRight" if now < value else "ArrowLeft")
                self.page.wait_for_timeout(30)  # until the attribute follows; one step too many is taken back
                continue
            self.page.wait_for_timeout(300)
            if abs(float(slider.get_attribute("aria-valuenow")) - value) < 1e-6:
                return
        raise AssertionError(f"{testid} does not come to stand at {value}")

    def choose(self, testid: str, option: str) -> None:
        self.page.click(f"[data-testid={testid}]")
        self.page.click(f".q-menu .q-item:has-text({json.dumps(option)})")

    def command(self) -> list[str]:
        self.page.click("[data-testid=reproduce]")
        words = shlex.split(self.text("as-command"))
        self.page.keyboard.press("Escape")
        return words


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def server(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Any]]:
    folder = tmp_path_factory.mktemp("explore")
    table = samples(folder / "data")
    paths = [*stores(folder, table), hostile(folder)]
    with served(*paths, "--images", folder / "data" / "manifest.csv") as found:
        yield found


@pytest.fixture
def tab(browser: Any, server: tuple[str, Any]) -> Iterator[Tab]:
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    found = Tab(page, server[0])
    yield found
    page.close()
    assert not found.errors
    here = {urlsplit(url).hostname for url in found.requests if urlsplit(url).scheme not in {"data", "blob"}}
    assert here == {"127.0.0.1"}


BOTH = State(stores=("fake/good", "fake/poor"), target="sick", probe="ridge")


def run(words: list[str]) -> dict[str, dict[str, Any]]:
    """Return the rows of the primary metric that a command prints, by encoder and probe."""
    assert words[0] == "medprobe"
    done = CliRunner().invoke(app, [*words[1:], "--json"])
    assert done.exit_code == 0, done.output
    rows = [row for row in json.loads(done.stdout) if row["primary"] and not row["subgroup"]]
    return {f"{row['encoder']}, {row['probe']}": row for row in rows}


def shown(row: dict[str, Any]) -> str:
    return f"{row['value']:.3f} ({row['ci_low']:.3f} to {row['ci_high']:.3f})"


def test_what_is_shown_is_what_the_copied_command_prints(tab):
    """Filter, merge classes, few labels: then the command of the page gives the page's numbers, of both probes."""
    tab.open(State(stores=("fake/good", "fake/poor"), target="grade", probe="logreg"))
    before = tab.value("fake/good, ridge")
    turn = tab.turn
    tab.page.fill("[data-testid=where-input]", "age > 35")
    tab.settled(turn + 1)
    filtered = tab.value("fake/good, ridge")
    turn = tab.turn
    tab.choose("classes", "g2")
    tab.page.click(".q-menu .q-item:has-text('g3')")
    tab.page.keyboard.press("Escape")
    tab.page.fill("[data-testid=merged]", "high")
    tab.page.click("[data-testid=merge]")
    tab.settled(turn + 1)
    merged = tab.value("fake/good, ridge")
    assert len({before, filtered, merged}) == 3
    words = tab.command()
    assert words[words.index("--relabel") + 1] == "g2,g3=high"
    assert words[words.index("--where") + 1] == "age > 35"
    rows = run(words)
    assert len(rows) == 4
    for name in rows:
        assert tab.value(name) == shown(rows[name])
    turn = tab.turn
    tab.slide("budget", 3)
    tab.settled(turn + 1)
    words = tab.command()
    assert words[words.index("--shots") + 1] == "5"
    assert tab.value("fake/good, ridge") == shown(run(words)["fake/good, ridge"]) != merged
    assert "first of 5 draws" in tab.text("said")


def test_a_link_restores_the_view_and_python_its_operating_point(tab):
    tab.open(BOTH)
    turn, link = tab.turn, tab.page.url
    at_half = tab.text("measures")
    tab.slide("threshold-slider", 0.3)
    tab.slide("prevalence-slider", 0.05)
    tab.page.wait_for_function(
        "location.search.includes('threshold=0.3') && location.search.includes('prevalence=0.05')"
    )
    tab.page.wait_for_function("!document.querySelector('[data-testid=measures]').innerText.includes('…')")
    moved = tab.text("measures")
    assert tab.turn == turn, "a threshold asks nothing anew"
    assert moved != at_half
    assert tab.page.url != link
    tab.page.click("[data-testid=reproduce]")
    code = tab.text("as-python")
    found: dict[str, Any] = {}
    exec(code, found)
    point = found["point"]
    for name in ("sensitivity", "specificity", "ppv", "npv"):
        each = getattr(point, name)
        assert f"{each.value:.3f}\n{each.low:.3f} to {each.high:.3f}" in moved
    link = tab.text("as-link")
    assert tab.open(link.partition("?")[2]).text("measures") == moved


def test_images_of_a_part_of_the_map(tab):
    """Drag over the map: its images come, with pictures, labels and predictions; a click shows the nearest ones."""
    tab.open(BOTH)
    tab.page.click("[data-testid=tab-images]")
    tab.page.wait_for_selector("[data-testid=map] svg .mark-symbol")
    box = tab.page.locator("[data-testid=map] svg").bounding_box()
    tab.page.mouse.move(box["x"] + 90, box["y"] + 110)
    tab.page.mouse.down()
    tab.page.mouse.move(box["x"] + box["width"] - 40, box["y"] + 360, steps=4)
    tab.page.mouse.up()
    tab.page.wait_for_selector("[data-testid=cards] .entry img")
    counted = int(re.match(r"(\d+) images? selected", tab.text("summary")).group(1))
    assert 0 < counted <= 240
    cards = tab.page.locator("[data-testid=cards] .entry")
    assert cards.count() == min(counted, 60)
    assert "given" in cards.first.inner_text()
    assert tab.page.evaluate("document.querySelector('.entry img').naturalWidth") > 0
    assert "region=" in tab.page.url
    cards.first.click()
    tab.page.wait_for_function("document.querySelectorAll('[data-testid=cards] .entry').length === 8")
    assert "cosine" in tab.text("cards")
    tab.page.click("[data-testid=list] >> text=Near-duplicates")
    tab.page.wait_for_function("!document.querySelector('[data-testid=cards] .entry')")
    assert "No tested image" in tab.text("summary")
    tab.page.click("[data-testid=list] >> text=Likely label errors")
    tab.page.wait_for_selector("[data-testid=cards] .entry.wrong")
    first = tab.page.locator("[data-testid=cards] .entry").first.inner_text()
    assert re.search(r"rather [01]\? \d+% sure", first)


def test_what_is_wrong_is_said_beside_its_control_and_the_last_answer_stays(tab):
    tab.open(BOTH)
    before = tab.value("fake/good, ridge")
    tab.page.fill("[data-testid=where-input]", "nonsense > 3")
    tab.page.wait_for_function("document.querySelector('[data-testid=error-where]').innerText.includes('nonsense')")
    assert "columns:" in tab.text("error-where")
    assert tab.value("fake/good, ridge") == before
    tab.page.fill("[data-testid=where-input]", "site = 'A'")
    tab.page.wait_for_function("document.querySelector('[data-testid=error-where]').innerText === ''")
    tab.page.goto(f"{tab.address}?threshold=seven")
    tab.page.wait_for_function("document.querySelector('[data-testid=refused]').innerText.includes('no number')")


def test_names_from_a_stranger_are_text(tab):
    name = f"fake/{SCRIPT}"
    tab.open(State(stores=(name,), target=SCRIPT, probe="ridge", subgroup="long" * 50, colour=FORMULA, n_folds=2))
    assert "<script>" in tab.text("said")
    tab.choose("pick-column", "HYPERLINK")
    tab.page.click("[data-testid=pick-values]")
    tab.page.wait_for_selector(".q-menu .q-item:has-text('<script>')")
    tab.page.keyboard.press("Escape")
    tab.page.click("[data-testid=tab-images]")
    tab.page.wait_for_selector("[data-testid=map] svg .mark-symbol")
    tab.page.click("[data-testid=list] >> text=Near-duplicates")
    tab.page.mouse.move(600, 400)
    assert tab.page.title() == "medprobe"
    assert tab.page.evaluate("document.querySelectorAll('img[src=x], .panel script').length") == 0
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= 1280


def test_a_fault_of_the_program_is_said_on_the_page(browser, tmp_path):
    """Old figures are not passed off as the answer; a list that fails says so, too."""
    broken = "from medprobe.explore.session import Session; Session.answer = lambda *given, **named: 1 // 0"
    with served(*stores(tmp_path, samples()), first=broken) as (address, _):
        page = browser.new_page()
        page.goto(address)
        page.wait_for_function(
            "document.querySelector('[data-testid=status]')?.innerText.includes('by a fault of medprobe')", timeout=WAIT
        )
        page.close()


def test_a_threshold_that_is_turned_before_the_exact_probe_has_arrived_stays(browser, tmp_path):
    slow = (
        "import time; from medprobe.explore.session import Session; answer = Session.answer; Session.answer = "
        "lambda self, name, state, probe, **k: (time.sleep(5 * (probe == 'logreg')), answer(self, name, state, probe, **k))[1]"
    )
    with served(*stores(tmp_path, samples())[:1], first=slow) as (address, _):
        tab = Tab(browser.new_page(), address)
        tab.page.goto(f"{address}?{State(target='sick').to_query()}")
        tab.page.wait_for_function("document.querySelector('[data-testid=status]')?.dataset.probe === 'ridge'")
        tab.slide("threshold-slider", 0.45)
        assert "logreg to come" in tab.text("status")
        tab.settled()
        shown = "document.querySelector('[data-testid=confusion] .figure').textContent"
        tab.page.wait_for_function(f"{shown}.includes('logreg')")
        assert "from 0.45 on" in str(tab.page.evaluate(shown))
        assert "from 0.45 on" in tab.text("confusion")
        tab.page.close()


def test_ctrl_c_ends_it_with_a_sentence(server, tab):
    """The last test of this server."""
    tab.open(BOTH)
    process = server[1]
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert said.strip().splitlines()[-1] == "medprobe explore: ended"
    assert "Traceback" not in said
    assert process.returncode == 0
