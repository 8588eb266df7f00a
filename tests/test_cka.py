"""CKA against its definition, with kernels and the sum over quadruples of images."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import make_store
from typer.testing import CliRunner

from medprobe.cli import app
from medprobe.errors import DataError
from medprobe.probe.cka import cka, linear_cka


def hsic_by_definition(X: np.ndarray, Y: np.ndarray) -> float:
    """Song et al. 2012, equation 4: the mean over quadruples of different images."""
    K, L = X @ X.T, Y @ Y.T
    terms = [K[i, j] * (L[i, j] + L[q, r] - 2 * L[i, q]) for i, j, q, r in itertools.permutations(range(len(X)), 4)]
    return float(np.mean(terms))


def hsic_by_kernels(X: np.ndarray, Y: np.ndarray) -> float:
    """Song et al. 2012, equation 5."""
    n = len(X)
    K, L = X @ X.T, Y @ Y.T
    np.fill_diagonal(K, 0)
    np.fill_diagonal(L, 0)
    one = np.ones(n)
    last = 2 / (n - 2) * (one @ K @ L @ one)
    return float((np.trace(K @ L) + (one @ K @ one) * (one @ L @ one) / ((n - 1) * (n - 2)) - last) / (n * (n - 3)))


@pytest.mark.parametrize("hsic", [hsic_by_definition, hsic_by_kernels])
def test_equals_the_definition(hsic) -> None:
    random = np.random.default_rng(0)
    X = random.normal(size=(8, 5)) + 3
    Y = X @ random.normal(size=(5, 4)) + random.normal(size=(8, 4)) - 10
    expected = hsic(X, Y) / np.sqrt(hsic(X, X) * hsic(Y, Y))
    assert linear_cka(X, Y) == pytest.approx(expected, rel=1e-9)


def test_what_it_is_blind_to_and_what_not() -> None:
    random = np.random.default_rng(1)
    X = random.normal(size=(300, 40))
    rotation, _ = np.linalg.qr(random.normal(size=(40, 40)))
    assert linear_cka(X, 3 * X @ rotation + 100) == pytest.approx(1.0)
    assert linear_cka(X, random.normal(size=(300, 60))) == pytest.approx(0, abs=0.02)
    # Without the correction, unrelated wide features of few images look alike.
    X, Y = random.normal(size=(50, 5000)), random.normal(size=(50, 5000))
    K, L = ((Z - Z.mean(axis=0)) @ (Z - Z.mean(axis=0)).T for Z in (X, Y))
    assert (K * L).sum() / np.sqrt((K * K).sum() * (L * L).sum()) > 0.9
    assert abs(linear_cka(X, Y)) < 0.1
    assert np.isnan(linear_cka(X, np.ones((50, 3))))


def test_stores_are_joined_by_id_and_blocks_come_one_by_one(tmp_path: Path) -> None:
    random = np.random.default_rng(2)
    ids = [f"s{i:05d}" for i in range(50)]
    blocks = random.normal(size=(50, 16)).astype(np.float32)
    first = make_store(
        tmp_path / "a.zarr", {"cls": blocks[:, :4], "blocks": blocks}, pd.DataFrame({"id": ids}), encoder="a/x"
    )
    order = random.permutation(50)[:40]
    second = make_store(
        tmp_path / "b.zarr", {"cls": blocks[order, 4:8]}, pd.DataFrame({"id": [ids[i] for i in order]}), encoder="b/y"
    )
    found = cka(first, second)
    assert found.rows == ("cls", "block 1 of 4", "block 2 of 4", "block 3 of 4", "block 4 of 4")
    assert found.columns == ("cls",)
    assert found.n_images == 40
    shared = sorted(order)
    for i in range(4):
        assert found.values[i + 1, 0] == pytest.approx(
            linear_cka(blocks[shared, 4 * i : 4 * i + 4], blocks[shared, 4:8])
        )
    assert found.values[2, 0] == pytest.approx(1.0)
    run = CliRunner().invoke(app, ["cka", str(tmp_path / "a.zarr"), str(tmp_path / "b.zarr"), "--json"])
    assert json.loads(run.stdout)["values"][2][0] == pytest.approx(1.0)
    shown = CliRunner().invoke(app, ["cka", str(tmp_path / "a.zarr"), str(tmp_path / "b.zarr"), "--view", "cls"])
    assert "over 40 images" in " ".join(shown.stdout.split())
    other = make_store(tmp_path / "c.zarr", blocks[:, :4], pd.DataFrame({"id": [f"other {i}" for i in range(50)]}))
    with pytest.raises(DataError, match="share 0 images"):
        cka(first, other)
