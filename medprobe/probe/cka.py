"""How alike the features of two encoders are: linear centred kernel alignment, view by view, over the same images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medprobe.errors import DataError
from medprobe.probe.features import TOKENS
from medprobe.probe.targets import Floats
from medprobe.store import FeatureStore, open_store

_BLOCKS, _N_BLOCKS = "blocks", 4
_FEWEST = 4  # rows, below which the unbiased estimator is not defined


@dataclass(frozen=True)
class Alignment:
    """Alignment of two encoders' views.

    Attributes:
        first: Name of the first encoder.
        second: Name of the second one.
        rows: Views of the first.
        columns: Views of the second.
        values: Debiased linear CKA (rows, columns): 1 for the same features up to rotation and scale, about 0 for
            unrelated ones.
        n_images: Images that both have.

    """

    first: str
    second: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: NDArray[np.float64]
    n_images: int


def cka(
    first: str | os.PathLike[str] | FeatureStore,
    second: str | os.PathLike[str] | FeatureStore,
    *,
    views: Sequence[str] = (),
    partial: bool = False,
) -> Alignment:
    """Return how alike the views of two stores are, over the images that both have.

    The view ``blocks`` counts as four, one for each of its blocks.

    Args:
        first: A store, or its path.
        second: Another, or the same.
        views: Only these; all but patch tokens by default.
        partial: Use the finished blocks of stores that are not complete.

    Raises:
        DataError: The stores share fewer than four images, or one has no view of that name.

    """
    stores = [s if isinstance(s, FeatureStore) else open_store(s, partial=partial) for s in (first, second)]
    place = [{name: i for i, name in enumerate(store.samples["id"])} for store in stores]
    shared = [name for name in place[0] if name in place[1]]
    if len(shared) < _FEWEST:
        raise DataError(
            f"{stores[0].path} and {stores[1].path} share {len(shared)} images: at least {_FEWEST} are needed"
        )
    found = [
        _views(store, [places[name] for name in shared], views) for store, places in zip(stores, place, strict=True)
    ]
    own = [{name: _hsic(X, X) for name, X in of_store.items()} for of_store in found]
    values = np.array(
        [
            [_ratio(_hsic(X, Y), own[0][row], own[1][column]) for column, Y in found[1].items()]
            for row, X in found[0].items()
        ]
    )
    return Alignment(stores[0].encoder, stores[1].encoder, tuple(found[0]), tuple(found[1]), values, len(shared))


def linear_cka(X: Floats, Y: Floats) -> float:
    """Return the debiased linear CKA of features (n, D) and (n, E) of the same images; NaN for features that never change.

    Kornblith et al., ICML 2019, with the unbiased estimator of HSIC of Song et al. (JMLR 2012), as in Nguyen, Raghu and
    Kornblith, ICLR 2021: without it, wide features of few images look alike.
    """
    X, Y = _centred(X), _centred(Y)
    return _ratio(_hsic(X, Y), _hsic(X, X), _hsic(Y, Y))


def _ratio(between: float, first: float, second: float) -> float:
    return between / float(np.sqrt(first * second)) if first > 0 and second > 0 else float("nan")


def _hsic(X: Floats, Y: Floats) -> float:
    """Return the unbiased HSIC_1 of linear kernels of centred features, without the kernels themselves (n, n).

    Of the kernels with zeros on their diagonals, K and L: tr KL + 1K1 1L1 / (n - 1)(n - 2) - 2 1KL1 / (n - 2), over
    n(n - 3). The features add up to zero, so that K1 is minus the diagonal that was taken from K.
    """
    n = len(X)
    x, y = np.square(X).sum(axis=1), np.square(Y).sum(axis=1)
    trace = np.square(X.T @ Y).sum() - x @ y
    return float((trace + x.sum() * y.sum() / ((n - 1) * (n - 2)) - 2 * (x @ y) / (n - 2)) / (n * (n - 3)))


def _centred(X: Floats) -> NDArray[np.float64]:
    wide = np.asarray(X, dtype=np.float64)
    centred: NDArray[np.float64] = wide - wide.mean(axis=0)
    return centred


def _views(store: FeatureStore, rows: Sequence[int], named: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    found: dict[str, NDArray[np.float64]] = {}
    for name in named or [name for name in store.views if name != TOKENS]:
        X = _centred(store.features(name)[rows])
        if name == _BLOCKS and X.shape[1] % _N_BLOCKS == 0:
            found |= {f"block {i + 1} of 4": part for i, part in enumerate(np.split(X, _N_BLOCKS, axis=1))}
        else:
            found[name] = X
    return found
