"""L-BFGS for a batch of independent convex problems that are evaluated together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]

_MEMORY = 12
_SUFFICIENT_DECREASE = 1e-4
_SHORTEST_STEP = 1e-7
_USUAL_FALL, _COLLAPSE = 0.8, 20.0


class Batch(Protocol):
    """P problems over M variables each: a convex loss plus half the squared norm of the variables in `ridge` (M,).

    `curvature` (P, blocks, M / blocks) estimates the diagonal of the loss's Hessian at the start; `noise` is the
    relative rounding error of objectives.
    """

    noise: float
    ridge: NDArray[np.bool_]
    curvature: Floats

    def start(self) -> tuple[Floats, Floats, Floats]:
        """Starting points (P, M), their objectives (P,) and gradients (P, M)."""

    def evaluate(self, x: Floats, problems: Indices) -> tuple[Floats, Floats]:
        """Objectives (a,) and gradients (a, M) at x (a, M) of the given problems."""


@dataclass(frozen=True)
class Found:
    """Where each problem ended: x (P, M) and (P,) objective, gradient norm, evaluations, and whether it converged."""

    x: Floats
    f: Floats
    grad_norm: Floats
    n_iter: Indices
    converged: NDArray[np.bool_]


def _dot(a: Floats, b: Floats) -> Floats:
    products: Floats = np.einsum("am,am->a", a, b)
    return products


def _shortening(f: Floats, f_trial: Floats, slope: Floats, slope_trial: Floats) -> Floats:
    """Where in 0.05..0.7 of a step the cubic through both ends' values and slopes has its minimum."""
    with np.errstate(all="ignore"):
        middle = slope + slope_trial - 3 * (f_trial - f)
        root = np.sqrt(np.maximum(middle**2 - slope * slope_trial, 0))
        minimum = 1 - (slope_trial + root - middle) / (slope_trial - slope + 2 * root)
    clipped: Floats = np.clip(np.nan_to_num(minimum, nan=0.1), 0.05, 0.7)
    return clipped


class _Memory:
    """The last steps and gradient changes of the active problems, and the diagonal Hessian they start from.

    The diagonal is ridge + factor * curvature, with a factor for each problem and block of variables that follows the
    loss's curvature away from the starting point and leaves the known ridge part alone. Each step measures it only
    along itself, where it tends to be lowest, so it falls by no more than a fifth at a time, unless it is off by so
    much that the classes must be separating.
    """

    def __init__(self, batch: Batch) -> None:
        self.ridge = batch.ridge
        self.curvature = batch.curvature
        self.factor = np.ones(batch.curvature.shape[:2])
        self.pairs: list[tuple[Floats, Floats, Floats]] = []

    def keep(self, problems: NDArray[np.bool_]) -> None:
        self.curvature = self.curvature[problems]
        self.factor = self.factor[problems]
        self.pairs = [(s[problems], y[problems], rho[problems]) for s, y, rho in self.pairs]

    def push(self, s: Floats, y: Floats, accepted: NDArray[np.bool_]) -> None:
        product = _dot(s, y)
        useful = accepted & (product > 0)
        rho = np.divide(1.0, product, out=np.zeros_like(product), where=useful)
        self.pairs = [*self.pairs[1 - _MEMORY :], (s, y, rho)]
        modelled = (self.curvature * np.square(s).reshape(self.curvature.shape)).sum(axis=2)
        measured = (s * (y - s * self.ridge)).reshape(self.curvature.shape).sum(axis=2)
        usable = useful[:, None] & (modelled > 0) & (measured > 0)
        factor = np.divide(measured, modelled, out=self.factor.copy(), where=usable)
        fall = np.minimum(_USUAL_FALL, np.sqrt(_COLLAPSE * factor / self.factor))
        self.factor = np.clip(np.maximum(factor, fall * self.factor), 1e-12, 30.0)

    def direction(self, g: Floats) -> Floats:
        """Minus the inverse Hessian estimate times g: (a, M)."""
        q = -g
        coefficients = []
        for s, y, rho in reversed(self.pairs):
            alpha = rho * _dot(s, q)
            q -= alpha[:, None] * y
            coefficients.append(alpha)
        diagonal = (self.factor[:, :, None] * self.curvature).reshape(g.shape) + self.ridge
        # Variables without ridge and without curvature have no influence on the objective.
        q = np.divide(q, diagonal, out=np.zeros_like(q), where=diagonal > 0)
        for (s, y, rho), alpha in zip(self.pairs, reversed(coefficients), strict=True):
            beta = rho * _dot(y, q)
            q += (alpha - beta)[:, None] * s
        return q


def minimise(batch: Batch, *, tol: float, max_iter: int) -> Found:
    """Minimisers of all problems of `batch`.

    Every iteration evaluates one trial point of each active problem: those where the objective falls enough move on,
    the others try a shorter step. A problem leaves when the decrease that the quadratic model still promises is below
    `tol` times the smaller of its objective and the decrease so far, and the norm of its gradient is below sqrt(tol)
    times that at the start; or when that decrease is below what the arithmetic can resolve.
    """
    x, f, g = batch.start()
    f_start, g_start = f.copy(), np.sqrt(_dot(g, g))
    active: Indices = np.arange(f.size)
    found = Found(x.copy(), f.copy(), np.sqrt(_dot(g, g)), np.ones(f.size, np.intp), np.zeros(f.size, bool))
    memory = _Memory(batch)
    d = memory.direction(g)
    slope = _dot(g, d)
    step = np.ones(f.size)
    for evaluations in range(1, max_iter + 1):
        promised = -0.5 * slope
        unresolved = 10 * batch.noise * np.abs(f)
        # The model alone may err where rows far out have lost their curvature; the gradient does not.
        flat = np.sqrt(_dot(g, g)) <= np.sqrt(tol) * g_start
        close = (promised <= tol * np.minimum(f, f_start - f)) & flat
        close |= promised <= 1e-5 * unresolved
        stuck = step < _SHORTEST_STEP
        leaves = close | stuck | (evaluations == max_iter)
        if leaves.any():
            problems = active[leaves]
            found.x[problems], found.f[problems] = x[leaves], f[leaves]
            found.grad_norm[problems] = np.sqrt(_dot(g[leaves], g[leaves]))
            found.n_iter[problems] = evaluations
            found.converged[problems] = (close | (stuck & (promised <= unresolved)))[leaves]
            stays = ~leaves
            if not stays.any():
                break
            active, f_start, g_start, unresolved = active[stays], f_start[stays], g_start[stays], unresolved[stays]
            x, f, g, d, step, slope = x[stays], f[stays], g[stays], d[stays], step[stays], slope[stays]
            memory.keep(stays)
        s = step[:, None] * d
        f_trial, g_trial = batch.evaluate(x + s, active)
        slope_trial = _dot(g_trial, d)
        enough = f_trial <= f + _SUFFICIENT_DECREASE * step * slope
        # Where rounding hides the change of the objective, the slope along the step still tells.
        level = (np.abs(f_trial - f) <= unresolved) & (np.abs(slope_trial) <= 0.9 * np.abs(slope))
        accepted = enough | level
        if accepted.any():
            memory.push(s, g_trial - g, accepted)
        step = np.where(accepted, 1.0, step * _shortening(f, f_trial, slope * step, slope_trial * step))
        x = np.where(accepted[:, None], x + s, x)
        f = np.where(accepted, f_trial, f)
        g = np.where(accepted[:, None], g_trial, g)
        d = np.where(accepted[:, None], memory.direction(g), d)
        slope = _dot(g, d)
    return found
