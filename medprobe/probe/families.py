"""The probes by name: how each is swept over its settings, and fitted with the ones that were chosen."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from medprobe.errors import UsageError
from medprobe.probe.splits import INNER_FOLDS
from medprobe.probe.targets import Floats, Fold

# Two values of C a decade: from little more than the class means to next to no penalty, on standardised features.
_CS = tuple(np.logspace(-6, 2, 17).tolist())

# One hidden layer of this width: a wider or deeper network costs several times as much and gains little on features.
_MLP_WIDTH = 128

_FEW_MLP = {"hidden": (_MLP_WIDTH,), "lr": 1e-3, "weight_decay": 1e-1, "dropout": 0.5, "epochs": 30}

# settings, and the probabilities on the validation rows of each fold
Swept = list[tuple[dict[str, Any], list[Floats]]]


class Summed(Protocol):
    """Fits from sums over rows that are known already, in place of the rows (``medprobe.probe.sums``)."""

    def sweep(self, view: str, rows: np.ndarray, Y: np.ndarray, folds: Sequence[Fold], n_classes: int) -> Swept:
        """Return what a family's sweep returns, of some rows of a view; folds count these."""
        ...

    def fit(self, view: str, settings: Mapping[str, Any], rows: np.ndarray, y: np.ndarray) -> Any:
        """Return an estimator with given settings, fitted to these rows and their targets."""
        ...


@dataclass(frozen=True)
class Family:
    """A kind of probe.

    Attributes:
        name: Name on the command line and in results.
        sweep: All settings at once: features, targets, folds, number of classes, seed. None where nothing is chosen.
        build: An estimator, not fitted, with given settings and seed.
        inner_folds: How many of the inner folds the settings are chosen on (None: all of them).
        n_folds: How many inner folds are made.
        ordered: The sweep goes from the most to the least regularised setting, so that the simplest one among equals
            is the first.
        few: Settings for when nothing is chosen, or the labels are too few to choose any on.
        refit: Whether the chosen settings are fitted to validation rows, too.
        standardised: Whether the sweep is given standardised features.
        summed: Takes the place of ``sweep`` and ``build`` where sums over the rows are known.

    """

    name: str
    sweep: Callable[[Floats, np.ndarray, Sequence[Fold], int, int], Swept] | None
    build: Callable[[Mapping[str, Any], int], Any]
    inner_folds: int | None = None
    n_folds: int = INNER_FOLDS
    ordered: bool = False
    few: Mapping[str, Any] = field(default_factory=dict)
    refit: bool = True
    standardised: bool = True
    summed: Summed | None = None


def family(name: str) -> Family:
    """Return the probe of that name.

    Raises:
        UsageError: There is none.

    """
    if name not in FAMILIES:
        raise UsageError(f"--probe {name}: one of {', '.join(FAMILIES)}, {ATTENTIVE}")
    return FAMILIES[name]


def _sweep_logistic(X: Floats, Y: np.ndarray, folds: Sequence[Fold], n_classes: int, seed: int) -> Swept:
    return _swept_penalties(X, Y, folds, _CS, n_classes)


def _swept_penalties(X: Floats, Y: np.ndarray, folds: Sequence[Fold], Cs: Sequence[float], n_classes: int) -> Swept:
    from medprobe.probe.logistic import sweep_logistic

    with warnings.catch_warnings():
        # The weakest penalties may stay unfinished on few rows; the fit that is reported says so for itself.
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = sweep_logistic(X, Y, folds, Cs, n_classes=n_classes)
    return [({"C": float(C)}, by_fold) for C, by_fold in zip(Cs, found, strict=True)]


def _build_logistic(settings: Mapping[str, Any], seed: int) -> Any:
    from medprobe.probe.logistic import LogisticProbe

    return LogisticProbe(**settings)


def logistic_family(name: str, Cs: np.ndarray, *, n_folds: int) -> Family:
    """Return logistic regression on features as they are, its penalty chosen among some on one held-out part."""

    def sweep(X: Floats, Y: np.ndarray, folds: Sequence[Fold], n_classes: int, seed: int) -> Swept:
        return _swept_penalties(X, Y, folds, Cs.tolist(), n_classes)

    def build(settings: Mapping[str, Any], seed: int) -> Any:
        return _build_logistic({**settings, "standardize": False}, seed)

    return Family(name, sweep, build, inner_folds=1, n_folds=n_folds, few={"C": 1.0}, standardised=False)


def _sweep_knn(X: Floats, Y: np.ndarray, folds: Sequence[Fold], n_classes: int, seed: int) -> Swept:
    from medprobe.probe.knn import sweep_knn

    return sweep_knn(X, Y, folds, n_classes=n_classes)


def _build_knn(settings: Mapping[str, Any], seed: int) -> Any:
    from medprobe.probe.knn import KNNProbe

    return KNNProbe(**{name: value for name, value in settings.items() if value is not None})


def _sweep_ridge(X: Floats, Y: np.ndarray, folds: Sequence[Fold], n_classes: int, seed: int) -> Swept:
    from medprobe.probe.ridge import ALPHAS, sweep_ridge

    found = sweep_ridge(X, Y, folds, n_classes=n_classes)
    return [({"alpha": alpha}, list(by_fold)) for alpha, by_fold in zip(ALPHAS, found, strict=True)]


def _build_ridge(settings: Mapping[str, Any], seed: int) -> Any:
    from medprobe.probe.ridge import RidgeProbe

    return RidgeProbe(**settings)


def _sweep_prototype(X: Floats, Y: np.ndarray, folds: Sequence[Fold], n_classes: int, seed: int) -> Swept:
    from medprobe.probe.prototype import TEMPERATURES, sweep_prototype

    found = sweep_prototype(X, Y, folds, n_classes=n_classes)
    return [({"temperature": t}, list(by_fold)) for t, by_fold in zip(TEMPERATURES, found, strict=True)]


def _build_prototype(settings: Mapping[str, Any], seed: int) -> Any:
    from medprobe.probe.prototype import PrototypeProbe

    return PrototypeProbe(**settings)


def _sweep_mlp(X: Floats, Y: np.ndarray, folds: Sequence[Fold], n_classes: int, seed: int) -> Swept:
    from medprobe.probe.mlp import sweep_mlp
    from medprobe.probe.mlp_stack import Setting

    grid = [
        Setting((_MLP_WIDTH,), lr, weight_decay, dropout, seed)
        for lr in (3e-4, 1e-3, 3e-3)
        for dropout, weight_decay in ((0.0, 1e-4), (0.5, 1e-1))
    ]
    return sweep_mlp(X, Y, folds, n_classes=n_classes, grid=grid, seed=seed)


def _build_mlp(settings: Mapping[str, Any], seed: int) -> Any:
    from medprobe.probe.mlp import MLPProbe

    chosen = {name: settings[name] for name in ("hidden", "lr", "weight_decay", "dropout")}
    return MLPProbe(**chosen, max_epochs=settings["epochs"], early_stopping=False, random_state=seed)


def attentive_family(n_tokens: int, *, ragged: bool = False) -> Family:
    """Return the attentive probe of images of so many tokens, or of up to so many where they are ragged."""

    def sweep(X: Floats, Y: np.ndarray, folds: Sequence[Fold], n_classes: int, seed: int) -> Swept:
        from medprobe.probe.attentive import sweep_attentive

        return sweep_attentive(X, Y, folds, n_classes=n_classes, n_tokens=n_tokens, ragged=ragged, seed=seed)

    def build(settings: Mapping[str, Any], seed: int) -> Any:
        from medprobe.probe.attentive import AttentiveProbe

        return AttentiveProbe(**settings, random_state=seed)

    few = {"n_tokens": n_tokens, **({"ragged": True} if ragged else {}), "stop_epoch": 10}
    return Family(ATTENTIVE, sweep, build, inner_folds=1, few=few, standardised=False)


ATTENTIVE = "attentive"  # made for each store by the number of its tokens
FAMILIES: Mapping[str, Family] = {
    "logreg": Family("logreg", _sweep_logistic, _build_logistic, ordered=True, few={"C": 0.01}),
    "knn": Family("knn", _sweep_knn, _build_knn, few={"k": 1}),
    # Trained step by step, so that one held-out fold has to do.
    "mlp": Family("mlp", _sweep_mlp, _build_mlp, inner_folds=1, few=_FEW_MLP),
    "ridge": Family("ridge", _sweep_ridge, _build_ridge, ordered=True, few={"alpha": 1.0}),
    "prototype": Family("prototype", _sweep_prototype, _build_prototype, few={"temperature": 0.1}),
}
# What is run unless probes are named: the others answer faster, and hardly ever better.
DEFAULT_FAMILIES = ("logreg", "knn", "mlp")
