"""What every probe is given: features, folds, and targets as class codes or labels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_array, column_or_1d

Floats = NDArray[np.floating[Any]]
Codes = NDArray[np.int64]
Fold = tuple[NDArray[np.integer[Any]], NDArray[np.integer[Any]]]


def encode_targets(y: ArrayLike, n: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the classes and the codes (n,) of a class target, or column numbers and float labels (n, L).

    Args:
        y: Classes (n,), or labels 0, 1 or NaN (n, L); a single column is read as classes.
        n: Rows that the target must have.

    Raises:
        ValueError: Another number of rows, or a target of another kind.

    """
    if y is None:
        raise ValueError("requires y to be passed, but the target y is None")
    target: NDArray[Any] = check_array(y, ensure_2d=False, dtype=None, ensure_all_finite=False)
    if len(target) != n:
        raise ValueError(f"X has {n} rows, y has {len(target)}")
    if target.ndim == 2 and target.shape[1] > 1:
        labels = target.astype(np.float64)
        if not np.isin(labels[~np.isnan(labels)], (0, 1)).all():
            raise ValueError("multi-label targets must be 0, 1 or NaN (missing)")
        return np.arange(labels.shape[1]), labels
    target = column_or_1d(target, warn=True)
    check_classification_targets(target)
    classes, codes = np.unique(target, return_inverse=True)
    return classes, codes.astype(np.int64)


def hold_out(
    Y: NDArray[Any], groups: ArrayLike | None, fraction: float, random: np.random.RandomState
) -> NDArray[np.bool_]:
    """Return which rows to hold out, (n,): a fraction of the groups, spread over the classes of their first rows.

    Every class keeps a row to train on; none is held out where that leaves nothing to hold out.

    Args:
        Y: Class codes (n,), or labels (n, L), whose groups are drawn without regard to them.
        groups: Groups of the rows (n,): all rows of one are held out, or none. ``None`` is every row by itself.
        fraction: Part of the groups to hold out.
        random: Source of random numbers.

    """
    codes = Y if Y.ndim == 1 else np.zeros(len(Y), np.int64)
    _, first, group = np.unique(
        np.arange(len(Y)) if groups is None else np.asarray(groups), return_index=True, return_inverse=True
    )
    order = random.permutation(len(first))
    order = order[np.argsort(codes[first[order]], kind="stable")]
    picked = np.diff(np.floor(np.arange(len(first) + 1) * fraction + random.uniform())) > 0
    held_out: NDArray[np.bool_] = np.isin(group, order[picked])
    lost = ~np.isin(codes, codes[~held_out])
    return held_out & ~np.isin(group, group[lost])
