"""Ridge and prototype probes against scikit-learn, explicit refits and sums taken by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from conftest import make_store
from sklearn.linear_model import Ridge
from sklearn.model_selection import KFold
from sklearn.neighbors import NearestCentroid
from sklearn.preprocessing import StandardScaler, normalize
from sklearn.utils.estimator_checks import check_estimator

import medprobe
from medprobe.probe.prototype import TEMPERATURES, PrototypeProbe, sweep_prototype
from medprobe.probe.ridge import ALPHAS, Moments, RidgePath, RidgeProbe, indicators, solve, sweep_ridge


def data(n: int = 120, width: int = 12, classes: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    X = rng.normal(size=(n, width)) * rng.uniform(0.1, 5, width) + rng.normal(size=width) * 10
    X[:, :classes] += 2 * np.eye(classes)[y]
    return X, y


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("alpha", [1e-6, 0.1, 30.0])
def test_scores_are_those_of_scikit_learn(alpha: float, dtype: type) -> None:
    X, y = data()
    X, B = X[:90].astype(dtype), X[90:].astype(dtype)
    scaler = StandardScaler().fit(X.astype(np.float64))
    path = RidgePath(Moments.of(X, indicators(y[:90], 3)))
    reference = Ridge(alpha=90 * alpha * path.unit).fit(scaler.transform(X.astype(np.float64)), np.eye(3)[y[:90]])
    ours = RidgeProbe(alpha=alpha).fit(X, y[:90])
    expected = reference.predict(scaler.transform(B.astype(np.float64)))
    np.testing.assert_allclose(ours.decision_scores(B), expected, atol=1e-8)
    np.testing.assert_array_equal(ours.predict(B), expected.argmax(axis=1))


def test_more_features_than_rows() -> None:
    X, y = data(n=30, width=80)
    scaler = StandardScaler().fit(X[:20])
    path = RidgePath(Moments.of(X[:20], indicators(y[:20], 3)))
    reference = Ridge(alpha=20 * 0.5 * path.unit).fit(scaler.transform(X[:20]), np.eye(3)[y[:20]])
    ours = RidgeProbe(alpha=0.5).fit(X[:20], y[:20]).decision_scores(X[20:])
    np.testing.assert_allclose(ours, reference.predict(scaler.transform(X[20:])), atol=1e-8)


@pytest.mark.parametrize("standardize", [True, False])
def test_one_penalty_alone_is_a_point_of_the_path(standardize: bool) -> None:
    X, y = data(width=30)
    moments = Moments.of(X, indicators(y, 3))
    path = RidgePath(moments, standardize)
    for alpha in (0.0, 1e-10, 1e-6, 1e-2, 10.0):
        coef, intercept = solve(moments, alpha, standardize)
        np.testing.assert_allclose(X @ coef + intercept, path.scores(path.rotated(X), alpha), atol=1e-7)


def test_leaving_one_out_is_a_refit_without_it() -> None:
    X, y = data(n=40)
    T = indicators(y, 3)
    path = RidgePath(Moments.of(X, T), standardize=False)
    for alpha in (1e-3, 1.0):
        found = path.left_out_scores(path.rotated(X), T, alpha)
        for row in range(0, 40, 7):
            rest = np.arange(40) != row
            refit = Ridge(alpha=40 * alpha * path.unit).fit(X[rest], T[rest])
            np.testing.assert_allclose(found[row], refit.predict(X[row : row + 1])[0], atol=1e-9)


def test_dropping_a_site_is_a_subtraction() -> None:
    X, y = data(n=20_000, width=20)
    site = np.random.default_rng(1).integers(0, 4, len(X))
    T = indicators(y, 3)
    parts = [Moments.of(X[site == s], T[site == s]) for s in range(4)]
    whole = parts[0] + parts[1] + parts[2] + parts[3]
    without, direct = whole - parts[2], Moments.of(X[site != 2], T[site != 2])
    for name in ("n", "x", "t", "xx", "xt"):
        np.testing.assert_allclose(getattr(without, name), getattr(direct, name), rtol=1e-9, atol=1e-6)
    a, b = RidgePath(without), RidgePath(direct)
    np.testing.assert_allclose(a.scores(a.rotated(X[:50]), 0.1), b.scores(b.rotated(X[:50]), 0.1), atol=1e-8)


@pytest.mark.parametrize("n_folds", [2, 5])
def test_the_sweep_is_a_fit_for_each_fold_and_penalty(n_folds: int) -> None:
    X, y = data()
    folds = list(KFold(n_folds, shuffle=True, random_state=0).split(X))
    swept = sweep_ridge(X, y, folds, n_classes=3)
    assert len(swept) == len(ALPHAS)
    for j in (0, 10, len(ALPHAS) - 1):
        for i, (train, val) in enumerate(folds):
            fitted = RidgeProbe(alpha=ALPHAS[j]).fit(X[train], y[train])
            np.testing.assert_allclose(swept[j][i], fitted.predict_proba(X[val]), atol=1e-7)


def test_labels_may_be_missing() -> None:
    X, _ = data(n=150)
    rng = np.random.default_rng(0)
    Y = (X[:, 3:6] > X[:, 3:6].mean(axis=0)).astype(float)
    Y[rng.random(Y.shape) < 0.3] = np.nan
    probe = RidgeProbe(alpha=0.1).fit(X, Y)
    for i in range(3):
        known = ~np.isnan(Y[:, i])
        alone = RidgeProbe(alpha=0.1).fit(X[known], Y[known, i].astype(int)).decision_scores(X)[:, 1]
        np.testing.assert_allclose(probe.decision_scores(X)[:, i], alone, atol=1e-9)
    folds = list(KFold(3).split(X))
    swept = sweep_ridge(X, Y, folds, [0.1], n_classes=3)[0]
    for (train, val), proba in zip(folds, swept, strict=True):
        expected = RidgeProbe(alpha=0.1).fit(X[train], Y[train]).predict_proba(X[val])
        np.testing.assert_allclose(proba, expected, atol=1e-7)


def test_constant_features_count_for_nothing() -> None:
    X, y = data()
    wider = np.column_stack([X, np.full(len(X), 1e4), np.zeros(len(X))])
    unit = RidgePath(Moments.of(X, indicators(y, 3))).unit
    padded = RidgePath(Moments.of(wider, indicators(y, 3)))
    ours = RidgeProbe(alpha=0.1 * unit / padded.unit).fit(wider, y).decision_scores(wider)
    np.testing.assert_allclose(ours, RidgeProbe(alpha=0.1).fit(X, y).decision_scores(X), atol=1e-7)


def test_probabilities_keep_the_order_and_add_up() -> None:
    X, y = data(classes=2)
    probe = RidgeProbe().fit(X, y)
    scores, proba = probe.decision_scores(X)[:, 1], probe.predict_proba(X)
    assert (np.argsort(scores) == np.argsort(proba[:, 1])).all()
    np.testing.assert_allclose(proba.sum(axis=1), 1)
    np.testing.assert_array_equal(probe.predict(X), proba.argmax(axis=1))


def test_prototypes_are_scikit_learns_nearest_centroid_on_the_sphere() -> None:
    X, y = data()
    A, B = X[:90], X[90:]
    unit_A, unit_B = normalize(A - A.mean(axis=0)), normalize(B - A.mean(axis=0))
    reference = NearestCentroid().fit(unit_A, y[:90])
    centroids = normalize(reference.centroids_)
    ours = PrototypeProbe(standardize=False).fit(A, y[:90])
    np.testing.assert_allclose(ours.cosines(B), unit_B @ centroids.T, atol=1e-12)
    np.testing.assert_array_equal(ours.predict(B), (unit_B @ centroids.T).argmax(axis=1))


def test_prototype_sweep_and_absent_classes() -> None:
    X, y = data(n=60)
    folds = [(np.flatnonzero(y != 1), np.flatnonzero(y == 1)), (np.arange(30), np.arange(30, 60))]
    swept = sweep_prototype(X, y, folds, n_classes=3)
    assert len(swept) == len(TEMPERATURES)
    assert (swept[0][0][:, 1] == 0).all()
    for temperature, by_fold in zip(TEMPERATURES, swept, strict=True):
        expected = PrototypeProbe(temperature, standardize=False).fit(X[:30], y[:30]).predict_proba(X[30:])
        np.testing.assert_allclose(by_fold[1], expected, atol=1e-12)


def test_prototypes_of_labels() -> None:
    X, _ = data(n=200)
    Y = (X[:, 3:6] > X[:, 3:6].mean(axis=0)).astype(float)
    Y[::5, 1] = np.nan
    probe = PrototypeProbe().fit(X[:150], Y[:150])
    accuracy = np.nanmean(np.where(np.isnan(Y[150:]), np.nan, probe.predict(X[150:]) == Y[150:]), axis=0)
    assert (accuracy > 0.6).all()


@pytest.mark.parametrize("probe", [RidgeProbe(alpha=-1), PrototypeProbe(temperature=0)])
def test_settings_that_cannot_be(probe: object) -> None:
    X, y = data()
    with pytest.raises(ValueError, match=r"alpha|temperature"):
        probe.fit(X, y)  # type: ignore[attr-defined]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("probe", [RidgeProbe(), PrototypeProbe()], ids=str)
def test_scikit_learn_checks(probe: object) -> None:
    check_estimator(probe, on_skip=None)


@pytest.mark.parametrize("target", ["label", "two", "finding"])
def test_as_probes_of_a_store(target: str, tmp_path: object) -> None:
    X, y = data(n=200)
    rng = np.random.default_rng(0)
    findings = {f"finding_{i}": np.where(rng.random(200) < 0.1, np.nan, y == i) for i in range(3)}
    samples = pd.DataFrame({"label": y, "two": y == 0, **findings})
    store = make_store(tmp_path / "s.zarr", X.astype(np.float32), samples)  # type: ignore[operator]
    rows = medprobe.probe(store, target, probes=["ridge", "prototype", "logreg"], n_resamples=50)
    found = {row.probe: row for row in rows if row.primary}
    assert found["ridge"].value > 0.6
    assert found["prototype"].value > 0.5
    assert abs(found["ridge"].value - found["logreg"].value) < 0.12
    assert "alpha" in found["ridge"].settings[0]


def test_few_rows_have_the_path_of_their_sums():
    """Fewer rows than features, one of them constant: from inner products of the rows as from their covariance."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(30, 80)) * rng.uniform(0.1, 9, 80) + 3
    X[:, 5] = 2.0
    T = indicators(rng.integers(0, 3, 30), 3)
    few, sums = RidgePath.of(X, T), RidgePath(Moments.of(X, T))
    new = rng.normal(size=(12, 80)) * 4
    for a, b in zip(few.held_out(new, ALPHAS, False), sums.held_out(new, ALPHAS, False), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)  # the covariance's own rounding, at the weakest penalties
    for alpha in (1.0, 1e-3):
        np.testing.assert_allclose(
            few.scores(few.rotated(new), alpha), sums.scores(sums.rotated(new), alpha), atol=1e-8
        )
