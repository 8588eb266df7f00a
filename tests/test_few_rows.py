"""The logistic solver on fewer rows than features, where classes can be separated and penalties are gone through in turn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from medprobe.probe._continuation import Path, batches
from medprobe.probe._lbfgs import minimise
from medprobe.probe.logistic import sweep_logistic
from medprobe.probe.solver import solve_path

CS = np.logspace(-5, 2, 8)


def make_few(n: int, D: int, K: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Standardised features of a falling spectrum, and noisy labels that use every class."""
    rng = np.random.default_rng(seed)
    scores = rng.standard_normal((n, D)) / np.sqrt(np.arange(1, D + 1))
    X = scores @ np.linalg.qr(rng.standard_normal((D, D)))[0]
    logits = 3 * scores @ rng.standard_normal((D, K))
    y = np.argmax(logits + rng.gumbel(size=(n, K)), axis=1)
    y[:K] = np.arange(K)
    return ((X - X.mean(axis=0)) / X.std(axis=0)).astype(np.float32), y


def reference(X: np.ndarray, y: np.ndarray, C: float) -> LogisticRegression:
    return LogisticRegression(C=C, solver="newton-cholesky", tol=1e-10, max_iter=500).fit(X.astype(float), y)


def objective(X: np.ndarray, y: np.ndarray, coef: np.ndarray, intercept: np.ndarray, C: float) -> float:
    logits = X.astype(float) @ coef.T + intercept
    if logits.shape[1] == 1:
        logits = np.hstack([np.zeros_like(logits), logits])
    losses = np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(y)), y]
    return C * losses.sum() + 0.5 * (coef**2).sum()


# Fewer rows than features, and few for the number of features and problems.
@pytest.mark.parametrize(("n", "D"), [(60, 110), (160, 60)])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_every_objective_is_that_of_sklearn(n, D, n_classes):
    X, y = make_few(n, D, n_classes)
    masks = np.stack([np.arange(n) % 3 != f for f in range(3)])
    path = solve_path(X, y, CS, sample_weight=masks)
    assert path.converged.all()
    for f, rows in enumerate(masks):
        for i, C in enumerate(CS):
            sk = reference(X[rows], y[rows], C)
            ours = objective(X[rows], y[rows], path.coef[f, i], path.intercept[f, i], C)
            best = objective(X[rows], y[rows], sk.coef_, sk.intercept_, C)
            assert ours <= best * (1 + 1e-5)
            assert path.objective[f, i] == pytest.approx(ours, rel=1e-6)


def test_coefficients_in_double_precision_are_those_of_sklearn():
    X, y = make_few(50, 90, 3)
    X = X.astype(float) + np.linspace(-3, 3, 90)  # with means that have to be taken off
    path = solve_path(X, y, [1e-3, 1e-1, 10], dtype="float64", tol=1e-14)
    for i, C in enumerate([1e-3, 1e-1, 10]):
        sk = reference(X, y, C)
        np.testing.assert_allclose(path.coef[0, i], sk.coef_, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(path.intercept[0, i], sk.intercept_ - sk.intercept_.mean(), rtol=1e-4, atol=1e-5)


def test_scales_of_each_fold_and_missing_labels():
    X, _ = make_few(60, 100, 2)
    rng = np.random.default_rng(1)
    Y = (X[:, :2] + rng.standard_normal((60, 2)) > 0).astype(float)
    Y[rng.random(Y.shape) < 0.2] = np.nan
    masks = np.stack([np.arange(60) % 2 == f for f in range(2)])
    scales = np.stack([X[mask].std(axis=0) for mask in masks]).astype(float)
    for given in (None, scales):
        path = solve_path(
            X.astype(float), Y, [0.01, 1.0], sample_weight=masks, scales=given, dtype="float64", tol=1e-14
        )
        for f, mask in enumerate(masks):
            scale = 1.0 if given is None else given[f]
            for label in range(2):
                rows = mask & np.isfinite(Y[:, label])
                for i, C in enumerate([0.01, 1.0]):
                    sk = reference(X[rows] / scale, Y[rows, label].astype(int), C)
                    np.testing.assert_allclose(path.coef[f, i, label] * scale, sk.coef_[0], rtol=1e-4, atol=1e-6)


def test_the_weakest_penalties_need_few_passes_after_the_others():
    X, y = make_few(150, 300, 3)
    Cs = np.logspace(-6, 2, 17)
    path, alone = solve_path(X, y, Cs), solve_path(X, y, Cs[-1:])
    assert path.converged.all()
    assert alone.converged.all()
    assert path.n_iter[0, -3:].max() < alone.n_iter[0, 0] / 2
    assert path.objective[0, -1] == pytest.approx(alone.objective[0, 0], rel=1e-5)


def test_the_same_penalty_is_chosen_as_by_exact_fits():
    X, y = make_few(120, 200, 3)
    parts = np.arange(120) % 4
    folds = [(np.flatnonzero(parts != f), np.flatnonzero(parts == f)) for f in range(4)]
    held_out = np.concatenate([val for _, val in folds])
    losses = []
    for options in ({}, {"dtype": "float64", "tol": 1e-12, "max_iter": 5000}):
        swept = sweep_logistic(X.astype(options.get("dtype", "float32")), y, folds, CS.tolist(), **options)
        proba = np.array([np.concatenate(by_fold) for by_fold in swept])
        losses.append(-np.log(proba[:, np.arange(len(held_out)), y[held_out]]).mean(axis=1))
    np.testing.assert_allclose(losses[0], losses[1], rtol=5e-3)
    assert losses[0].argmin() == losses[1].argmin()


def test_penalties_may_come_in_any_order_and_twice():
    X, y = make_few(40, 80, 2)
    path = solve_path(X, y, [1.0, 1e-3, 1.0, 0.1], dtype="float64", tol=1e-12)
    for i, C in enumerate([1.0, 1e-3, 1.0, 0.1]):
        (alone,) = solve_path(X, y, [C], dtype="float64", tol=1e-12).coef[0]
        np.testing.assert_allclose(path.coef[0, i], alone, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("in_turn", [False, True])
@pytest.mark.parametrize("size", [1, 4, 100])
def test_batches_hold_every_problem_once(in_turn, size):
    penalty = np.array([10.0, 0.1, 1.0])
    lists = list(batches((2, 3, 5), penalty, size, in_turn=in_turn))
    assert sorted(np.concatenate([np.concatenate(parts) for parts in lists])) == list(range(30))
    assert max(len(part) for parts in lists for part in parts) <= size
    which_C = np.indices((2, 3, 5))[1].ravel()
    for parts in lists:
        assert in_turn or len(parts) == 1
        if in_turn:
            assert [set(penalty[which_C[part]]) for part in parts] == [{0.1}, {1.0}, {10.0}]
            others = [part - 5 * which_C[part] for part in parts]
            assert all((other == others[0]).all() for other in others)


def test_a_path_goes_straight_on_in_log_c():
    path = Path()
    assert path.guess(1.0) is None
    path.add(0.1, np.array([[1.0, 2.0]]))
    np.testing.assert_array_equal(path.guess(1.0), [[1.0, 2.0]])
    path.add(1.0, np.array([[2.0, 2.5]]))
    np.testing.assert_allclose(path.guess(100.0), [[4.0, 3.5]])
    path.add(1.0, np.array([[5.0, 5.0]]))
    np.testing.assert_array_equal(path.guess(10.0), [[5.0, 5.0]])


class _Quadratics:
    """Half of |x - target|^2 a problem, with points that were asked for."""

    noise = 1e-16

    def __init__(self, target: np.ndarray) -> None:
        self.target, self.refreshed = target, []

    def start(self):
        x = np.zeros_like(self.target)
        return (x, *self.evaluate(x, np.arange(len(x))))

    def evaluate(self, x, problems):
        away = x - self.target[problems]
        return 1 + 0.5 * (away**2).sum(axis=1), away

    def precondition(self, g, problems):
        return 0.8 * g

    def refresh(self, x, problems):
        self.refreshed.append(problems)


def test_a_guess_is_taken_where_it_is_lower_than_the_start():
    batch = _Quadratics(np.array([[1.0, 2.0], [3.0, -1.0]]))
    found = minimise(batch, guess=np.array([[1.0, 2.0], [-30.0, 10.0]]), tol=1e-12, max_iter=50)
    np.testing.assert_allclose(found.x, batch.target, atol=1e-5)
    np.testing.assert_array_equal(batch.refreshed[0], [0])
    assert found.converged.all()
    assert found.n_iter[0] == 2
    assert found.n_iter[1] > 2
    assert minimise(batch, guess=batch.target, tol=1e-12, max_iter=1).n_iter.tolist() == [1, 1]
