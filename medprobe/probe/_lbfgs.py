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


class Batch(Protocol):
    """P convex problems over M variables each; `noise` is the relative rounding error of their objectives."""

    noise: float

    def start(self) -> tuple[Floats, Floats, Floats]:
        """Starting points (P, M), their objectives (P,) and gradients (P, M)."""

    def evaluate(self, x: Floats, problems: Indices) -> tuple[Floats, Floats]:
        """Objectives (a,) and gradients (a, M) at x (a, M) of the given problems."""

    def precondition(self, g: Floats, problems: Indices) -> Floats:
        """An estimate of the inverse Hessian times g (a, M), at the points last given to `refresh`."""

    def refresh(self, x: Floats, problems: Indices) -> None:
        """Adapt the preconditioner of the given problems to x (a, M)."""


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
    """The last steps and gradient changes of the active problems."""

    def __init__(self) -> None:
        self.pairs: list[tuple[Floats, Floats, Floats]] = []

    def keep(self, problems: NDArray[np.bool_]) -> None:
        self.pairs = [(s[problems], y[problems], rho[problems]) for s, y, rho in self.pairs]

    def push(self, s: Floats, y: Floats, accepted: NDArray[np.bool_]) -> None:
        product = _dot(s, y)
        rho = np.divide(1.0, product, out=np.zeros_like(product), where=accepted & (product > 0))
        self.pairs = [*self.pairs[1 - _MEMORY :], (s, y, rho)]

    def direction(self, g: Floats, batch: Batch, problems: Indices) -> Floats:
        """Minus the inverse Hessian estimate times g: (a, M)."""
        q = -g
        coefficients = []
        for s, y, rho in reversed(self.pairs):
            alpha = rho * _dot(s, q)
            q -= alpha[:, None] * y
            coefficients.append(alpha)
        q = batch.precondition(q, problems)
        for (s, y, rho), alpha in zip(self.pairs, reversed(coefficients), strict=True):
            beta = rho * _dot(y, q)
            q += (alpha - beta)[:, None] * s
        return q


def minimise(batch: Batch, *, guess: Floats | None = None, tol: float, max_iter: int) -> Found:
    """Minimisers of all problems of `batch`; those that are lower at `guess` (P, M) than at their start begin there.

    Every iteration evaluates one trial point of each active problem: those where the objective falls enough move on,
    the others try a shorter step. A problem leaves when the decrease that the quadratic model still promises is below
    `tol` times the smaller of its objective and the decrease so far, and the norm of its gradient is below sqrt(tol)
    times that at the start; or when that decrease is below what the arithmetic can resolve.
    """
    x, f, g = batch.start()
    f_start, g_start = f.copy(), np.sqrt(_dot(g, g))
    active: Indices = np.arange(f.size)
    first = 1
    if guess is not None and max_iter > 1:
        f_guess, g_guess = batch.evaluate(guess, active)
        lower = f_guess < f
        x[lower], f[lower], g[lower] = guess[lower], f_guess[lower], g_guess[lower]
        batch.refresh(x[lower], active[lower])
        first = 2
    found = Found(x.copy(), f.copy(), g_start.copy(), np.ones(f.size, np.intp), np.zeros(f.size, bool))
    memory = _Memory()
    d = memory.direction(g, batch, active)
    slope = _dot(g, d)
    step = np.ones(f.size)
    for evaluations in range(first, max_iter + 1):
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
        step = np.where(accepted, 1.0, step * _shortening(f, f_trial, slope * step, slope_trial * step))
        if accepted.any():
            memory.push(s, g_trial - g, accepted)
            x = np.where(accepted[:, None], x + s, x)
            f = np.where(accepted, f_trial, f)
            g = np.where(accepted[:, None], g_trial, g)
            batch.refresh(x[accepted], active[accepted])
            d = np.where(accepted[:, None], memory.direction(g, batch, active), d)
            slope = _dot(g, d)
    return found
