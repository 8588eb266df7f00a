"""Ridge regression on class indicators: every penalty from one decomposition, of statistics that add and subtract.

The fit needs only sums over rows, so that leaving out a site or a patient is a subtraction of its sums, and the answer
comes back at once. The whole path of penalties costs one eigendecomposition, and leave-one-out predictions come from the
leverages of the rows (Hastie, Tibshirani, Friedman, The Elements of Statistical Learning, 2nd ed., sections 3.4.1, 7.10).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.special import expit, softmax
from sklearn.utils.validation import check_is_fitted, validate_data

from medprobe.probe._estimator import Probe
from medprobe.probe._rows import linear
from medprobe.probe._threads import one_thread, worker_threads
from medprobe.probe.targets import Floats, Fold, encode_targets

Doubles = NDArray[np.float64]

# From next to nothing but the class shares to next to no penalty; in units of the covariance's mean eigenvalue.
ALPHAS = tuple((10.0 ** np.arange(4, -6.5, -0.5)).tolist())
# Below this penalty rounding may make the damped covariance indefinite.
_FIRM = 1e-8
_ROWS = 2048  # rows turned to double precision at a time


@dataclass(frozen=True)
class Moments:
    """Sums over rows, which add and subtract: all that a ridge regression needs to know of them.

    Attributes:
        n: Number of rows.
        x: Sum of the features, (D,).
        t: Sum of the targets, (K,).
        xx: Sum of their outer products, (D, D).
        xt: Sum of feature times target, (D, K).

    """

    n: float
    x: Doubles
    t: Doubles
    xx: Doubles
    xt: Doubles

    @classmethod
    def of(cls, X: Floats, T: Floats) -> Moments:
        """Return the sums of features (n, D) and targets (n, K), taken in double precision."""
        width, k = X.shape[1], T.shape[1]

        def summed(start: int) -> Moments:
            rows, targets = (part[start : start + _ROWS].astype(np.float64) for part in (X, T))
            return cls(float(len(rows)), rows.sum(axis=0), targets.sum(axis=0), rows.T @ rows, rows.T @ targets)

        nothing = cls(0.0, np.zeros(width), np.zeros(k), np.zeros((width, width)), np.zeros((width, k)))
        with worker_threads() as pool:
            return sum(pool.map(summed, range(0, len(X), _ROWS)), nothing)

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.n + other.n, self.x + other.x, self.t + other.t, self.xx + other.xx, self.xt + other.xt)

    def __sub__(self, other: Moments) -> Moments:
        return Moments(self.n - other.n, self.x - other.x, self.t - other.t, self.xx - other.xx, self.xt - other.xt)


class _Standardised:
    """Covariance and cross-covariance of standardised features with the targets, from their sums."""

    def __init__(self, moments: Moments, standardize: bool) -> None:
        n = moments.n
        self.mean = moments.x / n
        self.target_mean = moments.t / n
        covariance = moments.xx / n - np.outer(self.mean, self.mean)
        variance = np.diag(covariance)
        # Sums are subtracted from each other: what is left of a constant feature is rounding.
        constant = variance <= 1e-10 * np.maximum(np.diag(moments.xx) / n, 1e-300)
        self.scale = np.where(constant | (not standardize), 1.0, np.sqrt(np.where(constant, 1.0, variance)))
        covariance /= self.scale
        covariance /= self.scale[:, None]
        covariance[constant] = covariance[:, constant] = 0.0
        self.covariance = covariance
        self.cross = (moments.xt / n - np.outer(self.mean, self.target_mean)) / self.scale[:, None]
        self.cross[constant] = 0.0
        self.unit = float(np.trace(covariance)) / len(covariance) or 1.0


@dataclass(frozen=True)
class _FewRows:
    """Standardised rows (n, D), in place of their covariance; the rest as in :class:`_Standardised`."""

    rows: Doubles
    mean: Doubles
    target_mean: Doubles
    scale: Doubles
    cross: Doubles
    unit: float

    @classmethod
    def of(cls, X: Floats, T: Doubles) -> _FewRows:
        wide = X.astype(np.float64)
        mean, target_mean = wide.mean(axis=0), T.mean(axis=0)
        variance = wide.var(axis=0)
        constant = variance <= 1e-10 * np.maximum(np.square(wide).mean(axis=0), 1e-300)
        scale = np.sqrt(np.where(constant, 1.0, variance))
        rows = np.where(constant, 0.0, (wide - mean) / scale)
        cross = rows.T @ (T - target_mean) / len(rows)
        return cls(rows, mean, target_mean, scale, cross, float(np.square(rows).sum()) / rows.size or 1.0)


def solve(moments: Moments, alpha: float, standardize: bool = True) -> tuple[Doubles, Doubles]:
    """Return coefficients (D, K) and intercepts (K,) for features as they are, of one penalty: a tenth of a path's work.

    Args:
        moments: Of the rows to fit.
        alpha: Penalty, in units of the mean eigenvalue of the standardised features' covariance.
        standardize: As :class:`RidgePath`.

    """
    if alpha < _FIRM:
        path = RidgePath(moments, standardize)
        standardised, coef = path.standardised, path.basis @ (path.cross / path._damped(alpha)[:, None])
    else:
        standardised = _Standardised(moments, standardize)
        damped = standardised.covariance
        damped[np.diag_indices_from(damped)] += alpha * standardised.unit
        with one_thread():
            coef = cho_solve(cho_factor(damped, overwrite_a=True, check_finite=False), standardised.cross)
    coef = coef / standardised.scale[:, None]
    return coef, standardised.target_mean - standardised.mean @ coef


class RidgePath:
    """The ridge regressions of all penalties on standardised features, with an intercept that is not penalised.

    Args:
        moments: Of the rows to fit.
        standardize: Give every feature variance 1; it is centred in any case.
        like: A path of the same rows with other targets, whose decomposition is taken over.

    """

    def __init__(self, moments: Moments, standardize: bool = True, like: RidgePath | None = None) -> None:
        self.standardised: _Standardised | _FewRows = _Standardised(moments, standardize)
        if like is None:
            with one_thread():
                values, self.basis = np.linalg.eigh(self.standardised.covariance)
            self.values = np.maximum(values, 0.0)
        else:
            self.values, self.basis = like.values, like.basis
        self.cross = self.basis.T @ self.standardised.cross
        self.unit = self.standardised.unit
        self.n = moments.n

    @classmethod
    def of(cls, X: Floats, T: Doubles) -> RidgePath:
        """Return the path of rows, features (n, D) and targets (n, K): of few rows from their inner products.

        With fewer rows than features the covariance has no more than n eigenvectors that count, those of Z'Z / n for
        standardised rows Z: they are Z'u / sqrt(n v) for the eigenvectors u and values v of ZZ' / n.
        """
        if len(X) >= X.shape[1]:
            return cls(Moments.of(X, T))
        path = cls.__new__(cls)
        path.standardised = standardised = _FewRows.of(X, T)
        Z = standardised.rows
        with one_thread():
            values, left = np.linalg.eigh(Z @ Z.T / len(Z))
        kept = values > 1e-12 * max(float(values[-1]), 1e-300)
        path.values = values[kept]
        path.basis = Z.T @ (left[:, kept] / np.sqrt(len(Z) * path.values))
        path.cross = path.basis.T @ standardised.cross
        path.unit, path.n = standardised.unit, float(len(Z))
        return path

    def rotated(self, X: Floats) -> Doubles:
        """Return standardised features (n, D) in the basis of the decomposition."""
        rotated: Doubles = ((X - self.standardised.mean) / self.standardised.scale) @ self.basis
        return rotated

    def scores(self, rotated: Doubles, alpha: float) -> Doubles:
        """Return the regression's values (n, K) for rotated rows and a penalty, in units of the mean eigenvalue."""
        values: Doubles = rotated @ (self.cross / self._damped(alpha)[:, None]) + self.standardised.target_mean
        return values

    def held_out(
        self, X: Floats, alphas: Sequence[float], multilabel: bool, rows: NDArray[Any] | None = None
    ) -> list[Doubles]:
        """Return :func:`probabilities` (n, K) of all or some rows for each penalty: one product for all of them."""
        scaled = [self.basis @ (self.cross / self._damped(alpha)[:, None]) for alpha in alphas]
        coef = np.concatenate(scaled, axis=1) / self.standardised.scale[:, None]
        intercept = np.tile(self.standardised.target_mean, len(alphas)) - self.standardised.mean @ coef
        found = linear(X, coef.T, intercept, rows)
        scores = found.reshape(len(found), len(alphas), -1)
        return [probabilities(scores[:, i], multilabel) for i in range(len(alphas))]

    def left_out_scores(self, rotated: Doubles, T: Floats, alpha: float) -> Doubles:
        """Return what each fitted row (rotated, with its targets) would get from a fit without it, scaling as it is."""
        leverage = 1 / self.n + (rotated**2 / (self.n * self._damped(alpha))).sum(axis=1)
        residual = T - self.scores(rotated, alpha)
        left_out: Doubles = T - residual / np.maximum(1 - leverage, 1e-12)[:, None]
        return left_out

    def _damped(self, alpha: float) -> Doubles:
        damped: Doubles = self.values + max(alpha, 1e-12) * self.unit
        return damped


def indicators(Y: NDArray[Any], n_classes: int) -> Doubles:
    """Return targets (n, K): 1 for the class of a row and 0 for the others; labels (n, L) are their own."""
    found: Doubles = Y.astype(np.float64) if Y.ndim == 2 else np.eye(n_classes)[Y]
    return found


def probabilities(scores: Doubles, multilabel: bool) -> Doubles:
    """Return scores as probabilities: a fixed squashing with slope one at equal odds, so that the order is kept.

    A softmax of K times the K indicators' values, or a logistic function for each label.
    """
    if multilabel:
        label: Doubles = expit(4 * (scores - 0.5))
        return label
    classes: Doubles = softmax(scores.shape[1] * scores, axis=1)
    return classes


def sweep_ridge(
    X: Floats, Y: NDArray[Any], folds: Sequence[Fold], alphas: Sequence[float] = ALPHAS, *, n_classes: int
) -> list[list[Doubles]]:
    """Return probabilities of the held-out rows for each penalty and fold.

    Where the held-out parts do not overlap, each row is summed once: a fold's training sums are all sums less its own.

    Args:
        X: Features, (n, D).
        Y: Class codes (n,), or labels 0, 1 or NaN (n, L).
        folds: Pairs of training and held-out rows.
        alphas: Penalties, in units of the mean eigenvalue.
        n_classes: Number of classes, or of labels.

    """
    T = indicators(Y, n_classes)
    multilabel = Y.ndim == 2
    found: list[list[list[Doubles]]] = [[[] for _ in folds] for _ in alphas]
    for column, known in complete(T):
        used = [train[np.isin(train, known, kind="table")] for train, _ in folds]
        for i, (path, (_, val)) in enumerate(zip(_fold_paths(X, T[:, column], used), folds, strict=True)):
            for by_fold, proba in zip(found, path.held_out(X, alphas, multilabel, val), strict=True):
                by_fold[i].append(proba)
    return [[np.concatenate(parts, axis=1) for parts in by_fold] for by_fold in found]


def complete(T: Doubles) -> list[tuple[slice, NDArray[np.int64]]]:
    """Return columns with the rows that have all of their values: all columns at once, or one by one where some lack."""
    columns = [slice(None)] if not np.isnan(T).any() else [slice(i, i + 1) for i in range(T.shape[1])]
    return [(column, np.flatnonzero(np.isfinite(T[:, column]).all(axis=1))) for column in columns]


def _fold_paths(X: Floats, T: Doubles, trains: Sequence[NDArray[Any]]) -> Iterator[RidgePath]:
    """Yield the path of each set of rows: of few rows from these, of many from sums, by subtraction where that is less."""
    if max(map(len, trains)) < X.shape[1]:
        yield from (RidgePath.of(X[train], T[train]) for train in trains)
    else:
        yield from map(RidgePath, _fold_moments(X, T, trains))


def _fold_moments(X: Floats, T: Doubles, trains: Sequence[NDArray[Any]]) -> list[Moments]:
    """Return the sums of each set of rows, by subtraction where that is less work."""
    everything = np.unique(np.concatenate(list(trains)))
    rests = [np.setdiff1d(everything, train) for train in trains]
    if sum(map(len, rests)) + len(everything) >= sum(map(len, trains)):
        return [Moments.of(X[train], T[train]) for train in trains]
    # Every row once: those that no fold leaves out, then each fold's own.
    whole = Moments.of(X[everything], T[everything])
    return [whole - Moments.of(X[rest], T[rest]) for rest in rests]


class RidgeProbe(Probe):
    """A classifier by ridge regression on class indicators, in closed form.

    Args:
        alpha: Penalty, in units of the mean eigenvalue of the features' covariance: 1 shrinks an average direction to
            half.
        standardize: Give every feature variance 1 over the training rows; they are centred in any case.

    Attributes:
        classes_: The classes, or for multi-label targets the column numbers.
        coef_: Coefficients of the features as they are, (D, K).
        intercept_: Intercepts, (K,).

    """

    def __init__(self, alpha: float = 1.0, standardize: bool = True) -> None:
        self.alpha = alpha
        self.standardize = standardize

    def fit(self, X: ArrayLike, y: ArrayLike) -> RidgeProbe:
        """Return the probe itself, fitted.

        Args:
            X: Features, (n, D).
            y: Classes (n,), or labels 0, 1 or NaN for missing, (n, L) with L of at least 2.

        Raises:
            ValueError: A negative penalty, or targets of another kind.

        """
        if not self.alpha >= 0:
            raise ValueError(f"alpha must not be negative, got {self.alpha!r}")
        rows: Floats = validate_data(self, X, dtype=[np.float64, np.float32])
        return self.fit_sums(lambda known, T: Moments.of(rows[known], T), y, len(rows))

    def fit_sums(self, moments: Callable[[NDArray[np.int64], Doubles], Moments], y: ArrayLike, n: int) -> RidgeProbe:
        """Return the probe itself, fitted from sums over rows.

        Args:
            moments: Gives the sums of some of the rows (m,) and their targets (m, K).
            y: Targets of all rows, as for :meth:`fit`.
            n: Number of rows.

        Raises:
            ValueError: Targets of another kind.

        """
        self.classes_, Y = encode_targets(y, n)
        self._multilabel = Y.ndim == 2
        T = indicators(Y, len(self.classes_))
        fits = []
        for column, known in complete(T):
            if not len(known):
                raise ValueError(f"label {column.start} has no row with a value")
            fits.append(solve(moments(known, T[known][:, column]), self.alpha, self.standardize))
        self.coef_ = np.concatenate([coef for coef, _ in fits], axis=1)
        self.intercept_ = np.concatenate([intercept for _, intercept in fits])
        self.n_features_in_ = len(self.coef_)
        return self

    def decision_scores(self, X: ArrayLike) -> Doubles:
        """Return the regression's values (m, K): an estimate of each class's probability that may leave [0, 1]."""
        check_is_fitted(self)
        rows: Floats = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        return linear(rows, self.coef_.T, self.intercept_)

    def predict_proba(self, X: ArrayLike) -> Doubles:
        """Return :func:`probabilities` of the scores, (m, K)."""
        return probabilities(self.decision_scores(X), self._multilabel)

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return the class with the largest score of every row (m,), or 0 or 1 for every label (m, L)."""
        scores = self.decision_scores(X)
        if self._multilabel:
            return (scores >= 0.5).astype(np.int64)
        predicted: NDArray[Any] = self.classes_[scores.argmax(axis=1)]
        return predicted
