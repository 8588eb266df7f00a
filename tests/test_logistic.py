from __future__ import annotations

import subprocess
import sys
import tracemalloc
import warnings

import numpy as np
import pandas as pd
import pytest
from conftest import make_store
from scipy.linalg import helmert
from scipy.special import softmax
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from medprobe.errors import DataError
from medprobe.probe._curvature import CurvatureModel, class_moments
from medprobe.probe.logistic import DEFAULT_CS, LogisticProbe, LogisticProbeCV, sweep_logistic
from medprobe.probe.solver import Spectrum, solve_path

EXACT = 1e-14


def make_data(n: int = 300, D: int = 12, K: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features of unequal variances and means, and noisy labels that use every class."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, D)) @ rng.standard_normal((D, D)) * np.logspace(0, -1.5, D) + rng.standard_normal(D)
    logits = 2 * (X @ rng.standard_normal((D, K)))
    y = np.argmax(logits + rng.gumbel(size=(n, K)), axis=1)
    y[:K] = np.arange(K)
    return X, y


def reference(X, y, C, sample_weight=None, **options) -> LogisticRegression:
    model = LogisticRegression(C=C, solver="newton-cholesky", tol=1e-12, max_iter=500, **options)
    return model.fit(X, y, sample_weight=sample_weight)


def objective(X, y, coef, intercept, C, sample_weight=1.0) -> float:
    """scikit-learn's objective, in float64."""
    logits = X.astype(float) @ coef.T + intercept
    if logits.shape[1] == 1:
        logits = np.hstack([np.zeros_like(logits), logits])
    losses = np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(y)), y]
    return C * (sample_weight * losses).sum() + 0.5 * (coef**2).sum()


@pytest.mark.parametrize("n_classes", [2, 3, 5])
@pytest.mark.parametrize("weighted", [False, True])
def test_float64_solutions_are_those_of_sklearn(n_classes, weighted):
    X, y = make_data(K=n_classes)
    weight = np.random.default_rng(1).random(len(y)) if weighted else None
    Cs = [1e-3, 0.1, 10]
    path = solve_path(X, y, Cs, sample_weight=weight, dtype="float64", tol=EXACT)
    assert path.converged.all()
    for i, C in enumerate(Cs):
        sk = reference(X, y, C, weight)
        np.testing.assert_allclose(path.coef[0, i], sk.coef_, rtol=1e-4, atol=1e-5)
        free = sk.intercept_.mean() if n_classes > 2 else 0  # softmax intercepts are known up to a constant
        np.testing.assert_allclose(path.intercept[0, i], sk.intercept_ - free, rtol=1e-4, atol=1e-5)
        best = objective(X, y, sk.coef_, sk.intercept_, C, 1.0 if weight is None else weight)
        assert path.objective[0, i] == pytest.approx(best, rel=1e-10)


@pytest.mark.parametrize("n_classes", [2, 4])
def test_float32_reaches_the_objective_of_sklearn(n_classes):
    X, y = make_data(n=3000, D=40, K=n_classes)
    X = X.astype(np.float32)
    path = solve_path(X, y, DEFAULT_CS)
    assert path.converged.all()
    for i, C in enumerate(DEFAULT_CS):
        sk = reference(X.astype(float), y, C)
        ours = objective(X, y, path.coef[0, i], path.intercept[0, i], C)
        best = objective(X, y, sk.coef_, sk.intercept_, C)
        assert best * (1 - 1e-7) <= ours <= best * (1 + 1e-5)
        assert path.objective[0, i] == pytest.approx(ours, rel=1e-6)


@pytest.mark.parametrize("class_weight", [None, "balanced", {"b": 3.0, "a": 0.5}])
@pytest.mark.parametrize("standardize", [False, True])
def test_probe_agrees_with_a_sklearn_pipeline(class_weight, standardize):
    X, codes = make_data(K=2)
    y = np.array(["a", "b"])[codes]
    probe = LogisticProbe(C=0.3, class_weight=class_weight, standardize=standardize).fit(X, y)
    sk = make_pipeline(
        StandardScaler(with_mean=standardize, with_std=standardize),
        LogisticRegression(C=0.3, class_weight=class_weight, tol=1e-12, max_iter=5000),
    ).fit(X, y)
    np.testing.assert_allclose(probe.predict_proba(X), sk.predict_proba(X), atol=1e-6)
    np.testing.assert_allclose(probe.decision_function(X), sk.decision_function(X), atol=1e-5)
    assert (probe.predict(X) == sk.predict(X)).all()
    assert probe.grad_norm_ < 1e-6 * probe.objective_


def test_gradient_norm_is_that_of_the_objective():
    X, y = make_data(K=3)
    C = 0.7
    path = solve_path(X, y, [C], dtype="float64", max_iter=3)
    coef, intercept = path.coef[0, 0], path.intercept[0, 0]
    residual = softmax(X @ coef.T + intercept, axis=1) - np.eye(3)[y]
    gradient = np.hstack([C * residual.T @ X + coef, C * residual.sum(axis=0)[:, None]])
    # The intercept is taken at the mean of the features, so the two differ by that change of variables.
    gradient[:, :-1] -= np.outer(gradient[:, -1], X.mean(axis=0))
    assert path.grad_norm[0, 0] == pytest.approx(np.linalg.norm(gradient), rel=1e-6)


def test_multilabel_with_missing_labels_equals_fits_on_present_rows():
    X, _ = make_data(n=400)
    rng = np.random.default_rng(2)
    Y = (X[:, :3] + rng.standard_normal((400, 3)) > 0.5).astype(float)
    Y[rng.random(Y.shape) < 0.3] = np.nan
    folds = np.stack([np.ones(400), np.arange(400) % 3 > 0])
    path = solve_path(X, Y, [0.05, 2.0], sample_weight=folds, dtype="float64", tol=EXACT)
    assert path.coef.shape == (2, 2, 3, X.shape[1])
    assert path.n_iter.shape == (2, 2, 3)
    for f, fold in enumerate(folds.astype(bool)):
        for label in range(3):
            rows = fold & np.isfinite(Y[:, label])
            for i, C in enumerate([0.05, 2.0]):
                sk = reference(X[rows], Y[rows, label].astype(int), C)
                np.testing.assert_allclose(path.coef[f, i, label], sk.coef_[0], rtol=1e-4, atol=1e-5)
                np.testing.assert_allclose(path.intercept[f, i, label], sk.intercept_[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_integer_weights_equal_repeated_rows(n_classes):
    X, y = make_data(K=n_classes)
    weight = np.random.default_rng(3).integers(0, 4, len(y))
    weight[:n_classes] = 1
    for class_weight in (None, "balanced"):
        weighted = LogisticProbe(class_weight=class_weight).fit(X, y, weight)
        repeated = LogisticProbe(class_weight=class_weight).fit(X.repeat(weight, axis=0), y.repeat(weight))
        np.testing.assert_allclose(weighted.coef_, repeated.coef_, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("n", [150, 2500])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_folds_together_equal_separate_fits(n, n_classes):
    # 150 rows are too few to be grouped by fold, 2,500 are not.
    X, y = make_data(n=n, K=n_classes)
    Cs = [1e-3, 1.0]
    masks = np.stack([np.arange(n) % 4 != f for f in range(4)])
    together = solve_path(X, y, Cs, sample_weight=masks, dtype="float64", tol=EXACT)
    for f, mask in enumerate(masks):
        alone = solve_path(X[mask], y[mask], Cs, n_classes=n_classes, dtype="float64", tol=EXACT)
        np.testing.assert_allclose(together.coef[f], alone.coef[0], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(together.objective[f], alone.objective[0], rtol=1e-11)


def test_scales_standardise_each_fold_by_itself():
    X, y = make_data(K=3)
    X *= np.logspace(-3, 3, X.shape[1])
    masks = np.stack([np.arange(len(y)) % 3 != f for f in range(3)])
    scales = np.stack([X[mask].std(axis=0) for mask in masks])
    path = solve_path(X, y, [0.1], sample_weight=masks, scales=scales, dtype="float64", tol=EXACT)
    for f, mask in enumerate(masks):
        sk = reference(X[mask] / scales[f], y[mask], 0.1)
        np.testing.assert_allclose(path.coef[f, 0] * scales[f], sk.coef_, rtol=1e-4, atol=1e-6)


def test_a_spectrum_of_other_rows_changes_no_solution():
    X, y = make_data(n=1000)
    own = solve_path(X, y, [0.1, 1.0], dtype="float64", tol=EXACT)
    other = solve_path(X, y, [0.1, 1.0], spectrum=Spectrum.of(X[:200] * 1.3 + 1), dtype="float64", tol=EXACT)
    np.testing.assert_allclose(other.coef, own.coef, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(other.intercept, own.intercept, rtol=1e-4, atol=1e-6)


def wide() -> np.ndarray:
    return make_data(n=40, D=200)[0]


def constant_and_duplicated() -> np.ndarray:
    X, _ = make_data(n=200)
    return np.hstack([X, X[:, :3], np.full((200, 1), 7.3), np.zeros((200, 1))])


def scales_far_apart() -> np.ndarray:
    return make_data(n=200)[0] * np.logspace(-8, 8, 12)


def far_from_zero() -> np.ndarray:
    return make_data(n=200)[0] + 1e5


@pytest.mark.parametrize("features", [wide, constant_and_duplicated, scales_far_apart, far_from_zero])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_degenerate_features(features, n_classes):
    X = features()
    y = np.arange(len(X)) % n_classes
    scaled = StandardScaler().fit_transform(X)
    for C in (1e-3, 1.0):
        probe = LogisticProbe(C=C).fit(X, y)
        sk = reference(scaled, y, C)
        np.testing.assert_allclose(probe.predict_proba(X), sk.predict_proba(scaled), atol=1e-5)
        assert probe.objective_ == pytest.approx(objective(scaled, y, sk.coef_, sk.intercept_, C), rel=1e-8)
    assert (probe.coef_[:, X.std(axis=0) == 0] == pytest.approx(0)) or (X.std(axis=0) > 0).all()


def test_large_data_are_held_in_float32_and_agree():
    X, y = make_data(n=4000, D=20, K=3)
    X = X * np.logspace(-4, 4, 20) + 3
    probe = LogisticProbe(C=0.1).fit(X, y)
    exact = LogisticProbe(C=0.1, dtype="float64", tol=EXACT).fit(X, y)
    difference = np.abs(probe.predict_proba(X) - exact.predict_proba(X)).max()
    assert 0 < difference < 2e-3
    tight = LogisticProbe(C=0.1, tol=1e-11).fit(X, y)
    np.testing.assert_allclose(tight.predict_proba(X), exact.predict_proba(X), atol=2e-5)


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_separable_data_with_a_large_penalty_constant(n_classes, dtype):
    rng = np.random.default_rng(0)
    y = np.arange(90) % n_classes
    X = 0.3 * rng.standard_normal((90, 6)) + 6 * np.eye(6)[y]
    path = solve_path(X, y, [1e4, 1e8], dtype=dtype, tol=1e-5)
    assert np.isfinite(path.coef).all()
    assert path.converged.all()
    for i, C in enumerate([1e4, 1e8]):
        sk = LogisticRegression(C=C, tol=1e-14, max_iter=20000).fit(X, y)
        best = objective(X, y, sk.coef_, sk.intercept_, C)
        assert objective(X, y, path.coef[0, i], path.intercept[0, i], C) <= best * (1 + 1e-3)


@pytest.mark.parametrize("n_classes", [2, 4])
@pytest.mark.parametrize(("outlier", "tolerance"), [(100, 1e-5), (1e4, 1e-2)])
def test_extreme_margins_stay_finite(n_classes, outlier, tolerance):
    X, y = make_data(K=n_classes)
    X[5] *= outlier
    path = solve_path(X.astype(np.float32), y, [1e-3, 10.0])
    sk = [reference(X, y, C) for C in (1e-3, 10.0)]
    for i, model in enumerate(sk):
        best = objective(X, y, model.coef_, model.intercept_, (1e-3, 10.0)[i])
        assert objective(X, y, path.coef[0, i], path.intercept[0, i], (1e-3, 10.0)[i]) <= best * (1 + tolerance)


def test_sweep_gives_the_probabilities_of_single_fits():
    X, y = make_data(n=600, K=4)
    X = StandardScaler().fit_transform(X)
    folds = list(StratifiedKFold(3).split(X, y))
    for class_weight in (None, "balanced", {0: 2.0, 3: 0.5}):
        swept = sweep_logistic(X, y, folds, [0.01, 1.0], class_weight=class_weight, dtype="float64", tol=EXACT)
        for C, by_fold in zip([0.01, 1.0], swept, strict=True):
            for (train, val), proba in zip(folds, by_fold, strict=True):
                sk = reference(X[train], y[train], C, class_weight=class_weight)
                np.testing.assert_allclose(proba, sk.predict_proba(X[val]), atol=1e-6)


def test_sweep_binary_single_fold_and_multilabel_shapes():
    X, y = make_data(n=500, K=2)
    X = StandardScaler().fit_transform(X).astype(np.float32)
    train, val = np.arange(400), np.arange(400, 500)
    (single,) = sweep_logistic(X, y, [(train, val)], [0.1])
    sk = reference(X[train].astype(float), y[train], 0.1)
    np.testing.assert_allclose(single[0], sk.predict_proba(X[val].astype(float)), atol=2e-3)
    Y = np.column_stack([y, 1 - y]).astype(float)
    Y[::5, 1] = np.nan
    (multi,) = sweep_logistic(X, Y, [(train, val)], [0.1], class_weight="balanced")
    assert multi[0].shape == (100, 2)
    rows = train[np.isfinite(Y[train, 1])]
    sk = reference(X[rows].astype(float), 1 - y[rows], 0.1, class_weight="balanced")
    np.testing.assert_allclose(multi[0][:, 1], sk.predict_proba(X[val].astype(float))[:, 1], atol=2e-3)


@pytest.mark.parametrize("absent", [0, 1, 2])
@pytest.mark.parametrize("class_weight", [None, "balanced"])
def test_a_class_absent_from_a_fold_gets_no_probability_there(absent, class_weight):
    X, y = make_data(n=300, K=3)
    train, val = np.flatnonzero(y != absent), np.arange(300)
    folds = [(train, val), (val, val)]
    (swept,) = sweep_logistic(X, y, folds, [0.1], class_weight=class_weight, dtype="float64", tol=1e-12)
    assert swept[0][:, absent].max() < 1e-6
    assert swept[1][:, absent].max() > 0.01
    present = np.delete(np.arange(3), absent)
    # Two softmax columns share the penalty of one logit: w/2 and -w/2 cost half as much.
    sk = reference(X[train], y[train], 0.2, class_weight=class_weight)
    np.testing.assert_allclose(swept[0][:, present], sk.predict_proba(X), atol=1e-4)


def test_a_label_with_one_value_is_answered_with_it():
    X, _ = make_data(n=200)
    Y = np.column_stack([np.ones(200), np.full(200, np.nan), np.arange(200) % 2])
    rows = np.arange(200)
    (swept,) = sweep_logistic(X, Y, [(rows, rows)], [1.0], class_weight="balanced")
    assert swept[0][:, 0].min() > 1 - 1e-6
    np.testing.assert_allclose(swept[0][:, 1], 0.5)


def test_many_irregular_folds():
    X, y = make_data(n=900, K=3)
    rng = np.random.default_rng(0)
    folds = [np.split(rng.permutation(900), [600]) for _ in range(12)]
    swept = sweep_logistic(X, y, [(a, b) for a, b in folds], [0.1], dtype="float64", tol=EXACT)
    for (train, val), proba in zip(folds, swept[0], strict=True):
        np.testing.assert_allclose(proba, reference(X[train], y[train], 0.1).predict_proba(X[val]), atol=1e-6)


def test_more_logits_than_the_curvature_block_takes():
    X, y = make_data(n=1500, D=10, K=20)
    path = solve_path(X, y, [0.01, 1.0], dtype="float64", tol=1e-12)
    assert path.converged.all()
    for i, C in enumerate([0.01, 1.0]):
        sk = LogisticRegression(C=C, tol=1e-10, max_iter=5000).fit(X, y)
        best = objective(X, y, sk.coef_, sk.intercept_, C)
        assert path.objective[0, i] == pytest.approx(best, rel=1e-7)


def test_the_curvature_model_is_the_hessian_for_gaussian_features():
    rng = np.random.default_rng(0)
    n, D, k = 200_000, 4, 2
    variance = np.array([4.0, 1.0, 0.5, 0.1, 1.0])
    Z = np.hstack([rng.standard_normal((n, D)) * np.sqrt(variance[:-1]), np.ones((n, 1))])
    theta = rng.standard_normal((k, D + 1))
    contrasts = helmert(3).T
    p = softmax(Z @ (contrasts @ theta).T, axis=1)
    A = np.einsum("nc,ca,cb->nab", p, contrasts, contrasts) - np.einsum("na,nb->nab", p @ contrasts, p @ contrasts)
    ridge = np.array([n / 10] * D + [0])
    hessian = np.einsum("nab,ni,nj->aibj", A, Z, Z).reshape(k * (D + 1), -1) + np.diag(np.tile(ridge, k))
    model = CurvatureModel(variance, ridge, np.eye(k)[None])
    moments = class_moments(theta @ Z.T, theta[:, -1], contrasts, np.ones(n))
    model.refresh(np.array([0]), theta[None], moments[None])
    g = rng.standard_normal((1, k, D + 1))
    expected = np.linalg.solve(hessian, g.ravel())
    np.testing.assert_allclose(
        model.solve(np.array([0]), g).ravel(), expected, rtol=0.05, atol=0.02 * abs(expected).max()
    )


def test_batches_of_problems_change_nothing(monkeypatch):
    X, y = make_data(K=3)
    whole = solve_path(X, y, [0.01, 0.1, 1.0], dtype="float64")
    monkeypatch.setattr("medprobe.probe.solver._BATCH_COEFFICIENTS", 30)
    parts = solve_path(X, y, [0.01, 0.1, 1.0], dtype="float64")
    np.testing.assert_allclose(parts.coef, whole.coef, rtol=1e-8)


def test_cv_chooses_as_separate_pipelines_would():
    X, y = make_data(n=240, K=3)
    X = X * np.logspace(-2, 2, X.shape[1])
    Cs = [1e-4, 1e-2, 1.0]
    probe = LogisticProbeCV(Cs=Cs, cv=4).fit(X, y)
    for f, (train, val) in enumerate(StratifiedKFold(4).split(X, y)):
        for i, C in enumerate(Cs):
            p = make_pipeline(StandardScaler(), reference_model(C)).fit(X[train], y[train]).predict_proba(X[val])
            assert probe.scores_[f, i] == pytest.approx(np.log(p[np.arange(len(val)), y[val]]).mean(), abs=1e-5)
    assert Cs[probe.scores_.mean(axis=0).argmax()] == probe.C_
    refit = LogisticProbe(C=probe.C_).fit(X, y)
    np.testing.assert_allclose(probe.coef_, refit.coef_, rtol=1e-6)


def reference_model(C: float) -> LogisticRegression:
    return LogisticRegression(C=C, tol=1e-12, max_iter=5000)


def test_cv_takes_groups_splitters_pairs_and_scorers():
    X, y = make_data(n=240, K=2)
    groups = np.arange(240) // 4
    pairs = list(StratifiedGroupKFold(5).split(X, y, groups))
    by_int = LogisticProbeCV(scoring="roc_auc").fit(X, y, groups=groups)
    by_pairs = LogisticProbeCV(scoring="roc_auc", cv=pairs).fit(X, y)
    np.testing.assert_allclose(by_int.scores_, by_pairs.scores_)
    assert by_int.scores_.shape == (5, len(DEFAULT_CS))
    train, val = pairs[0]
    first = LogisticProbe(C=by_int.Cs_[3]).fit(X[train], y[train])
    from sklearn.metrics import roc_auc_score

    assert by_int.scores_[0, 3] == pytest.approx(roc_auc_score(y[val], first.decision_function(X[val])))
    by_splitter = LogisticProbeCV(cv=GroupKFold(3)).fit(X, y, groups=groups)
    assert by_splitter.scores_.shape[0] == 3


def test_too_few_iterations_are_reported_with_numbers():
    X, y = make_data()
    with pytest.warns(ConvergenceWarning, match=r"1 of 1 .* within 1 passes .*gradient norm .*objective"):
        probe = LogisticProbe(max_iter=1).fit(X, y)
    assert probe.n_iter_ == [1]
    with pytest.warns(ConvergenceWarning, match="of 2 "):
        sweep_logistic(X, y, [(np.arange(200), np.arange(200, 300))], [0.1, 1.0], max_iter=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LogisticProbe().fit(X, y)


def test_bad_input_is_refused():
    X, y = make_data()
    for probe in (LogisticProbe(), LogisticProbeCV()):
        with pytest.raises(ValueError, match="at least 2 classes"):
            clone(probe).fit(X, np.zeros(len(y)))
        with pytest.raises(ValueError, match="only one class"):
            clone(probe).fit(X, y, sample_weight=(y == 1).astype(float))
        with pytest.raises(ValueError, match="dtype must be"):
            clone(probe).set_params(dtype="float16").fit(X, y)
        with pytest.raises(ValueError, match="class_weight must be"):
            clone(probe).set_params(class_weight="even").fit(X, y)
    with pytest.raises(ValueError, match="C must be positive"):
        LogisticProbe(C=0).fit(X, y)
    with pytest.raises(ValueError, match="Cs must be positive"):
        LogisticProbeCV(Cs=[-1.0, 1.0]).fit(X, y)
    with pytest.raises(ValueError, match="weight zero"):
        solve_path(X, y, [1.0], sample_weight=np.zeros(len(y)))
    with pytest.raises(ValueError, match=r"lie in 0\.\.1"):
        solve_path(X, y, [1.0], n_classes=2)
    with pytest.raises(ValueError, match="sample_weight has 5"):
        solve_path(X, y, [1.0], sample_weight=np.ones(5))


def test_importing_the_probe_leaves_torch_alone():
    code = "import sys, medprobe.probe.logistic; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@parametrize_with_checks([LogisticProbe(), LogisticProbeCV()])
def test_sklearn_conventions(estimator, check):
    check(estimator)


def labels_with_gaps() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    X = rng.normal(size=(300, 9))
    Y = (X[:, :3] + rng.normal(size=(300, 3)) > 0).astype(float)
    Y[rng.random((300, 3)) < 0.2] = np.nan
    return X, Y


@pytest.mark.parametrize("class_weight", [None, "balanced"])
def test_each_of_several_labels_is_fitted_to_the_rows_that_have_it(class_weight):
    X, Y = labels_with_gaps()
    weight = np.random.default_rng(0).random(300) + 0.5
    probe = LogisticProbe(C=0.3, class_weight=class_weight, standardize=False).fit(X, Y, sample_weight=weight)
    assert probe.predict_proba(X).shape == probe.decision_function(X).shape == (300, 3)
    assert set(np.unique(probe.predict(X))) == {0, 1}
    for label in range(3):
        rows = ~np.isnan(Y[:, label])
        theirs = LogisticRegression(C=0.3, class_weight=class_weight, max_iter=10_000, tol=1e-10)
        if class_weight == "balanced":  # scikit-learn counts rows, not their weights
            each = np.bincount(Y[rows, label].astype(int), weight[rows])
            theirs.set_params(class_weight={k: each.sum() / (2 * each[k]) for k in (0, 1)})
        theirs.fit(X[rows], Y[rows, label], sample_weight=weight[rows])
        np.testing.assert_allclose(probe.coef_[label], theirs.coef_[0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(probe.intercept_[label], theirs.intercept_[0], rtol=1e-5, atol=1e-6)


def test_a_label_of_one_value_has_that_as_its_probability():
    X, Y = labels_with_gaps()
    Y = np.column_stack([Y, np.where(np.isnan(Y[:, 0]), np.nan, 1.0), np.zeros(300), np.full(300, np.nan)])
    probe = LogisticProbe().fit(X, Y)
    np.testing.assert_array_equal(probe.predict_proba(X)[:, 3:], np.tile([1.0, 0.0, 0.5], (300, 1)))
    np.testing.assert_allclose(probe.predict_proba(X)[:, :3], LogisticProbe().fit(X, Y[:, :3]).predict_proba(X))
    constant = LogisticProbe().fit(X, Y[:, 3:])
    np.testing.assert_array_equal(constant.predict_proba(X[:1]), [[1.0, 0.0, 0.5]])


def test_several_labels_share_the_c_that_predicts_held_out_labels_best():
    X, Y = labels_with_gaps()
    Cs = [1e-4, 1e-2, 1.0]
    probe = LogisticProbeCV(Cs=Cs, cv=4).fit(X, Y)
    likely = np.zeros((4, 3))
    for f, (train, rows) in enumerate(KFold(4).split(X)):
        for i, C in enumerate(Cs):
            p = LogisticProbe(C=C).fit(X[train], Y[train]).predict_proba(X[rows])
            likely[f, i] = np.nansum(np.log(np.where(Y[rows] == 1, p, 1 - p)) + 0 * Y[rows]) / len(rows)
    np.testing.assert_allclose(probe.scores_, likely, rtol=1e-6)
    assert Cs[int(likely.mean(axis=0).argmax())] == probe.C_
    groups = np.arange(300) // 5
    LogisticProbeCV(Cs=Cs, cv=4).fit(X, Y, groups=groups)


class Blocks:
    """Features that nobody holds as a whole."""

    def __init__(self, n: int, D: int = 64, rows: int = 1000, bad: int | None = None) -> None:
        self.shape, self.rows, self.bad = (n, D), rows, bad

    def blocks(self):
        for start in range(0, self.shape[0], self.rows):
            size = min(self.rows, self.shape[0] - start)
            block = np.random.default_rng(start).normal(size=(size, self.shape[1])).astype(np.float32) + 1
            if self.bad is not None and start <= self.bad < start + size:
                block[self.bad - start, 3] = np.nan
            yield block

    def target(self) -> np.ndarray:
        return np.concatenate([(block[:, 0] - block[:, 1] > 0.3) for block in self.blocks()]).astype(int)


def test_features_read_in_blocks_give_the_same_model():
    source = Blocks(9500)
    y, X = source.target(), np.concatenate(list(source.blocks()))
    whole, spooled = LogisticProbe(C=0.01).fit(X, y), LogisticProbe(C=0.01).fit(source, y)
    np.testing.assert_array_equal(spooled.coef_, whole.coef_)
    np.testing.assert_allclose(spooled.predict_proba(source), whole.predict_proba(X), atol=1e-12)
    assert spooled.n_features_in_ == 64
    with pytest.raises(ValueError, match="NaN or infinity in rows 2000 to 3000"):
        LogisticProbe().fit(Blocks(9500, bad=2500), y)
    with pytest.raises(ValueError, match="X has 9500 rows, y has 9"):
        LogisticProbe().fit(source, y[:9])


def test_memory_does_not_grow_with_features_read_in_blocks():
    """Their bytes stay in files that the system pages in and out: 26 and 102 MB of features."""

    def peak(n: int) -> int:
        source = Blocks(n)
        y = source.target()
        tracemalloc.start()
        LogisticProbe(C=1e-3, max_iter=3, tol=1e-2).fit(source, y)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found - 200 * n  # what is kept of each row: weights, targets, order

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        small, large = peak(100_000), peak(400_000)
    assert large < small + 10e6


def test_a_store_hands_out_its_features_in_blocks(tmp_path):
    X, Y = labels_with_gaps()
    samples = pd.DataFrame({"label": (Y[:, 0] == 1).astype(int)})
    store = make_store(tmp_path / "s.zarr", X.astype(np.float32), samples)
    source = store.feature_blocks()
    assert source.shape == (300, 9)
    parts = list(source.blocks())
    assert len(parts) == 5
    np.testing.assert_array_equal(np.concatenate(parts), store.features())
    y = samples["label"].to_numpy()
    np.testing.assert_allclose(LogisticProbe().fit(source, y).coef_, LogisticProbe().fit(store.features(), y).coef_)
    with pytest.raises(DataError, match="no view 'mean'"):
        store.feature_blocks("mean")
