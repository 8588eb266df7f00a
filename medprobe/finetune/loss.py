"""What is made small: the cross-entropy of classes, or of labels of which some are missing."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from medprobe.probe._rows import class_weights


class Loss:
    """Summed over images and labels, so that a step may be spread over passes and processes; divided by :meth:`weight`.

    Args:
        y: Class codes (n,), or labels 0, 1 and NaN (n, L), of all rows.
        train: Rows that are learned from, by which classes are weighed.
        n_classes: Number of classes.
        balance: Weigh classes, and each label's two values, by the inverse of how often they are.

    """

    def __init__(self, y: np.ndarray, train: np.ndarray, n_classes: int, *, balance: bool = False) -> None:
        self._y = y
        self._weights = np.ones(y.shape)
        if y.ndim == 2:
            self._weights[np.isnan(y)] = 0.0
        if balance:
            columns, taught = (y[:, None], y[train][:, None]) if y.ndim == 1 else (y, y[train])
            for column, labels in enumerate(taught.T):
                of_row = class_weights(labels, "balanced", n_classes if y.ndim == 1 else 2, np.ones(len(train)))
                by_class = {code: of_row[labels == code][0] for code in np.unique(labels[~np.isnan(labels)])}
                scaled = np.array([by_class.get(code, 0.0) for code in columns[:, column]])
                self._weights[(..., column) if y.ndim == 2 else ...] = scaled

    def weight(self, rows: np.ndarray) -> float:
        """Return what the loss of these rows is to be divided by: a missing label counts nothing."""
        return float(self._weights[rows].sum())

    def __call__(self, logits: torch.Tensor, rows: np.ndarray) -> torch.Tensor:
        """Return the weighted sum of the losses of some rows, for their logits (B, K)."""
        weights = torch.as_tensor(self._weights[rows], dtype=logits.dtype, device=logits.device)
        if self._y.ndim == 1:
            codes = torch.as_tensor(self._y[rows], device=logits.device)
            return (functional.cross_entropy(logits, codes, reduction="none") * weights).sum()
        labels = torch.as_tensor(np.nan_to_num(self._y[rows]), dtype=logits.dtype, device=logits.device)
        return (functional.binary_cross_entropy_with_logits(logits, labels, reduction="none") * weights).sum()


def probabilities(logits: torch.Tensor, task: str) -> np.ndarray:
    """Return probabilities in double precision (B, K) of logits."""
    wide = logits.double()
    return (wide.sigmoid() if task == "multilabel" else wide.softmax(dim=1)).cpu().numpy()
