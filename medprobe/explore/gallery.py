"""The tab of images: the map, what is selected on it, and lists of images that are worth a look."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nicegui import background_tasks, ui

from medprobe.errors import MedprobeError
from medprobe.explore.board import Board
from medprobe.explore.choices import columns, named
from medprobe.explore.figure import Figure, threaded
from medprobe.explore.pictures import Entry, Pictures
from medprobe.explore.state import State
from medprobe.report.words import short

SELECTED, ERRORS, DUPLICATES, NEAR = "Selected", "Likely label errors", "Near-duplicates", "Neighbours"
_EMPTY = {
    SELECTED: "",
    ERRORS: "No label of a tested image looks wrong.",
    DUPLICATES: "No tested image looks the same as one that is learned from.",
    NEAR: "Click an image to see those most like it.",
}


class Gallery:
    """The map and the list beside it.

    Args:
        pictures: Where they come from.
        state: Gives the present state.
        board: Gives what is shown, or None before the first answer.
        look: Changes what is looked at.

    """

    def __init__(
        self,
        pictures: Pictures,
        state: Callable[[], State],
        board: Callable[[], Board | None],
        look: Callable[..., bool],
    ) -> None:
        self._pictures, self._state, self._board, self._look_at = pictures, state, board, look
        self.visible = False
        self._turn = 0
        self._row: int | None = None
        self._map_of: tuple[Any, ...] = ()
        options: dict[Any, str] = {None: "the target", **named(columns(pictures.session.leading(state())))}
        options.setdefault(state().colour, short(state().colour, 48))
        with ui.element("div").classes("images"):
            with ui.element("div").classes("left"):
                with ui.element("div").classes("line"):
                    ui.select(
                        options,
                        value=state().colour,
                        label="Colour by",
                        on_change=lambda event: self._change(colour=event.value),
                    ).props("dense options-dense data-testid=colour")
                    ui.toggle(
                        {"pca": "PCA", "umap": "UMAP"},
                        value=state().projection,
                        on_change=lambda event: self._change(projection=event.value, region=()),
                    ).props("dense no-caps unelevated size=sm")
                with ui.element("div").classes("panel").props("data-testid=map"):
                    self._map = Figure("region", self._selected)
                    self._missing = ui.label("").classes("missing")
            with ui.element("div"):
                self._choice = ui.toggle(
                    [SELECTED, ERRORS, DUPLICATES, NEAR], value=SELECTED, on_change=lambda: self.answered()
                ).props("dense no-caps unelevated size=sm data-testid=list")
                self._summary = ui.label("").classes("said").props("data-testid=summary")
                self._cards = ui.element("div").classes("cards").props("data-testid=cards")

    def opened(self, visible: bool) -> None:
        """Take note of whether the tab is looked at: only then it is filled."""
        self.visible = visible
        self.answered()

    def answered(self) -> None:
        """Show what belongs to the present state."""
        if self.visible:
            self._turn += 1
            background_tasks.create(self._fill(self._turn))

    def _selected(self, region: tuple[float, ...]) -> None:
        self._choice.set_value(SELECTED)
        self._change(region=region)

    def _change(self, **changes: Any) -> None:
        if self._look_at(**changes):
            self.answered()

    async def _fill(self, turn: int) -> None:
        board, state = self._board(), self._state()
        if board is None:
            return
        name = self._pictures.store_of(board)
        of = (name, state.view, state.projection, state.colour or state.target, state.seed)
        if of != self._map_of:
            await self._draw(name, state)
            self._map_of = of
        if turn != self._turn:
            return
        try:
            found, words = await threaded(self._listed, board, state)
        except MedprobeError as error:
            found, words = [], str(error)
        if turn == self._turn:
            self._summary.set_text(words)
            self._show(found)

    async def _draw(self, name: str, state: State) -> None:
        try:
            self._map.show(await threaded(self._pictures.map, name, state))
            self._missing.set_text("")
        except MedprobeError as error:
            self._missing.set_text(str(error))

    def _listed(self, board: Board, state: State) -> tuple[list[Entry], str]:
        choice = self._choice.value
        if choice == SELECTED:
            rows = self._pictures.inside(self._pictures.store_of(board), state)
            return self._pictures.entries(board, rows), self._pictures.summary(board, rows)
        words = ""
        if choice == NEAR:
            found = [] if self._row is None else self._pictures.neighbours(board, self._row)
        elif choice == ERRORS:
            found = self._pictures.label_errors(board)
        else:
            found, words = self._pictures.duplicates(board)
        return found, "; ".join(filter(None, (words, "" if found else _EMPTY[choice])))

    def _show(self, entries: list[Entry]) -> None:
        self._cards.clear()
        with self._cards:
            for entry in entries:
                card = ui.element("button").classes("entry" + (" wrong" if entry.wrong else ""))
                card.on("click", lambda _, row=entry.row: self._look(row))
                with card:
                    if entry.image:
                        ui.element("img").props["src"] = entry.image
                    else:
                        with ui.element("div").classes("blank"):
                            ui.label("no picture")
                    ui.label(entry.name).classes("id")
                    ui.label(f"given {entry.given or '–'}")
                    ui.label(f"predicted {entry.predicted or 'not tested'}")
                    if entry.note:
                        ui.label(entry.note)

    def _look(self, row: int) -> None:
        self._row = row
        if self._choice.value == NEAR:
            self.answered()
        else:
            self._choice.set_value(NEAR)
