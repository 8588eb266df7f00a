"""The stores that are open, and what was found out about them: answers come from here, by the code of ``probe``."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import import_module
from typing import Any, TypeVar, cast

import numpy as np
import pandas as pd

from medprobe.errors import DataError, UsageError
from medprobe.explore.state import FAST, State
from medprobe.probe.answers import Answer, Reporting, reported
from medprobe.probe.bags import AnyRows, bags_of
from medprobe.probe.columns import Columns
from medprobe.probe.families import Family, family
from medprobe.probe.features import Features, features_of
from medprobe.probe.question import Question, ask, with_shots
from medprobe.probe.run import Trial, answered
from medprobe.probe.stopping import may_stop
from medprobe.probe.sums import Gathered, RowSums, summed_ridge
from medprobe.probe.targets import Floats
from medprobe.results import Results
from medprobe.storage import AnyPlace
from medprobe.store import FeatureStore

Found = TypeVar("Found")

LEVEL = 0.95
RESAMPLES = 1000
# Answers and questions that are kept: some hundred bytes a tested image each.
_KEPT = 64
_KEPT_FEATURES = 8


class OpenStore(FeatureStore):
    """A store whose table and digests are read once."""

    @cached_property
    def mask(self) -> np.ndarray:
        """Which samples have features; see :class:`~medprobe.store.FeatureStore`."""
        return super().mask

    @cached_property
    def samples(self) -> pd.DataFrame:
        """The samples that have features; not to be changed."""
        return super().samples

    @cached_property
    def _digests(self) -> np.ndarray:
        return super().image_digests()

    def image_digests(self) -> np.ndarray:
        """Return the digest of each sample's image."""
        return self._digests


class Kept:
    """What was computed last, by what it was computed from; each at most once, whoever asks at the same time."""

    def __init__(self, most: int) -> None:
        self._most, self._lock = most, threading.Lock()
        self._found: OrderedDict[Hashable, Any] = OrderedDict()
        self._busy: dict[Hashable, threading.Lock] = {}

    def get(self, key: Hashable, make: Callable[[], Found]) -> Found:
        """Return what is kept under a key, made now if it is not there; an error is raised and not kept."""
        with self._lock:
            if key in self._found:
                self._found.move_to_end(key)
                return self._found[key]  # type: ignore[no-any-return]
            busy = self._busy.setdefault(key, threading.Lock())
        with busy:
            with self._lock:
                if key in self._found:
                    return self._found[key]  # type: ignore[no-any-return]
            try:
                found = make()
            finally:
                with self._lock:
                    self._busy.pop(key, None)
            with self._lock:
                self._found[key] = found
                while len(self._found) > self._most:
                    self._found.popitem(last=False)
            return found


@dataclass(frozen=True)
class Asked:
    """What is asked of one store: its features, the question or the draws of few labels, and the rows' ids."""

    features: Features
    question: Question
    ids: np.ndarray


class Session:
    """Stores that questions are put to, for as long as the page is open.

    Args:
        paths: Of the stores.
        partial: Use the finished blocks of stores that are not complete.

    Raises:
        UsageError: No store is given, or one twice.
        DataError: One of them cannot be read.

    """

    def __init__(self, paths: Sequence[AnyPlace], *, partial: bool = False) -> None:
        if not paths:
            raise UsageError("explore: name at least one feature store (or --demo)")
        self.paths: dict[str, str] = {}
        self.stores: dict[str, AnyRows] = {}
        for path in paths:
            store = OpenStore(path, partial=partial)
            name = _unused(store.encoder, self.stores)
            self.paths[name], self.stores[name] = str(path), bags_of(store, None, None)
        self._columns = {name: Columns(store) for name, store in self.stores.items()}
        self._features, self._sums = Kept(_KEPT_FEATURES), Kept(_KEPT_FEATURES)
        self._questions, self._answers, self._reported = Kept(_KEPT), Kept(_KEPT), Kept(_KEPT)

    def chosen(self, state: State) -> list[str]:
        """Return the names of the stores that a state compares.

        Raises:
            UsageError: One of them is not open.

        """
        unknown = [name for name in state.stores if name not in self.stores]
        if unknown:
            raise UsageError(f"store {unknown[0][:60]}: none of those that are open: {', '.join(self.stores)}")
        return list(state.stores or self.stores)

    def paths_of(self, state: State) -> list[str]:
        """Return the paths of the stores that a state compares, as they were given."""
        return [self.paths[name] for name in self.chosen(state)]

    def leading(self, state: State) -> AnyRows:
        """Return the first store that a state compares, whose columns can be chosen from."""
        return self.stores[self.chosen(state)[0]]

    def features(self, name: str, view: str | None) -> Features:
        """Return the vectors of a store."""
        return self._features.get((name, view), lambda: features_of([self.stores[name]], view))

    def asked(self, name: str, state: State) -> Asked:
        """Return what a state asks of a store.

        Raises:
            UsageError: A column or number of the state cannot work.
            DataError: The target is unusable, or a group or a picture is on both sides of a split.

        """
        wish = state.wish()

        def make() -> Asked:
            store = self.stores[name]
            features = self.features(name, state.view)
            question = ask(store, wish, known=self._columns[name])
            ids = self._columns[name].ids[question.target.rows]
            (question,) = with_shots(replace(question, notes=question.notes + features.notes), wish)
            return Asked(features, question, ids)

        return self._questions.get((name, state.view, wish), make)

    def answer(
        self,
        name: str,
        state: State,
        probe: str,
        *,
        n_resamples: int = RESAMPLES,
    ) -> Results:
        """Return the rows of one probe on one store, and its predictions: those of :func:`medprobe.probe`.

        Args:
            name: Of the store.
            state: What is asked.
            probe: Kind of probe.
            n_resamples: Bootstrap resamples; 0 for values without intervals.

        Raises:
            UsageError: As for :meth:`asked`, and of the probe.
            DataError: As for :meth:`asked`, and of the probe.

        """
        may_stop()
        key = (name, probe, state.view, state.wish())
        asked = self.asked(name, state)

        def predict() -> Answer:
            kind = self._family(name, state, probe, asked)
            rows, features = asked.question.target.rows, asked.features
            gathered = {view: cast(Floats, Gathered(X, rows)) for view, X in features.views.items()}
            given = replace(features, views=gathered) if kind.summed else features.of(rows)
            return answered(Trial(kind, given, asked.question), len(self.stores[name].failures), state.seed)[0]

        def report() -> Results:
            answer = self._answers.get(key, predict)
            may_stop()
            rows, predictions = reported(answer, asked.ids, Reporting(n_resamples, LEVEL, state.seed))
            return Results(rows, {rows[0].trial: predictions})

        return self._reported.get((*key, n_resamples), report)

    def _family(self, name: str, state: State, probe: str, asked: Asked) -> Family:
        if probe == FAST:
            return summed_ridge(self._sums_of(name, state.view), asked.question.target.rows)
        return family(probe)

    def _sums_of(self, name: str, view: str | None) -> dict[str, RowSums]:
        features = self.features(name, view)
        return {
            key: self._sums.get((name, key), lambda X=X: RowSums(X))  # type: ignore[misc]
            for key, X in features.views.items()
        }

    def warm(self, state: State) -> None:
        """Read the features of a state's stores and sum them, so that the first questions find them.

        So it is with what is slow to import.
        """
        for name in self.chosen(state):
            try:
                for sums in self._sums_of(name, state.view).values():
                    sums.moments(np.arange(len(sums.X)), np.zeros((len(sums.X), 0)))
            except DataError:
                continue  # it is said where the question is asked
        import_module("duckdb")
        import_module("sklearn.model_selection")


def _unused(name: str, taken: Any) -> str:
    found, count = name, 1
    while found in taken:
        count += 1
        found = f"{name} ({count})"
    return found
