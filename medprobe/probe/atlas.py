"""A map of a store's features: every sample a point in the plane, kept in the store once it is drawn."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
import zlib
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from medprobe.errors import UsageError
from medprobe.probe.bags import AnyRows, Bags
from medprobe.store import DERIVED, FeatureStore
from medprobe.store_writer import write_derived

Method = Literal["pca", "umap"]

_COMPONENTS = 50  # that UMAP starts from
_NEIGHBOURS = 15  # of UMAP, its own default
_EXACT_WIDTH = 2048  # above, the few components are found by random projections
_VERSION = 1  # of the computation: a map of another is not used


def embedding_map(
    store: AnyRows, view: str | None = None, *, method: Method = "pca", seed: int = 0
) -> NDArray[np.float32]:
    """Return a place in the plane for each row of the store's ``manifest``, (N, 2), NaN for rows without features.

    ``pca`` gives the first two principal components. Their signs are fixed: the feature that weighs most in a component
    weighs positively, so that a map does not flip when it is drawn again. ``umap`` is McInnes, Healy and Melville's
    projection (2018) of the first 50 components; distances between its clusters mean nothing.

    A map is kept in the store, if that can be written, and found there again as long as the features are the same; one of
    bags is not kept.

    Args:
        store: Complete, or opened with ``partial``, or its bags, each of which has one place.
        view: The encoder's default one unless given.
        method: ``pca`` or ``umap``.
        seed: Of UMAP, and of the random projections that find components of very wide views.

    Raises:
        UsageError: There is no such method, or UMAP is not installed.
        DataError: There is no such view, or the store is incomplete or damaged.

    """
    if method not in get_args(Method):
        raise UsageError(f"no map '{method}': one of {', '.join(get_args(Method))}")
    view = store.view_name(view)
    if isinstance(store, Bags):
        return _places(store, view, method, seed)
    wanted = _digest({"of": _features_digest(store, view), "method": method, "seed": seed, "version": _VERSION})
    name = f"map-{method}-{_digest([view, seed])[:16]}.npz"  # a view of a store from elsewhere may be called anything
    rows = len(store.mask)
    kept = _read(store.path / DERIVED / name, wanted, rows) if isinstance(store.path, Path) else None
    if kept is not None:
        return kept
    places = _places(store, view, method, seed)
    file = io.BytesIO()
    np.savez(file, of=np.array(wanted), places=places)
    write_derived(store, name, file.getvalue())
    return places


def _places(store: AnyRows, view: str, method: Method, seed: int) -> NDArray[np.float32]:
    places = np.full((len(store.mask), 2), np.nan, dtype=np.float32)
    if store.mask.any():
        features = store.features(view)
        places[store.mask] = _umap(features, seed) if method == "umap" else _components(features, 2, seed)
    return places


def _components(X: NDArray[np.float32], n: int, seed: int) -> NDArray[np.float32]:
    """Return the first principal components of features (rows, width) as (rows, n); zeros where there are fewer."""
    from sklearn.decomposition import PCA  # slow to import

    most = min(n, len(X) - 1, X.shape[1])
    found = np.zeros((len(X), n), dtype=np.float32)
    if not most:
        return found
    exact = X.shape[1] <= _EXACT_WIDTH
    centred = X - X.mean(axis=0, dtype=np.float64).astype(X.dtype)
    pca = PCA(most, svd_solver="covariance_eigh" if exact else "randomized", random_state=seed)
    found[:, :most] = pca.fit_transform(centred)  # scikit-learn fixes the signs by the largest weight of each
    return found


def _umap(X: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    try:
        from umap import UMAP
    except ImportError as error:
        raise UsageError("a UMAP needs umap-learn, which is not installed: pip install 'medprobe[umap]'") from error
    if len(X) <= 3:  # no neighbourhoods to speak of
        return _components(X, 2, seed)
    components = _components(X, min(_COMPONENTS, X.shape[1]), seed)
    # A spectral layout needs more rows than dimensions, of every connected part.
    start = "spectral" if len(X) > _NEIGHBOURS else "random"
    # With a seed UMAP runs in one thread.
    found = UMAP(n_neighbors=min(_NEIGHBOURS, len(X) - 1), init=start, random_state=seed, n_jobs=1)
    return np.asarray(found.fit_transform(components), dtype=np.float32)


def _features_digest(store: FeatureStore, view: str) -> str:
    """Return a digest of a view as it stands in the store: of what its commit records say of it."""
    blocks = [
        [index, commit.chunks[f"features/{view}"]["sha256"], [failure.row for failure in commit.failures]]
        for index, commit in sorted(store.commits.items())
    ]
    return _digest([store.plan.digest, blocks])


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _read(path: Path, of: str, rows: int) -> NDArray[np.float32] | None:
    """Return the map in a file, or None where it is missing, damaged or of other features."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if str(arrays["of"]) != of:
                return None
            places = arrays["places"]
    except (OSError, ValueError, KeyError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error):
        return None
    return places if places.shape == (rows, 2) and places.dtype == np.float32 else None
