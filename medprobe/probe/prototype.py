"""Nearest class mean, for when a class has a handful of images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, softmax
from sklearn.preprocessing import StandardScaler
from sklearn.utils.validation import check_is_fitted, validate_data

from medprobe.probe._estimator import Probe
from medprobe.probe.targets import Floats, Fold, encode_targets

Doubles = NDArray[np.float64]

TEMPERATURES = (1.0, 0.3, 0.1, 0.03)


class PrototypeProbe(Probe):
    """A classifier by the cosine to each class's mean of centred features of unit length.

    This is SimpleShot's CL2N (Wang, Chao, Weinberger and van der Maaten, arXiv 1911.04623, 2019). A label of several
    compares the mean of the rows that have it with the mean of those that lack it.

    Args:
        temperature: Probabilities are a softmax of cosines over it.
        standardize: Give every feature variance 1 over the training rows first; they are centred in any case.

    Attributes:
        classes_: The classes, or for multi-label targets the column numbers.

    """

    def __init__(self, temperature: float = 0.1, standardize: bool = True) -> None:
        self.temperature = temperature
        self.standardize = standardize

    def fit(self, X: ArrayLike, y: ArrayLike) -> PrototypeProbe:
        """Return the probe itself, after taking the means.

        Args:
            X: Features, (n, D).
            y: Classes (n,), or labels 0, 1 or NaN for missing, (n, L) with L of at least 2.

        Raises:
            ValueError: A temperature that is not positive, or targets of another kind.

        """
        if not self.temperature > 0:
            raise ValueError(f"temperature must be positive, got {self.temperature!r}")
        rows: Floats = validate_data(self, X, dtype=[np.float64, np.float32])
        self.classes_, Y = encode_targets(y, len(rows))
        self._multilabel = Y.ndim == 2
        self._scaler = StandardScaler(with_std=self.standardize).fit(rows.astype(np.float64))
        units = self._units(rows)
        if self._multilabel:
            self._with = _unit(np.stack([_mean(units, column, 1) for column in Y.T]))
            self._without = _unit(np.stack([_mean(units, column, 0) for column in Y.T]))
        else:
            self._with = _unit(np.stack([_mean(units, Y, k) for k in range(len(self.classes_))]))
        return self

    def cosines(self, X: ArrayLike) -> Doubles:
        """Return the cosine to each class's mean (m, K); of labels, the cosine with less the cosine without."""
        check_is_fitted(self)
        rows: Floats = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        units = self._units(rows)
        found: Doubles = units @ self._with.T
        return found - units @ self._without.T if self._multilabel else found

    def predict_proba(self, X: ArrayLike) -> Doubles:
        """Return the probability of every class, rows adding up to one, or of every label, (m, K)."""
        return _probabilities(self.cosines(X), self._multilabel, self.temperature)

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return the class of the nearest mean of every row (m,), or 0 or 1 for every label (m, L)."""
        cosines = self.cosines(X)
        if self._multilabel:
            return (cosines >= 0).astype(np.int64)
        predicted: NDArray[Any] = self.classes_[cosines.argmax(axis=1)]
        return predicted

    def _units(self, rows: Floats) -> Doubles:
        return _unit(self._scaler.transform(rows.astype(np.float64)))


def sweep_prototype(
    X: Floats, Y: NDArray[Any], folds: Sequence[Fold], temperatures: Sequence[float] = TEMPERATURES, *, n_classes: int
) -> list[list[Doubles]]:
    """Return probabilities (rows, n_classes) of the held-out rows for each temperature and fold.

    Args:
        X: Features, (n, D), standardised if they are to be.
        Y: Class codes (n,), or labels 0, 1 or NaN (n, L).
        folds: Pairs of training and held-out rows.
        temperatures: Of the softmax.
        n_classes: Number of classes, or of labels; a class that a fold lacks gets zero.

    """
    fits = [PrototypeProbe(standardize=False).fit(X[train], Y[train]) for train, _ in folds]
    cosines = [fit.cosines(X[val]) for fit, (_, val) in zip(fits, folds, strict=True)]
    swept = []
    for temperature in temperatures:
        by_fold = []
        for fit, found in zip(fits, cosines, strict=True):
            proba = np.zeros((len(found), n_classes))
            proba[:, fit.classes_] = _probabilities(found, Y.ndim == 2, temperature)
            by_fold.append(proba)
        swept.append(by_fold)
    return swept


def _probabilities(cosines: Doubles, multilabel: bool, temperature: float) -> Doubles:
    found: Doubles = expit(cosines / temperature) if multilabel else softmax(cosines / temperature, axis=1)
    return found


def _mean(units: Doubles, targets: NDArray[Any], value: int) -> Doubles:
    rows = np.flatnonzero(targets == value)
    mean: Doubles = units[rows].mean(axis=0) if len(rows) else np.zeros(units.shape[1])
    return mean


def _unit(rows: Floats) -> Doubles:
    norm = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: Doubles = rows / np.where(norm > 0, norm, 1)
    return unit
