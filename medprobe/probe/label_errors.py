"""Which labels are likely to be wrong, by confident learning: what a probe that has not seen an image says against its own."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

COLUMNS = ("row", "given", "suggested", "confidence")


def likely_label_errors(probabilities: ArrayLike, labels: ArrayLike, groups: ArrayLike | None = None) -> pd.DataFrame:
    """Return the rows whose label is likely to be wrong, the surest first.

    Confident learning (Northcutt, Jiang and Chuang, Journal of Artificial Intelligence Research 2021;70:1373-1411): a class's
    threshold is the mean probability of that class over the rows that are labelled so (their mean self-confidence). Among
    the classes whose thresholds a row reaches, the one with the largest probability is suggested; a row for which that is not
    its label is off the diagonal of the confident joint, and likely wrong. Rows are ranked by the normalised margin: the
    probability of the given class minus the largest of the others. The list is rather right than complete: an image that is
    less typical of its true class than the average of that class does not reach the threshold.

    Args:
        probabilities: Of the classes, (n, K), each row by a model that has not learned from it, nor from its patient.
        labels: Class codes 0..K-1, (n,).
        groups: Patients (n,): each then weighs the same in the thresholds, however many images it has. ``None`` is the
            paper's formula.

    Returns:
        ``row`` (place in the input), ``given`` and ``suggested`` (class codes), and ``confidence`` that the label is wrong:
        half of one minus the normalised margin, so that 1 is a row whose label has probability 0 and another class 1.

    Raises:
        ValueError: Shapes that do not agree, codes that are none, or probabilities that are not finite.

    """
    P = np.asarray(probabilities, dtype=np.float64)
    y = np.asarray(labels)
    if P.ndim != 2 or y.shape != (len(P),):
        raise ValueError(f"probabilities of shape {P.shape} and labels of shape {y.shape}: they are (n, K) and (n,)")
    if not np.isfinite(P).all():
        raise ValueError("probabilities hold NaN or infinity")
    codes = y.astype(np.int64)
    if not (codes == y).all() or (len(y) and not (codes.min() >= 0 and codes.max() < P.shape[1])):
        raise ValueError(f"labels are codes from 0 to {P.shape[1] - 1}")
    weights = _weights(codes, groups)
    thresholds = np.full(P.shape[1], np.inf)  # nothing can be said for a class that no row is labelled as
    for k in np.unique(codes):
        thresholds[k] = np.average(P[codes == k, k], weights=weights[codes == k])
    reached = np.where(thresholds <= P, P, -np.inf)
    suggested = reached.argmax(axis=1) if P.size else codes
    rows = np.flatnonzero((suggested != codes) & np.isfinite(reached).any(axis=1))
    own = P[rows, codes[rows]]
    others = P[rows].copy()
    others[np.arange(len(rows)), codes[rows]] = -np.inf
    confidence = (1 + others.max(axis=1, initial=-np.inf) - own) / 2
    order = np.argsort(-confidence, kind="stable")
    found = (rows[order], codes[rows][order], suggested[rows][order], confidence[order])
    return pd.DataFrame(dict(zip(COLUMNS, found, strict=True)))


def _weights(codes: NDArray[np.int64], groups: ArrayLike | None) -> NDArray[np.float64]:
    """Return weights (n,) by which the rows of a class add up to the same for each of its groups."""
    if groups is None:
        return np.ones(len(codes))
    of = np.asarray(groups)
    if of.shape != codes.shape:
        raise ValueError(f"{len(codes)} labels and groups of shape {of.shape}")
    group = np.unique(of, return_inverse=True)[1]
    _, pair, often = np.unique(np.column_stack([codes, group]), axis=0, return_inverse=True, return_counts=True)
    weights: NDArray[np.float64] = 1.0 / often[pair.reshape(-1)]
    return weights
