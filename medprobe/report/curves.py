"""What the figures of predictions show, as arrays: ROC and precision-recall curves with bands, reliability, confusion."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from medprobe.predictions import Predictions
from medprobe.probe.bootstrap import group_weights
from medprobe.probe.stopping import may_stop

Floats = NDArray[np.float64]

N_BINS = 15
"""Bins of a reliability curve: those of the expected calibration error."""

# Doubles in one block of weights.
_BLOCK = 2**22
# More points of a curve than this differ by less than a pixel.
_MOST_POINTS = 1000


@dataclass(frozen=True)
class Curve:
    """A curve and its pointwise band.

    Attributes:
        x: False-positive rates, or recalls, ascending, (n,).
        y: True-positive rates, or precisions, (n,).
        grid: Where the band is given, ascending, (m,).
        low: Lower end of the band, (m,); NaN where no resample has both outcomes.
        high: Upper end, likewise.

    """

    x: Floats
    y: Floats
    grid: Floats
    low: Floats
    high: Floats


@dataclass(frozen=True)
class Reliability:
    """Observed frequency against predicted probability, in bins that hold rows.

    Attributes:
        start: Lower edge of each bin, which it does not contain, (b,).
        count: Rows in it.
        predicted: Mean probability of these.
        observed: Frequency of the outcome among them.
        low: Lower end of the interval of that frequency.
        high: Upper end.

    """

    start: Floats
    count: NDArray[np.int64]
    predicted: Floats
    observed: Floats
    low: Floats
    high: Floats


def roc(
    truth: NDArray[Any],
    score: NDArray[Any],
    groups: NDArray[Any],
    *,
    n_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Curve:
    """Return the ROC curve of scores, with a band of true-positive rates at given false-positive rates.

    The points are those of scikit-learn's ``roc_curve``. The band holds the quantiles of resamples of whole groups at each
    false-positive rate: it is pointwise, so that a true curve may leave it somewhere.

    Args:
        truth: 0 or 1, (n,).
        score: Higher for 1, (n,).
        groups: Group (patient) of each row, (n,).
        n_resamples: Bootstrap resamples.
        level: Coverage of the band at each point.
        seed: Seed of the resamples.

    """
    from sklearn.metrics import roc_curve

    false_positive, true_positive, _ = roc_curve(truth, score)
    grid = np.linspace(0, 1, 101)
    low, high = _band(truth, score, groups, lambda tp, fp: _true_positives(tp, fp, grid), n_resamples, level, seed)
    return Curve(*_thinned(false_positive, true_positive), grid, low, high)


def precision_recall(
    truth: NDArray[Any],
    score: NDArray[Any],
    groups: NDArray[Any],
    *,
    n_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Curve:
    """Return the precision-recall curve of scores, with a band of precisions at given recalls.

    The points are those of scikit-learn's ``precision_recall_curve`` from the highest threshold on, each precision
    reaching back to the recall before it: the area under these steps is the average precision. Arguments as for :func:`roc`.
    """
    from sklearn.metrics import precision_recall_curve

    precision, recall, _ = precision_recall_curve(truth, score, drop_intermediate=True)
    grid = np.linspace(0.01, 1, 100)
    low, high = _band(truth, score, groups, lambda tp, fp: _precisions(tp, fp, grid), n_resamples, level, seed)
    return Curve(*_thinned(recall[::-1][1:], precision[::-1][1:]), grid, low, high)


def reliability(
    outcome: NDArray[Any], probability: NDArray[Any], groups: NDArray[Any], *, level: float = 0.95
) -> Reliability:
    """Return how often the outcome came in each bin of the probability.

    The interval is Wilson's, of as many rows as independent ones would tell as much: what the variance between groups
    leaves of them, or the number of groups where a bin has one outcome only (Dean and Pagano, Journal of Survey Statistics
    and Methodology 2015). Unlike a resampled one it does not vanish in a bin where all or none have the outcome.

    Args:
        outcome: 0 or 1, (n,).
        probability: Predicted for it, (n,).
        groups: Group (patient) of each row, (n,).
        level: Coverage of the intervals.

    """
    edges = np.linspace(0.0, 1.0, N_BINS + 1)
    bins = np.searchsorted(edges[1:-1], probability, side="left")
    found = np.unique(bins)
    rows = [np.flatnonzero(bins == b) for b in found]
    observed = np.array([outcome[some].mean() for some in rows])
    ends = np.array([_wilson(outcome[some], groups[some], level) for some in rows])
    return Reliability(
        start=edges[found],
        count=np.array([len(some) for some in rows]),
        predicted=np.array([probability[some].mean(dtype=np.float64) for some in rows]),
        observed=observed,
        low=ends[:, 0],
        high=ends[:, 1],
    )


def confusion(predictions: Predictions) -> NDArray[np.int64]:
    """Return how many rows of each true class (first axis) were taken for each class, (K, K): the most probable one."""
    n_classes = len(predictions.classes)
    cells = predictions.y.astype(np.int64) * n_classes + predictions.proba[0].argmax(axis=1)
    return np.bincount(cells, minlength=n_classes**2).reshape(n_classes, n_classes)


def _band(
    truth: NDArray[Any],
    score: NDArray[Any],
    groups: NDArray[Any],
    at_grid: Callable[[Floats, Floats], Floats],
    n_resamples: int,
    level: float,
    seed: int,
) -> tuple[Floats, Floats]:
    """Return pointwise quantiles of a curve over resamples, from its counts of true and false positives."""
    order = np.argsort(-score, kind="stable")
    positive, ranked = truth[order].astype(np.float64), score[order]
    steps = np.flatnonzero(np.r_[ranked[1:] != ranked[:-1], True])
    rng = np.random.default_rng(seed)
    size = max(1, _BLOCK // len(truth))
    curves: list[Floats] = []
    for start in range(0, n_resamples, size):
        may_stop()
        weights = group_weights(groups, len(truth), min(size, n_resamples - start), rng)[:, order]
        true_positives = np.cumsum(weights * positive, axis=1)[:, steps]
        false_positives = np.cumsum(weights * (1 - positive), axis=1)[:, steps]
        curves += [
            at_grid(tp, fp) for tp, fp in zip(true_positives, false_positives, strict=True) if tp[-1] > 0 and fp[-1] > 0
        ]
    if not curves:
        empty = np.full(len(at_grid(np.ones(1), np.ones(1))), np.nan)
        return empty, empty
    low, high = np.quantile(np.stack(curves), [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def _true_positives(tp: Floats, fp: Floats, grid: Floats) -> Floats:
    """Return the true-positive rate at each false-positive rate, the highest where the curve is vertical."""
    x, y = np.r_[0.0, fp / fp[-1]], np.r_[0.0, tp / tp[-1]]
    before = np.searchsorted(x, grid, side="right") - 1
    after = np.minimum(before + 1, len(x) - 1)
    width = np.where(after > before, x[after] - x[before], 1.0)
    rate: Floats = y[before] + (grid - x[before]) / width * (y[after] - y[before])
    return rate


def _precisions(tp: Floats, fp: Floats, grid: Floats) -> Floats:
    """Return the precision at the first threshold that reaches each recall."""
    reached = np.searchsorted(tp / tp[-1], grid - 1e-12, side="left")
    precision: Floats = tp[reached] / (tp[reached] + fp[reached])
    return precision


def _thinned(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    if len(x) <= _MOST_POINTS:
        return x, y
    kept = np.unique(np.linspace(0, len(x) - 1, _MOST_POINTS).round().astype(np.intp))
    return x[kept], y[kept]


def _wilson(outcome: NDArray[Any], groups: NDArray[Any], level: float) -> tuple[float, float]:
    """Return Wilson's interval of a frequency, of the effective number of rows."""
    n, p = len(outcome), float(outcome.mean())
    _, codes = np.unique(groups, return_inverse=True)
    n_groups = int(codes.max()) + 1
    effective = float(n_groups)
    if 0 < p < 1 and n_groups > 1:
        between = np.bincount(codes, weights=outcome - p)
        variance = float(np.sum(between**2)) / n**2 * n_groups / (n_groups - 1)
        effective = min(float(n), p * (1 - p) / variance) if variance > 0 else float(n)
    z = float(stats.norm.ppf((1 + level) / 2))
    middle = (p + z**2 / (2 * effective)) / (1 + z**2 / effective)
    half = z / (1 + z**2 / effective) * np.sqrt(p * (1 - p) / effective + z**2 / (4 * effective**2))
    return max(0.0, float(middle - half)), min(1.0, float(middle + half))
