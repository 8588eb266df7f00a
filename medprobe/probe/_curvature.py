"""A model of the Hessian of logistic problems that is cheap to build from a sample of rows and cheap to invert.

With features z of covariance diag(variance) and class covariances A_i of the rows, the Hessian of the loss is
sum_i A_i (x) z_i z_i^T. Class probabilities depend on z only through the k logits. In the whitened directions that the
logits do not use, z is about independent of A_i, and the Hessian is about the mean of A_i times the variance (exactly
so for Gaussian features, by Stein's lemma); in the k directions that they use, and for the intercept, it is a matrix
of k (k + 1) rows that a few thousand sampled rows determine. The ridge is added to both, and the sum is inverted by
Woodbury's identity.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Indices = NDArray[np.intp]

# With more logits than this the block of the logits' own directions is left out.
MOST_LOGITS = 16


class CurvatureModel:
    """Hessian models of P problems with variables (k, r + 1): r features and an intercept for each of k logits.

    `variance` (r + 1,) is that of the features, 1 for the intercept; `ridge` (r + 1,) the penalty's second derivative;
    `hessians` (P, k, k) the class part at the start, summed over rows.
    """

    def __init__(self, variance: Floats, ridge: Floats, hessians: Floats) -> None:
        P, k = hessians.shape[:2]
        self._variance = variance
        self._ridge = ridge
        self._strength, self._rotation = np.linalg.eigh(hessians)
        self._with_block = k <= MOST_LOGITS
        if self._with_block:
            self._plane = np.zeros((P, variance.size, k + 1))
            self._inner = np.zeros((P, k * (k + 1), k * (k + 1)))

    def refresh(self, problems: Indices, theta: Floats, moments: Floats) -> None:
        """Adapt the models of `problems` to coefficients theta (a, k, r + 1).

        `moments` (a, k, k + 1, k, k + 1) are sums over rows of A_i (x) u_i u_i^T, u_i the k logits without intercept
        and 1; with more than MOST_LOGITS logits u_i is 1 alone and `moments` (a, k, 1, k, 1).
        """
        strength, rotation = np.linalg.eigh(moments[:, :, -1, :, -1])
        self._strength[problems], self._rotation[problems] = strength, rotation
        if not self._with_block:
            return
        a, k = strength.shape
        root = np.sqrt(self._variance)
        directions, logit_of = np.linalg.qr((theta[:, :, :-1] * root[:-1]).swapaxes(1, 2))
        sizes = np.abs(np.diagonal(logit_of, axis1=1, axis2=2))
        usable = sizes.min(axis=1) > 1e-6 * sizes.max(axis=1)
        logit_of[~usable] = np.eye(k)
        whiten = np.zeros((a, k + 1, k + 1))
        whiten[:, :k, :k] = np.linalg.inv(logit_of).swapaxes(1, 2)
        whiten[:, k, k] = 1
        plane = np.zeros((a, root.size, k + 1))
        plane[:, :-1, :k] = directions * root[:-1, None]
        plane[:, -1, k] = 1
        # Class coordinates become those in which the mean class covariance is diagonal.
        turn = np.einsum("aki,auv->akuiv", rotation, whiten.swapaxes(1, 2)).reshape(a, k * (k + 1), -1)
        block = turn.swapaxes(1, 2) @ moments.reshape(a, k * (k + 1), -1) @ turn
        diagonal = np.arange(k * (k + 1))
        block[:, diagonal, diagonal] -= strength.repeat(k + 1, axis=1)
        inverse = self._inverse_diagonal(problems)
        projected = (plane.swapaxes(1, 2)[:, None] * inverse[:, :, None, :]) @ plane[:, None]
        between = np.zeros((a, k, k + 1, k, k + 1))
        each = np.arange(k)
        between[:, each, :, each, :] = projected.swapaxes(0, 1)
        identity = np.eye(k * (k + 1))
        system = identity + block @ between.reshape(block.shape)
        system[~usable], block[~usable] = identity, 0
        self._plane[problems] = plane
        self._inner[problems] = np.linalg.solve(system, block)

    def solve(self, problems: Indices, g: Floats) -> Floats:
        """Inverse of the models times g (a, k, r + 1)."""
        rotation = self._rotation[problems]
        inverse = self._inverse_diagonal(problems)
        v = (rotation.swapaxes(1, 2) @ g) * inverse
        if self._with_block:
            plane = self._plane[problems]
            inside = (v @ plane).reshape(len(v), -1, 1)
            correction = (self._inner[problems] @ inside).reshape(len(v), v.shape[1], -1)
            v -= inverse * (correction @ plane.swapaxes(1, 2))
        solved: Floats = rotation @ v
        return solved

    def _inverse_diagonal(self, problems: Indices) -> Floats:
        """Inverse of the model without the block, (a, k, r + 1) in rotated classes; 0 where it is singular."""
        strength = np.maximum(self._strength[problems], 0)
        diagonal = strength[:, :, None] * self._variance + self._ridge
        # The intercept of a class without rows has neither curvature nor influence.
        flat = strength <= 1e-9 * strength.max(axis=1, keepdims=True)
        diagonal[:, :, -1] = np.where(flat, np.inf, diagonal[:, :, -1])
        inverse: Floats = 1 / diagonal
        return inverse


def class_moments(logits: Floats, intercepts: Floats, contrasts: Floats, weights: Floats) -> Floats:
    """Sum over rows of A_i (x) u_i u_i^T, (k, k + 1, k, k + 1), as `CurvatureModel.refresh` takes it.

    `logits` (k, n) in the coordinates of `contrasts` (K, k), of which `intercepts` (k,) are a part; `weights` (n,).
    """
    k, n = logits.shape
    scores = contrasts @ logits
    scores -= scores.max(axis=0)
    p = np.exp(scores)
    p /= p.sum(axis=0)
    p_weighted = np.sqrt(p * weights)
    # A_i = sum over classes of p (r - q) (r - q)^T, r a row of contrasts and q their mean under p.
    spread = (contrasts[:, :, None] - contrasts.T @ p) * p_weighted[:, None, :]
    if k > MOST_LOGITS:
        u = np.ones((1, n), dtype=logits.dtype)
    else:
        u = np.concatenate([logits - intercepts[:, None], np.ones((1, n), dtype=logits.dtype)])
    vectors = (spread[:, :, None, :] * u).transpose(1, 2, 0, 3).reshape(k * len(u), -1)
    moments: Floats = (vectors @ vectors.T).reshape(k, len(u), k, len(u))
    return moments
