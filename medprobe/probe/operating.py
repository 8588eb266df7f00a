"""What a threshold means in practice: sensitivity, specificity and predictive values with intervals over patients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medprobe.errors import DataError, UsageError
from medprobe.predictions import Predictions
from medprobe.probe.bootstrap import Interval, Sample, ends, jackknife_weights, resamples

Floats = NDArray[np.float64]

MEASURES = ("sensitivity", "specificity", "ppv", "npv")


@dataclass(frozen=True)
class Outcome:
    """Whether each tested image has what is looked for, and the probability that was predicted for it.

    Attributes:
        truth: 0 or 1, (n,).
        score: Probability, (n,).
        groups: Group (patient) of each image, (n,).

    """

    truth: NDArray[np.int64]
    score: Floats
    groups: NDArray[Any]

    def __iter__(self) -> Any:
        return iter((self.truth, self.score, self.groups))


def outcome(predictions: Predictions, positive: str = "") -> Outcome:
    """Return one class of predictions against all others, or one label where it is known.

    Of several draws of few labels, the first.

    Args:
        predictions: Of tested images.
        positive: Name of the class or label; the last one by default.

    Raises:
        UsageError: There is no such class.

    """
    names = [str(name) for name in predictions.classes]
    if positive and positive not in names:
        raise UsageError(f"class {positive[:60]}: one of {', '.join(names)}")
    k = names.index(positive) if positive else len(names) - 1
    several = predictions.task == "multilabel"
    truth = predictions.y[:, k] if several else (predictions.y == k).astype(np.float64)
    known = np.flatnonzero(~np.isnan(truth))
    score = np.asarray(predictions.proba[0, known, k], dtype=np.float64)
    return Outcome(truth[known].astype(np.int64), score, predictions.groups[known])


@dataclass(frozen=True)
class OperatingPoint:
    """What comes of a threshold.

    Attributes:
        threshold: Lowest probability that counts as positive.
        prevalence: Of the positive class, for the predictive values.
        table: Numbers of images: true (negative, positive) by called (negative, positive), (2, 2).
        sensitivity: With its interval, as all that follows.
        specificity: Share of negatives below the threshold.
        ppv: Positive predictive value at the prevalence.
        npv: Negative predictive value at the prevalence.

    """

    threshold: float
    prevalence: float
    table: NDArray[np.int64]
    sensitivity: Interval
    specificity: Interval
    ppv: Interval
    npv: Interval


def operating_point(
    truth: ArrayLike,
    score: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    threshold: float = 0.5,
    prevalence: float | None = None,
    n_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> OperatingPoint:
    """Return what comes of a threshold, with intervals of :mod:`medprobe.probe.bootstrap` over groups.

    Predictive values follow from sensitivity, specificity and the prevalence by Bayes' rule; the prevalence is taken as
    known, so that the intervals hold none of its uncertainty.

    Args:
        truth: Codes 0 and 1, (n,).
        score: Probabilities, (n,).
        groups: Group (patient) of each row, (n,); None if all rows are independent.
        threshold: Lowest score that counts as positive.
        prevalence: Share of class 1 in practice; that of the rows by default.
        n_resamples: Bootstrap resamples; 0 for no intervals.
        level: Coverage of the intervals.
        seed: Seed of the resamples.

    Raises:
        UsageError: The prevalence is not between 0 and 1.
        DataError: One of the classes is absent.

    """
    y, called = np.asarray(truth).astype(np.int64), np.asarray(score) >= threshold
    if not 0 < y.sum() < len(y):
        raise DataError("an operating point needs images with and without the class")
    if prevalence is not None and not 0 < prevalence < 1:
        raise UsageError(f"prevalence {prevalence}: a share between 0 and 1")
    share = float(y.mean()) if prevalence is None else prevalence
    codes = np.arange(len(y)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    n_groups = int(codes.max()) + 1
    cells = np.zeros((n_groups, 4))
    np.add.at(cells, (codes, 2 * y + called), 1.0)
    table = cells.sum(axis=0)
    whole = _measures(table[None], share)
    if n_resamples:
        each = np.arange(n_groups)
        drawn = _measures(np.concatenate([w @ cells for w in resamples(each, n_groups, n_resamples, seed)]), share)
        left_out = _measures(jackknife_weights(each, n_groups, seed) @ cells, share)
    found = {}
    for name in MEASURES:
        value, low, high, degenerate = float(whole[name][0]), np.nan, np.nan, 0
        if n_resamples:
            low, high, degenerate = ends(name, Sample(value, drawn[name], left_out[name]), n_groups, level)
        found[name] = Interval(value, low, high, n_resamples, degenerate)
    return OperatingPoint(threshold, share, table.reshape(2, 2).astype(np.int64), **found)


def _measures(cells: Floats, prevalence: float) -> dict[str, Floats]:
    """Return the measures (B,) of counts (B, 4): true negatives, false positives, false negatives, true positives."""
    tn, fp, fn, tp = cells.T
    with np.errstate(divide="ignore", invalid="ignore"):
        sensitivity, specificity = tp / (tp + fn), tn / (tn + fp)
        found, alarms = sensitivity * prevalence, (1 - specificity) * (1 - prevalence)
        cleared, missed = specificity * (1 - prevalence), (1 - sensitivity) * prevalence
        return {
            "sensitivity": sensitivity,
            "specificity": specificity,
            "ppv": found / (found + alarms),
            "npv": cleared / (cleared + missed),
        }
