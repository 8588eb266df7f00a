"""Choosing a probe's settings without looking at the test rows, and fitting it with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medprobe.errors import DataError, UsageError
from medprobe.probe._rows import standard_deviation
from medprobe.probe.families import Family
from medprobe.probe.metrics import METRICS, Scorer
from medprobe.probe.question import Question
from medprobe.probe.splits import Part, inner_folds
from medprobe.probe.stopping import may_stop
from medprobe.probe.targets import Floats, Fold

_FOLDS_FOR_ERROR = 3
_SIMPLER = 2  # a decade of the logistic probe's C


@dataclass(frozen=True)
class Fitted:
    """A probe with the settings that were chosen for it, fitted: ``predict_proba`` takes vectors of ``view``."""

    estimator: Any
    view: str
    settings: dict[str, Any]

    def proba(self, views: Mapping[str, Floats], rows: np.ndarray, question: Question) -> Floats:
        """Return probabilities (rows, all classes); a class that no training row had gets zero."""
        X = views[self.view][rows]
        proba = np.asarray(self.estimator.predict_proba(X), dtype=np.float64)
        if question.target.task != "multilabel" and proba.shape[1] != question.target.n_classes:
            full = np.zeros((len(X), question.target.n_classes))
            full[:, np.asarray(self.estimator.classes_, dtype=np.int64)] = proba
            proba = full
        return _clean(proba)


def fit_part(
    family: Family, views: Mapping[str, Floats], question: Question, part: Part, seed: int, pca: float | None = None
) -> Fitted:
    """Return the probe of one part of a split.

    Settings, and the view where there are several, are those with the best primary metric on the validation rows, or on
    inner folds of the training rows. Then the probe is fitted to training and validation rows together. Where few shots
    leave nothing to choose on, the family's settings for that are taken.

    Args:
        family: Kind of probe.
        views: Vectors by name, each (n, width); the first is taken among equals.
        question: What is learned.
        part: Which rows are learned from.
        seed: Of inner folds and of the probe.
        pca: Number of principal components, or share of the variance, that is kept of the standardised features.

    Raises:
        DataError: The part has one class, or one group, only.

    """
    may_stop()
    y, rows, n = question.taught, part.fitted, len(part.train)
    if y.ndim == 1 and len(np.unique(y[rows])) < 2:
        raise DataError(f"--target {question.target.name}: a training part has one class only; use fewer folds")
    fitted_rows = rows if family.refit else part.train
    name, settings = next(iter(views)), dict(family.few)
    pairs = [] if family.sweep is None else _pairs(family, question, part, seed)
    if family.sweep is not None and pairs:
        best = -np.inf
        for view, X in views.items():
            if family.summed is not None and pca is None:
                swept = family.summed.sweep(view, rows, y[rows], pairs, question.target.n_classes)
            else:
                prepared = _prepared(X[rows], slice(n), family.standardised, pca, seed)
                swept = family.sweep(prepared, y[rows], pairs, question.target.n_classes, seed)
            found, score = _best(swept, y[rows], pairs, family, question)
            if score > best or best == -np.inf:
                name, settings, best = view, found, score
    if family.summed is not None and pca is None:
        estimator = family.summed.fit(name, settings, fitted_rows, y[fitted_rows])
    else:
        estimator = family.build(settings, seed)
        if pca is not None:
            estimator = _projection(pca, (len(fitted_rows), views[name].shape[1]), seed, estimator)
        estimator.fit(views[name][fitted_rows], y[fitted_rows])
    return Fitted(estimator, name, {"view": name, **settings} if len(views) > 1 else settings)


def _pairs(family: Family, question: Question, part: Part, seed: int) -> list[Fold]:
    """Return pairs of rows to fit and rows to choose on, counted within ``part.fitted``; none where a class is too rare."""
    rows, n = part.fitted, len(part.train)
    if part.val is not None:
        return [(np.arange(n), np.arange(n, len(rows)))]
    y, groups = question.taught[rows], None if question.together is None else question.together[rows]
    if question.shots:
        codes = [y] if y.ndim == 1 else list(y.T)
        most = max(int(np.unique(code[~np.isnan(code)], return_counts=True)[1].max(initial=0)) for code in codes)
        if most < 2 or (groups is not None and len(np.unique(groups)) < 2):
            return []
    return inner_folds(y, groups, seed, family.n_folds)[: family.inner_folds]


def _best(
    swept: Sequence[tuple[dict[str, Any], list[Floats]]],
    y: np.ndarray,
    pairs: Sequence[Fold],
    family: Family,
    question: Question,
) -> tuple[dict[str, Any], float]:
    """Return the settings with the best primary metric on the held-out rows, the first of equal ones, and their score.

    Where the sweep is ordered and there are folds to tell the noise from, the first settings (the most regularised) are
    taken whose score is within one standard error (over the folds) of the best: the one-standard-error rule of Breiman,
    Friedman, Olshen and Stone (Classification and Regression Trees, 1984, section 3.4.3). It goes no further than
    ``_SIMPLER`` places from the best: with few patients the error is wide enough to excuse a model of nothing.
    """
    sign = 1 if METRICS[question.primary].higher_is_better else -1

    def score(rows: np.ndarray, proba: Floats) -> float:
        return sign * Scorer(question.target.task, y[rows], _clean(proba)).value(question.primary)

    held_out = np.concatenate([val for _, val in pairs])
    scores = np.array([score(held_out, np.concatenate(proba)) for _, proba in swept])
    best = int(np.argmax(np.nan_to_num(scores, nan=-np.inf)))
    if family.ordered and len(pairs) >= _FOLDS_FOR_ERROR:
        by_fold = [score(val, proba) for (_, val), proba in zip(pairs, swept[best][1], strict=True)]
        error = np.std(by_fold, ddof=1) / np.sqrt(len(by_fold))
        if np.isfinite(error):
            simplest = max(0, best - _SIMPLER)
            best = simplest + int(np.argmax(scores[simplest:] >= scores[best] - error))
    return swept[best][0], float(np.nan_to_num(scores[best], nan=-np.inf))


def _prepared(X: Floats, fitted_on: slice, standardised: bool, pca: float | None, seed: int) -> Floats:
    """Return features as the probe will see them, with means, variances and components of some of the rows."""
    if pca is not None:
        projection = _projection(pca, X[fitted_on].shape, seed).fit(X[fitted_on])
        X = projection.transform(X).astype(X.dtype)
    if not standardised:
        return X
    some = X[fitted_on]
    mean = some.mean(axis=0, dtype=np.float64)
    scale = standard_deviation(some, np.ones(len(some)))
    scaled: Floats = (X - mean.astype(X.dtype)) / scale.astype(X.dtype)
    return scaled


def _projection(pca: float, shape: tuple[int, ...], seed: int, *then: Any) -> Any:
    """Return principal components of standardised rows of that shape, no more than there are rows, and what follows them."""
    from sklearn.decomposition import PCA  # slow to import, and seldom asked for
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    n, width = shape
    if not (0 < pca < 1 or (pca >= 1 and float(pca).is_integer() and pca <= width)):
        raise UsageError(f"--pca {pca:g}: a share of the variance below 1, or a number of components up to {width}")
    components = PCA(pca if pca < 1 else min(int(pca), n), random_state=seed)
    return make_pipeline(StandardScaler(), components, *then)


def _clean(proba: Floats) -> Floats:
    """Return probabilities within [0, 1]: single precision may leave it by a rounding error."""
    return np.clip(np.asarray(proba, dtype=np.float64), 0.0, 1.0)
