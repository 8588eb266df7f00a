"""The images behind the numbers: a map of them, which of them lie in a part of it, and each with what is known of it."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medprobe.errors import UsageError
from medprobe.explore.board import Board
from medprobe.explore.images import Images
from medprobe.explore.session import Kept, Session
from medprobe.explore.state import State
from medprobe.probe.atlas import Method, embedding_map
from medprobe.probe.features import AUTO
from medprobe.probe.label_errors import likely_label_errors
from medprobe.probe.leaks import near_pairs, some_tested
from medprobe.probe.search import neighbours
from medprobe.probe.task import target_columns
from medprobe.report.map_figure import embedding
from medprobe.report.style import altair
from medprobe.report.words import counted, short

MOST_SHOWN = 60
_KEPT = 8  # maps
# Comparisons of a tested image with one that is learned from: some seconds' worth.
_MOST_COMPARISONS = 10**8


@dataclass(frozen=True)
class Entry:
    """An image of a list.

    Attributes:
        row: Of the store's samples.
        name: Its id.
        image: As a data URL; empty where there is none.
        given: Its label; empty where it takes no part.
        predicted: What was predicted for it when it was tested; empty where it was not.
        note: What else is to be said.

    """

    row: int
    name: str
    image: str
    given: str
    predicted: str
    note: str = ""

    @property
    def wrong(self) -> bool:
        """Whether another class was predicted than is given."""
        return bool(self.given and self.predicted) and self.predicted.rpartition(" ")[0] != self.given


class Pictures:
    """Maps and lists of the images of a session.

    Args:
        session: Whose stores they are of.
        images: Where pixels come from.

    """

    def __init__(self, session: Session, images: Images) -> None:
        self.session, self._images = session, images
        self._places = Kept(_KEPT)

    def places(self, name: str, state: State) -> NDArray[np.float32]:
        """Return the place of each sample of a store on its map, (n, 2).

        Raises:
            UsageError: UMAP is not installed.

        """
        store, view, method = self.session.stores[name], _view(state), _method(state)

        def make() -> NDArray[np.float32]:
            found: NDArray[np.float32] = embedding_map(store, view, method=method, seed=state.seed)[store.mask]
            return found

        places: NDArray[np.float32] = self._places.get((name, view, method, state.seed), make)
        return places

    def map(self, name: str, state: State) -> str:
        """Return the map of a store as Vega-Lite in JSON, with an interval selection called ``region``.

        Raises:
            UsageError: There is no such column to colour by, or as for :meth:`places`.

        """
        store = self.session.stores[name]
        column = state.colour or target_columns(store.samples, state.target or "")[0]
        chart = embedding(store, column, _view(state), method=_method(state), seed=state.seed)
        ends = {"x": list(state.region[:2]), "y": list(state.region[2:])} if state.region else altair().Undefined
        brush = altair().selection_interval(name="region", encodings=["x", "y"], value=ends)
        return json.dumps(chart.add_params(brush).to_dict())

    def inside(self, name: str, state: State) -> NDArray[np.int64]:
        """Return the samples in the selected part of the map, those that are not drawn among them."""
        if not state.region:
            return np.zeros(0, dtype=np.int64)
        left, right, bottom, top = state.region
        x, y = self.places(name, state).T
        return np.flatnonzero((x >= left) & (x <= right) & (y >= bottom) & (y <= top))

    def entries(self, board: Board, rows: Sequence[int] | NDArray[np.int64], notes: Sequence[str] = ()) -> list[Entry]:
        """Return samples of the store in focus with what is given and was predicted for each, no more than are shown."""
        name = self.store_of(board)
        question, held = self.session.asked(name, board.state).question, board.single[board.focus.trial]
        place = {int(row): i for i, row in enumerate(question.target.rows)}
        tested = {int(row): i for i, row in enumerate(question.target.rows[question.split.test])}
        ids = self.session.stores[name].samples["id"].to_numpy()
        some = [int(row) for row in rows[:MOST_SHOWN]]
        thumbnails = self._images.thumbnails(self.session.stores[name], some)
        found = []
        for i, (row, jpeg) in enumerate(zip(some, thumbnails, strict=True)):
            given = _given(question.target.y[place[row]], board.classes) if row in place else ""
            predicted = _predicted(held.proba[0, tested[row]], board.classes, held.task) if row in tested else ""
            url = f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}" if jpeg else ""
            found.append(Entry(row, str(ids[row]), url, given, predicted, notes[i] if notes else ""))
        return found

    def neighbours(self, board: Board, row: int, k: int = 8) -> list[Entry]:
        """Return the images nearest to one, by the cosine of features from which their mean is taken."""
        name = self.store_of(board)
        X = next(iter(self.session.features(name, board.state.view).views.values()))
        X = X - X.mean(axis=0, dtype=np.float64).astype(X.dtype)
        cosine, index = neighbours(X, X[row : row + 1], k, exclude=(np.arange(len(X)), np.array([row])))
        near = [(int(i), float(c)) for i, c in zip(index[0], cosine[0], strict=True) if i >= 0]
        return self.entries(board, [i for i, _ in near], [f"cosine {c:.3f}" for _, c in near])

    def label_errors(self, board: Board) -> list[Entry]:
        """Return the tested images whose label is most likely wrong, by what was predicted for them.

        Raises:
            UsageError: The target is of several labels.

        """
        held = board.single[board.focus.trial]
        if held.task == "multilabel":
            raise UsageError("likely label errors are found for one class a sample, not for several labels")
        question = self.session.asked(self.store_of(board), board.state).question
        rows = question.target.rows[question.split.test]
        found = likely_label_errors(held.proba[0], held.y, held.groups)[:MOST_SHOWN]
        notes = [
            f"rather {short(board.classes[int(suggested)], 30)}? {confidence:.0%} sure"
            for suggested, confidence in zip(found["suggested"], found["confidence"], strict=True)
        ]
        return self.entries(board, rows[found["row"].to_numpy(dtype=np.int64)].tolist(), notes)

    def duplicates(self, board: Board) -> tuple[list[Entry], str]:
        """Return tested images, each before the one it looks the same as among those that are learned from.

        Of very many tested images, some at random are looked at; the second value says of how many.
        """
        name = self.store_of(board)
        asked = self.session.asked(name, board.state)
        question = asked.question
        X = next(iter(asked.features.views.values()))[question.target.rows]
        split, words = some_tested(question.split, _MOST_COMPARISONS, board.state.seed)
        rows, notes = [], []
        for cosine, test, train in near_pairs(X, split)[: MOST_SHOWN // 2]:
            rows += [int(question.target.rows[test]), int(question.target.rows[train])]
            notes += [f"tested; cosine {cosine:.4f}", "learned from, the same to this encoder"]
        return self.entries(board, rows, notes), words

    def store_of(self, board: Board) -> str:
        """Return the name of the store that the row in focus is of."""
        by_print = {store.plan.fingerprint: name for name, store in self.session.stores.items()}
        return by_print[board.focus.fingerprint]

    def summary(self, board: Board, rows: NDArray[np.int64]) -> str:
        """Return how many images are selected, of how many patients."""
        if not len(rows):
            return "Nothing is selected: drag over the map."
        store = self.session.stores[self.store_of(board)]
        words = counted(len(rows), "image") + " selected"
        group = board.focus.group
        if group in store.samples:
            words += f", of {store.samples[group].iloc[rows].nunique()} {short(group, 30)} values"
        return words + (f"; the first {MOST_SHOWN} are shown" if len(rows) > MOST_SHOWN else "")


def _view(state: State) -> str | None:
    return None if state.view == AUTO else state.view


def _method(state: State) -> Method:
    return "umap" if state.projection == "umap" else "pca"


def _given(y: Any, classes: Sequence[str]) -> str:
    if np.ndim(y):
        return ", ".join(name for name, value in zip(classes, y, strict=True) if value == 1) or "none"
    return classes[int(y)]


def _predicted(proba: NDArray[Any], classes: Sequence[str], task: str) -> str:
    if task == "multilabel":
        named = [f"{name} {p:.2f}" for name, p in zip(classes, proba, strict=True) if p > 0.5]
        return ", ".join(named) or "none 0.00"
    best = int(proba.argmax())
    return f"{classes[best]} {proba[best]:.2f}"
