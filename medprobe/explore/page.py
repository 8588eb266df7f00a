"""The page: controls at the side, figures that follow, and what they do to the state. It holds no logic of its own."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from nicegui import background_tasks, ui

from medprobe.errors import MedprobeError
from medprobe.explore.board import Board, Panel, asked, boards, measures, place, said
from medprobe.explore.choices import targets
from medprobe.explore.command import command_line, python_code
from medprobe.explore.controls import Controls
from medprobe.explore.figure import Figure, threaded
from medprobe.explore.gallery import Gallery
from medprobe.explore.look import STYLE
from medprobe.explore.pictures import Pictures
from medprobe.explore.session import RESAMPLES, Session
from medprobe.explore.state import State
from medprobe.probe.stopping import Stopped, may_stop, stopping
from medprobe.report.prediction_figures import OPERATING

_REST = 0.3  # seconds that a slider has stood still before intervals are worked out
_PANELS = ("leaderboard", "roc", "confusion", "calibration", "subgroup")


class Page:
    """One visitor's page.

    Args:
        session: The open stores.
        pictures: Maps and lists of their images.
        query: Of the link that was opened, as pairs.

    """

    def __init__(self, session: Session, pictures: Pictures, query: list[tuple[str, str]]) -> None:
        self.session, self.pictures = session, pictures
        self.turn = 0  # of the newest question: older ones are stale
        self.board: Board | None = None
        self.client = ui.context.client
        self.state, refused = State(), ""
        try:
            self.state = State.from_query(query)
            session.chosen(self.state)
        except MedprobeError as error:
            self.state, refused = State(), str(error)
        if self.state.target is None:
            self.state = replace(self.state, target=next(iter(targets(session.leading(self.state))), None))
        ui.add_css(STYLE)
        with ui.element("header").classes("top"):
            ui.element("h1").props["innerHTML"] = "medprobe"
            self.status = ui.label("").classes("status").props("data-testid=status")
            # Still: an animation takes a core from the answer where the browser draws without a graphics card.
            self.busy = ui.icon("hourglass_empty", size="18px")
            ui.button("Copy as command", on_click=self.reproduce).props("flat dense no-caps data-testid=reproduce")
        with ui.element("div").classes("explorer"):
            with ui.element("aside"):
                ui.label(refused).classes("general").props("data-testid=refused")
                self.controls = Controls(session, lambda: self.state, self.ask, self.turn_threshold)
            with ui.element("section").classes("answers"):
                with ui.tabs().props("dense no-caps align=left") as tabs:
                    answers = ui.tab("Answers")
                    images = ui.tab("Images").props("data-testid=tab-images")
                with ui.tab_panels(tabs, value=images if self.state.region else answers, animated=False) as panels:
                    with ui.tab_panel(answers):
                        self._answers()
                    with ui.tab_panel(images):
                        self.gallery = Gallery(pictures, lambda: self.state, lambda: self.board, self.look)
                panels.on_value_change(lambda event: self.gallery.opened(event.value == "Images"))
                self.gallery.visible = bool(self.state.region)
        self.ask()

    def _answers(self) -> None:
        self.figures: dict[str, Figure] = {}
        self.missing: dict[str, ui.label] = {}
        self.said = ui.label("").classes("said").props("data-testid=said")
        with ui.element("div").classes("panels"):
            for name in _PANELS:
                with ui.element("div").classes(f"panel {name}").props(f"data-testid={name}"):
                    if name == "confusion":
                        self.point = ui.label("").classes("said")
                        self.measures = ui.element("div").classes("measures").props("data-testid=measures")
                    self.figures[name] = Figure()
                    self.missing[name] = ui.label("").classes("missing")

    def ask(self, **changes: Any) -> None:
        """Take a change of the state, and answer it; what is wrong with it is said beside its control."""
        try:
            self.state = replace(self.state, **changes)
        except MedprobeError as error:
            self.controls.fail(str(error))
            return
        self.turn += 1
        self._link()
        background_tasks.create(self._follow(self.turn))

    def look(self, **changes: Any) -> bool:
        """Take a change of what is looked at, which asks nothing anew; return whether it can be."""
        try:
            self.state = replace(self.state, **changes)
        except MedprobeError as error:
            self.controls.fail(str(error))
            return False
        self._link()
        return True

    def _link(self) -> None:
        link = json.dumps(f"?{self.state.to_query()}")
        self.client.run_javascript(f'history.replaceState(null, "", {link})')

    async def _follow(self, turn: int) -> None:
        """Show the answers of a question as they arrive, unless a newer one is asked."""

        def stale() -> bool:
            return turn != self.turn or self.client.is_deleted

        started = time.perf_counter()
        self.busy.set_visibility(True)
        steps = boards(self.session, self.state)
        try:
            with stopping(stale):
                while (found := await threaded(next, steps, None)) is not None:
                    board = replace(found, state=self.state)  # what is looked at may have moved since it was asked
                    panels = board.panels()
                    while (panel := await threaded(next, panels, None)) is not None:
                        may_stop()
                        self._put(*panel)
                    self._show(board, time.perf_counter() - started)
        except Stopped:
            return
        except MedprobeError as error:
            if not stale():
                self.controls.fail(str(error))
                self.status.set_text("not answered: what is shown is of the last question that was")
        except Exception:  # a fault of the program's own: silence would pass the old figures off as the answer
            if not stale():
                self.status.set_text("not answered, by a fault of medprobe: the terminal shows it")
            raise
        finally:
            if turn == self.turn:
                self.busy.set_visibility(False)

    def _show(self, board: Board, seconds: float) -> None:
        self.board = board
        self.controls.answered(board)
        waiting = f"; {board.waiting} to come" if board.waiting else ""
        self.status.set_text(f"{board.shown} answered in {seconds:.2f} s{waiting}")
        found = {"turn": self.turn, "probe": board.shown, "done": str(not board.waiting).lower()}
        found["sure"] = str(board.sure).lower()
        self.status.props(" ".join(f"data-{name}={value}" for name, value in found.items()))
        self.said.set_text(said(board))
        self.gallery.answered()
        moved = self._operating != (board.state.threshold, board.state.prevalence)  # while the figures were made
        background_tasks.create(self._measure(self.turn, moved=moved))

    def _put(self, name: str, panel: Panel) -> None:
        self.figures[name].set_visibility(bool(panel.spec))
        self.missing[name].set_text(panel.missing)
        if panel.spec:
            self.figures[name].show(panel.spec, self.turn)

    @property
    def _operating(self) -> tuple[float, float | None]:
        """Threshold and prevalence that are looked at."""
        return self.state.threshold, self.state.prevalence

    def turn_threshold(self, **changes: Any) -> None:
        """Take another threshold or prevalence, of predictions that are there."""
        if self.look(**changes):
            background_tasks.create(self._measure(self.turn, moved=True))

    async def _measure(self, turn: int, *, moved: bool = False) -> None:
        """Show what comes of the threshold: values at once, intervals after those of the leaderboard."""
        board, operating = self.board, self._operating
        if board is None:
            return
        threshold, prevalence = operating

        def stale() -> bool:
            return turn != self.turn or board is not self.board or self._operating != operating

        try:
            with stopping(stale):
                for n_resamples in (0, RESAMPLES) if board.sure or moved else (0,):
                    point = await threaded(board.at, threshold, prevalence, n_resamples=n_resamples)
                    may_stop()
                    self._tell(asked(board, point), measures(point))
                    if moved and n_resamples == 0:
                        confusion = await threaded(board.confusion, threshold)
                        may_stop()  # figures follow a slider only as fast as they can be drawn
                        self.figures["roc"].put(OPERATING, [dict(zip("xy", place(point), strict=True))])
                        self._put("confusion", confusion)
                    await asyncio.sleep(_REST if moved else 0)
                    may_stop()
        except Stopped:
            return
        except MedprobeError as error:
            self._tell(str(error), [])

    def _tell(self, words: str, found: list[tuple[str, str, str]]) -> None:
        self.point.set_text(words)
        self.measures.clear()
        with self.measures:
            for name, value, ends in found:
                with ui.element("div"):
                    ui.label(name).classes("name")
                    ui.label(value).classes("value")
                    ui.label(ends).classes("ends")

    async def reproduce(self) -> None:
        """Show the command, the Python and the link that reproduce what is shown."""
        paths = self.session.paths_of(self.state)
        focus = None if self.board is None else (self.board.focus.encoder, self.board.shown, self.board.positive)
        address = await self.client.run_javascript("location.origin + location.pathname")
        texts = {
            "Command": command_line(self.state, paths),
            "Python": python_code(self.state, paths, focus),
            "Link": f"{address}?{self.state.to_query()}",
        }
        with self.client, ui.dialog() as dialog, ui.card().classes("reproduce"):
            for name, text in texts.items():
                with ui.element("div").classes("bar"):
                    ui.label(name).classes("name")
                    ui.button("Copy", on_click=_copier(text)).props("flat dense no-caps")
                ui.label(text).classes("code").props(f"data-testid=as-{name.lower()}")
        dialog.open()


def _copier(text: str) -> Callable[[], None]:
    return lambda: ui.clipboard.write(text)
