"""One pass over the rows of a feature matrix: loss and gradient of many logistic problems at once.

Problems share the features and differ in penalty, in the weight they give each row (a fold is a 0/1 weight) and, with
several labels, in their targets. Each block of rows is read once for both matrix products. Rows that carry weight for
the same folds lie together, so a product leaves out the folds to which its rows do not belong; within them rows are
sorted by class, so that a multinomial loss is formed from the margins to the true class, one run of rows at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medprobe.probe._curvature import class_moments
from medprobe.probe.spool import scratch
from medprobe.probe.stopping import may_stop

Floats = NDArray[np.floating[Any]]

# Above this margin exp() is close to overflowing in float32, and the sums are formed relative to the largest margin.
_LARGEST_MARGIN = 80.0
_COPY_ROWS = 4096
# Rows of a thread's share of a pass, at least.
_RUN_ROWS = 2048
# OpenBLAS multiplies without packing below this many multiplications, up to three times faster when thin.
_SMALL_PRODUCT = 10**6
_THIN_COLUMNS = 4
# Rows from which curvature is estimated.
_SAMPLE_ROWS = 2048


@dataclass(frozen=True)
class _Group:
    """Consecutive rows that count for the same units."""

    start: int
    stop: int
    units: NDArray[np.bool_]
    weighted: bool


class OrderedRows:
    """The rows that count for any unit: centred, scaled, grouped by the folds they count for and sorted by class.

    With `rotation` (D, r) they are held in the coordinates of its orthonormal columns.

    A unit is one (fold, label) pair: a row of `weights` (U, n); unit u has label u % L. Y holds class codes (n,) below
    `n_classes`, or multi-label 0 and 1 (n, L).
    """

    def __init__(
        self,
        X: Floats,
        Y: NDArray[Any],
        weights: Floats,
        n_classes: int,
        center: Floats,
        scale: Floats,
        rotation: Floats | None,
        dtype: np.dtype[Any],
        pool: ThreadPoolExecutor,
    ) -> None:
        self.n_classes = n_classes
        self.n_labels = 1 if Y.ndim == 1 else Y.shape[1]
        order, self.groups = _order_rows(Y if n_classes > 2 else None, weights, self.n_labels)
        self.X = _ordered_copy(X, order, center, scale, rotation, dtype, pool)
        self.weights = weights[:, order].astype(dtype)
        self.labels = Y[order].reshape(order.size, self.n_labels).T
        self.sample = np.arange(0, order.size, max(1, order.size // _SAMPLE_ROWS))


class LossPasses:
    """Weighted logistic losses of problems over the same rows, with their gradients.

    With more than two classes the loss is the multinomial one with logits relative to class 0, n_classes - 1 columns
    (k) a problem; otherwise it is the binary one, one column.
    """

    def __init__(self, rows: OrderedRows, pool: ThreadPoolExecutor) -> None:
        # A short run takes less time than handing it to a thread.
        self._threads: int = pool._max_workers if len(rows.X) >= _RUN_ROWS else 1
        self._map: Callable[..., Iterable[Any]] = map if self._threads == 1 else pool.map
        self._X, self._weights, self._groups = rows.X, rows.weights, rows.groups
        self._n_labels = rows.n_labels
        self._sample, self._sample_weights = rows.X[rows.sample], rows.weights[:, rows.sample].astype(np.float64)
        totals, sampled = rows.weights.sum(axis=1, dtype=np.float64), self._sample_weights.sum(axis=1)
        factor = np.divide(totals, sampled, out=np.ones_like(totals), where=sampled > 0)
        self._sample_weights = (self._sample_weights * factor[:, None]).astype(rows.X.dtype)
        self.dtype: np.dtype[Any] = rows.X.dtype
        self.n_columns = max(rows.n_classes - 1, 1)
        self._softmax = rows.n_classes > 2
        if self._softmax:
            self._codes = rows.labels[0]
            self._bounds = np.flatnonzero(np.diff(self._codes)) + 1
        else:
            self._signs = np.where(rows.labels > 0, -1, 1).astype(self.dtype)

    def __call__(
        self, W: Floats, b: Floats, units: NDArray[np.intp]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Loss (A,) of A problems and its gradients in W (k, A, D) and b (k, A).

        Problem a weighs rows as unit `units[a]`.
        """
        may_stop()
        k, n_problems, D = W.shape
        loss = np.zeros(n_problems)
        G = np.zeros((k, n_problems, D))
        gb = np.zeros((k, n_problems))
        parts, runs = [], []
        for group in self._groups:
            active = np.flatnonzero(group.units[units])
            if active.size == 0:
                continue
            Wg = np.ascontiguousarray(W[:, active].reshape(-1, D), dtype=self._X.dtype)
            bg = b[:, active].reshape(-1, 1).astype(self._X.dtype)
            for start, stop in self._runs(group):
                parts.append(active)
                runs.append((group, start, stop, Wg, bg, units[active]))
        found = self._map(lambda run: self._run(*run), runs)
        for active, (run_loss, run_G, run_gb) in zip(parts, found, strict=True):
            loss[active] += run_loss
            G[:, active] += run_G.reshape(k, -1, D)
            gb[:, active] += run_gb.reshape(k, -1)
        return loss, G, gb

    def moments(self, W: Floats, b: Floats, contrasts: Floats, units: NDArray[np.intp]) -> Floats:
        """`class_moments` of A problems, estimated from a sample of rows; W (A, k, D), b (A, k) in contrasts (K, k)."""
        k = W.shape[1]
        contrasts, intercepts = contrasts.astype(self.dtype), b.astype(self.dtype)

        def of_problems(part: NDArray[np.intp]) -> list[Floats]:
            logits = W[part].reshape(-1, W.shape[2]).astype(self.dtype) @ self._sample.T
            logits += intercepts[part].reshape(-1, 1)
            weights = self._sample_weights[units[part]]
            each = zip(logits.reshape(part.size, k, -1), intercepts[part], weights, strict=True)
            return [class_moments(own, intercept, contrasts, weight) for own, intercept, weight in each]

        parts = np.array_split(np.arange(len(W)), min(len(W), 2 * self._threads))
        return np.array([moments for job in self._map(of_problems, parts) for moments in job], dtype=np.float64)

    def _runs(self, group: _Group) -> Iterator[tuple[int, int]]:
        """Stretches of a group's rows of about the same length, some for every thread."""
        n_rows = group.stop - group.start
        count = max(1, min(4 * self._threads, n_rows // _RUN_ROWS))
        edges = np.linspace(group.start, group.stop, count + 1).astype(int)
        return zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)

    def _run(
        self, group: _Group, start: int, stop: int, W: Floats, b: Floats, units: NDArray[np.intp]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Loss, gradient in W and in b of rows start..stop, summed over blocks in float64."""
        loss = np.zeros(units.size)
        G = np.zeros(W.shape)
        gb = np.zeros(W.shape[0])
        block_rows = _block_rows(*W.shape)
        margins = self._multinomial if self._softmax else self._binary
        for first in range(start, stop, block_rows):
            rows = slice(first, min(first + block_rows, stop))
            X = self._X[rows]
            T = W @ X.T
            T += b
            weight = self._weights[units, rows] if group.weighted else None
            loss += margins(T.reshape(self.n_columns, units.size, -1), rows, units, weight)
            G += T @ X
            gb += T.sum(axis=1)
        return loss, G, gb

    def _binary(self, T: Floats, rows: slice, units: NDArray[np.intp], weight: Floats | None) -> Floats:
        """Losses (A,) of one block; T (1, A, rows) goes from logits to derivatives of the loss, in place."""
        signs = self._signs[:, rows]
        if self._n_labels > 1:
            signs = signs[units % self._n_labels]
        T = T[0]
        T *= signs
        if T.max() > _LARGEST_MARGIN:
            losses = np.logaddexp(T, T.dtype.type(0))
            np.negative(T, out=T)
            np.minimum(T, _LARGEST_MARGIN, out=T)
            np.exp(T, out=T)
            T += 1
            np.reciprocal(T, out=T)
        else:
            np.exp(T, out=T)
            losses = np.log1p(T)
            T /= T + 1
        T *= signs
        if weight is not None:
            losses *= weight
            T *= weight
        total: Floats = losses.sum(axis=1)
        return total

    def _multinomial(self, T: Floats, rows: slice, units: NDArray[np.intp], weight: Floats | None) -> Floats:
        """Losses (A,) of one block; T (k, A, rows) goes from logits (class 0 has 0) to derivatives, in place.

        A row of class y > 0 keeps the margin of class 0 in y's place: the k margins to the true class are then all
        there, and no target has to be looked up again.
        """
        first, last = np.searchsorted(self._bounds, [rows.start, rows.stop], side="right")
        edges = [rows.start, *self._bounds[first:last].tolist(), rows.stop]
        segments = [
            (slice(a - rows.start, b - rows.start), int(self._codes[a]) - 1)
            for a, b in pairwise(edges)
            if b > a and self._codes[a] > 0
        ]
        for part, y in segments:
            logit = T[y, :, part].copy()
            T[:, :, part] -= logit
            np.negative(logit, out=T[y, :, part])
        if T.max() > _LARGEST_MARGIN:
            shift = np.maximum(T.max(axis=0), 0)
            T -= shift
            np.exp(T, out=T)
            others = T.sum(axis=0)
            total = others + np.exp(-shift)
            losses = shift + np.log(total)
        else:
            np.exp(T, out=T)
            others = T.sum(axis=0)
            losses = np.log1p(others)
            total = others + 1
        np.reciprocal(total, out=total)
        T *= total
        others *= total
        for part, y in segments:
            np.negative(others[:, part], out=T[y, :, part])
        if weight is not None:
            losses *= weight
            T *= weight
        summed: Floats = losses.sum(axis=1)
        return summed


def _block_rows(n_columns: int, D: int) -> int:
    """Rows of a block: what keeps logits in the cache, and thin products small enough for BLAS's own small kernels."""
    if n_columns <= _THIN_COLUMNS:
        return int(np.clip(_SMALL_PRODUCT // (n_columns * D), 64, 1024))
    return int(np.clip(2**18 // n_columns, 64, 1024))


def _order_rows(codes: NDArray[Any] | None, weights: Floats, n_labels: int) -> tuple[NDArray[np.intp], list[_Group]]:
    """The rows that count for any unit, grouped by the folds they count for and sorted by code, with their groups."""
    n = weights.shape[1]
    in_fold = (weights.reshape(-1, n_labels, n) != 0).any(axis=1)
    rows = np.flatnonzero(in_fold.any(axis=0))
    packed = np.packbits(in_fold[:, rows], axis=0)
    _, pattern = np.unique(packed, axis=1, return_inverse=True)
    pattern = pattern.ravel()
    if rows.size < 256 * (pattern.max() + 1):
        # Small groups make thin products: let every fold see all rows, with weight zero where it must not count them.
        pattern = np.zeros(rows.size, dtype=np.intp)
    keys = (pattern,) if codes is None else (codes[rows], pattern)
    by_group = np.lexsort(keys)
    rows, pattern = rows[by_group], pattern[by_group]
    edges = [0, *(np.flatnonzero(np.diff(pattern)) + 1).tolist(), rows.size]
    groups = []
    for start, stop in pairwise(edges):
        counted = in_fold[:, rows[start:stop]].any(axis=1).repeat(n_labels)
        weighted = bool((weights[np.ix_(counted, rows[start:stop])] != 1).any())
        groups.append(_Group(start, stop, counted, weighted))
    return rows, groups


def centre_and_scale(block: Floats, center: Floats, scale: Floats) -> Floats:
    """(block - center) / scale, in the block's own dtype."""
    out: Floats = block - center.astype(block.dtype)
    out /= scale.astype(block.dtype)
    return out


def _ordered_copy(
    X: Floats,
    order: NDArray[np.intp],
    center: Floats,
    scale: Floats,
    rotation: Floats | None,
    dtype: np.dtype[Any],
    pool: ThreadPoolExecutor,
) -> Floats:
    """Rows `order` of X, centred, scaled and rotated, in `dtype`; X itself where that changes nothing."""
    whole = order.size == X.shape[0] and bool((order == np.arange(order.size)).all())
    as_is = not center.any() and bool((scale == 1).all())
    if whole and as_is and rotation is None and dtype == X.dtype and X.flags.c_contiguous:
        return X
    make = scratch if isinstance(X, np.memmap) else np.empty
    out: Floats = make((order.size, X.shape[1] if rotation is None else rotation.shape[1]), dtype)

    def copy(start: int) -> None:
        rows = slice(start, start + _COPY_ROWS)
        block = X[order[rows]]
        if not as_is:
            block = centre_and_scale(block, center, scale)
        out[rows] = block if rotation is None else block.astype(np.float64) @ rotation

    list(pool.map(copy, range(0, order.size, _COPY_ROWS)))
    return out
