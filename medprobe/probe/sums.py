"""Ridge answers from sums that are kept: a question that changes few rows costs these rows, not all of them."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medprobe.probe._rows import linear
from medprobe.probe._threads import worker_threads
from medprobe.probe.families import Family, Swept, family
from medprobe.probe.ridge import ALPHAS, Doubles, Moments, RidgePath, RidgeProbe, complete, indicators
from medprobe.probe.stopping import may_stop
from medprobe.probe.targets import Floats, Fold

_BLOCK_ROWS = 512
_MOST_TARGETS = 8  # of questions whose sums with the features are kept
_MOST_BYTES = 2**29


@dataclass(eq=False)
class _Known:
    """Sums over some rows, and the ridge regressions of these rows once one was asked for."""

    mask: NDArray[np.bool_]
    moments: Moments
    path: RidgePath | None = None


class RowSums:
    """Sums over sets of rows of one matrix, each found from the known set that differs from it in the fewest rows.

    They are the double-precision sums of :class:`~medprobe.probe.ridge.Moments` up to rounding. Threads may share one.

    Args:
        X: Features, (n, D).
        most: Sets that are kept, each with two matrices (D, D); by default as many as half a gigabyte holds.

    """

    def __init__(self, X: Floats, most: int | None = None) -> None:
        self.X = X
        self._most = most or max(6, _MOST_BYTES // (16 * X.shape[1] ** 2))
        self._known: list[_Known] = []
        self._crossed: list[tuple[Doubles, Doubles]] = []
        self._lock = threading.Lock()

    def moments(self, rows: NDArray[Any], T: Doubles) -> Moments:
        """Return the sums of some rows, each at most once, with their targets (len(rows), K).

        Of fewer rows than features there is nothing worth keeping.
        """
        if len(rows) < self.X.shape[1]:
            return Moments.of(self.X[rows], T)
        with self._lock:
            return self._with_targets(self._over(self._mask(rows)), rows, T)

    def path(self, rows: NDArray[Any], T: Doubles) -> RidgePath:
        """Return the ridge regressions of these rows; their decomposition does not depend on the targets and is kept."""
        if len(rows) < self.X.shape[1]:
            return RidgePath.of(self.X[rows], T)
        with self._lock:
            known = self._over(self._mask(rows))
            path = RidgePath(self._with_targets(known, rows, T), like=known.path)
            if known.path is None:
                known.path = path
            return path

    def _mask(self, rows: NDArray[Any]) -> NDArray[np.bool_]:
        mask = np.zeros(len(self.X), dtype=bool)
        mask[rows] = True
        return mask

    def _over(self, mask: NDArray[np.bool_]) -> _Known:
        nearest, fewest = None, int(np.count_nonzero(mask))
        for known in self._known:
            differ = int(np.count_nonzero(known.mask != mask))
            if differ < fewest or differ == 0:
                nearest, fewest = known, differ
        if nearest is None:
            found = _Known(mask, self._summed(mask))
        elif fewest == 0:
            self._known.remove(nearest)
            found = nearest
        else:
            gained, lost = mask & ~nearest.mask, nearest.mask & ~mask
            found = _Known(mask, nearest.moments + self._part(gained) - self._part(lost))
        self._known = [*self._known[-self._most + 1 :], found]
        return found

    def _part(self, mask: NDArray[np.bool_]) -> Moments:
        """Return the sums of what two sets differ in: many rows may be a known set themselves, or near to one."""
        if np.count_nonzero(mask) < self.X.shape[1]:
            return self._summed(mask)
        return self._over(mask).moments

    def _summed(self, mask: NDArray[np.bool_]) -> Moments:
        rows = np.flatnonzero(mask)
        return Moments.of(self.X if len(rows) == len(self.X) else self.X[rows], np.zeros((len(rows), 0)))

    def _with_targets(self, known: _Known, rows: NDArray[Any], T: Doubles) -> Moments:
        """Return sums with the targets' own: only rows count whose targets differ from those of a question before."""
        targets = np.zeros((T.shape[1], len(self.X)))  # a row that takes no part adds nothing, as one with zeros
        targets[:, rows] = T.T
        before, xt = np.zeros_like(targets), np.zeros((self.X.shape[1], T.shape[1]))
        changed = np.flatnonzero(targets.any(axis=0))
        for old, sums in self._crossed:
            if old.shape == targets.shape and len(some := np.flatnonzero((old != targets).any(axis=0))) < len(changed):
                before, xt, changed = old, sums, some

        def crossed(start: int) -> Doubles:
            part = changed[start : start + _BLOCK_ROWS]
            found: Doubles = self.X[part].astype(np.float64).T @ (targets[:, part] - before[:, part]).T
            return found

        with worker_threads() as pool:
            xt = sum(pool.map(crossed, range(0, len(changed), _BLOCK_ROWS)), xt)
        self._crossed = [*self._crossed[-_MOST_TARGETS + 1 :], (targets, xt)]
        return replace(known.moments, t=T.sum(axis=0), xt=xt)


class Gathered:
    """Some rows of a matrix, not copied: a copy of them costs as much as many an answer.

    Args:
        X: The matrix, (n, D).
        rows: Which of its rows, (m,).

    """

    def __init__(self, X: Floats, rows: NDArray[Any]) -> None:
        self.X, self.rows = X, rows
        self.shape = (len(rows), X.shape[1])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, some: NDArray[Any]) -> Gathered:
        return Gathered(self.X, self.rows[some])


class _GatheredRidge(RidgeProbe):
    """A ridge probe that scores rows where they are."""

    def decision_scores(self, X: ArrayLike | Gathered) -> Doubles:
        """Return the regression's values (m, K)."""
        if not isinstance(X, Gathered):
            return super().decision_scores(X)
        return linear(X.X, self.coef_.T, self.intercept_, X.rows)


class SummedRidge:
    """Ridge probes of some rows of views whose sums are kept; see :class:`~medprobe.probe.families.Summed`.

    Args:
        sums: Of each view, over all rows of a store.
        rows: Which of these the question counts, (n,).

    """

    def __init__(self, sums: Mapping[str, RowSums], rows: NDArray[Any]) -> None:
        self._sums, self._rows = sums, rows

    def sweep(self, view: str, rows: np.ndarray, Y: np.ndarray, folds: Sequence[Fold], n_classes: int) -> Swept:
        """Return settings and probabilities of the held-out rows, as :func:`~medprobe.probe.ridge.sweep_ridge`."""
        sums, T, of = self._sums[view], indicators(Y, n_classes), self._rows[rows]
        found: list[list[list[Doubles]]] = [[[] for _ in folds] for _ in ALPHAS]
        for column, known in complete(T):
            for i, (train, val) in enumerate(folds):
                may_stop()
                used = train[np.isin(train, known, kind="table")]
                path = sums.path(of[used], T[used][:, column])
                held_out = path.held_out(sums.X, ALPHAS, Y.ndim == 2, of[val])
                for by_fold, proba in zip(found, held_out, strict=True):
                    by_fold[i].append(proba)
        return [
            ({"alpha": alpha}, [np.concatenate(parts, axis=1) for parts in by_fold])
            for alpha, by_fold in zip(ALPHAS, found, strict=True)
        ]

    def fit(self, view: str, settings: Mapping[str, Any], rows: np.ndarray, y: np.ndarray) -> RidgeProbe:
        """Return a ridge probe of these rows, for :class:`Gathered` ones."""
        sums, of = self._sums[view], self._rows[rows]
        return _GatheredRidge(**settings).fit_sums(lambda known, T: sums.moments(of[known], T), y, len(of))


def summed_ridge(sums: Mapping[str, RowSums], rows: NDArray[Any]) -> Family:
    """Return the family ``ridge`` for a question about some rows of a store: see :class:`SummedRidge`."""
    return replace(family("ridge"), summed=SummedRidge(sums, rows))
