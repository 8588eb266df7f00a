from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import make_store

from medprobe.errors import DataError, UsageError
from medprobe.probe import atlas
from medprobe.probe.atlas import embedding_map
from medprobe.store import DERIVED, FeatureStore, open_store
from medprobe.store_records import Failure
from medprobe.store_writer import write_block


def drawn(n: int = 150, width: int = 24, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (5 + rng.normal(size=(n, width)) * np.geomspace(4, 0.1, width)).astype(np.float32)


def store_of(path: Path, X: np.ndarray) -> FeatureStore:
    return make_store(path, X, pd.DataFrame({"label": np.arange(len(X)) % 2}), labels=("label",))


def with_block(store: FeatureStore, index: int, X: np.ndarray, failed: tuple[int, ...] = ()) -> FeatureStore:
    """Write a block's features again, some rows of it without any."""
    rows = store.plan.block(index)
    arrays = {name: store._array(name, rows) for name in store.array_names}
    values = X[rows].copy()
    values[[row - rows.start for row in failed]] = np.nan
    failures = [Failure(row, "read", "truncated") for row in failed]
    write_block(store, index, {**arrays, "features/cls": values}, failures, {})
    return open_store(store.path)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list to which the number of rows of every computation is added."""
    calls: list[int] = []
    compute = atlas._components

    def counting(X: np.ndarray, n: int, seed: int) -> np.ndarray:
        calls.append(len(X))
        return compute(X, n, seed)

    monkeypatch.setattr(atlas, "_components", counting)
    return calls


def reference(X: np.ndarray) -> np.ndarray:
    """Return two principal components in float64, by singular values; the largest weight of each is positive."""
    centred = X.astype(np.float64) - X.astype(np.float64).mean(axis=0)
    _, _, weights = np.linalg.svd(centred, full_matrices=False)
    weights = weights[:2] * np.sign(weights[np.arange(2), np.abs(weights[:2]).argmax(axis=1)])[:, None]
    return centred @ weights.T


@pytest.mark.parametrize("width", [24, atlas._EXACT_WIDTH + 10])
def test_components_are_those_of_a_singular_value_decomposition(tmp_path, width):
    X = drawn(width=width) if width < 100 else drawn(width=24) @ drawn(24, width, 1) / 100
    found = embedding_map(store_of(tmp_path / "a.zarr", X))
    assert (found.shape, found.dtype) == ((150, 2), np.float32)
    np.testing.assert_allclose(found, reference(X), atol=2e-4 * np.abs(found).max())


def test_signs_do_not_depend_on_the_order_of_rows(tmp_path):
    X, order = drawn(), np.random.default_rng(1).permutation(150)
    found = embedding_map(store_of(tmp_path / "a.zarr", X))
    again = embedding_map(store_of(tmp_path / "b.zarr", X[order]))
    np.testing.assert_allclose(again, found[order], atol=1e-4)


def test_rows_without_features_have_no_place(tmp_path):
    X = drawn()
    store = with_block(store_of(tmp_path / "a.zarr", X), 1, X, failed=(70, 99))
    (store.path / "commits" / "2.json").unlink()
    with pytest.raises(DataError, match="1 of 3 blocks"):
        embedding_map(open_store(store.path))
    found = embedding_map(open_store(store.path, partial=True))
    present = np.ones(150, bool)
    present[[70, 99, *range(128, 150)]] = False
    assert np.array_equal(np.isfinite(found).all(axis=1), present)
    np.testing.assert_allclose(found[present], reference(X[present]), atol=1e-3)


def test_a_map_is_kept_until_the_features_change(tmp_path, monkeypatch):
    X, calls = drawn(), counted(monkeypatch)
    store = store_of(tmp_path / "a.zarr", X)
    first = embedding_map(store)
    assert np.array_equal(embedding_map(open_store(store.path)), first)
    assert calls == [150]
    embedding_map(store, seed=1)
    assert len(calls) == 2
    assert not list(open_store(store.path).verify())
    store = with_block(store, 1, X, failed=(70,))  # as when an image can no longer be read
    assert np.isnan(embedding_map(store)[70]).all()
    store = with_block(store, 1, X)
    assert np.array_equal(embedding_map(store), first)
    store = with_block(store, 0, X[::-1])
    assert not np.allclose(embedding_map(store), first)
    assert calls == [150, 150, 149, 150, 150]
    names = [path.name for path in (store.path / DERIVED).iterdir()]
    assert len(names) == 2
    assert all(re.fullmatch(r"map-pca-[0-9a-f]{16}\.npz", name) for name in names)  # whatever the view is called


@pytest.mark.parametrize("damage", ["torn", "flipped", "another shape", "pickle"])
def test_a_damaged_map_is_made_again(tmp_path, monkeypatch, damage):
    store = store_of(tmp_path / "a.zarr", drawn())
    first = embedding_map(store)
    (path,) = (store.path / DERIVED).iterdir()
    data = bytearray(path.read_bytes())
    if damage == "torn":
        path.write_bytes(data[:200])
    elif damage == "flipped":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    else:
        with np.load(path) as arrays:
            of = arrays["of"]
        places = np.zeros((3, 2), np.float32) if damage == "another shape" else np.array([{}], dtype=object)
        np.savez(path, of=of, places=places)
    calls = counted(monkeypatch)
    assert np.array_equal(embedding_map(store), first)
    assert np.array_equal(embedding_map(store), first)
    assert calls == [150]


def test_a_store_that_cannot_be_written_keeps_no_map(tmp_path, monkeypatch):
    store, calls = store_of(tmp_path / "a.zarr", drawn()), counted(monkeypatch)
    before = sorted(path for path in store.path.rglob("*"))
    monkeypatch.setattr(os, "fsync", _refused)
    assert np.array_equal(embedding_map(store), embedding_map(store))
    assert calls == [150, 150]
    assert sorted(path for path in store.path.rglob("*") if path.name != DERIVED) == before


def _refused(*_: object) -> None:
    raise OSError(30, "Read-only file system")


@pytest.mark.parametrize("shape", [(1, 5), (2, 1), (3, 2)])
def test_few_rows_and_narrow_views_have_places(tmp_path, shape):
    found = embedding_map(store_of(tmp_path / "a.zarr", drawn(*shape)))
    assert found.shape == (shape[0], 2)
    assert np.isfinite(found).all()


def test_umap_keeps_clusters_apart_follows_its_seed_and_takes_few_rows(tmp_path):
    if importlib.util.find_spec("umap") is None:
        pytest.skip("needs umap-learn")
    X = drawn(20, 60)
    X[:10] += 30
    for name, values in {"a": X, "b": X, "five": X[:5], "one": X[:1]}.items():
        store_of(tmp_path / f"{name}.zarr", values)
    script = (
        "import sys; from medprobe import open_store; from medprobe.probe.atlas import embedding_map\n"
        "for path in sys.argv[1:]: embedding_map(open_store(path), method='umap', seed=3)"
    )
    stores = [str(path) for path in sorted(tmp_path.iterdir())]
    # Compiled, UMAP begins with a minute of compiling; so few rows are as quick without.
    subprocess.run([sys.executable, "-c", script, *stores], env={**os.environ, "NUMBA_DISABLE_JIT": "1"}, check=True)
    kept = {Path(path).stem: embedding_map(open_store(path), method="umap", seed=3) for path in stores}
    assert np.array_equal(kept["a"], kept["b"])
    assert {name: places.shape for name, places in kept.items()} == {
        "a": (20, 2), "b": (20, 2), "five": (5, 2), "one": (1, 2),
    }  # fmt: skip
    assert all(np.isfinite(places).all() for places in kept.values())
    distance = np.linalg.norm(kept["a"][:, None] - kept["a"][None], axis=2) + np.diag(np.full(20, np.inf))
    assert np.array_equal(distance.argmin(axis=1) < 10, np.arange(20) < 10)


def test_what_cannot_be_drawn_says_so(tmp_path, monkeypatch):
    store = store_of(tmp_path / "a.zarr", drawn())
    with pytest.raises(UsageError, match="one of pca, umap"):
        embedding_map(store, method="tsne")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="no view 'mean'; it has cls"):
        embedding_map(store, "mean")
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(UsageError, match=r"pip install 'medprobe\[umap\]'"):
        embedding_map(store, method="umap")
