"""Multi-layer perceptron probe: a grid of small networks trained together, and an average of a few seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.preprocessing import StandardScaler
from sklearn.utils import check_random_state
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.validation import check_is_fitted, validate_data

from medprobe.probe._estimator import Probe
from medprobe.probe.mlp_stack import Precision, Setting, probabilities, train
from medprobe.probe.targets import Floats, Fold, encode_targets, hold_out


def default_grid(seed: int = 0) -> list[Setting]:
    """Return the twelve settings of a sweep: one and two layers, three learning rates, without and with dropout."""
    return [
        Setting(hidden, lr, weight_decay, dropout, seed)
        for hidden in ((256,), (256, 256))
        for lr in (1e-4, 3e-4, 1e-3)
        for dropout, weight_decay in ((0.0, 1e-4), (0.5, 1e-1))
    ]


def default_batch_size(n: int) -> int:
    """Return the rows of a step for n training rows: about n / 8, a power of two between 32 and 512."""
    return int(np.clip(2 ** round(np.log2(max(n, 1) / 8)), 32, 512))


def sweep_mlp(
    X: Floats,
    Y: NDArray[Any],
    folds: Sequence[Fold],
    *,
    n_classes: int,
    grid: Sequence[Setting] | None = None,
    seed: int = 0,
    device: str = "cpu",
    precision: Precision = "auto",
) -> list[tuple[dict[str, Any], list[Floats]]]:
    """Return, for every setting, its values and its probabilities on the validation rows of each fold.

    Training stops early on the validation rows of the fold. ``epochs`` in the settings is the median over folds of the
    epoch that was best, for a fit of all rows without validation:
    ``MLPProbe(hidden=..., lr=..., weight_decay=..., dropout=..., max_epochs=epochs, early_stopping=False)``.

    Args:
        X: Features, (n, d), standardised by the caller.
        Y: Class codes (n,), or labels 0, 1 or NaN (n, n_classes).
        folds: Pairs of training and validation rows.
        n_classes: Classes of ``Y``, or its columns.
        grid: Settings to try, by default those of :func:`default_grid`.
        seed: Seed of the default grid, of the order of the rows and of the dropout noise.
        device: A torch device.
        precision: As :func:`medprobe.probe.mlp_stack.train` takes it. The faster ``"bf16"`` serves to choose settings;
            :class:`MLPProbe` itself trains in float32.

    Raises:
        UsageError: torch is not installed.

    """
    X = np.asarray(X, np.float32)
    grid = default_grid(seed) if grid is None else list(grid)
    epochs: list[list[int]] = [[] for _ in grid]
    found: list[list[Floats]] = [[] for _ in grid]
    for rows, held_out in folds:
        X_val = X[held_out]
        networks = train(
            X[rows], Y[rows], grid, n_classes=n_classes, validation=(X_val, Y[held_out]),
            batch_size=default_batch_size(len(rows)), seed=seed, device=device, precision=precision,
        )  # fmt: skip
        for i, network in enumerate(networks):
            epochs[i].append(network.epochs)
            found[i].append(probabilities(network, X_val, multilabel=Y.ndim == 2))
    return [
        ({**asdict(setting), "epochs": max(1, round(float(np.median(epochs[i]))))}, found[i])
        for i, setting in enumerate(grid)
    ]


class MLPProbe(Probe):
    """A classifier by the mean probability of a few small networks that differ in their initial weights.

    Training stops early on rows held out of those given to ``fit``, or on validation rows given beside them.

    Args:
        hidden: Widths of the hidden layers, one or two.
        lr: Learning rate of AdamW.
        weight_decay: Decoupled weight decay of AdamW.
        dropout: Chance that a hidden unit is left out of a training step.
        max_epochs: Passes over the training rows, at most; with ``early_stopping=False``, exactly.
        patience: Epochs without a lower validation loss before a network stops.
        batch_size: Rows of one step; ``None`` takes :func:`default_batch_size`.
        early_stopping: Watch the loss on held-out rows and keep the best epoch.
        validation_fraction: Part of the rows, or of their groups, that is held out.
        n_seeds: Networks that are averaged.
        class_weight: ``None``, ``"balanced"`` or a dict from class to weight; not for multi-label targets.
        standardize: Give every feature mean 0 and variance 1 over the training rows first.
        device: A torch device.
        random_state: Seed of weights, order of the rows, dropout and held-out rows.

    Attributes:
        classes_: The classes, or for multi-label targets the column numbers.
        networks_: The trained networks, as numpy arrays: predicting needs no torch.

    """

    def __init__(
        self,
        hidden: tuple[int, ...] = (256,),
        lr: float = 1e-3,
        weight_decay: float = 1e-4,
        dropout: float = 0.0,
        max_epochs: int = 100,
        patience: int = 10,
        batch_size: int | None = None,
        early_stopping: bool = True,
        validation_fraction: float = 0.1,
        n_seeds: int = 4,
        class_weight: Mapping[Any, float] | Literal["balanced"] | None = None,
        standardize: bool = True,
        device: str = "cpu",
        random_state: int | np.random.RandomState | None = 0,
    ) -> None:
        self.hidden = hidden
        self.lr = lr
        self.weight_decay = weight_decay
        self.dropout = dropout
        self.max_epochs = max_epochs
        self.patience = patience
        self.batch_size = batch_size
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_seeds = n_seeds
        self.class_weight = class_weight
        self.standardize = standardize
        self.device = device
        self.random_state = random_state

    def fit(
        self,
        X: ArrayLike,
        y: ArrayLike,
        X_val: ArrayLike | None = None,
        y_val: ArrayLike | None = None,
        groups: ArrayLike | None = None,
    ) -> MLPProbe:
        """Return the probe itself, after training.

        Args:
            X: Features, (n, d).
            y: Classes (n,), or labels 0, 1 or NaN for missing, (n, L) with L of at least 2.
            X_val: Features to stop early on; without them a part of ``X`` is held out.
            y_val: Targets of ``X_val``.
            groups: Groups, say patients, of the rows (n,): all rows of one are held out, or none.

        Raises:
            ValueError: Arguments out of range, targets of another kind, or a class in ``y_val`` that ``y`` lacks.
            UsageError: torch is not installed.

        """
        self._check()
        rows: Floats = validate_data(self, X, dtype=[np.float64, np.float32])
        self.classes_, Y = encode_targets(y, len(rows))
        self._multilabel = Y.ndim == 2
        weight = None
        if self.class_weight is not None:
            if self._multilabel:
                raise ValueError("class_weight is not for multi-label targets")
            weight = compute_class_weight(self.class_weight, classes=self.classes_, y=self.classes_[Y])
        random = check_random_state(self.random_state)
        seed = int(random.randint(2**31 - self.n_seeds))
        validation = None
        if X_val is not None:
            if not self.early_stopping:
                raise ValueError("X_val is for early stopping, which early_stopping=False switches off")
            validation = validate_data(self, X_val, dtype=rows.dtype, reset=False), self._codes(y_val)
        elif self.early_stopping:
            held_out = hold_out(Y, groups, self.validation_fraction, random)
            if held_out.any():
                validation = rows[held_out], Y[held_out]
                rows, Y = rows[~held_out], Y[~held_out]
        self._scaler = StandardScaler().fit(rows) if self.standardize else None
        if validation is not None:
            validation = self._scale(validation[0]), validation[1]
        self.networks_ = train(
            self._scale(rows), Y,
            [
                Setting(tuple(self.hidden), self.lr, self.weight_decay, self.dropout, seed + i)
                for i in range(self.n_seeds)
            ],
            n_classes=len(self.classes_), validation=validation, max_epochs=self.max_epochs, patience=self.patience,
            batch_size=self.batch_size or default_batch_size(len(rows)), seed=seed, class_weight=weight,
            device=self.device,
        )  # fmt: skip
        return self

    def predict_proba(self, X: ArrayLike) -> Floats:
        """Return the probability of every class, rows adding up to one, or of every label, (m, n_classes)."""
        check_is_fitted(self)
        rows = self._scale(validate_data(self, X, dtype=[np.float64, np.float32], reset=False))
        out: Floats = np.mean([probabilities(n, rows, multilabel=self._multilabel) for n in self.networks_], axis=0)
        return out

    def _check(self) -> None:
        if not 1 <= len(self.hidden) <= 2 or min(self.hidden) < 1:
            raise ValueError(f"hidden must be one or two positive widths, got {self.hidden!r}")
        if not 0 <= self.dropout < 1 or not 0 < self.validation_fraction < 1:
            raise ValueError("dropout must be in [0, 1), validation_fraction in (0, 1)")
        if min(self.max_epochs, self.patience, self.n_seeds) < 1:
            raise ValueError("max_epochs, patience and n_seeds must be at least 1")

    def _scale(self, X: Floats) -> Floats:
        scaled: Floats = X if self._scaler is None else self._scaler.transform(X)
        return scaled

    def _codes(self, y: ArrayLike | None) -> NDArray[Any]:
        target = np.asarray(y)
        if self._multilabel:
            return target.astype(np.float64)
        if not np.isin(target, self.classes_).all():
            raise ValueError("y_val must be given with X_val, and hold no class that y lacks")
        return np.searchsorted(self.classes_, target)
