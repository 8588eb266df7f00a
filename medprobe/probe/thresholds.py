"""Operating points of a binary score: a threshold chosen on one set of rows, its quality on another."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medprobe.errors import DataError, UsageError


def choose_threshold(
    y_val: ArrayLike, score_val: ArrayLike, *, specificity: float | None = None, sensitivity: float | None = None
) -> float:
    """Return the threshold (positive from there on) that reaches one of the two on validation data.

    For a specificity it is the lowest such score, for a sensitivity the highest: the other of the two is then as good
    as it gets. It is infinite (never positive) where no score has the specificity.

    Args:
        y_val: Codes 0 and 1, shape (n,).
        score_val: Scores, shape (n,), higher for class 1.
        specificity: Wanted fraction of class 0 below the threshold, 0 to 1.
        sensitivity: Wanted fraction of class 1 from the threshold on, 0 to 1.

    Raises:
        UsageError: Not exactly one of the two is given, or it is not between 0 and 1.
        DataError: The data are not as described, or one of the classes is absent.

    """
    if (specificity is None) == (sensitivity is None):
        raise UsageError("choose a threshold by a specificity or by a sensitivity: exactly one of them")
    target = specificity if specificity is not None else sensitivity
    if target is None or not 0 <= target <= 1:
        raise UsageError(f"a sensitivity or specificity is between 0 and 1, not {target}")
    positives, negatives = _by_class(y_val, score_val)
    thresholds = np.append(np.unique(np.concatenate([positives, negatives])), np.inf)
    if specificity is not None:
        reached = np.searchsorted(negatives, thresholds, side="left") / len(negatives)
        return float(thresholds[reached >= target][0])
    reached = 1 - np.searchsorted(positives, thresholds, side="left") / len(positives)
    return float(thresholds[reached >= target][-1])


def sensitivity_specificity(y: ArrayLike, score: ArrayLike, *, threshold: float) -> tuple[float, float]:
    """Return sensitivity and specificity when scores from the threshold on are called positive.

    Args:
        y: Codes 0 and 1, shape (n,).
        score: Scores, shape (n,), higher for class 1.
        threshold: Lowest positive score, chosen on other data.

    Raises:
        DataError: The data are not as described, or one of the classes is absent.

    """
    positives, negatives = _by_class(y, score)
    return float(np.mean(positives >= threshold)), float(np.mean(negatives < threshold))


def sensitivity_at_specificity(
    y: ArrayLike, score: ArrayLike, *, specificity: float, y_val: ArrayLike, score_val: ArrayLike
) -> float:
    """Return the sensitivity at the threshold that reaches a specificity on validation data.

    The specificity on ``y`` itself is another one: report it too (:func:`sensitivity_specificity`). Arguments and
    errors are those of :func:`choose_threshold` and :func:`sensitivity_specificity`.
    """
    threshold = choose_threshold(y_val, score_val, specificity=specificity)
    return sensitivity_specificity(y, score, threshold=threshold)[0]


def specificity_at_sensitivity(
    y: ArrayLike, score: ArrayLike, *, sensitivity: float, y_val: ArrayLike, score_val: ArrayLike
) -> float:
    """Return the specificity at the threshold that reaches a sensitivity on validation data.

    The mirror image of :func:`sensitivity_at_specificity`.
    """
    threshold = choose_threshold(y_val, score_val, sensitivity=sensitivity)
    return sensitivity_specificity(y, score, threshold=threshold)[1]


def ppv(y: ArrayLike, score: ArrayLike, *, threshold: float, prevalence: float) -> float:
    """Return the positive predictive value at a prevalence; NaN when nothing is called positive.

    By Bayes' rule from sensitivity and specificity, so that the make-up of the test set does not matter. Arguments and
    errors are those of :func:`sensitivity_specificity`, ``prevalence`` the fraction of class 1 in practice, 0 to 1.
    """
    sensitivity, specificity = sensitivity_specificity(y, score, threshold=threshold)
    return _share(sensitivity * prevalence, (1 - specificity) * (1 - prevalence), prevalence)


def npv(y: ArrayLike, score: ArrayLike, *, threshold: float, prevalence: float) -> float:
    """Return the negative predictive value at a prevalence; NaN when nothing is called negative. See :func:`ppv`."""
    sensitivity, specificity = sensitivity_specificity(y, score, threshold=threshold)
    return _share(specificity * (1 - prevalence), (1 - sensitivity) * prevalence, prevalence)


def _share(right: float, wrong: float, prevalence: float) -> float:
    if not 0 <= prevalence <= 1:
        raise UsageError(f"a prevalence is between 0 and 1, not {prevalence}")
    return right / (right + wrong) if right + wrong > 0 else float("nan")


def _by_class(y: ArrayLike, score: ArrayLike) -> tuple[NDArray[np.floating[Any]], NDArray[np.floating[Any]]]:
    """Return the sorted scores of class 1 and of class 0."""
    y, score = np.asarray(y), np.asarray(score, dtype=np.float64)
    if y.ndim != 1 or y.shape != score.shape or not np.isin(y, (0, 1)).all() or not np.isfinite(score).all():
        raise DataError("a threshold needs codes 0 and 1, shape (n,), and as many finite scores")
    if not 0 < np.count_nonzero(y) < len(y):
        raise DataError("a threshold needs rows of both classes: sensitivity or specificity is undefined without")
    return np.sort(score[y == 1]), np.sort(score[y == 0])
