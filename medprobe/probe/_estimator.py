"""What all probes have in common as scikit-learn estimators."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin


class Probe(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A classifier of classes, or of several labels that may be missing in training.

    Attributes:
        classes_: The classes, or for multi-label targets the column numbers.

    """

    classes_: NDArray[Any]
    _multilabel: bool

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return the most probable class of every row (m,), or 0 or 1 for every label (m, L)."""
        probability = self.predict_proba(X)
        if self._multilabel:
            labels: NDArray[Any] = (probability >= 0.5).astype(np.int64)
            return labels
        predicted: NDArray[Any] = self.classes_[probability.argmax(axis=1)]
        return predicted

    def predict_proba(self, X: ArrayLike) -> Any:
        """Return the probability of every class, rows adding up to one, or of every label, (m, K)."""
        raise NotImplementedError
