"""L2-penalised logistic regression on cached features: scikit-learn estimators, and whole sweeps over C and folds."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import get_scorer
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, check_cv
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from medprobe.probe._passes import Floats, worker_threads
from medprobe.probe.solver import PathSolution, Spectrum, solve_path

Fold = tuple[NDArray[np.integer[Any]], NDArray[np.integer[Any]]]

DEFAULT_CS: tuple[float, ...] = tuple(np.logspace(-6, 2, 9).tolist())
"""Values of C for standardised features, one a decade.

The ridge weighs as much as the data in a direction where C * n * p(1 - p) * variance is 1. For 1,000 to 100,000 rows
and the variances of a standardised embedding's spectrum (hundreds down to 0.01) that happens between 1e-7 and 1e-1
for all but the weakest directions: 1e-6 leaves little more than the class means, from 100 on nothing is penalised.
Half decades move a validation score by less than its standard error.
"""

# Data with fewer entries are solved to the last digit in float64: it takes milliseconds.
_SMALL = 2**16
_TOL, _TOL_SMALL = 1e-6, 1e-18
_BLOCK_ROWS = 4096


def sweep_logistic(
    X: Floats,
    Y: NDArray[Any],
    folds: Sequence[Fold],
    Cs: Sequence[float],
    *,
    n_classes: int | None = None,
    class_weight: dict[int, float] | str | None = None,
    spectrum: Spectrum | None = None,
    dtype: str = "float32",
    tol: float = _TOL,
    max_iter: int = 500,
) -> list[list[Floats]]:
    """Probabilities on each fold's validation rows, `[i][f]` for Cs[i] and folds[f].

    X (n, D) is standardised by the caller. Y is (n,) class codes below `n_classes` (default: the largest plus one):
    probabilities are (n_val, n_classes); or (n, L) of 0, 1 and NaN for missing: (n_val, L). A fold is (training
    rows, validation rows). `class_weight` is "balanced" (by the training rows of each fold) or a weight for each
    code. A class without a training row in a fold gets a probability near 0 there. `spectrum`, `dtype`, `tol` and
    `max_iter` are those of `medprobe.probe.solver.solve_path`. Warns (ConvergenceWarning) of unfinished problems.
    """
    if n_classes is None:
        n_classes = int(Y.max()) + 1 if Y.ndim == 1 else 2
    n_labels = 1 if Y.ndim == 1 else Y.shape[1]
    labels = Y.reshape(Y.shape[0], -1).T
    weights = np.zeros((len(folds), n_labels, Y.shape[0]))
    for weight, (train, _) in zip(weights, folds, strict=True):
        weight[:, train] = 1
        for row, codes in zip(weight, labels, strict=True):
            row *= _class_weights(codes, class_weight, n_classes, row)
    path = solve_path(
        X,
        Y,
        Cs,
        n_classes=n_classes,
        sample_weight=weights if Y.ndim == 2 else weights[:, 0],
        spectrum=spectrum,
        dtype=dtype,
        tol=tol,
        max_iter=max_iter,
    )
    _warn_unconverged(path, max_iter)
    by_fold = []
    for fold, (_, validation) in enumerate(folds):
        coef = path.coef[fold].reshape(-1, X.shape[1]).astype(X.dtype)
        logits = _linear(X, coef, path.intercept[fold].ravel(), validation)
        logits = logits.reshape(len(validation), len(Cs), -1)
        by_fold.append(expit(logits) if Y.ndim == 2 else _probabilities(logits))
    return [[probabilities[:, i] for probabilities in by_fold] for i in range(len(Cs))]


class _LinearProbe(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """What the two probes share: checks of the input, the solver's settings, and predictions."""

    classes_: NDArray[Any]
    coef_: NDArray[np.float64]
    intercept_: NDArray[np.float64]
    class_weight: dict[Any, float] | str | None
    standardize: bool
    dtype: str
    tol: float | None
    max_iter: int

    def decision_function(self, X: ArrayLike) -> NDArray[np.float64]:
        """Logits: (n,) of the second of two classes, (n, n_classes) otherwise."""
        check_is_fitted(self)
        features = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        logits = _linear(features, self.coef_, self.intercept_)
        return logits[:, 0] if logits.shape[1] == 1 else logits

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Probabilities (n, n_classes), columns in the order of `classes_`."""
        logits = self.decision_function(X)
        return _probabilities(logits.reshape(logits.shape[0], -1))

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """The most probable class of each row, (n,)."""
        logits = self.decision_function(X)
        best = (logits > 0).astype(int) if logits.ndim == 1 else logits.argmax(axis=1)
        labels: NDArray[Any] = self.classes_[best]
        return labels

    def _validated(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None) -> Any:
        """X, class codes and weights; sets `classes_`."""
        if self.dtype not in ("float32", "float64"):
            raise ValueError(f"dtype must be 'float32' or 'float64', got {self.dtype!r}.")
        features, target = validate_data(self, X, y, dtype=[np.float64, np.float32])
        check_classification_targets(target)
        self.classes_, codes = np.unique(target, return_inverse=True)
        weights = _check_sample_weight(sample_weight, features, dtype=np.float64, ensure_non_negative=True)
        seen = self.classes_[np.bincount(codes, weights) > 0]
        if seen.size < 2:
            raise ValueError(
                "This solver needs samples of at least 2 classes in the data, but the data contains only one "
                f"class: {seen.tolist()} (rows of weight zero left out)."
            )
        return features, codes, weights

    def _solve(self, X: Floats, codes: NDArray[np.intp], weights: Floats, Cs: Sequence[float] | Floats) -> PathSolution:
        """Solutions for every row of `weights` (F, n) and every C; warns of those that are unfinished."""
        class_weight = self.class_weight
        if isinstance(class_weight, dict):
            known = compute_class_weight(class_weight, classes=self.classes_, y=self.classes_[codes])
            class_weight = dict(enumerate(known))
        n_classes = self.classes_.size
        weighted = weights * np.stack([_class_weights(codes, class_weight, n_classes, row) for row in weights])
        small = X.size < _SMALL
        path = solve_path(
            X,
            codes,
            Cs,
            n_classes=n_classes,
            sample_weight=weighted,
            scales=np.stack([_standard_deviation(X, row) for row in weights]) if self.standardize else None,
            dtype="float64" if small else self.dtype,
            tol=(_TOL_SMALL if small else _TOL) if self.tol is None else self.tol,
            max_iter=self.max_iter,
        )
        _warn_unconverged(path, self.max_iter)
        return path

    def _keep(self, path: PathSolution) -> None:
        """Take the one solution in `path` as the fitted model."""
        self.coef_, self.intercept_ = path.coef[0, 0], path.intercept[0, 0]
        self.objective_, self.grad_norm_ = float(path.objective[0, 0]), float(path.grad_norm[0, 0])
        self.n_iter_ = np.array([path.n_iter[0, 0]])


class LogisticProbe(_LinearProbe):
    """Logistic regression with scikit-learn's objective: C * sum_i s_i * loss_i + ||w||^2 / 2, intercept free.

    Two classes give one logit, more a softmax.

    Parameters
    ----------
    C : inverse strength of the penalty.
    class_weight : "balanced", a dict of class to weight, or None.
    standardize : divide features by the weighted standard deviation of the training rows before the penalty applies
        (constant ones by 1); `coef_` and `intercept_` are for the features as given, either way.
    dtype : "float32" or "float64", in which features are held while fitting. Fewer than 65,536 entries are always
        held in float64.
    tol : relative distance of the objective to its minimum; None takes 1e-6, or all digits below 65,536 entries.
    max_iter : passes over the rows, at most; a ConvergenceWarning says when they did not suffice.

    Attributes
    ----------
    coef_, intercept_ : (1 or n_classes, D) and (1 or n_classes,), float64.
    classes_, n_features_in_ : the labels, sorted, and D.
    objective_, grad_norm_, n_iter_ : of the fit; `n_iter_` is an array of one, as in scikit-learn.
    """

    def __init__(
        self,
        C: float = 1.0,
        class_weight: dict[Any, float] | str | None = None,
        dtype: str = "float32",
        tol: float | None = None,
        max_iter: int = 1000,
        standardize: bool = True,
    ) -> None:
        self.C = C
        self.class_weight = class_weight
        self.dtype = dtype
        self.tol = tol
        self.max_iter = max_iter
        self.standardize = standardize

    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """The fitted probe; X (n, D) dense and finite, y (n,) of at least two classes, or ValueError."""
        if not self.C > 0:
            raise ValueError(f"C must be positive, got {self.C}.")
        features, codes, weights = self._validated(X, y, sample_weight)
        self._keep(self._solve(features, codes, weights[None], [self.C]))
        return self


class LogisticProbeCV(_LinearProbe):
    """`LogisticProbe` at the C that predicts held-out folds best; all folds and values of C are solved together.

    Parameters
    ----------
    Cs : values of C to try; None takes `DEFAULT_CS`.
    cv : number of stratified folds (kept whole by group where `fit` gets groups), a scikit-learn splitter, or pairs
        of training and validation rows.
    scoring : a scikit-learn scorer or its name; None takes minus the mean log-loss. The highest mean over folds wins,
        among equals the smallest C.
    class_weight, dtype, tol, max_iter, standardize : as in `LogisticProbe`; standardisation is by each fold's
        training rows.

    Attributes
    ----------
    C_, Cs_, scores_ : the C chosen, those tried (n_C,), and the score of each fold (F, n_C).
    coef_, intercept_, classes_, n_features_in_, objective_, grad_norm_, n_iter_ : of `LogisticProbe` fitted on all
        rows with `C_`.
    """

    def __init__(
        self,
        Cs: Sequence[float] | None = None,
        cv: Any = 5,
        scoring: Any = None,
        class_weight: dict[Any, float] | str | None = None,
        dtype: str = "float32",
        tol: float | None = None,
        max_iter: int = 1000,
        standardize: bool = True,
    ) -> None:
        self.Cs = Cs
        self.cv = cv
        self.scoring = scoring
        self.class_weight = class_weight
        self.dtype = dtype
        self.tol = tol
        self.max_iter = max_iter
        self.standardize = standardize

    def fit(
        self,
        X: ArrayLike,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        groups: ArrayLike | None = None,
    ) -> Self:
        """The fitted probe; X (n, D) dense and finite, y (n,) of at least two classes, or ValueError.

        `groups` (n,) is handed to the splitter, so that rows of one group (a patient) share a fold.
        """
        features, codes, weights = self._validated(X, y, sample_weight)
        self.Cs_ = np.sort(np.asarray(DEFAULT_CS if self.Cs is None else self.Cs, dtype=np.float64))
        if self.Cs_.size == 0 or not (self.Cs_ > 0).all():
            raise ValueError(f"Cs must be positive numbers, got {self.Cs}.")
        folds = list(self._splitter(groups).split(features, codes, groups))
        fold_weights = np.zeros((len(folds), codes.size))
        for row, (train, _) in zip(fold_weights, folds, strict=True):
            row[train] = weights[train]
        path = self._solve(features, codes, fold_weights, self.Cs_)
        scored_weight = None if sample_weight is None else weights
        self.scores_ = np.array(
            [self._scores(path, f, features, codes, rows, scored_weight) for f, (_, rows) in enumerate(folds)]
        )
        self.C_ = float(self.Cs_[self.scores_.mean(axis=0).argmax()])
        self._keep(self._solve(features, codes, weights[None], [self.C_]))
        return self

    def _splitter(self, groups: ArrayLike | None) -> Any:
        if isinstance(self.cv, int):
            return StratifiedKFold(self.cv) if groups is None else StratifiedGroupKFold(self.cv)
        return check_cv(self.cv)

    def _scores(
        self,
        path: PathSolution,
        fold: int,
        X: Floats,
        codes: NDArray[np.intp],
        rows: NDArray[np.intp],
        weights: Floats | None,
    ) -> list[float]:
        """Score of one fold's models, one a C, on its validation rows."""
        kept = None if weights is None else weights[rows]
        scores = []
        for coef, intercept in zip(path.coef[fold], path.intercept[fold], strict=True):
            if self.scoring is None:
                p = _probabilities(_linear(X, coef, intercept, rows))
                likely = np.log(np.maximum(p[np.arange(rows.size), codes[rows]], np.finfo(np.float64).tiny))
                scores.append(float(np.average(likely, weights=kept)))
                continue
            model = LogisticProbe()
            model.classes_, model.coef_, model.intercept_ = self.classes_, coef, intercept
            model.n_features_in_ = X.shape[1]
            options = {} if kept is None else {"sample_weight": kept}
            scores.append(get_scorer(self.scoring)(model, X[rows], self.classes_[codes[rows]], **options))
        return scores


def _class_weights(
    codes: NDArray[Any], class_weight: dict[int, float] | str | None, n_classes: int, weights: Floats
) -> Floats:
    """Weight of each row (n,) for its class; "balanced" as in scikit-learn, by the classes that have weight."""
    if class_weight is None:
        return np.ones(codes.size)
    known = np.isfinite(codes)
    safe = np.where(known, codes, 0).astype(np.intp)
    if isinstance(class_weight, dict):
        by_class = np.array([class_weight.get(code, 1.0) for code in range(n_classes)])
    elif class_weight == "balanced":
        counts = np.bincount(safe, weights * known, n_classes)
        by_class = np.divide(counts.sum(), (counts > 0).sum() * counts, out=np.zeros(n_classes), where=counts > 0)
    else:
        raise ValueError(f'class_weight must be "balanced", a dict or None, got {class_weight!r}.')
    return by_class[safe]


def _standard_deviation(X: Floats, weights: Floats) -> NDArray[np.float64]:
    """Weighted standard deviation of each column (D,) in float64, 1 for constant ones."""
    rows = np.flatnonzero(weights)
    # Moments about a row: those about zero would cancel where means are far above the spread.
    origin = X[rows[0]]

    def moments(start: int) -> Floats:
        block = rows[start : start + _BLOCK_ROWS]
        away = X[block] - origin
        weight = weights[block].astype(X.dtype)
        return np.stack([weight @ away, weight @ np.square(away)]).astype(np.float64)

    with worker_threads() as pool:
        mean, square = sum(pool.map(moments, range(0, rows.size, _BLOCK_ROWS)), np.zeros((2, X.shape[1])))
    total = weights[rows].sum()
    variance = square / total - np.square(mean / total)
    # What rounding alone leaves of a constant column.
    rounding = rows.size * np.finfo(np.float64).eps * np.abs(mean / total + origin)
    return np.sqrt(np.where(variance <= rounding**2, 1.0, variance))


def _linear(
    X: Floats, coef: Floats, intercept: Floats, rows: NDArray[np.integer[Any]] | None = None
) -> NDArray[np.float64]:
    """X @ coef.T + intercept of all or some rows; float64 `coef` keeps raw features with large means exact."""
    n = X.shape[0] if rows is None else len(rows)
    out = np.empty((n, coef.shape[0]))
    for start in range(0, n, _BLOCK_ROWS):
        part = slice(start, start + _BLOCK_ROWS)
        block = X[part] if rows is None else X[rows[part]]
        out[part] = block @ coef.T + intercept
    return out


def _probabilities(logits: Floats) -> NDArray[np.float64]:
    """Probabilities (..., K) of logits (..., K), or (..., 2) of the one logit (..., 1) of two classes."""
    if logits.shape[-1] > 1:
        return np.asarray(softmax(logits, axis=-1))
    return np.concatenate([expit(-logits), expit(logits)], axis=-1)


def _warn_unconverged(path: PathSolution, max_iter: int) -> None:
    unfinished = ~path.converged
    if unfinished.any():
        warnings.warn(
            f"{unfinished.sum()} of {unfinished.size} logistic problems did not converge within {max_iter} passes "
            f"(largest gradient norm {path.grad_norm[unfinished].max():.3g}, at an objective of "
            f"{path.objective[unfinished].max():.6g}): raise max_iter, lower C or standardise the features.",
            ConvergenceWarning,
            stacklevel=3,
        )
