"""Nearest-neighbour probe: one exact search answers every k and every temperature."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import scipy.sparse
from numpy.typing import ArrayLike, NDArray
from sklearn.preprocessing import StandardScaler
from sklearn.utils.validation import check_is_fitted, validate_data

from medprobe.probe._estimator import Probe
from medprobe.probe.search import Metric, neighbours
from medprobe.probe.targets import Codes, Floats, Fold, encode_targets

__all__ = ["KNNProbe", "neighbours", "sweep_knn", "vote"]

Weights = Literal["temperature", "uniform"]


def vote(
    score: Floats,
    index: Codes,
    Y: NDArray[Any],
    *,
    n_classes: int,
    ks: Sequence[int],
    temperatures: Sequence[float | None],
) -> dict[tuple[int, float | None], Floats]:
    """Return the probabilities of every (k, temperature), (m, n_classes) each, from one list of neighbours.

    A neighbour weighs exp(score / temperature), the vote of DINO (Caron et al. 2021, "Emerging Properties in
    Self-Supervised Vision Transformers"), or 1 for the temperature ``None``. A label for which none of the k neighbours
    has a value gets its mean over all training rows, or 0.5 if it has none anywhere.

    Args:
        score: Similarities of the neighbours, descending, (m, at least max(ks)); -inf is no neighbour.
        index: Row of each neighbour in ``Y``, of the same shape; -1 is no neighbour.
        Y: Class codes (n,), or labels 0, 1 or NaN (n, n_classes).
        n_classes: Classes of ``Y``, or its columns.
        ks: Numbers of neighbours that vote.
        temperatures: Temperatures, positive, or ``None``.

    """
    if Y.ndim == 1:
        value, known = np.eye(n_classes)[Y], np.ones((len(Y), 1))
    else:
        known = (~np.isnan(Y)).astype(np.float64)
        value = np.nan_to_num(Y.astype(np.float64))
    seen = known.sum(axis=0)
    prior = np.divide(value.sum(axis=0), seen, out=np.full(n_classes, 0.5), where=seen > 0)
    targets = np.hstack([value, known])

    present = index >= 0
    places = np.where(present, index, 0)
    probabilities: dict[tuple[int, float | None], Floats] = {}
    for temperature in temperatures:
        weight = present.astype(np.float64)
        if temperature is not None:
            # The best score of each row weighs one, whatever the temperature.
            best = np.where(present[:, :1], score[:, :1], 0).astype(np.float64)
            weight = np.exp((score - best) / temperature)
        total, done = np.zeros((len(index), targets.shape[1])), 0
        for k in sorted(set(ks)):
            part = slice(done, k)
            width = weight[:, part].shape[1]
            votes = scipy.sparse.csr_array(
                (weight[:, part].ravel(), places[:, part].ravel(), np.arange(len(index) + 1) * width),
                shape=(len(index), len(Y)),
            )
            total = total + votes @ targets
            done = k
            cast, of = total[:, :n_classes], np.broadcast_to(total[:, n_classes:], (len(index), n_classes))
            share = np.divide(cast, of, out=np.tile(prior, (len(index), 1)), where=of > 0)
            probabilities[k, temperature] = share
    return probabilities


def sweep_knn(
    X: Floats,
    Y: NDArray[Any],
    folds: Sequence[Fold],
    *,
    n_classes: int,
    ks: Sequence[int] = (1, 5, 10, 20, 50, 100, 200),
    temperatures: Sequence[float | None] = (None, 0.04, 0.07, 0.1, 0.2),
) -> list[tuple[dict[str, Any], list[Floats]]]:
    """Return, for every k and temperature, its settings and its probabilities on the validation rows of each fold.

    Cosine similarity, one search a fold. The settings are arguments of :class:`KNNProbe`.

    Args:
        X: Features, (n, d), standardised by the caller.
        Y: Class codes (n,), or labels 0, 1 or NaN (n, n_classes).
        folds: Pairs of training and validation rows.
        n_classes: Classes of ``Y``, or its columns.
        ks: Numbers of neighbours; those above the training rows of the smallest fold are left out, and if that leaves
            none, that number of rows takes their place.
        temperatures: Temperatures of the vote; ``None`` is the uniform vote.

    """
    X = np.asarray(X, np.float32)
    smallest = min(len(train) for train, _ in folds)
    ks = sorted({k for k in ks if k <= smallest}) or [smallest]
    by_fold = []
    for train, validation in folds:
        score, index = neighbours(X[train], X[validation], ks[-1])
        by_fold.append(vote(score, index, Y[train], n_classes=n_classes, ks=ks, temperatures=temperatures))
    return [
        (
            {"k": k, "weights": "uniform" if temperature is None else "temperature", "temperature": temperature},
            [fold[k, temperature] for fold in by_fold],
        )
        for temperature in temperatures
        for k in ks
    ]


class KNNProbe(Probe):
    """A classifier by the vote of the k nearest training rows.

    With the defaults, features are centred and scaled by the training rows, then compared by cosine, and neighbours
    weigh exp(similarity / 0.07).

    Args:
        k: Neighbours that vote; more than there are training rows is taken as all of them.
        weights: ``"temperature"`` or ``"uniform"``.
        temperature: Temperature of the vote; not used by ``"uniform"``. With the Euclidean metric a neighbour at
            distance d weighs exp(-d**2 / (2 * temperature)), which on rows of unit length is the same vote.
        metric: ``"cosine"`` or ``"euclidean"``.
        standardize: Give every feature mean 0 and variance 1 over the training rows first.
        device: ``"cpu"``, or ``"cuda"`` for FAISS on a GPU.

    Attributes:
        classes_: The classes, or for multi-label targets the column numbers.

    """

    def __init__(
        self,
        k: int = 20,
        weights: Weights = "temperature",
        temperature: float | None = 0.07,
        metric: Metric = "cosine",
        standardize: bool = True,
        device: str = "cpu",
    ) -> None:
        self.k = k
        self.weights = weights
        self.temperature = temperature
        self.metric = metric
        self.standardize = standardize
        self.device = device

    def fit(self, X: ArrayLike, y: ArrayLike) -> KNNProbe:
        """Return the probe itself, after keeping the rows.

        Args:
            X: Features, (n, d).
            y: Classes (n,), or labels 0, 1 or NaN for missing, (n, L) with L of at least 2.

        Raises:
            ValueError: Arguments out of range, or targets of another kind.

        """
        if self.weights not in ("temperature", "uniform"):
            raise ValueError(f"weights must be 'temperature' or 'uniform', got {self.weights!r}")
        if self.weights == "temperature" and (self.temperature is None or self.temperature <= 0):
            raise ValueError(f"temperature must be positive, got {self.temperature!r}")
        rows: Floats = validate_data(self, X, dtype=[np.float64, np.float32])
        self.classes_, self._Y = encode_targets(y, len(rows))
        self._multilabel = self._Y.ndim == 2
        self._scaler = StandardScaler().fit(rows) if self.standardize else None
        self._X = rows if self._scaler is None else self._scaler.transform(rows)
        return self

    def kneighbors(self, X: ArrayLike, k: int | None = None) -> tuple[Floats, Codes]:
        """Return distances and training row numbers of the nearest training rows, (m, k) each, nearest first.

        Args:
            X: Features, (m, d).
            k: Neighbours of each row, by default the probe's own; more than the training rows is taken as all of them.

        """
        score, index = self._search(X, self.k if k is None else k)
        return (np.maximum(1 - score, 0) if self.metric == "cosine" else score), index

    def predict_proba(self, X: ArrayLike) -> Floats:
        """Return the probability of every class, rows adding up to one, or of every label, (m, n_classes)."""
        score, index = self._search(X, self.k)
        if self.metric == "euclidean":
            score = -0.5 * score**2
        temperature = self.temperature if self.weights == "temperature" else None
        votes = vote(
            score, index, self._Y, n_classes=len(self.classes_), ks=[index.shape[1]], temperatures=[temperature]
        )
        return next(iter(votes.values()))

    def _search(self, X: ArrayLike, k: int) -> tuple[Floats, Codes]:
        check_is_fitted(self)
        rows: Floats = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        if self._scaler is not None:
            rows = self._scaler.transform(rows)
        return neighbours(self._X, rows, k, metric=self.metric, device=self.device)
