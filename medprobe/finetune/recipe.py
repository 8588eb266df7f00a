"""How a network is trained: rates, schedule, augmentation, and when to stop."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from medprobe.errors import UsageError

SCHEDULES = ("cosine", "plateau", "constant")
AUGMENTATIONS = ("crop", "flips", "jitter")
AUTO = "auto"
HUIX2024 = "huix2024"
# The grid of Pales Huix et al. (WACV 2024) has 25 rates over this range; two a decade tell as much in a quarter of the time.
_RANGE, _STUDY_RATES, _RATES = (-5.0, -2.0), 25, 7


@dataclass(frozen=True)
class Recipe:
    """Settings of the training; the defaults follow Pales Huix et al. (WACV 2024), with an end to it added.

    Attributes:
        lrs: Learning rates (AdamW); of several, the best on validation images after ``lr_epochs``.
        lr_epochs: Epochs that each of several rates is tried for, at a constant rate.
        weight_decay: Of AdamW; biases and other vectors have none.
        epochs: At most so many.
        patience: Epochs without a better validation metric after which training stops; 0 never stops it.
        batch_size: Images a step of the optimiser, over all processes.
        accumulate: Passes that a step's images are spread over.
        clip: Largest norm of the gradient; 0 for none.
        warmup_epochs: Epochs in which the rate rises from 0.
        warmup_steps: The same in steps; counts instead where it is not None.
        schedule: What follows: ``cosine`` to 0 at the last epoch, ``plateau`` (a tenth after two epochs without a better
            validation metric) or ``constant``.
        layer_decay: What the rate of each block is multiplied with, relative to the block after it; 1 for none.
        balance: Weigh classes in the loss by the inverse of how often they are.
        ema: Decay of an exponential moving average of the weights, which is what is validated and kept; 0 for none.
        augment: Any of ``crop``, ``flips`` and ``jitter``.
        drop_last: Leave out of each epoch what does not fill a batch, instead of making batches a little smaller.
        blocks_alone: With some blocks frozen, keep what follows the last block frozen, too.

    """

    lrs: tuple[float, ...] = (1e-4,)
    lr_epochs: int = 5
    weight_decay: float = 1e-5
    epochs: int = 100
    patience: int = 10
    batch_size: int = 64
    accumulate: int = 1
    clip: float = 1.0
    warmup_epochs: float = 5.0
    warmup_steps: int | None = None
    schedule: str = "cosine"
    layer_decay: float = 1.0
    balance: bool = False
    ema: float = 0.0
    augment: tuple[str, ...] = AUGMENTATIONS
    drop_last: bool = False
    blocks_alone: bool = False

    def __post_init__(self) -> None:
        limits: dict[str, tuple[float, float]] = {
            "lr_epochs": (1, math.inf), "weight_decay": (0, math.inf), "epochs": (1, math.inf), "patience": (0, math.inf),
            "batch_size": (1, math.inf), "accumulate": (1, self.batch_size), "clip": (0, math.inf),
            "warmup_epochs": (0, math.inf), "warmup_steps": (0, math.inf), "layer_decay": (1e-6, 1), "ema": (0, 0.999999),
        }  # fmt: skip
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                bound = f"at least {low:g}" if math.isinf(high) else f"from {low:g} to {high:g}"
                raise UsageError(f"--{name.replace('_', '-')} {value:g}: {bound}")
        if not self.lrs or not all(0 < lr <= 10 for lr in self.lrs):
            raise UsageError("--lr: rates above 0, such as 1e-4, or auto")
        if self.schedule not in SCHEDULES:
            raise UsageError(f"--schedule {self.schedule}: one of {', '.join(SCHEDULES)}")
        unknown = [name for name in self.augment if name not in AUGMENTATIONS]
        if unknown:
            raise UsageError(f"--augment {unknown[0]}: any of {', '.join(AUGMENTATIONS)}, or none")


# What differs from the defaults: no end before 100 epochs, no decay of the rate, the last incomplete batch left out.
_STUDY: Mapping[str, Any] = {"patience": 0, "schedule": "constant", "drop_last": True, "blocks_alone": True}
STUDY_NOTE = (
    f"{HUIX2024}: AdamW at 1e-4 after 5 epochs of warm-up, 100 epochs of which the best on validation images is kept, flips, "
    "colour jitter and crops, images squashed to 256 x 256 and cropped to 224, normalised with the data set's own mean and "
    "standard deviation (Pales Huix et al., WACV 2024). They validate on shuffled batches without the last incomplete one; "
    "here all validation images count. For ISIC 2019 and CheXpert they warm up for 1,000 steps (--warmup-steps 1000)."
)


def recipe_of(preset: str | None, lr: float | str | Sequence[float] | None = None, **given: Any) -> Recipe:
    """Return a recipe: the defaults or a preset's, with what is given (and not None) in their place.

    Args:
        preset: ``huix2024`` or None.
        lr: A rate, several, or ``auto`` for a grid from 1e-5 to 1e-2: the preset's 25 rates, or seven.
        given: Other fields of :class:`Recipe`.

    Raises:
        UsageError: There is no such preset, or a value is out of range.

    """
    if preset not in {None, HUIX2024}:
        raise UsageError(f"--preset {preset}: {HUIX2024}")
    values = dict(_STUDY) if preset else {}
    values |= {name: value for name, value in given.items() if value is not None}
    if lr == AUTO:
        values["lrs"] = tuple(np.logspace(*_RANGE, _STUDY_RATES if preset else _RATES).tolist())
    elif isinstance(lr, str):
        raise UsageError(f"--lr {lr}: a rate such as 1e-4, several, or {AUTO}")
    elif lr is not None:
        values["lrs"] = (float(lr),) if isinstance(lr, int | float) else tuple(lr)
    assert values.keys() <= {field.name for field in fields(Recipe)}
    return Recipe(**values)


class Schedule:
    """The share of the learning rate at each step; what a resumed run needs of it is :attr:`state`.

    Args:
        recipe: Of the training.
        steps: Steps an epoch.

    """

    _FACTOR, _WAIT = 0.1, 2  # of the plateau

    def __init__(self, recipe: Recipe, steps: int) -> None:
        warmup = recipe.warmup_epochs * steps if recipe.warmup_steps is None else recipe.warmup_steps
        total = recipe.epochs * steps
        # At most half of a short training: the rate would never be what was asked for.
        self._warmup = max(1, min(round(warmup), total // 2))
        self._total = total
        self._kind = recipe.schedule
        self.state: dict[str, float] = {"factor": 1.0, "waited": 0}

    def share(self, step: int) -> float:
        """Return what the rate of a step (from 0) is multiplied with."""
        if step < self._warmup:
            return self.state["factor"] * (step + 1) / self._warmup
        if self._kind == "cosine":
            return 0.5 * (1 + math.cos(math.pi * (step - self._warmup) / max(1, self._total - self._warmup)))
        return self.state["factor"]

    def validated(self, better: bool) -> None:
        """Take note of an epoch's end: whether its validation metric was better than all before."""
        self.state["waited"] = 0 if better else self.state["waited"] + 1
        if self._kind == "plateau" and self.state["waited"] > self._WAIT:
            self.state = {"factor": self.state["factor"] * self._FACTOR, "waited": 0}
