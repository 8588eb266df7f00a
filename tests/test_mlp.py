from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from sklearn.datasets import make_classification
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.utils.estimator_checks import check_estimator

from medprobe.errors import UsageError
from medprobe.probe import mlp
from medprobe.probe.mlp import MLPProbe, Setting, default_batch_size, default_grid, sweep_mlp
from medprobe.probe.mlp_stack import _Stack, probabilities, train
from medprobe.probe.targets import hold_out

torch = pytest.importorskip("torch")
SMALL = {"hidden": (16,), "n_seeds": 1}


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny networks on cores that other tests keep busy: threads would spend their time waiting for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def classes(n=240, d=12, k=3, seed=0):
    X, y = make_classification(
        n, d, n_informative=6, n_classes=k, n_clusters_per_class=1, class_sep=1.5, random_state=seed
    )
    return X.astype(np.float32), y.astype(np.int64)


def labels(n=240, d=12, seed=0, missing=0.4):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, d)).astype(np.float32)
    Y = (X[:, :4] + 0.3 * rng.standard_normal((n, 4)) > 0).astype(float)
    Y[rng.random(Y.shape) < missing] = np.nan
    return X, Y


def xor(n=400, seed=0):
    X = np.random.default_rng(seed).standard_normal((n, 6)).astype(np.float32)
    return X, ((X[:, 0] > 0) ^ (X[:, 1] > 0)).astype(np.int64)


def masked_loss(Y, P):
    known = ~np.isnan(Y)
    return -np.where(Y == 1, np.log(P), np.log1p(-P))[known].mean()


def assert_same(first, second, **tolerance):
    assert first.epochs == second.epochs
    for a, b in zip(first.weights + first.biases, second.weights + second.biases, strict=True):
        np.testing.assert_allclose(a, b, **tolerance)


@pytest.mark.parametrize("targets", [classes, labels])
def test_together_is_alone(targets):
    X, Y = targets()
    grid = [
        Setting((8,), 1e-3, 0.1, 0.0, seed=1),
        Setting((8, 5), 3e-3, 0.0, 0.3, seed=2),
        Setting((8,), 3e-2, 0.5, 0.5, seed=3),
        Setting((8, 5), 1e-3, 0.1, 0.0, seed=1),
        Setting((8,), 1e-1, 0.0, 0.0, seed=4),
    ]
    settings = {
        "n_classes": 4, "validation": (X[180:], Y[180:]), "max_epochs": 12, "patience": 3, "batch_size": 32, "seed": 5,
    }  # fmt: skip
    together = train(X[:180], Y[:180], grid, **settings)
    assert len({network.epochs for network in together}) > 1, "all stop at once: the test shows nothing"
    for setting, network in zip(grid, together, strict=True):
        assert [w.shape for w in network.weights] == [
            *zip((12, *setting.hidden), (*setting.hidden, 4), strict=True),
        ]
        (alone,) = train(X[:180], Y[:180], [setting], **settings)
        assert_same(network, alone, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("targets", [classes, labels])
def test_training_is_that_of_torch(targets):
    """The same network out of torch's own parts: Linear, AdamW, and a loss of the rows in the same order."""
    X, Y = targets(n=100)
    n_classes = 4
    start = train(X, Y, [Setting((9, 7), lr=0.0, weight_decay=0.0)], n_classes=n_classes, max_epochs=1)[0]
    network = torch.nn.Sequential(
        torch.nn.Linear(12, 9), torch.nn.ReLU(), torch.nn.Linear(9, 7), torch.nn.ReLU(), torch.nn.Linear(7, n_classes)
    )
    with torch.no_grad():
        for layer, weight, bias in zip(network[::2], start.weights, start.biases, strict=True):
            layer.weight.copy_(torch.tensor(weight.T))
            layer.bias.copy_(torch.tensor(bias))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2, weight_decay=0.3)
    order = torch.Generator().manual_seed(11)
    for _ in range(5):
        for rows in torch.randperm(len(X), generator=order).split(32):
            out, target = network(torch.tensor(X)[rows]), torch.tensor(Y)[rows]
            if Y.ndim == 1:
                loss = torch.nn.functional.cross_entropy(out, target)
            else:
                known = ~target.isnan()
                loss = torch.nn.functional.binary_cross_entropy_with_logits(out[known], target[known].float())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    # A neighbour with other rates must not change anything.
    grid = [Setting((9, 7), 1e-1, 0.0), Setting((9, 7), 1e-2, 0.3)]
    got = train(X, Y, grid, n_classes=n_classes, max_epochs=5, batch_size=32, seed=11)[1]
    for layer, weight, bias in zip(network[::2], got.weights, got.biases, strict=True):
        np.testing.assert_allclose(weight.T, layer.weight.detach().numpy(), rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(bias, layer.bias.detach().numpy(), rtol=1e-3, atol=1e-5)


def test_probabilities_are_those_of_torch():
    X, y = classes()
    (network,) = train(X, y, [Setting((9, 7))], n_classes=3, max_epochs=1)
    out = torch.tensor(X)
    for layer, (weight, bias) in enumerate(zip(network.weights, network.biases, strict=True)):
        out = (out if layer == 0 else out.relu()) @ torch.tensor(weight) + torch.tensor(bias)
    np.testing.assert_allclose(probabilities(network, X, multilabel=False), out.softmax(1), atol=1e-6)
    np.testing.assert_allclose(probabilities(network, X, multilabel=True), out.sigmoid(), atol=1e-6)


def test_missing_labels_do_not_count():
    X, Y = labels()
    Y = np.hstack([Y, np.full_like(Y[:, :1], np.nan)])
    start, network = train(X, Y, [Setting((8,), lr=0.0), Setting((8,), weight_decay=0.0)], n_classes=5, max_epochs=3)
    np.testing.assert_array_equal(network.weights[1][:, 4], start.weights[1][:, 4])
    assert not np.isclose(network.weights[1][:, :4], start.weights[1][:, :4]).any()


def test_batches_without_any_label():
    X, Y = labels(n=64)
    Y[:60] = np.nan
    (network,) = train(X, Y, [Setting((8,))], n_classes=4, max_epochs=3, batch_size=8)
    assert np.isfinite(probabilities(network, X, multilabel=True)).all()


def test_dropout_takes_units_in_training_only():
    X, y = classes()
    grid = [Setting((64,), dropout=0.0), Setting((64,), dropout=0.5)]
    plain, dropped = train(X, y, grid, n_classes=3, max_epochs=3)
    assert not np.allclose(plain.weights[0], dropped.weights[0])
    np.testing.assert_array_equal(*(probabilities(dropped, X, multilabel=False) for _ in range(2)))


def test_dropout_keeps_the_mean_of_the_outputs():
    stack = _Stack([Setting((400,), dropout=0.0), Setting((400,), dropout=0.4)], 5, 3, "cpu")
    X = torch.randn(1, 5, generator=torch.Generator().manual_seed(0)).repeat(4000, 1)
    with torch.no_grad():
        out, clean = stack.logits(X, torch.Generator().manual_seed(1)), stack.logits(X)
    torch.testing.assert_close(out[0], clean[0])
    assert float(out[1].std(dim=0).min()) > 0.01
    torch.testing.assert_close(out[1].mean(dim=0), clean[1, 0], atol=0.01, rtol=0)


def test_the_best_epoch_is_kept():
    X, y = classes(n=120, d=12)
    y = np.where(np.random.default_rng(0).random(120) < 0.4, (y + 1) % 3, y)
    rows, held_out = slice(0, 60), slice(60, 120)
    grid = [Setting((64,), lr) for lr in (1e-3, 1e-2)]
    settings = {"n_classes": 3, "batch_size": 16}

    def loss(network):
        return log_loss(y[held_out], probabilities(network, X[held_out], multilabel=False))

    by_epoch = [
        [loss(net) for net in train(X[rows], y[rows], grid, max_epochs=epoch, **settings)] for epoch in range(1, 31)
    ]
    kept = train(X[rows], y[rows], grid, validation=(X[held_out], y[held_out]), max_epochs=30, patience=30, **settings)
    for i, network in enumerate(kept):
        losses = [row[i] for row in by_epoch]
        assert network.epochs == 1 + int(np.argmin(losses)) < 30
        assert loss(network) == pytest.approx(min(losses), rel=1e-4)
        for patience in range(1, 6):
            stop = next(e for e in range(1, 31) if e - 1 - int(np.argmin(losses[:e])) >= patience or e == 30)
            impatient = train(
                X[rows], y[rows], grid, validation=(X[held_out], y[held_out]), max_epochs=30, patience=patience,
                **settings,
            )[i]  # fmt: skip
            assert impatient.epochs == 1 + int(np.argmin(losses[:stop])), patience


def test_a_network_ends_after_so_many_epochs_without_a_lower_loss():
    stack = _Stack([Setting((2,)), Setting((2,)), Setting((2,))], 5, 3, "cpu")
    losses = iter([[1.0, 3.0, np.nan], [1.0, 2.0, np.nan], [0.5]])
    active = []
    for epoch in (1, 2):
        stack.keep_best(epoch, np.array(next(losses)), patience=2)
        active.append(list(stack.active))
    assert active == [[0, 1, 2], [0, 1]]
    stack.keep_best(3, np.array([1.5, 2.0]), patience=2)
    assert list(stack.active) == [1]
    stack.keep_best(4, np.array(next(losses)), patience=2)
    assert [network.epochs for network in stack.trained()] == [1, 4, 0]


def test_a_network_that_diverges_leaves_the_others_alone():
    X, y = classes()
    grid = [Setting((8,), lr=1e30), Setting((8,))]
    settings = {"n_classes": 3, "validation": (X, y), "max_epochs": 5}
    diverged, fine = train(X, y, grid, **settings)
    assert_same(fine, train(X, y, grid[1:], **settings)[0], rtol=1e-4, atol=1e-5)
    assert np.isfinite(probabilities(diverged, X, multilabel=False)).all()


def test_bfloat16_is_close_to_float32():
    X, y = classes(n=600)
    settings = {"n_classes": 3, "max_epochs": 10, "batch_size": 32}
    losses = []
    for precision in ("fp32", "bf16"):
        networks = train(X, y, [Setting((32,), 1e-2), Setting((32, 16), 1e-2)], precision=precision, **settings)
        assert networks[0].weights[0].dtype == np.float32
        losses.append([log_loss(y, probabilities(network, X, multilabel=False)) for network in networks])
    np.testing.assert_allclose(*losses, atol=0.02)


def test_learns_what_a_linear_model_cannot():
    X, y = xor()
    X_test, y_test = xor(seed=1)
    assert LogisticRegression().fit(X, y).score(X_test, y_test) < 0.65
    probe = MLPProbe(hidden=(32,), lr=1e-2).fit(X, y)
    assert probe.score(X_test, y_test) > 0.9
    swept = sweep_mlp(X, y, [(np.arange(300), np.arange(300, 400))], n_classes=2, grid=[Setting((32,), 1e-2)])
    assert (swept[0][1][0].argmax(axis=1) == y[300:]).mean() > 0.85


@pytest.mark.parametrize("targets", [classes, labels])
def test_sweep(targets):
    X, Y = targets()
    rows = np.random.default_rng(1).permutation(len(X))
    folds = [(rows[80:], rows[:80]), (rows[:160], rows[160:]), (rows[40:200], np.r_[rows[:40], rows[200:]])]
    n_classes = 4 if Y.ndim == 2 else 3
    grid = [Setting((8,), 1e-2, dropout=0.2), Setting((8, 4), 3e-3)]
    swept = sweep_mlp(X, Y, folds, n_classes=n_classes, grid=grid, seed=3, precision="fp32")
    again = sweep_mlp(X, Y, folds, n_classes=n_classes, grid=grid, seed=3, precision="fp32")
    assert [settings["hidden"] for settings, _ in swept] == [(8,), (8, 4)]
    for i, (settings, found) in enumerate(swept):
        epochs = []
        for (training, held_out), got, same in zip(folds, found, again[i][1], strict=True):
            np.testing.assert_array_equal(got, same)
            (network,) = train(
                X[training], Y[training], [grid[i]], n_classes=n_classes, validation=(X[held_out], Y[held_out]),
                batch_size=default_batch_size(len(training)), seed=3,
            )  # fmt: skip
            np.testing.assert_allclose(
                got, probabilities(network, X[held_out], multilabel=Y.ndim == 2), rtol=1e-2, atol=1e-3
            )
            epochs.append(network.epochs)
            if Y.ndim == 1:
                np.testing.assert_allclose(got.sum(axis=1), 1, atol=1e-5)
                assert log_loss(Y[held_out], got) < 0.8 * np.log(3)
            else:
                assert masked_loss(Y[held_out], got) < 0.6
        assert settings["epochs"] == int(np.median(epochs))
    probe = MLPProbe(
        **{name: settings[name] for name in ("hidden", "lr", "weight_decay", "dropout")},
        max_epochs=settings["epochs"], early_stopping=False,
    ).fit(X, Y)  # fmt: skip
    assert {network.epochs for network in probe.networks_} == {settings["epochs"]}


def test_default_grid():
    grid = default_grid(7)
    assert len(set(grid)) == 12
    assert {setting.seed for setting in grid} == {7}


@pytest.mark.parametrize(("n", "rows"), [(1, 32), (300, 32), (1000, 128), (20_000, 512), (100_000, 512)])
def test_default_batch_size(n, rows):
    assert default_batch_size(n) == rows


def test_probe_is_the_mean_of_its_networks():
    X, y = classes()
    names = np.array(["a", "b", "c"])[y]
    probe = MLPProbe(hidden=(16,), n_seeds=3, standardize=False, random_state=1).fit(X, names)
    assert len(probe.networks_) == 3
    assert not np.allclose(probe.networks_[0].weights[0], probe.networks_[1].weights[0])
    expected = np.mean([probabilities(network, X, multilabel=False) for network in probe.networks_], axis=0)
    np.testing.assert_allclose(probe.predict_proba(X), expected)
    np.testing.assert_array_equal(probe.predict(X), np.array(["a", "b", "c"])[expected.argmax(axis=1)])


def test_two_runs_are_equal_and_touch_no_global_state():
    X, y = classes()
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    seed = np.random.get_state()[1].copy()
    first, second, other = (
        MLPProbe(**SMALL, dropout=0.3, random_state=s).fit(X, y).predict_proba(X) for s in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, second)
    assert not np.allclose(first, other)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    np.testing.assert_array_equal(np.random.get_state()[1], seed)


def test_probe_stops_on_the_validation_rows_that_it_is_given():
    X, y = classes()
    probe = MLPProbe(**SMALL, lr=1e-2)
    useful = probe.fit(X[:150], y[:150], X_val=X[150:], y_val=y[150:]).networks_[0].epochs
    misleading = probe.fit(X[:150], y[:150], X_val=X[150:], y_val=(y[150:] + 1) % 3).networks_[0].epochs
    assert misleading < 4 < useful
    with pytest.raises(ValueError, match="y_val"):
        probe.fit(X[:150], y[:150], X_val=X[150:], y_val=y[150:] + 1)
    with pytest.raises(ValueError, match="early_stopping"):
        MLPProbe(early_stopping=False).fit(X, y, X_val=X, y_val=y)


def test_probe_holds_out_whole_groups():
    X, _ = classes()
    y = np.random.default_rng(0).integers(0, 2, len(X))
    probe = MLPProbe(**SMALL, lr=1e-2, max_epochs=40, patience=2)
    assert probe.fit(X, y).networks_[0].epochs < 40
    # There is nothing to hold out of one group, so nothing ends the training.
    assert probe.fit(X, y, groups=np.zeros(len(X))).networks_[0].epochs == 40


def test_probe_does_not_train_on_the_rows_that_it_holds_out(monkeypatch):
    seen = []

    def spy(X, Y, *args, validation, **kwargs):
        seen.extend([X, validation[0]])
        return train(X, Y, *args, validation=validation, **kwargs)

    monkeypatch.setattr(mlp, "train", spy)
    X, y = classes()
    MLPProbe(**SMALL, standardize=False, validation_fraction=0.2).fit(X, y)
    assert [len(rows) for rows in seen] == [192, 48]
    assert len(np.unique(np.vstack(seen), axis=0)) == 240


def test_probe_standardises_by_the_training_rows():
    X, y = classes()
    scaled = (X * np.array([1e4] * 6 + [1e-4] * 6) + 1e3).astype(np.float64)
    plain = MLPProbe(**SMALL).fit(X.astype(np.float64), y)
    np.testing.assert_allclose(
        MLPProbe(**SMALL).fit(scaled, y).predict_proba(scaled), plain.predict_proba(X.astype(np.float64)), atol=1e-2
    )


def test_probe_on_labels_with_missing_values():
    X, Y = labels(n=400)
    probe = MLPProbe(hidden=(16,), lr=1e-2).fit(X, Y)
    X_test, Y_test = labels(seed=1, missing=0)
    assert (probe.predict(X_test) == Y_test).mean() > 0.85
    assert probe.predict_proba(X_test).shape == (240, 4)


def test_class_weights_move_the_threshold():
    X, y = classes(k=2)
    rows = np.flatnonzero((y == 0) | (np.arange(len(y)) % 12 == 0))
    X, y = X[rows] + np.random.default_rng(0).normal(0, 2, X[rows].shape).astype(np.float32), y[rows]
    plain = MLPProbe(**SMALL).fit(X, y).predict_proba(X)[:, 1].mean()
    balanced = MLPProbe(**SMALL, class_weight="balanced").fit(X, y).predict_proba(X)[:, 1].mean()
    assert plain == pytest.approx(y.mean(), abs=0.1)
    assert balanced > plain + 0.1


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"hidden": ()}, "hidden"), ({"hidden": (4, 4, 4)}, "hidden"), ({"hidden": (0,)}, "hidden"),
        ({"dropout": 1.0}, "dropout"), ({"validation_fraction": 0}, "validation_fraction"),
        ({"max_epochs": 0}, "max_epochs"), ({"n_seeds": 0}, "n_seeds"),
    ],
)  # fmt: skip
def test_probe_refuses_settings(settings, match):
    with pytest.raises(ValueError, match=match):
        MLPProbe(**settings).fit(*classes())


def test_probe_refuses_class_weights_for_labels():
    with pytest.raises(ValueError, match="class_weight"):
        MLPProbe(class_weight="balanced").fit(*labels())


def test_hold_out_keeps_groups_together_and_classes_apart():
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 120, 600)
    y = (groups % 10 == 0).astype(np.int64)
    held_out = hold_out(y, groups, 0.25, np.random.RandomState(0))
    assert not set(groups[held_out]) & set(groups[~held_out])
    assert held_out.mean() == pytest.approx(0.25, abs=0.06)
    assert len(set(groups[held_out & (y == 1)])) == 3
    rows = hold_out(y, None, 0.1, np.random.RandomState(0))
    assert rows.sum() == pytest.approx(60, abs=1)
    assert y[rows].sum() == pytest.approx(y.sum() / 10, abs=1)


def test_hold_out_leaves_every_class_a_row():
    for seed in range(20):
        held_out = hold_out(np.array([0, 1, 2, 2, 2, 2]), None, 0.5, np.random.RandomState(seed))
        assert not held_out[:2].any()
        assert 1 <= held_out.sum() <= 3
    assert not hold_out(np.array([0, 1]), None, 0.9, np.random.RandomState(0)).any()
    assert not hold_out(np.array([[0.0, 1.0]]), None, 0.9, np.random.RandomState(0)).any()


def test_probe_trains_without_rows_to_hold_out():
    X, _ = classes(n=40)
    assert MLPProbe(**SMALL, max_epochs=3).fit(X[:3], [0, 1, 2]).networks_[0].epochs == 3


def test_importing_does_not_import_torch():
    code = "import sys, medprobe.probe.mlp; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UsageError, match=r"pip install 'medprobe\[torch\]'"):
        MLPProbe().fit(*classes())


def test_predicting_needs_no_torch(monkeypatch):
    X, y = classes()
    probe = MLPProbe(**SMALL).fit(X, y)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert probe.score(X, y) > 0.8


@pytest.mark.filterwarnings("ignore")
def test_scikit_learn_checks():
    check_estimator(MLPProbe(hidden=(32,), n_seeds=2), on_skip=None)
