"""How sure a metric is: intervals and paired tests by resampling patients, and DeLong's test of two ROC curves.

The interval is the bias-corrected and accelerated one (BCa: Efron, Journal of the American Statistical Association
1987), with the acceleration from a jackknife over groups and the wider tails that few groups need: Student's t, and the
variance with its degrees of freedom (Hesterberg, The American Statistician 2015). Groups are drawn without regard to
their class: to keep the number of groups of each class would take away the variation of the case mix, which accuracy,
average precision, Brier score and log loss feel. ``benchmarks/bootstrap.py --coverage`` simulates both choices.

Three limits. The calibration error is biased upwards, in resamples more than in the data, so that its interval is the
reflected one (the value minus the resampled deviations, down to 0 and up to at least the value), and covers too seldom
below some 200 groups. With fewer than ten or so groups of a class, an interval of 95 % covers 85 to 93 % where that
class counts. And resampling cannot show errors that the data do not have: a perfect score has the interval [1, 1]
whatever the number of patients.

"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

from medprobe.errors import DataError, UsageError
from medprobe.probe.metrics import Scorer
from medprobe.probe.stopping import may_stop

Floats = NDArray[np.float64]

# Doubles in one block of weights, which is all that is kept of them: few enough for the processor's cache.
_BLOCK = 2**18
_MIN_STEP = 32
# Groups are left out one by one up to this number, above it in as many parts: the acceleration hardly changes.
_JACKKNIFE_PARTS = 200


@dataclass(frozen=True)
class Interval:
    """A metric and its confidence interval.

    Attributes:
        value: The metric of the rows as they are.
        low: Lower end; NaN with fewer than two groups, or with fewer than two resamples in which the metric exists.
        high: Upper end, likewise.
        n_resamples: Number of resamples drawn.
        n_degenerate: How many of them were dropped since the metric is undefined there (a class is absent, say).

    """

    value: float
    low: float
    high: float
    n_resamples: int
    n_degenerate: int


@dataclass(frozen=True)
class PairedDifference:
    """The difference of a metric between two sets of predictions for the same rows.

    Attributes:
        difference: Metric of the first minus metric of the second.
        low: Lower end of its confidence interval; NaN as in :class:`Interval`.
        high: Upper end, likewise.
        p_value: Two-sided p-value of no difference; NaN when the interval is.
        n_resamples: Number of resamples drawn.
        n_degenerate: How many of them were dropped since one of the metrics is undefined there.

    """

    difference: float
    low: float
    high: float
    p_value: float
    n_resamples: int
    n_degenerate: int


@dataclass(frozen=True)
class DeLong:
    """Areas under one or two ROC curves of the same rows, all rows taken as independent.

    Attributes:
        auroc: Areas, one a score.
        covariance: Covariance matrix of the areas, shape (scores, scores).
        difference: First area minus second; NaN with one score.
        p_value: Two-sided p-value of equal areas; NaN with one score.

    """

    auroc: tuple[float, ...]
    covariance: Floats
    difference: float
    p_value: float


def group_weights(
    groups: ArrayLike | None,
    n_rows: int,
    n_resamples: int,
    rng: np.random.Generator,
    strata: ArrayLike | None = None,
) -> Floats:
    """Return how many times each row is in each bootstrap resample, shape (n_resamples, n_rows), column-major.

    As many groups as there are get drawn with replacement, and a group comes with all of its rows.

    Args:
        groups: Group (patient) of each row, shape (n_rows,); None makes every row a group of its own.
        n_rows: Number of rows.
        n_resamples: Number of resamples.
        rng: Source of the draws; one call for 100 resamples equals two calls for 50.
        strata: Stratum of each group, in the sorted order of the groups; each stratum keeps its number of groups.

    Raises:
        DataError: ``groups`` has another length or missing values, or ``strata`` another length.

    """
    codes, n_groups = _group_codes(groups, n_rows)
    strata = np.zeros(n_groups) if strata is None else np.asarray(strata)
    if strata.shape != (n_groups,):
        raise DataError(f"strata has one entry for each of the {n_groups} groups, not shape {strata.shape}")
    return _draw(codes, strata, n_resamples, rng)


def intervals(
    scorer: Scorer | Sequence[Scorer],
    names: Sequence[str],
    groups: ArrayLike | None = None,
    n_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Interval]:
    """Return each metric with its confidence interval, by name.

    Args:
        scorer: Predictions and truth; or several predictions of the same rows, after learning from different draws of
            labels: the value is then the mean over the draws, and a resample draws from the draws as well.
        names: Names of metrics.
        groups: Group (patient) of each row, shape (n,): rows of one group are not independent; None if they all are.
        n_resamples: Number of resamples.
        level: Coverage that the interval aims at, between 0 and 1.
        seed: Seed of the draws.

    Raises:
        UsageError: A metric is unknown or not defined for the task, or ``level`` or ``n_resamples`` is out of range.
        DataError: ``groups`` has another length or missing values.

    """
    _check(n_resamples, level)
    scorers = [scorer] if isinstance(scorer, Scorer) else list(scorer)
    codes, n_groups = _group_codes(groups, scorers[0].n_rows)
    samples = _sampled(scorers, names, codes, n_groups, n_resamples, seed)
    result = {}
    for name, sample in samples.items():
        low, high, degenerate = ends(name, sample, n_groups, level)
        if name == "ece" and low < 0:
            low = 0.0
        result[name] = Interval(sample.value, low, high, n_resamples, degenerate)
    return result


def values(scorers: Sequence[Scorer], names: Sequence[str]) -> dict[str, Interval]:
    """Return each metric without an interval, by name: of several draws of labels, the mean over them."""
    whole = [scorer.replicates_many(names, np.ones((1, scorer.n_rows))) for scorer in scorers]
    none = float("nan")
    return {
        name: Interval(float(np.mean([draw[name][0] for draw in whole])), none, none, 0, 0) for name in names
    }  # fmt: skip


def paired_difference(
    scorer_a: Scorer,
    scorer_b: Scorer,
    name: str,
    groups: ArrayLike | None = None,
    n_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> PairedDifference:
    """Return the difference of a metric between two sets of predictions: :func:`paired_differences` of one pair."""
    found = paired_differences([[scorer_a], [scorer_b]], [(0, 1)], name, groups, n_resamples, level, seed)
    return found[0]


def paired_differences(
    scorers: Sequence[Sequence[Scorer]],
    pairs: Sequence[tuple[int, int]],
    name: str,
    groups: ArrayLike | None = None,
    n_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> list[PairedDifference]:
    """Return the difference of a metric for each pair of predictions of the same rows, with interval and p-value.

    All see the same resamples. The p-value centres the resampled differences on zero, which is what they would scatter
    around if there were no difference, and counts those at least as large as the observed one, itself included
    (Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 4.4): it is never below
    1 / (n_resamples + 1).

    Args:
        scorers: Predictions and the same truth; several of each where there are several draws of labels.
        pairs: Which to take from which, as places in ``scorers``: the first minus the second.
        name: Name of the metric.
        groups: As in :func:`intervals`.
        n_resamples: Number of resamples.
        level: Coverage that the interval aims at, between 0 and 1.
        seed: Seed of the draws.

    Raises:
        UsageError: As in :func:`intervals`.
        DataError: They are not of the same rows, or ``groups`` does not fit them.

    """
    _check(n_resamples, level)
    first = scorers[0][0]
    if not all(first.same_rows(other) for draws in scorers for other in draws):
        raise DataError("a paired difference needs two sets of predictions for the same rows, in the same order")
    codes, n_groups = _group_codes(groups, first.n_rows)
    samples = [_sampled(draws, [name], codes, n_groups, n_resamples, seed)[name] for draws in scorers]
    found = []
    for a, b in pairs:
        sample = samples[a] - samples[b]
        low, high, degenerate = ends(name, sample, n_groups, level)
        p_value = p_of_zero(sample) if np.isfinite(low) else float("nan")
        found.append(PairedDifference(sample.value, low, high, p_value, n_resamples, degenerate))
    return found


def p_of_zero(sample: Sample) -> float:
    """Return the two-sided p-value of a number being zero; see :func:`paired_differences`."""
    # NaN compares as False; numbers that are equal but for rounding count as equal.
    as_large = np.count_nonzero(np.abs(sample.replicates - sample.value) >= abs(sample.value) - 1e-12)
    return float((1 + as_large) / (1 + np.isfinite(sample.replicates).sum()))


def delong(y: ArrayLike, score_a: ArrayLike, score_b: ArrayLike | None = None) -> DeLong:
    """Return areas under the ROC curve with their covariance, and the test of two correlated areas.

    DeLong, DeLong and Clarke-Pearson (Biometrics 1988), by midranks as in Sun and Xu (IEEE Signal Processing Letters
    2014). It knows nothing of patients with several rows: a check on the bootstrap where every row is independent.

    Args:
        y: Codes 0 and 1, shape (n,), at least two of each.
        score_a: Scores, shape (n,), higher for class 1.
        score_b: Other scores of the same rows.

    Raises:
        DataError: The data are not as described.

    """
    y = np.asarray(y)
    scores = np.stack([np.asarray(s, dtype=np.float64) for s in (score_a, score_b) if s is not None])
    if y.ndim != 1 or scores.shape[1:] != y.shape or not np.isin(y, (0, 1)).all() or not np.isfinite(scores).all():
        raise DataError("DeLong's test needs codes 0 and 1, shape (n,), and as many finite scores")
    positive = y == 1
    m, n = np.count_nonzero(positive), np.count_nonzero(~positive)
    if min(m, n) < 2:
        raise DataError("DeLong's variance needs at least two rows of each class")
    pooled = stats.rankdata(scores, axis=1)
    above = (pooled[:, positive] - stats.rankdata(scores[:, positive], axis=1)) / n
    below = 1 - (pooled[:, ~positive] - stats.rankdata(scores[:, ~positive], axis=1)) / m
    areas = above.mean(axis=1)
    covariance = np.atleast_2d(np.cov(above)) / m + np.atleast_2d(np.cov(below)) / n
    difference = p_value = float("nan")
    if len(scores) == 2:
        difference = float(areas[0] - areas[1])
        error = np.sqrt(max(0.0, covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]))
        # Without any variance, any difference at all is certain.
        p_value = float(2 * special.ndtr(-abs(difference) / error)) if error > 0 else float(difference == 0)
    return DeLong(tuple(areas.tolist()), covariance, difference, p_value)


def holm(p_values: ArrayLike) -> Floats:
    """Return the p-values adjusted for their number, shape (m,): reject those up to the level alpha.

    Holm (Scandinavian Journal of Statistics 1979): they keep the probability of any false rejection below alpha under
    every dependence. NaN stays NaN and does not count.
    """
    p_values = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(p_values.shape, np.nan)
    tested = np.flatnonzero(~np.isnan(p_values))
    order = tested[np.argsort(p_values[tested])]
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p_values[order] * np.arange(len(order), 0, -1)))
    return adjusted


def _draw(codes: NDArray[Any], strata: NDArray[Any], n_resamples: int, rng: np.random.Generator) -> Floats:
    n_groups = len(strata)
    _, first, stratum, sizes = np.unique(np.sort(strata), return_index=True, return_inverse=True, return_counts=True)
    places = first[stratum] + (rng.random((n_resamples, n_groups)) * sizes[stratum]).astype(np.intp)
    drawn = np.argsort(strata, kind="stable")[places]
    flat = drawn * n_resamples + np.arange(n_resamples)[:, None]
    counts = np.bincount(flat.ravel(), minlength=n_groups * n_resamples).reshape(n_groups, n_resamples)
    weights: Floats = counts.astype(np.float64)[codes].T
    return weights


def resamples(codes: NDArray[Any], n_groups: int, n_resamples: int, seed: int) -> Iterator[Floats]:
    """Yield the weights of the resamples in blocks that bound the memory."""
    rng = np.random.default_rng(seed)
    step = max(_MIN_STEP, _BLOCK // len(codes))
    for start in range(0, n_resamples, step):
        may_stop()
        yield _draw(codes, np.zeros(n_groups, dtype=np.int64), min(step, n_resamples - start), rng)


def jackknife_weights(codes: NDArray[Any], n_groups: int, seed: int) -> NDArray[np.bool_]:
    """Return weights, shape (parts, n), that leave out one group, or one random part of many groups, at a time."""
    parts = min(n_groups, _JACKKNIFE_PARTS)
    part = np.random.default_rng(seed).permutation(n_groups) % parts
    weights: NDArray[np.bool_] = (part[codes][:, None] != np.arange(parts)).T
    return weights


@dataclass(frozen=True)
class Sample:
    """A number, such as a metric, that data give: what an interval is made from.

    Attributes:
        value: Of the rows.
        replicates: Of resamples of them, shape (B,); NaN where it is undefined.
        left_out: Without one group (or part of the groups) at a time, shape (parts,).

    """

    value: float
    replicates: Floats
    left_out: Floats

    def __sub__(self, other: Sample) -> Sample:
        return Sample(self.value - other.value, self.replicates - other.replicates, self.left_out - other.left_out)


def _sampled(
    scorers: Sequence[Scorer], names: Sequence[str], codes: NDArray[Any], n_groups: int, n_resamples: int, seed: int
) -> dict[str, Sample]:
    def means(weights: NDArray[Any], rng: np.random.Generator | None = None) -> dict[str, Floats]:
        by_draw = [scorer.replicates_many(names, weights) for scorer in scorers]
        found = {name: np.stack([draw[name] for draw in by_draw]) for name in names}
        if rng is not None and len(scorers) > 1:
            drawn = rng.integers(len(scorers), size=(len(scorers), len(weights)))
            found = {name: np.take_along_axis(values, drawn, axis=0) for name, values in found.items()}
        return {name: values.mean(axis=0) for name, values in found.items()}

    rng = np.random.default_rng([seed, 1])  # of draws of labels: the same for all that are compared
    whole = means(np.ones((1, len(codes))))
    blocks = [means(weights, rng) for weights in resamples(codes, n_groups, n_resamples, seed)]
    left_out = means(jackknife_weights(codes, n_groups, seed))
    return {
        name: Sample(float(whole[name][0]), np.concatenate([block[name] for block in blocks]), left_out[name])
        for name in names
    }


def ends(name: str, sample: Sample, n_groups: float, level: float) -> tuple[float, float, int]:
    """Return the ends of the interval, NaN where there is none, and the number of degenerate resamples.

    Args:
        name: Of the metric: that of the calibration error is another interval.
        sample: What it is made from.
        n_groups: Number of groups, or what stands for it where several data sets have their parts in one number.
        level: Coverage that it aims at.

    """
    value, replicates, left_out = sample.value, sample.replicates, sample.left_out
    kept = replicates[np.isfinite(replicates)]
    degenerate = len(replicates) - len(kept)
    if n_groups < 2 or len(kept) < 2 or not np.isfinite(value):
        return float("nan"), float("nan"), degenerate
    tail = special.stdtrit(n_groups - 1, (1 + level) / 2) * np.sqrt(n_groups / (n_groups - 1))
    if name == "ece":
        high, low = 2 * value - np.quantile(kept, special.ndtr([-tail, tail]))
        return min(float(low), value), max(float(high), value), degenerate
    below = np.mean(kept < value) + np.mean(kept == value) / 2
    bias = special.ndtri(np.clip(below, 1 / (len(kept) + 1), len(kept) / (len(kept) + 1)))
    pull = np.nanmean(left_out) - left_out[np.isfinite(left_out)] if np.isfinite(left_out).any() else np.zeros(1)
    spread = np.sum(pull**2)
    acceleration = np.sum(pull**3) / (6 * spread**1.5) if spread > 0 else 0.0
    shifted = bias + np.array([-tail, tail])
    # The formula has a pole at 1, which only a handful of groups can come near.
    ends = bias + shifted / np.maximum(1 - acceleration * shifted, 0.1)
    low, high = np.quantile(kept, special.ndtr(ends))
    return float(low), float(high), degenerate


def _group_codes(groups: ArrayLike | None, n_rows: int) -> tuple[NDArray[Any], int]:
    """Return the group of each row as a number, in sorted order of the groups, and how many groups there are."""
    if groups is None:
        return np.arange(n_rows), n_rows
    groups = np.asarray(groups)
    if groups.shape != (n_rows,):
        raise DataError(f"groups has one entry for each of the {n_rows} rows, not shape {groups.shape}")
    missing = [i for i, group in enumerate(groups.tolist()) if group is None or group != group]
    if missing:
        raise DataError(f"the group of {len(missing)} rows is missing, first of row {missing[0]}: fill in or drop them")
    names, codes = np.unique(groups, return_inverse=True)
    return codes, len(names)


def _check(n_resamples: int, level: float) -> None:
    if n_resamples < 1:
        raise UsageError(f"--bootstrap takes a number of resamples of at least 1, not {n_resamples}")
    if not 0 < level < 1:
        raise UsageError(f"the level of an interval is between 0 and 1, not {level}")
