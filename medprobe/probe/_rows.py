"""What is computed row by row: class weights, standard deviations, linear scores, in blocks that bound the memory."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from medprobe.probe._threads import worker_threads
from medprobe.probe.targets import Floats

_BLOCK_ROWS = 512  # that stay in a core's cache in double precision


def class_weights(
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


def standard_deviation(X: Floats, weights: Floats) -> NDArray[np.float64]:
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


def linear(
    X: Floats, coef: Floats, intercept: Floats, rows: NDArray[np.integer[Any]] | None = None
) -> NDArray[np.float64]:
    """X @ coef.T + intercept of all or some rows; float64 `coef` keeps raw features with large means exact."""
    n = X.shape[0] if rows is None else len(rows)
    out = np.empty((n, coef.shape[0]))

    def score(start: int) -> None:
        part = slice(start, start + _BLOCK_ROWS)
        block = X[part] if rows is None else X[rows[part]]
        out[part] = block @ coef.T + intercept

    if n <= _BLOCK_ROWS:
        score(0)
        return out
    with worker_threads() as pool:
        list(pool.map(score, range(0, n, _BLOCK_ROWS)))
    return out
