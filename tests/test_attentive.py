"""A probe that learns where to look."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from conftest import make_store
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.utils.estimator_checks import check_estimator

import medprobe
from medprobe.errors import UsageError
from medprobe.probe.attentive import AttentiveProbe

torch = pytest.importorskip("torch")

TOKENS, WIDTH = 16, 12


def hidden(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Images whose class is in one token, marked by another feature, among many that say nothing about it."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n)
    X = rng.normal(size=(n, TOKENS, WIDTH)).astype(np.float32)
    place = rng.integers(0, TOKENS, n)
    X[:, :, 0] -= 3
    X[np.arange(n), place, 0] += 6  # here it is
    X[np.arange(n), place, 1] = np.where(y == 1, 2.0, -2.0)
    return X.reshape(n, -1), y


def test_it_is_a_scikit_learn_estimator():
    check_estimator(AttentiveProbe(epochs=30, lr=0.03))


def test_it_finds_the_token_that_counts():
    X, y = hidden(1200)
    train, test = slice(0, 900), slice(900, None)
    probe = AttentiveProbe(n_tokens=TOKENS, lr=1e-2, epochs=30).fit(X[train], y[train])
    ours = roc_auc_score(y[test], probe.predict_proba(X[test])[:, 1])
    pooled = X.reshape(len(X), TOKENS, WIDTH).mean(axis=1)
    mean = LogisticRegression().fit(pooled[train], y[train]).predict_proba(pooled[test])[:, 1]
    assert ours > 0.95 > roc_auc_score(y[test], mean)
    looked = probe.attention(X[test])
    assert looked.shape == (300, 4, TOKENS)
    np.testing.assert_allclose(looked.sum(axis=2), 1, atol=1e-5)
    there = X[test].reshape(300, TOKENS, WIDTH)[:, :, 0].argmax(axis=1)
    assert (looked.max(axis=1).argmax(axis=1) == there).mean() > 0.9


def test_prediction_is_the_stated_formula():
    X, y = hidden(200)
    probe = AttentiveProbe(n_tokens=TOKENS, epochs=3).fit(X, y)
    layer = probe._layer
    tokens = torch.from_numpy((X.reshape(200, TOKENS, WIDTH) - layer.mean) / layer.scale).double()
    queries = torch.from_numpy(layer.queries).double()
    # With tokens as keys and values, each query is one head of scaled dot-product attention.
    pooled = torch.nn.functional.scaled_dot_product_attention(queries.expand(200, -1, -1), tokens, tokens)
    logits = pooled.flatten(1) @ torch.from_numpy(layer.weight).double().T + torch.from_numpy(layer.bias).double()
    np.testing.assert_allclose(probe.predict_proba(X), torch.softmax(logits, dim=1).numpy(), atol=1e-5)
    every = X.reshape(200, TOKENS, WIDTH)
    mean, scale = every.reshape(-1, WIDTH).mean(axis=0), every.reshape(-1, WIDTH).std(axis=0)
    np.testing.assert_allclose(layer.mean, mean, atol=1e-5)
    np.testing.assert_allclose(layer.scale, scale, rtol=1e-4)


def test_the_order_of_the_tokens_does_not_matter_and_the_seed_decides():
    X, y = hidden(300)
    probe = AttentiveProbe(n_tokens=TOKENS, epochs=5, random_state=3).fit(X, y)
    mixed = X.reshape(300, TOKENS, WIDTH)[:, np.random.default_rng(0).permutation(TOKENS)].reshape(300, -1)
    np.testing.assert_allclose(probe.predict_proba(mixed), probe.predict_proba(X), atol=1e-5)
    again = AttentiveProbe(n_tokens=TOKENS, epochs=5, random_state=3).fit(X, y)
    np.testing.assert_array_equal(again.predict_proba(X), probe.predict_proba(X))
    half = AttentiveProbe(n_tokens=TOKENS, epochs=5, random_state=3).fit(X.astype(np.float16), y)
    np.testing.assert_allclose(half.predict_proba(X), probe.predict_proba(X), atol=0.01)


def test_missing_labels_do_not_matter():
    X, y = hidden(300)
    Y = np.stack([y, 1 - y], axis=1).astype(float)
    Y[:100] = np.nan
    probe = AttentiveProbe(n_tokens=TOKENS, lr=1e-2, epochs=40).fit(X, Y)
    proba = probe.predict_proba(X[100:])
    assert roc_auc_score(y[100:], proba[:, 0]) > 0.9
    assert roc_auc_score(1 - y[100:], proba[:, 1]) > 0.9


def test_tokens_that_do_not_divide_the_row_are_refused():
    X, y = hidden(20)
    with pytest.raises(ValueError, match="192 features are not those of 5 tokens"):
        AttentiveProbe(n_tokens=5).fit(X, y)


def test_it_probes_the_tokens_of_a_store(tmp_path):
    X, y = hidden(600)
    mean = X.reshape(600, TOKENS, WIDTH).mean(axis=1)
    samples = pd.DataFrame({"label": y, "split": np.repeat(["train", "val", "test"], 200)})
    store = make_store(tmp_path / "s.zarr", {"mean": mean, "tokens": X}, samples, labels=("label",), split="split")
    results = medprobe.probe(store, probes=["attentive", "ridge"], n_resamples=50)
    ridge, attentive = (row for row in results if row.primary)
    assert (attentive.view, ridge.view) == ("tokens", "mean")
    assert attentive.value > ridge.value
    assert attentive.settings["n_tokens"] == TOKENS
    views = medprobe.probe(store, probes=["ridge"], view="auto", n_resamples=50)[0]
    assert views.view == "auto"  # tokens are for the attentive probe alone
    with pytest.raises(UsageError, match="--pca: not with --probe attentive"):
        medprobe.probe(store, probes=["attentive"], pca=3)
    plain = make_store(tmp_path / "p.zarr", mean, samples, labels=("label",), split="split")
    with pytest.raises(UsageError, match=r"--probe attentive: .*--tokens"):
        medprobe.probe(plain, probes=["attentive"])


def test_tokens_are_kept_on_request(tmp_path):
    pytest.importorskip("timm")
    rng = np.random.default_rng(0)
    for i in range(6):
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    options = {"image_size": 32, "workers": 0, "precision": "fp32"}
    (plain,) = medprobe.embed(tmp_path, "baseline/random-vit_tiny_patch16_224", tmp_path / "a", **options)
    (kept,) = medprobe.embed(tmp_path, "baseline/random-vit_tiny_patch16_224", tmp_path / "b", tokens=True, **options)
    assert "tokens" not in medprobe.open_store(plain.path).views
    store = medprobe.open_store(kept.path)
    assert store.views["tokens"] == 4 * 192
    tokens = store.features("tokens").reshape(6, 4, 192)
    np.testing.assert_allclose(tokens.mean(axis=1), store.features("mean"), atol=2e-3)
    with pytest.raises(UsageError, match="--tokens: baseline/pixels has no patch tokens"):
        medprobe.embed(tmp_path, "baseline/pixels", tmp_path / "c", tokens=True)
