"""L2-penalised logistic regression on cached features: scikit-learn estimators, and whole sweeps over C and folds."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from medprobe.probe._estimator import Probe
from medprobe.probe._rows import class_weights, linear, standard_deviation
from medprobe.probe.solver import PathSolution, Spectrum, solve_path
from medprobe.probe.spool import FeatureBlocks, spooled
from medprobe.probe.targets import Floats, Fold, encode_targets

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
_TINY = np.finfo(np.float64).tiny


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
            row *= class_weights(codes, class_weight, n_classes, row)
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
        logits = linear(X, coef, path.intercept[fold].ravel(), validation)
        logits = logits.reshape(len(validation), len(Cs), -1)
        by_fold.append(expit(logits) if Y.ndim == 2 else _probabilities(logits))
    return [[probabilities[:, i] for probabilities in by_fold] for i in range(len(Cs))]


class _LinearProbe(Probe):
    """What the two probes share: checks of the input, the solver's settings, and predictions."""

    coef_: NDArray[np.float64]
    intercept_: NDArray[np.float64]
    class_weight: dict[Any, float] | str | None
    standardize: bool
    dtype: str
    tol: float | None
    max_iter: int
    n_features_in_: int

    def decision_function(self, X: ArrayLike | FeatureBlocks) -> NDArray[np.float64]:
        """Logits: (n,) of the second of two classes, (n, n_classes) of more, (n, L) of labels."""
        check_is_fitted(self)
        parts = X.blocks() if isinstance(X, FeatureBlocks) else [X]
        logits = np.concatenate(
            [
                linear(
                    validate_data(self, part, dtype=[np.float64, np.float32], reset=False), self.coef_, self.intercept_
                )
                for part in parts
            ]
        )
        return logits[:, 0] if logits.shape[1] == 1 else logits

    def predict_proba(self, X: ArrayLike | FeatureBlocks) -> NDArray[np.float64]:
        """Probabilities (n, n_classes), columns in the order of `classes_`, or (n, L) of each label."""
        logits = self.decision_function(X)
        if self._multilabel:
            return np.asarray(expit(logits))
        return _probabilities(logits.reshape(logits.shape[0], -1))

    def predict(self, X: ArrayLike | FeatureBlocks) -> NDArray[Any]:
        """The most probable class of each row, (n,), or 0 or 1 for each label, (n, L)."""
        logits = self.decision_function(X)
        if self._multilabel:
            return (logits > 0).astype(np.int64)
        best = (logits > 0).astype(int) if logits.ndim == 1 else logits.argmax(axis=1)
        labels: NDArray[Any] = self.classes_[best]
        return labels

    def _validated(self, X: ArrayLike | FeatureBlocks, y: ArrayLike, sample_weight: ArrayLike | None) -> Any:
        """X, class codes (n,) or labels (n, L), and weights; sets `classes_`."""
        if self.dtype not in ("float32", "float64"):
            raise ValueError(f"dtype must be 'float32' or 'float64', got {self.dtype!r}.")
        if isinstance(X, FeatureBlocks):
            features = spooled(X)
            self.n_features_in_ = features.shape[1]
        else:
            features = validate_data(self, X, dtype=[np.float64, np.float32])
        self.classes_, codes = encode_targets(y, len(features))
        self._multilabel = codes.ndim == 2
        weights = _check_sample_weight(sample_weight, features, dtype=np.float64, ensure_non_negative=True)
        if self._multilabel:
            return features, codes, weights
        seen = self.classes_[np.bincount(codes, weights) > 0]
        if seen.size < 2:
            raise ValueError(
                "This solver needs samples of at least 2 classes in the data, but the data contains only one "
                f"class: {seen.tolist()} (rows of weight zero left out)."
            )
        return features, codes, weights

    def _solve(self, X: Floats, codes: NDArray[Any], weights: Floats, Cs: Sequence[float] | Floats) -> PathSolution:
        """Solutions for every row of `weights` (F, n) and every C; warns of those that are unfinished."""
        class_weight = self.class_weight
        n_classes = 2 if codes.ndim == 2 else self.classes_.size
        if isinstance(class_weight, dict) and codes.ndim == 1:
            known = compute_class_weight(class_weight, classes=self.classes_, y=self.classes_[codes])
            class_weight = dict(enumerate(known))
        labels = codes.reshape(len(codes), -1).T
        weighted = np.array(
            [[row * class_weights(label, class_weight, n_classes, row) for label in labels] for row in weights]
        )
        small = X.size < _SMALL
        path = solve_path(
            X,
            codes,
            Cs,
            n_classes=n_classes,
            sample_weight=weighted if codes.ndim == 2 else weighted[:, 0],
            scales=np.stack([standard_deviation(X, row) for row in weights]) if self.standardize else None,
            dtype="float64" if small else self.dtype,
            tol=(_TOL_SMALL if small else _TOL) if self.tol is None else self.tol,
            max_iter=self.max_iter,
        )
        _warn_unconverged(path, self.max_iter)
        return path

    def _keep(self, path: PathSolution) -> None:
        """Take the one solution in `path` as the fitted model."""
        self.coef_, self.intercept_ = path.coef[0, 0], path.intercept[0, 0]
        self.objective_, self.grad_norm_ = path.objective[0, 0], path.grad_norm[0, 0]
        self.n_iter_ = np.atleast_1d(path.n_iter[0, 0])

    def _fit(self, X: Floats, codes: NDArray[Any], weights: Floats, C: float) -> None:
        """Fit the model to all rows. A label of one value has that as its probability, one without values a half."""
        if not self._multilabel:
            self._keep(self._solve(X, codes, weights[None], [C]))
            return
        present = np.where(weights[:, None] > 0, codes, np.nan)
        positive, negative = (present == 1).any(axis=0), (present == 0).any(axis=0)
        varies = positive & negative
        if varies.any():
            self._keep(self._solve(X, codes[:, varies], weights[None], [C]))
        else:
            self.coef_, self.intercept_ = np.zeros((0, X.shape[1])), np.zeros(0)
            self.objective_ = self.grad_norm_ = np.zeros(0)
            self.n_iter_ = np.zeros(0, dtype=np.intp)
        coef, intercept = np.zeros((codes.shape[1], X.shape[1])), np.zeros(codes.shape[1])
        intercept[positive & ~negative], intercept[negative & ~positive] = np.inf, -np.inf
        coef[varies], intercept[varies] = self.coef_, self.intercept_
        self.coef_, self.intercept_ = coef, intercept


class LogisticProbe(_LinearProbe):
    """Logistic regression with scikit-learn's objective: C * sum_i s_i * loss_i + ||w||^2 / 2, intercept free.

    Two classes give one logit, more a softmax; each of several labels one logit, on the rows that have the label.

    Args:
        C: Inverse strength of the penalty.
        class_weight: ``"balanced"``, a dict of class to weight, or None.
        dtype: ``"float32"`` or ``"float64"``, in which features are held while fitting. Fewer than 65,536 entries are always
            held in float64.
        tol: Relative distance of the objective to its minimum; None takes 1e-6, or all digits below 65,536 entries.
        max_iter: Passes over the rows, at most; a ConvergenceWarning says when they did not suffice.
        standardize: Divide features by the weighted standard deviation of the training rows before the penalty applies
            (constant ones by 1); ``coef_`` and ``intercept_`` are for the features as given, either way.

    Attributes:
        coef_: Coefficients, (1, n_classes or L, D), float64.
        intercept_: Intercepts, (1, n_classes or L,), float64.
        classes_: The classes, sorted (of labels, their column numbers).
        n_features_in_: D.
        objective_: Of the fit, or of each label that has both values.
        grad_norm_: Likewise.
        n_iter_: Likewise, an array as in scikit-learn.

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

    def fit(self, X: ArrayLike | FeatureBlocks, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """The fitted probe; X (n, D) dense and finite, y (n,) of at least two classes or (n, L) of 0, 1 and NaN for missing.

        X may be :class:`~medprobe.probe.spool.FeatureBlocks`, larger than memory: it is read once into a scratch file.
        Another y is a ValueError. "balanced" class weights are those of each label by itself.
        """
        if not self.C > 0:
            raise ValueError(f"C must be positive, got {self.C}.")
        features, codes, weights = self._validated(X, y, sample_weight)
        self._fit(features, codes, weights, self.C)
        return self


class LogisticProbeCV(_LinearProbe):
    """:class:`LogisticProbe` at the C that predicts held-out folds best; all folds and values of C are solved together.

    Args:
        Cs: Values of C to try; None takes ``DEFAULT_CS``.
        cv: Number of stratified folds (kept whole by group where ``fit`` gets groups), a scikit-learn splitter, or pairs
            of training and validation rows.
        scoring: A scikit-learn scorer or its name; None takes minus the mean log-loss. The highest mean over folds wins,
            among equals the smallest C.
        class_weight: As in :class:`LogisticProbe`.
        dtype: Likewise.
        tol: Likewise.
        max_iter: Likewise.
        standardize: Likewise; by each fold's training rows.

    Attributes:
        C_: The C chosen.
        Cs_: Those tried, (n_C,).
        scores_: The score of each fold, (F, n_C).
        coef_: Of :class:`LogisticProbe` fitted on all rows with ``C_``, as is what else it has.

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
        X: ArrayLike | FeatureBlocks,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        groups: ArrayLike | None = None,
    ) -> Self:
        """The fitted probe; X and y as in `LogisticProbe`; several labels share one C.

        `groups` (n,) is handed to the splitter, so that rows of one group (a patient) share a fold.
        """
        features, codes, weights = self._validated(X, y, sample_weight)
        self.Cs_ = np.sort(np.asarray(DEFAULT_CS if self.Cs is None else self.Cs, dtype=np.float64))
        if self.Cs_.size == 0 or not (self.Cs_ > 0).all():
            raise ValueError(f"Cs must be positive numbers, got {self.Cs}.")
        folds = list(self._splitter(groups).split(features, codes, groups))
        fold_weights = np.zeros((len(folds), len(codes)))
        for row, (train, _) in zip(fold_weights, folds, strict=True):
            row[train] = weights[train]
        path = self._solve(features, codes, fold_weights, self.Cs_)
        scored_weight = None if sample_weight is None else weights
        self.scores_ = np.array(
            [self._scores(path, f, features, codes, rows, scored_weight) for f, (_, rows) in enumerate(folds)]
        )
        self.C_ = float(self.Cs_[self.scores_.mean(axis=0).argmax()])
        self._fit(features, codes, weights, self.C_)
        return self

    def _splitter(self, groups: ArrayLike | None) -> Any:
        from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold, check_cv

        if isinstance(self.cv, int) and self._multilabel:
            return KFold(self.cv) if groups is None else GroupKFold(self.cv)
        if isinstance(self.cv, int):
            return StratifiedKFold(self.cv) if groups is None else StratifiedGroupKFold(self.cv)
        return check_cv(self.cv)

    def _scores(
        self,
        path: PathSolution,
        fold: int,
        X: Floats,
        codes: NDArray[Any],
        rows: NDArray[np.intp],
        weights: Floats | None,
    ) -> list[float]:
        """Score of one fold's models, one a C, on its validation rows."""
        kept = None if weights is None else weights[rows]
        scores = []
        for coef, intercept in zip(path.coef[fold], path.intercept[fold], strict=True):
            if self.scoring is None:
                logits = linear(X, coef, intercept, rows)
                if self._multilabel:
                    losses = np.logaddexp(0, (1 - 2 * np.nan_to_num(codes[rows])) * logits)
                    likely = -np.where(np.isnan(codes[rows]), 0, losses).sum(axis=1)
                else:
                    likely = np.log(_probabilities(logits)[np.arange(rows.size), codes[rows]].clip(_TINY))
                scores.append(float(np.average(likely, weights=kept)))
                continue
            from sklearn.metrics import get_scorer

            model = LogisticProbe()
            model.classes_, model.coef_, model.intercept_ = self.classes_, coef, intercept
            model.n_features_in_, model._multilabel = X.shape[1], self._multilabel
            truth = codes[rows] if self._multilabel else self.classes_[codes[rows]]
            options = {} if kept is None else {"sample_weight": kept}
            scores.append(get_scorer(self.scoring)(model, X[rows], truth, **options))
        return scores


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
