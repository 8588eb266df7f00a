"""A linear layer trained step by step, as published protocols do it on frozen features.

:class:`~medprobe.probe.logistic.LogisticProbe` solves the same problem to its optimum; this is for rerunning protocols whose
result depends on the learning rate and on when they stop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, softmax
from sklearn.utils.validation import check_is_fitted, validate_data

from medprobe.probe._estimator import Probe
from medprobe.probe._torch import classification_loss, last_epoch, seed_of, torch_for
from medprobe.probe.targets import Floats, encode_targets

Schedule = Literal["constant", "cosine", "cosine-epochs"]
SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)

_NAME = "a linear layer by AdamW"


@dataclass(frozen=True)
class Recipe:
    """How a layer is trained by AdamW.

    Attributes:
        lr: Learning rate, the largest one.
        weight_decay: Decoupled: each step shrinks the weights by ``lr * weight_decay``.
        batch_size: Rows of a step; the last one of an epoch may have fewer.
        epochs: Passes over the rows, over which the rate follows its schedule.
        warmup_epochs: Epochs in which the rate rises linearly.
        schedule: ``constant``; ``cosine``, down to zero after the last step; or ``cosine-epochs``, where the rate changes
            between epochs alone, and later by one: its first step comes after the second epoch (timm's scheduler, called
            with the number of the epoch that has ended, counted from zero).
        patience: Epochs without a lower validation loss before training stops; None trains all of them.
        clip: Largest norm of the gradient, or None.
        decay_bias: Whether the biases shrink, too.

    """

    lr: float = 1e-4
    weight_decay: float = 1e-5
    batch_size: int = 64
    epochs: int = 100
    warmup_epochs: int = 0
    schedule: Schedule = "constant"
    patience: int | None = None
    clip: float | None = None
    decay_bias: bool = False


@dataclass(frozen=True)
class Epoch:
    """Loss on the validation rows after an epoch, and their probabilities (n_val, K)."""

    loss: float
    proba: Floats


def learning_rates(recipe: Recipe, steps_per_epoch: int) -> NDArray[np.float64]:
    """Return the rate of every step, (epochs * steps_per_epoch,)."""
    step = np.arange(recipe.epochs * steps_per_epoch)
    warm = recipe.warmup_epochs * steps_per_epoch
    rates = np.full(len(step), recipe.lr)
    if recipe.schedule != "constant":
        if recipe.schedule == "cosine":
            done = (step - warm) / max(1, len(step) - warm)
        else:
            done = (step // steps_per_epoch - 1 - recipe.warmup_epochs) / max(1, recipe.epochs - recipe.warmup_epochs)
        rates *= (1 + np.cos(np.pi * np.clip(done, 0, 1))) / 2
    rates[:warm] = recipe.lr * (step[:warm] + 1) / max(1, warm)
    return rates


def train_linear(
    X: Floats,
    Y: NDArray[Any],
    X_val: Floats,
    Y_val: NDArray[Any],
    recipe: Recipe,
    *,
    n_classes: int,
    seed: int,
    device: str = "cpu",
) -> list[Epoch]:
    """Return every epoch until training stops, as the validation rows see it; ``LinearProbe(stop_epoch=...)`` repeats one.

    Args:
        X: Features as the layer is to see them, (n, D).
        Y: Class codes (n,), or labels 0, 1 or NaN (n, n_classes).
        X_val: Features of the validation rows.
        Y_val: Their targets.
        recipe: How to train.
        n_classes: Number of classes, or of labels.
        seed: Of the first weights and the order of the rows.
        device: A torch device.

    Raises:
        UsageError: torch is not installed.

    """
    with torch_for(_NAME, X.size) as torch:
        return _train(torch, X, Y, recipe, n_classes, seed, device, recipe.epochs, validation=(X_val, Y_val))[2]


class LinearProbe(Probe):
    """A classifier by a linear layer trained by AdamW for a given number of epochs, on features as they are.

    Args:
        lr: Largest learning rate.
        weight_decay: Decoupled weight decay.
        batch_size: Rows of a step.
        epochs: Passes over the rows that the schedule is laid out for.
        warmup_epochs: Epochs in which the rate rises.
        schedule: ``constant``, ``cosine`` or ``cosine-epochs``; see :class:`Recipe`.
        clip: Largest norm of the gradient, or None.
        decay_bias: Whether the biases shrink, too.
        stop_epoch: Epoch after which training ends; None trains all of them.
        device: A torch device.
        random_state: Seed of the first weights and the order of the rows.

    Attributes:
        classes_: The classes, or for multi-label targets the column numbers.
        coef_: Weights, (K, D), a row a class or label.
        intercept_: Biases, (K,).

    """

    def __init__(
        self,
        lr: float = 1e-2,
        weight_decay: float = 1e-5,
        batch_size: int = 64,
        epochs: int = 100,
        warmup_epochs: int = 0,
        schedule: Schedule = "constant",
        clip: float | None = None,
        decay_bias: bool = False,
        stop_epoch: int | None = None,
        device: str = "cpu",
        random_state: int | np.random.RandomState | None = 0,
    ) -> None:
        self.lr = lr
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.epochs = epochs
        self.warmup_epochs = warmup_epochs
        self.schedule = schedule
        self.clip = clip
        self.decay_bias = decay_bias
        self.stop_epoch = stop_epoch
        self.device = device
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike) -> LinearProbe:
        """Return the probe itself, after training.

        Args:
            X: Features, (n, D).
            y: Classes (n,), or labels 0, 1 or NaN for missing, (n, L) with L of at least 2.

        Raises:
            ValueError: A schedule of another name, a last epoch that is none, or targets of another kind.
            UsageError: torch is not installed.

        """
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule must be one of {SCHEDULES}, got {self.schedule!r}")
        rows: Floats = validate_data(self, X, dtype=np.float32)
        self.classes_, Y = encode_targets(y, len(rows))
        self._multilabel = Y.ndim == 2
        recipe = Recipe(
            self.lr, self.weight_decay, self.batch_size, self.epochs, self.warmup_epochs, self.schedule,
            clip=self.clip, decay_bias=self.decay_bias,
        )  # fmt: skip
        stop, seed = last_epoch(self.stop_epoch, self.epochs), seed_of(self.random_state)
        with torch_for(_NAME, rows.size) as torch:
            self.coef_, self.intercept_, _ = _train(torch, rows, Y, recipe, len(self.classes_), seed, self.device, stop)
        return self

    def predict_proba(self, X: ArrayLike) -> Floats:
        """Return the probability of every class, rows adding up to one, or of every label, (m, K)."""
        check_is_fitted(self)
        rows: Floats = validate_data(self, X, dtype=np.float32, reset=False)
        return _probabilities(rows @ self.coef_.T + self.intercept_, self._multilabel)


def _train(
    torch: Any,
    X: Floats,
    Y: NDArray[Any],
    recipe: Recipe,
    n_classes: int,
    seed: int,
    device: str,
    stop: int,
    validation: tuple[Floats, NDArray[Any]] | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.float32], list[Epoch]]:
    """Return weights (K, D), biases (K,) and, with validation rows, every epoch."""

    def tensors(X: Floats, Y: NDArray[Any]) -> tuple[Any, Any]:
        targets = torch.from_numpy(Y.astype(np.int64 if Y.ndim == 1 else np.float32))
        # torch knows no negative strides, and warns of arrays that it could write to but should not.
        return torch.from_numpy(np.require(X, np.float32, ["C", "W"])).to(device), targets.to(device)

    generator = torch.Generator().manual_seed(seed)
    rows, targets = tensors(X, Y)
    held_out = None if validation is None else tensors(*validation)
    bound = 1 / np.sqrt(max(1, rows.shape[1]))  # torch.nn.Linear's own start
    weight = (torch.rand(n_classes, rows.shape[1], generator=generator) * 2 - 1).mul_(bound).to(device)
    bias = (torch.rand(n_classes, generator=generator) * 2 - 1).mul_(bound).to(device)
    parameters = [weight.requires_grad_(), bias.requires_grad_()]
    groups = [
        {"params": [weight], "weight_decay": recipe.weight_decay},
        {"params": [bias], "weight_decay": recipe.weight_decay if recipe.decay_bias else 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe.lr)
    steps = -(-len(rows) // recipe.batch_size)
    rates = learning_rates(recipe, steps)
    epochs: list[Epoch] = []
    lowest, waited, step = np.inf, 0, 0
    for _ in range(stop):
        order = torch.randperm(len(rows), generator=generator).to(device)
        for start in range(0, len(rows), recipe.batch_size):
            batch = order[start : start + recipe.batch_size]
            for group in optimizer.param_groups:
                group["lr"] = float(rates[step])
            step += 1
            optimizer.zero_grad()
            classification_loss(torch, rows[batch] @ weight.T + bias, targets[batch]).backward()
            if recipe.clip is not None:
                torch.nn.utils.clip_grad_norm_(parameters, recipe.clip)
            optimizer.step()
        if held_out is None:
            continue
        with torch.no_grad():
            logits = held_out[0] @ weight.T + bias
            loss = float(classification_loss(torch, logits, held_out[1]))
        epochs.append(Epoch(loss, _probabilities(logits.cpu().numpy(), Y.ndim == 2)))
        lowest, waited = (loss, 0) if loss < lowest else (lowest, waited + 1)
        if recipe.patience is not None and waited >= recipe.patience:
            break
    coef, intercept = (parameter.detach().cpu().numpy().copy() for parameter in parameters)
    return coef, intercept, epochs


def _probabilities(logits: Floats, multilabel: bool) -> Floats:
    wide = logits.astype(np.float64)
    found: Floats = expit(wide) if multilabel else softmax(wide, axis=1)
    return found
