"""Answers as they arrive, and the figures of what is there: ridge first, then the exact probe, intervals behind each."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from medprobe.errors import MedprobeError, UsageError
from medprobe.explore.session import LEVEL, RESAMPLES, Session
from medprobe.explore.state import State
from medprobe.probe.operating import MEASURES, OperatingPoint, operating_point, outcome
from medprobe.report import figures, prediction_figures
from medprobe.report.words import interval, number, people, short
from medprobe.results import Results, Row, ranked


@dataclass(frozen=True)
class Panel:
    """A figure as Vega-Lite in JSON, or a sentence on why there is none."""

    spec: str = ""
    missing: str = ""


@dataclass(frozen=True)
class Board:
    """What is known of a state so far.

    Attributes:
        state: What was asked.
        results: Rows and predictions of all answers.
        shown: Probe whose predictions the figures are of.
        sure: Whether the rows of that probe have their intervals.
        waiting: What is still to come, in words; empty at the end.

    """

    state: State
    results: Results
    shown: str
    sure: bool
    waiting: str

    @cached_property
    def rows(self) -> list[Row]:
        """Rows of the probe that is shown."""
        return [row for row in self.results if row.probe == self.shown]

    @cached_property
    def single(self) -> dict[str, Any]:
        """Predictions by trial: of several draws of few labels, the first."""
        return {trial: replace(held, proba=held.proba[:1]) for trial, held in self.results.predictions.items()}

    @cached_property
    def focus(self) -> Row:
        """The row of the primary metric whose encoder is looked at: the chosen one, or the best.

        Raises:
            UsageError: There is no answer.

        """
        table = [row for rows in ranked(self.rows).values() for row in rows]
        chosen = [row for row in table if row.encoder == self.state.encoder] or table
        if not chosen:
            raise UsageError("there is no answer yet")
        return chosen[0]

    @property
    def classes(self) -> list[str]:
        """Names of the classes, or labels."""
        return [str(name) for name in self.single[self.focus.trial].classes]

    @property
    def positive(self) -> str:
        """The class that curves and operating point are about."""
        return self.state.positive if self.state.positive in self.classes else self.classes[-1]

    def at(self, threshold: float, prevalence: float | None, *, n_resamples: int = RESAMPLES) -> OperatingPoint:
        """Return the operating point of the focus at a threshold and a prevalence.

        Raises:
            DataError: The tested images all have the class, or all lack it.

        """
        return operating_point(
            *outcome(self.single[self.focus.trial], self.positive),
            threshold=threshold,
            prevalence=prevalence,
            n_resamples=n_resamples,
            level=LEVEL,
            seed=self.state.seed,
        )

    def panels(self) -> Iterator[tuple[str, Panel]]:
        """Yield every figure with its name, the leaderboard first; bands only once there are intervals."""
        few = RESAMPLES if self.sure else 0
        yield "leaderboard", _panel(lambda: figures.leaderboard(self.results, unsure="" if self.sure else self.shown))
        yield "confusion", self.confusion(self.state.threshold)
        yield "subgroup", _panel(lambda: figures.subgroup(self.rows))
        yield "calibration", _panel(lambda: prediction_figures.calibration(self.rows, self.single))
        yield "roc", _panel(lambda: self._roc(few))

    def confusion(self, threshold: float) -> Panel:
        """Return the confusion matrix at a threshold; of more than two classes, of the most probable one."""
        return _panel(lambda: self._confusion(threshold))

    def _confusion(self, threshold: float) -> Any:
        if self.single[self.focus.trial].task in {"binary", "multilabel"}:
            point = self.at(threshold, None, n_resamples=0)
            return prediction_figures.operating_matrix(self.focus, point, self.positive)
        return prediction_figures.confusion(self._of_focus(), self.single)

    def _of_focus(self) -> list[Row]:
        return [row for row in self.rows if row.trial == self.focus.trial]

    def _roc(self, n_resamples: int) -> Any:
        point = self.at(self.state.threshold, self.state.prevalence, n_resamples=0)
        several = self.single[self.focus.trial].task != "binary" or self.state.encoder
        rows = self._of_focus() if several else self.rows
        seed = self.state.seed
        return prediction_figures.roc(rows, self.single, n_resamples=n_resamples, seed=seed, point=place(point))


def boards(session: Session, state: State) -> Iterator[Board]:
    """Yield what is known of a state, each time that more of it is.

    Raises:
        UsageError: Something of the state cannot work.
        DataError: The data cannot answer.

    """
    found: dict[str, Results] = {}
    for i, probe in enumerate(state.probes):
        for n_resamples in (0, RESAMPLES):
            found[probe] = Results()
            for name in session.chosen(state):
                part = session.answer(name, state, probe, n_resamples=n_resamples)
                found[probe] += part
                found[probe].predictions |= part.predictions
            results = Results(row for each in found.values() for row in each)
            for each in found.values():
                results.predictions |= each.predictions
            waiting = [*([] if n_resamples else [f"intervals of {probe}"]), *state.probes[i + 1 :]]
            yield Board(state, results, probe, bool(n_resamples), ", then ".join(waiting))


def measures(point: OperatingPoint) -> list[tuple[str, str, str]]:
    """Return name, value and interval (an ellipsis where it is still to come) of what comes of a threshold."""
    names = dict(zip(MEASURES, ("Sensitivity", "Specificity", "PPV", "NPV"), strict=True))
    found = [(names[name], getattr(point, name)) for name in MEASURES]
    return [
        (name, number(each.value), interval(each.low, each.high) if each.n_resamples else "…") for name, each in found
    ]


def asked(board: Board, point: OperatingPoint) -> str:
    """Return what an operating point is of, in one line."""
    whose = f"{short(board.positive, 40)} from {point.threshold:.2f} on"
    return f"{whose}; predictive values at a prevalence of {point.prevalence:.2f}"


def place(point: OperatingPoint) -> tuple[float, float]:
    """Return where an operating point lies on the ROC curve."""
    return 1 - point.specificity.value, point.sensitivity.value


def said(board: Board) -> str:
    """Return who was tested on, and with what, in one line."""
    row = board.focus
    draws = len(board.results.predictions[row.trial].proba)
    words = f"{short(row.encoder, 40)}, {row.probe}: {people([row])} tested, {row.n_train:,} images learned from"
    return words + (f"; curves are of the first of {draws} draws" if draws > 1 else "")


def _panel(make: Callable[[], Any]) -> Panel:
    from altair.utils.schemapi import debug_mode

    try:
        with debug_mode(False):  # a figure is checked where it is tested: the check takes longer than the figure
            return Panel(spec=json.dumps(make().to_dict(validate=False)))
    except MedprobeError as error:
        return Panel(missing=str(error))
