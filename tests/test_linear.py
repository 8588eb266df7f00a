"""A linear layer by AdamW, and the protocols that use it."""

from __future__ import annotations

import sys

import numpy as np
import pandas as pd
import pytest
from conftest import make_store
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.neighbors import KNeighborsClassifier
from sklearn.utils.estimator_checks import check_estimator

import medprobe
from medprobe.errors import UsageError
from medprobe.probe.attentive import AttentiveProbe
from medprobe.probe.linear import LinearProbe, Recipe, learning_rates, train_linear
from medprobe.probe.presets import PRESETS

torch = pytest.importorskip("torch")


def classes(n: int = 400, k: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, k, n)
    X = rng.normal(size=(n, 6)).astype(np.float32)
    X[np.arange(n), y] += 1.5
    return X, y


def test_it_is_a_scikit_learn_estimator():
    check_estimator(LinearProbe(lr=0.05, epochs=60))


@pytest.mark.parametrize("k", [2, 3])
def test_trained_long_it_comes_to_the_optimum(k):
    X, y = classes(k=k)
    probe = LinearProbe(lr=0.02, weight_decay=0.0, epochs=200, schedule="cosine").fit(X, y)
    best = LogisticRegression(C=1e6, max_iter=10_000, tol=1e-8).fit(X, y)
    assert log_loss(y, probe.predict_proba(X)) < 1.001 * log_loss(y, best.predict_proba(X))


def test_labels_are_learned_where_they_are_known():
    X, y = classes()
    Y = np.stack([y == 0, y == 1], axis=1).astype(float)
    Y[:150, 0] = np.nan
    probe = LinearProbe(lr=0.02, weight_decay=0.0, epochs=200, schedule="cosine").fit(X, Y)
    for label, rows in ((0, slice(150, None)), (1, slice(None))):
        best = LogisticRegression(C=1e6, max_iter=10_000, tol=1e-8).fit(X[rows], Y[rows, label])
        ours = log_loss(Y[rows, label], probe.predict_proba(X[rows])[:, label])
        assert ours < 1.005 * log_loss(Y[rows, label], best.predict_proba(X[rows]))
    assert set(np.unique(probe.predict(X))) == {0, 1}


def test_the_rate_warms_up_and_falls_as_stated():
    recipe = Recipe(lr=2.0, epochs=10, warmup_epochs=2, schedule="cosine")
    rates = learning_rates(recipe, 5)
    assert rates[:10] == pytest.approx(2.0 * np.arange(1, 11) / 10)
    assert rates[10:] == pytest.approx(1 + np.cos(np.pi * np.arange(40) / 40))
    assert (learning_rates(Recipe(lr=0.1, epochs=3), 4) == 0.1).all()


def test_the_cosine_of_epochs_is_timms_as_called_by_medmnist_plus():
    timm_scheduler = pytest.importorskip("timm.scheduler.cosine_lr")
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([weight], lr=0.1)
    scheduler = timm_scheduler.CosineLRScheduler(optimizer, t_initial=8)
    expected = []
    for epoch in range(8):
        expected += [optimizer.param_groups[0]["lr"]] * 3
        optimizer.step()
        scheduler.step(epoch=epoch)
    rates = learning_rates(Recipe(lr=0.1, epochs=8, schedule="cosine-epochs"), 3)
    np.testing.assert_allclose(rates, expected, rtol=1e-12)


@pytest.mark.parametrize("stop", [0, -1, 21])
def test_a_last_epoch_outside_the_schedule_is_refused(stop):
    X, y = np.eye(4, dtype=np.float32), [0, 1, 0, 1]
    for probe in (LinearProbe(epochs=20, stop_epoch=stop), AttentiveProbe(epochs=20, stop_epoch=stop)):
        with pytest.raises(ValueError, match=r"stop_epoch must be from 1 to epochs \(20\)"):
            probe.fit(X, y)


def test_any_strides_and_any_whole_number_for_a_seed_will_do():
    X = np.random.default_rng(0).normal(size=(30, 5)).astype(np.float32)
    y = np.arange(30) % 2
    plain = LinearProbe(epochs=3, random_state=7).fit(X[::-1].copy(), y)
    turned = LinearProbe(epochs=3, random_state=np.int64(7)).fit(X[::-1], y)
    np.testing.assert_array_equal(plain.coef_, turned.coef_)


@pytest.mark.parametrize("probe", [LinearProbe(), AttentiveProbe()])
def test_without_torch(probe, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UsageError, match=r"pip install 'medprobe\[torch\]'"):
        probe.fit(np.eye(4, dtype=np.float32), [0, 1, 0, 1])


def test_an_epoch_can_be_repeated_exactly():
    X, y = classes()
    recipe = Recipe(lr=1e-2, epochs=20, schedule="cosine", warmup_epochs=1, clip=1.0)
    epochs = train_linear(X[:300], y[:300], X[300:], y[300:], recipe, n_classes=3, seed=4)
    assert len(epochs) == 20
    for stop in (1, 7, 20):
        probe = LinearProbe(
            lr=1e-2, epochs=20, schedule="cosine", warmup_epochs=1, clip=1.0, stop_epoch=stop, random_state=4
        ).fit(X[:300], y[:300])
        np.testing.assert_allclose(probe.predict_proba(X[300:]), epochs[stop - 1].proba, atol=1e-6)
        assert epochs[stop - 1].loss == pytest.approx(log_loss(y[300:], epochs[stop - 1].proba), abs=1e-5)


def test_patience_ends_the_training():
    X, y = classes()
    wrong = (y + 1) % 3  # the better it learns, the higher the validation loss
    recipe = Recipe(lr=1e-2, epochs=50, patience=5)
    epochs = train_linear(X[:300], y[:300], X[300:], wrong[300:], recipe, n_classes=3, seed=0)
    lowest = int(np.argmin([epoch.loss for epoch in epochs]))
    assert len(epochs) == lowest + 1 + 5 < 50


def test_the_bias_shrinks_on_request_only():
    X = np.zeros((64, 2), np.float32)
    y = np.arange(64) % 2
    shrunk, kept = (
        LinearProbe(lr=0.1, weight_decay=1.0, epochs=80, decay_bias=decay).fit(X, y).intercept_
        for decay in (True, False)
    )
    assert abs(shrunk).max() < 0.01 < abs(kept).max()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> medprobe.FeatureStore:
    X, y = classes(600)
    samples = pd.DataFrame(
        {"label": y, "split": np.repeat(["train", "val", "test"], 200), "patient": np.arange(600) // 2}
    )
    folder = tmp_path_factory.mktemp("preset")
    return make_store(folder / "s.zarr", 5 * X + 3, samples, labels=("label",), split="split", group="patient")


@pytest.mark.parametrize("name", list(PRESETS))
def test_a_protocol_probes_as_its_source_says(store, name):
    rows = [row for row in medprobe.probe(store, preset=name, n_resamples=50) if row.primary]
    assert [row.probe for row in rows] == [family.name for family in PRESETS[name].families]
    assert all(row.metric == PRESETS[name].metrics["multiclass"] for row in rows)
    assert all(any(note.startswith(f"{name}: ") for note in row.notes) for row in rows)
    assert all(row.value > 0.6 for row in rows if not row.probe.startswith("linear"))  # few steps at a small rate
    chosen = [row for row in medprobe.probe(store, preset=name, metric="auroc", n_resamples=50) if row.primary]
    assert {row.metric for row in chosen} == {"auroc"}


def test_medmnist_plus_votes_as_scikit_learn_does(store):
    results = medprobe.probe(store, preset="medmnist-plus", n_resamples=50)
    row = next(row for row in results if row.probe == "knn@medmnist-plus" and row.primary)
    X, y = store.features(), store.samples["label"].to_numpy()
    theirs = KNeighborsClassifier(11).fit(X[:200], y[:200])  # the training images alone
    np.testing.assert_allclose(results.predictions[row.trial].proba[0], theirs.predict_proba(X[400:]), atol=1e-6)
    assert row.n_train == 200


def test_dinov2_sweeps_its_penalties_and_refits(store):
    row = next(row for row in medprobe.probe(store, preset="dinov2", n_resamples=50) if row.probe == "logreg@dinov2")
    X, y = store.features().astype(np.float64), store.samples["label"].to_numpy()
    grid = 10 ** np.linspace(-6, 5, 45)
    assert np.isclose(grid, row.settings["C"]).any()
    refit = LogisticRegression(C=row.settings["C"], max_iter=50_000, tol=1e-8).fit(X[:400], y[:400])
    assert (refit.predict(X[400:]) == y[400:]).mean() == pytest.approx(row.value, abs=0.011)


def test_an_unknown_protocol_is_named(store):
    with pytest.raises(UsageError, match="--preset moco: one of huix2024"):
        medprobe.probe(store, preset="moco")
