"""From what was predicted for the tested images to result rows with intervals."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from medprobe.predictions import Predictions
from medprobe.probe.bootstrap import intervals, values
from medprobe.probe.metrics import Scorer
from medprobe.probe.question import Question
from medprobe.probe.splits import n_groups
from medprobe.probe.targets import Floats
from medprobe.results import Row


@dataclass(frozen=True)
class Reporting:
    """How results are made sure of and reported: without resamples, as values alone."""

    n_resamples: int
    level: float
    seed: int


@dataclass(frozen=True)
class Answer:
    """What a question was answered with.

    Attributes:
        question: The question.
        proba: Probabilities (draws, tested rows, classes), the tested rows in the order of the split.
        encoder: Whose features, or which network, answered.
        view: Which of its vectors.
        probe: What made predictions of them.
        fingerprint: Of the encoder.
        n_train: Rows that were learned from (over folds and draws: on average).
        n_failed: Images that take no part.
        settings: Chosen settings; one entry a fold where there are folds.
        seconds: Time that it took.

    """

    question: Question
    proba: Floats
    encoder: str
    view: str
    probe: str
    fingerprint: str
    n_train: int
    n_failed: int
    settings: Any
    seconds: float


def reported(answer: Answer, ids: np.ndarray, reporting: Reporting) -> tuple[list[Row], Predictions]:
    """Return the rows of an answer, and its predictions.

    Args:
        answer: What was predicted.
        ids: Names of all of the question's rows, (n,).
        reporting: Of the intervals.

    """
    question = answer.question
    test, y = question.split.test, question.target.y
    groups = (
        np.arange(len(test)) if question.groups is None else np.unique(question.groups[test], return_inverse=True)[1]
    )
    classes = np.array(question.target.classes)
    predictions = Predictions(ids[test], groups, y[test], answer.proba, question.target.task, classes)
    return list(_rows(answer, reporting)), predictions


def _rows(answer: Answer, reporting: Reporting) -> Iterator[Row]:
    """Yield the rows of all tested images, then those of each subgroup."""
    from medprobe import __version__

    question = answer.question
    test = question.split.test
    asked = [("", np.arange(len(test)))]
    for column, names in question.subgroups.items():
        asked += [(f"{column} = {name}", np.flatnonzero(names[test] == name)) for name in sorted({*names[test]} - {""})]
    for subgroup, some in asked:
        scorers = [Scorer(question.target.task, question.target.y[test[some]], draw[some]) for draw in answer.proba]
        groups = None if question.groups is None else question.groups[test[some]]
        found = (
            intervals(scorers, question.metrics, groups, reporting.n_resamples, reporting.level, reporting.seed)
            if reporting.n_resamples
            else values(scorers, question.metrics)
        )
        for name, interval in found.items():
            lacking = f"{interval.n_degenerate} of {interval.n_resamples} resamples lack a class"
            yield Row(
                encoder=answer.encoder,
                view=answer.view,
                probe=answer.probe,
                target=question.target.name,
                task=question.target.task,
                metric=name,
                value=interval.value,
                ci_low=interval.low,
                ci_high=interval.high,
                ci_level=reporting.level,
                primary=name == question.primary,
                split=question.split.name,
                n_images=len(some),
                n_groups=n_groups(groups, len(some)),
                group=question.group,
                n_train=answer.n_train,
                n_failed=answer.n_failed,
                settings=answer.settings,
                seconds=answer.seconds,
                seed=reporting.seed,
                fingerprint=answer.fingerprint,
                medprobe=__version__,
                notes=_notes(question, scorers[0]) + ((lacking,) if interval.n_degenerate else ()),
                data=question.data,
                shots=question.shots,
                subgroup=subgroup,
            )


def _notes(question: Question, scorer: Scorer) -> tuple[str, ...]:
    notes = list(question.notes)
    if question.groups is None:
        notes.append("no group column is known: every image counts as a patient of its own (--group)")
    if scorer.left_out:
        names = ", ".join(question.target.classes[i] for i in scorer.left_out)
        notes.append(f"not in the tested images, so not in the averages: {names}")
    return tuple(notes)
