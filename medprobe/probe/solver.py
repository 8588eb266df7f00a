"""Many L2-penalised logistic regressions over one feature matrix, solved together.

All values of C, folds and labels are columns of the same two matrix products an iteration. Coefficients are sought
in the eigenvectors of the feature covariance, where the ridge term stays diagonal and the Hessian has a simple model
(`medprobe.probe._curvature`), which preconditions L-BFGS (Nocedal and Wright, Numerical Optimization, 2006, algorithm
7.4). Few rows are held in these coordinates themselves, no more than there are rows, and their values of C are gone
through in turn (`medprobe.probe._continuation`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import helmert

from medprobe.probe._continuation import Path, batches
from medprobe.probe._curvature import CurvatureModel
from medprobe.probe._lbfgs import minimise
from medprobe.probe._passes import Floats, LossPasses, OrderedRows, centre_and_scale
from medprobe.probe._threads import worker_threads

# L-BFGS keeps some 30 float64 arrays of a batch's coefficients: this many of them make 0.5 GB.
_BATCH_COEFFICIENTS = 2**21
_GRAM_ROWS = 4096
_ROWS_A_FEATURE = 32
# Fewer rows than features are few, and so are fewer than this many a feature, if turning them once is cheaper than
# turning the coefficients of so many columns at every pass.
_FEW_A_FEATURE, _FEW_A_COLUMN = 4, 16
# Log odds given to a class without a training row, whose best intercept is minus infinity.
_ABSENT = -30.0
# Features with means below this are not centred: it would gain nothing and cost a copy.
_CENTRED = 0.05


@dataclass(frozen=True)
class Spectrum:
    """Mean (D,), covariance eigenvalues (r,) and orthonormal eigenvectors (D, r) of features; all float64.

    It only has to be near the spectrum of the rows that are fitted: solutions do not depend on it, iterations do. If
    r < D, those rows less the mean must lie in the span of the eigenvectors.
    """

    mean: NDArray[np.float64]
    eigenvalues: NDArray[np.float64]
    eigenvectors: NDArray[np.float64]

    @classmethod
    def of(
        cls,
        X: Floats,
        rows: NDArray[np.intp] | None = None,
        scale: Floats | None = None,
        dtype: str = "float32",
    ) -> Spectrum:
        """Spectrum of X (n, D), or of some of its rows, with columns divided by `scale` (D,); r = min(rows, D).

        From many rows, evenly spaced ones are taken, at least 32 a feature: that settles the eigenvalues to a fifth.
        Products of blocks are taken in `dtype` and summed in float64.
        """
        D = X.shape[1]
        index = np.arange(X.shape[0]) if rows is None else rows
        index = index[:: max(1, index.size // (_ROWS_A_FEATURE * D))]
        n = index.size
        unit = np.ones(D) if scale is None else scale
        blocks = [index[start : start + _GRAM_ROWS] for start in range(0, n, _GRAM_ROWS)]
        with worker_threads() as pool:
            mean = sum(pool.map(lambda rows: X[rows].sum(axis=0, dtype=np.float64), blocks), np.zeros(D)) / n
            if n >= D:

                def gram(rows: NDArray[np.intp]) -> Floats:
                    block = centre_and_scale(X[rows], mean, unit).astype(dtype, copy=False)
                    product: Floats = block.T @ block
                    return product

                eigenvalues, eigenvectors = np.linalg.eigh(sum(pool.map(gram, blocks), np.zeros((D, D))) / n)
                return cls(mean / unit, np.maximum(eigenvalues, 0), eigenvectors)
            _, singular, Vt = np.linalg.svd((X[index].astype(np.float64) - mean) / unit, full_matrices=False)
            return cls(mean / unit, singular**2 / n, np.ascontiguousarray(Vt.T))


@dataclass(frozen=True)
class PathSolution:
    """Solutions for F folds and all values of C; arrays are (F, n_C, ...).

    `coef` (F, n_C, columns, D) and `intercept` (F, n_C, columns): one column for two classes, n_classes for more,
    one a label for multi-label targets. `objective`, `grad_norm` (2-norm, over coefficients and intercepts),
    `n_iter` (passes over the rows) and `converged` are (F, n_C), for multi-label targets (F, n_C, L).
    """

    coef: NDArray[np.float64]
    intercept: NDArray[np.float64]
    objective: NDArray[np.float64]
    grad_norm: NDArray[np.float64]
    n_iter: NDArray[np.intp]
    converged: NDArray[np.bool_]

    @classmethod
    def joined(cls, parts: Sequence[PathSolution]) -> PathSolution:
        """Solutions of several folds as one."""
        return cls(**{of.name: np.concatenate([getattr(part, of.name) for part in parts]) for of in fields(cls)})


def solve_path(
    X: Floats,
    Y: NDArray[Any],
    Cs: Sequence[float] | NDArray[np.floating[Any]],
    *,
    n_classes: int | None = None,
    sample_weight: ArrayLike | None = None,
    scales: Floats | None = None,
    spectrum: Spectrum | None = None,
    dtype: str = "float32",
    tol: float = 1e-6,
    max_iter: int = 500,
) -> PathSolution:
    """Minimisers of C * sum_i s_i * loss_i + ||w||^2 / 2, intercept unpenalised, for every C and every fold.

    X is (n, D). Y is (n,) class codes below `n_classes` (default: the largest plus one; two classes are one logit,
    more a softmax), or (n, L) of 0, 1 and NaN: L independent labels, NaN rows left out. `sample_weight` is (n,), or
    (F, n) with one row a fold, or (F, L, n). `scales` (F, D) standardises per fold: fold f is fitted on X / scales[f],
    and the coefficients returned are those of X. `spectrum` is that of X / scales[0] or of similar rows, and saves
    its time (but for several scales of fewer rows than features). `dtype` is that of the passes over rows. A problem
    has converged when the estimated distance of its objective to the minimum is below `tol` times the smaller of the
    objective and its decrease from the constant model, and the gradient norm below sqrt(tol) times that of the constant
    model.

    Raises ValueError when all weights are zero or a class code is not below `n_classes`.
    """
    penalty = np.asarray(Cs, dtype=np.float64)
    n_labels = 1 if Y.ndim == 1 else Y.shape[1]
    weights = _unit_weights(Y, sample_weight)
    if Y.ndim == 2:
        n_classes, Y = 2, np.nan_to_num(Y)
    elif n_classes is None:
        n_classes = int(Y.max()) + 1
    if Y.min() < 0 or Y.max() >= n_classes:
        raise ValueError(f"Targets must lie in 0..{n_classes - 1}; got {Y.min()} to {Y.max()}.")
    counted = np.flatnonzero(weights.any(axis=0))
    if counted.size == 0:
        raise ValueError("Every row has weight zero: there is nothing to fit.")
    if scales is not None and len(scales) > 1 and counted.size < X.shape[1]:
        # Fewer eigenvectors than features span the rows of one scale only.
        solve = partial(solve_path, X, Y, Cs, n_classes=n_classes, dtype=dtype, tol=tol, max_iter=max_iter)
        by_fold = zip(weights.reshape(len(scales), n_labels, -1), scales, strict=True)
        return PathSolution.joined(
            [solve(sample_weight=own if Y.ndim == 1 else own[None], scales=scale[None]) for own, scale in by_fold]
        )
    scale = np.ones(X.shape[1]) if scales is None else scales[0]
    if spectrum is None:
        spectrum = Spectrum.of(X, counted, scale, dtype)
    center = (spectrum.mean * scale).astype(X.dtype)
    if scales is None and np.abs(center).max(initial=0) < _CENTRED:
        center = np.zeros_like(center)
    shape = (weights.shape[0] // n_labels, penalty.size, n_labels)
    fold, which_C, label = (index.ravel() for index in np.indices(shape))
    unit = fold * n_labels + label
    describe = _describe_softmax if n_classes > 2 else _describe_binary
    units = describe(Y, weights, n_classes if n_classes > 2 else n_labels)
    n_out, k = units.reported.shape
    coef, intercept = np.empty((unit.size, n_out, X.shape[1])), np.empty((unit.size, n_out))
    objective, grad_norm = np.empty(unit.size), np.empty(unit.size)
    n_iter, converged = np.empty(unit.size, dtype=np.intp), np.empty(unit.size, dtype=bool)
    ratio = None if scales is None or len(scales) == 1 else scales / scale
    D = X.shape[1]
    few = counted.size < max(D, min(_FEW_A_FEATURE * D, _FEW_A_COLUMN * k * unit.size))
    # A problem that begins close to its end is judged by a young model, and one more digit of few rows is cheap.
    near = tol / 10 if few and penalty.size > 1 else tol
    rotation = spectrum.eigenvectors if few and ratio is None else None
    batch_size = max(1, _BATCH_COEFFICIENTS // (k * (spectrum.eigenvalues.size + 1)))
    with worker_threads() as pool:
        rows = OrderedRows(X, Y, weights, n_classes, center, scale, rotation, np.dtype(dtype), pool)
        passes = LossPasses(rows, pool)
        for parts in batches(shape, penalty, batch_size, in_turn=few):
            path = Path()
            for part in parts:
                C = penalty[which_C[part]]
                part_ratio = None if ratio is None else ratio[fold[part]]
                problems = _Problems(passes, spectrum, units, unit[part], C, part_ratio, rotated=rotation is not None)
                found = minimise(problems, guess=path.guess(C[0]), tol=near, max_iter=max_iter)
                path.add(C[0], found.x)
                coef[part], intercept[part] = problems.coefficients(found.x)
                objective[part], grad_norm[part] = found.f, found.grad_norm
                n_iter[part], converged[part] = found.n_iter, found.converged
    coef /= scale
    intercept -= coef @ center
    by_problem = shape if Y.ndim == 2 else shape[:2]
    return PathSolution(
        coef.reshape(*shape[:2], -1, X.shape[1]),
        intercept.reshape(*shape[:2], -1),
        *(array.reshape(by_problem) for array in (objective, grad_norm, n_iter, converged)),
    )


def _unit_weights(Y: NDArray[Any], sample_weight: ArrayLike | None) -> Floats:
    """Weights (U, n) of each (fold, label) pair, zero where the label is missing."""
    n = Y.shape[0]
    weights = np.ones((1, n)) if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
    if weights.shape[-1] != n:
        raise ValueError(f"sample_weight has {weights.shape[-1]} columns, Y has {n} rows.")
    if Y.ndim == 1:
        return weights.reshape(-1, n)
    if weights.ndim < 3:
        weights = weights.reshape(-1, 1, n)
    masked: Floats = weights * ~np.isnan(Y.T)
    return masked.reshape(-1, n)


@dataclass(frozen=True)
class _Units:
    """What a (fold, label) pair fixes for its problems: U units of k logits, for K classes.

    `hessian` (U, k, k) is that of the loss in the intercepts at the class frequencies; `start` (U, k) are the
    intercepts of the constant model. All units share the coordinates of the logits: `contrasts` (K, k) turns them into
    one score a class, `coded` (k, k) into the columns of the passes, `reported` (n_out, k) into those of the solution.
    """

    contrasts: Floats
    coded: Floats
    reported: Floats
    hessian: Floats
    start: Floats


def _describe_softmax(Y: NDArray[Any], weights: Floats, n_classes: int) -> _Units:
    counts = np.stack([np.bincount(Y, row, n_classes) for row in weights])
    total = counts.sum(axis=1, keepdims=True)
    share = counts / np.where(total > 0, total, 1)
    log_share = np.log(share, out=np.full_like(share, _ABSENT), where=share > 0)
    contrasts = helmert(n_classes).T
    spread = counts[:, :, None] * np.eye(n_classes) - counts[:, :, None] * share[:, None, :]
    hessian = contrasts.T @ spread @ contrasts
    return _Units(contrasts, contrasts[1:] - contrasts[0], contrasts, hessian, log_share @ contrasts)


def _describe_binary(Y: NDArray[Any], weights: Floats, n_labels: int) -> _Units:
    labels = np.tile((Y.reshape(Y.shape[0], -1) > 0).T, (weights.shape[0] // n_labels, 1))
    total = weights.sum(axis=1)
    positive = (weights * labels).sum(axis=1)
    share = np.divide(positive, total, out=np.full_like(total, 0.5), where=total > 0)
    with np.errstate(divide="ignore"):
        start = np.clip(np.log(share) - np.log1p(-share), _ABSENT, -_ABSENT)
    hessian = (total * share * (1 - share))[:, None, None]
    return _Units(np.array([[0.0], [1.0]]), np.eye(1), np.eye(1), hessian, start[:, None])


class _Problems:
    """A batch of problems in the coordinates of eigenvectors (r, then the intercept) and of class contrasts (k).

    Variables of one problem are (k, r + 1), flattened; `scale` (P, D) divides its features. Rows that are `rotated` are
    in these coordinates, too. Implements `medprobe.probe._lbfgs.Batch`.
    """

    def __init__(
        self,
        passes: LossPasses,
        spectrum: Spectrum,
        units: _Units,
        unit: NDArray[np.intp],
        penalty: NDArray[np.float64],
        scale: Floats | None,
        *,
        rotated: bool,
    ) -> None:
        self._passes = passes
        self._vectors = spectrum.eigenvectors
        self._rotated = rotated
        self._units = units
        self._unit = unit
        self._C = penalty
        self._scale = scale
        variance = np.append(spectrum.eigenvalues, 1.0)
        self._ridge = np.append(np.ones_like(spectrum.eigenvalues), 0.0)
        self._shape = (units.coded.shape[1], variance.size)
        self._model = CurvatureModel(variance, self._ridge, penalty[:, None, None] * units.hessian[unit])
        self.noise = float(np.finfo(passes.dtype).eps)

    def start(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """The constant models: points, objectives and gradients. A unit is evaluated once for all its C."""
        theta = np.zeros((self._unit.size, *self._shape))
        theta[:, :, -1] = self._units.start[self._unit]
        _, first, inverse = np.unique(self._unit, return_index=True, return_inverse=True)
        loss, gradient = self._loss(theta[first], first)
        gradient = gradient.reshape(first.size, -1)
        return theta.reshape(self._unit.size, -1), self._C * loss[inverse], self._C[:, None] * gradient[inverse]

    def evaluate(
        self, x: NDArray[np.float64], problems: NDArray[np.intp]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Objectives and gradients at x of the given problems."""
        theta = x.reshape(-1, *self._shape)
        loss, gradient = self._loss(theta, problems)
        C = self._C[problems]
        penalised = theta * self._ridge
        f = C * loss + 0.5 * np.einsum("akm,akm->a", penalised, theta)
        return f, (C[:, None, None] * gradient + penalised).reshape(x.shape)

    def precondition(self, g: NDArray[np.float64], problems: NDArray[np.intp]) -> NDArray[np.float64]:
        """Inverse Hessian models times g."""
        return np.asarray(self._model.solve(problems, g.reshape(-1, *self._shape)).reshape(g.shape))

    def refresh(self, x: NDArray[np.float64], problems: NDArray[np.intp]) -> None:
        """Adapt the Hessian models to x, by the sampled rows."""
        theta = x.reshape(-1, *self._shape)
        units = self._unit[problems]
        moments = self._passes.moments(self._weights(theta, problems), theta[:, :, -1], self._units.contrasts, units)
        self._model.refresh(problems, theta, self._C[problems, None, None, None, None] * moments)

    def coefficients(self, x: NDArray[np.float64]) -> tuple[Floats, Floats]:
        """Coefficients (P, n_out, D) of the centred features and intercepts (P, n_out)."""
        theta = x.reshape(-1, *self._shape)
        every = np.arange(self._unit.size)
        reported = self._units.reported
        W = self._weights(theta, every)
        if self._rotated:
            W = _rotate(W, self._vectors.T)
        return reported @ W, theta[:, :, -1] @ reported.T

    def _weights(self, theta: Floats, problems: NDArray[np.intp]) -> Floats:
        """Weights (a, k, columns of the rows) in the passes, one set a contrast."""
        if self._rotated:
            return theta[:, :, :-1]
        W = _rotate(theta[:, :, :-1], self._vectors.T)
        if self._scale is not None:
            W /= self._scale[problems, None, :]
        return W

    def _loss(self, theta: Floats, problems: NDArray[np.intp]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Losses (a,) without C and ridge, and their gradients (a, k, r + 1)."""
        coded = self._units.coded
        W = coded @ self._weights(theta, problems)
        loss, G, gb = self._passes(W.swapaxes(0, 1), coded @ theta[:, :, -1].T, self._unit[problems])
        G = coded.T @ G.swapaxes(0, 1)
        if self._scale is not None:
            G /= self._scale[problems, None, :]
        turned = G if self._rotated else _rotate(G, self._vectors)
        gradient = np.concatenate([turned, (coded.T @ gb).T[:, :, None]], axis=2)
        return loss, gradient


def _rotate(a: Floats, matrix: Floats) -> Floats:
    """Product of a (P, k, D) with a matrix, as one instead of P thin ones."""
    flat = a.reshape(-1, a.shape[-1]) @ matrix
    return flat.reshape(*a.shape[:-1], -1)
