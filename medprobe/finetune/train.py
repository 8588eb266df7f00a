"""The training of one network on one part of a split: epochs, validation, and what is kept of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from medprobe.errors import DataError, UsageError
from medprobe.finetune import checkpoint
from medprobe.finetune.augment import derived
from medprobe.finetune.average import Average
from medprobe.finetune.data import Batches, epoch_batches
from medprobe.finetune.energy import Meter
from medprobe.finetune.heads import Network
from medprobe.finetune.layers import groups_for
from medprobe.finetune.loss import Loss, probabilities
from medprobe.finetune.recipe import Recipe, Schedule
from medprobe.probe.metrics import METRICS, Scorer

if TYPE_CHECKING:
    from accelerate import Accelerator


class DivergedError(DataError):
    """The loss of a training is no number any more."""


@dataclass(frozen=True)
class Lesson:
    """What is learned, and from which rows.

    Attributes:
        y: Class codes (n,), or labels 0, 1 and NaN (n, L).
        train: Rows to learn from.
        val: Rows to choose the epoch (and the rate) on; may be empty.
        task: ``binary``, ``multiclass``, ``ordinal`` or ``multilabel``.
        metric: By which is chosen.
        n_classes: Number of classes, or of labels.

    """

    y: np.ndarray
    train: np.ndarray
    val: np.ndarray
    task: str
    metric: str
    n_classes: int

    def value(self, proba: np.ndarray) -> float:
        """Return the metric on validation rows; NaN where it is undefined."""
        return Scorer(self.task, self.y[self.val], proba).value(self.metric)

    @property
    def sign(self) -> int:
        """What the metric is multiplied with so that more is better."""
        return 1 if METRICS[self.metric].higher_is_better else -1


@dataclass
class Course:
    """How a training went, as far as it has come; JSON types.

    Attributes:
        lr: Its learning rate.
        epoch: Finished epochs.
        step: Steps of the optimiser.
        images_seen: Images that the network was trained on, each time counted.
        seconds: Time in training and validation.
        energy: Watt-hours by source.
        best_epoch: The epoch whose weights are kept, from 1.
        best: What it is the best by: the metric where it is defined, and else the validation loss.
        waited: Epochs since then.
        history: A row an epoch.

    """

    lr: float
    epoch: int = 0
    step: int = 0
    images_seen: int = 0
    seconds: float = 0.0
    energy: dict[str, float] = field(default_factory=dict)
    best_epoch: int = 0
    best: list[float] = field(default_factory=lambda: [-math.inf, -math.inf])
    waited: int = 0
    history: list[dict[str, float]] = field(default_factory=list)


Report = Callable[[Course, int, int], None]  # of the epoch under way: steps that are done, and steps in all


@dataclass(frozen=True)
class Trainer:
    """What trainings share.

    Attributes:
        accelerator: Of the library accelerate: device, precision, processes.
        batches: Gives images.
        seed: Of order, augmentation and drop-out.
        checkpoint_every: Epochs from one checkpoint to the next.
        report: Called after each step.

    """

    accelerator: Accelerator
    batches: Batches
    seed: int
    checkpoint_every: int = 1
    report: Report | None = None

    def fit(
        self,
        network: Network,
        lesson: Lesson,
        recipe: Recipe,
        lr: float,
        folder: Path | None = None,
        training: str = "",
    ) -> Course:
        """Train a network, which is left with the weights of its best epoch on the validation rows, or of the last one.

        Every epoch begins with a seed of its own, so that a training that goes on from a checkpoint is the same, number by
        number, as one that was never stopped.

        Args:
            network: As it is to start.
            lesson: What it learns.
            recipe: How.
            lr: Learning rate.
            folder: Where checkpoints are kept, if they are.
            training: Digest that a checkpoint must have.

        Raises:
            DivergedError: The loss is no number any more.
            DataError: The checkpoint cannot be used, or the disk refuses.
            UsageError: There are more processes than images in a batch.

        """
        run = _Run(self, network, lesson, recipe, lr, folder, training)
        try:
            run.go_on()
        finally:
            self.accelerator.unwrap_model(run.model, keep_fp32_wrapper=False)
            self.accelerator.free_memory()
        return run.course

    def logits(self, network: Network, rows: np.ndarray, n_classes: int, batch_size: int) -> torch.Tensor:
        """Return a network's logits (rows, classes) on the CPU, for images as they are; every process gets all of them."""
        accelerator = self.accelerator
        network.eval()
        found = torch.zeros(len(rows), n_classes, device=accelerator.device)
        mine = np.arange(accelerator.process_index, len(rows), accelerator.num_processes)
        parts = np.array_split(mine, max(1, -(-len(mine) // batch_size))) if len(mine) else []
        with torch.no_grad():
            for part, images in zip(parts, self.batches.of([rows[part] for part in parts]), strict=True):
                out = network(images.to(accelerator.device, non_blocking=True))
                found[torch.as_tensor(part, device=found.device)] = out.float()
        total: torch.Tensor = accelerator.reduce(found, "sum")
        return total.cpu()


class _Run:
    """One training under way."""

    def __init__(
        self,
        trainer: Trainer,
        network: Network,
        lesson: Lesson,
        recipe: Recipe,
        lr: float,
        folder: Path | None,
        training: str,
    ) -> None:
        self.trainer, self.network, self.lesson, self.recipe = trainer, network, lesson, recipe
        self.folder, self.training = folder, training
        self.course = Course(lr)
        accelerator = trainer.accelerator
        depth = network.depth if recipe.layer_decay < 1 else {}
        groups = groups_for(network.trained, depth, network.n_blocks, recipe.weight_decay, recipe.layer_decay)
        self.model, self.optimizer = accelerator.prepare(network, torch.optim.AdamW(groups, lr=lr))
        self.loss = Loss(lesson.y, lesson.train, lesson.n_classes, balance=recipe.balance)
        self.schedule = Schedule(recipe, len(self._plan(0)))
        self.average = Average(network.state, recipe.ema) if recipe.ema else None
        self.best_state: dict[str, torch.Tensor] = {}
        self._resume()

    def go_on(self) -> None:
        """Train what is left, and put the best weights into the network."""
        course, recipe = self.course, self.recipe
        meter = Meter(self.trainer.accelerator.device)
        before = dict(course.energy)
        while course.epoch < recipe.epochs and not (recipe.patience and course.waited >= recipe.patience):
            started = time.perf_counter()
            row = self._epoch()
            better = self._validate(row)
            course.energy = {name: before.get(name, 0.0) + used for name, used in meter.used().items()}
            course.seconds += time.perf_counter() - started
            course.history.append({**row, "seconds": round(course.seconds, 3)})
            self.schedule.validated(better)
            if course.epoch % self.trainer.checkpoint_every == 0:
                self._save()
            if self.trainer.report is not None:
                self.trainer.report(course, 0, 0)
        self.network.restore(self.best_state)

    def _plan(self, epoch: int) -> list[np.ndarray]:
        recipe, seed = self.recipe, derived(self.trainer.seed, epoch)
        return epoch_batches(self.lesson.train, recipe.batch_size, drop_last=recipe.drop_last, seed=seed)

    def _epoch(self) -> dict[str, float]:
        """Train for an epoch and return its number, its steps so far, its last rate and its loss."""
        course, accelerator = self.course, self.trainer.accelerator
        rank, world = accelerator.process_index, accelerator.num_processes
        torch.manual_seed(derived(self.trainer.seed, course.epoch, rank, 1))
        plan = self._plan(course.epoch)
        if min(map(len, plan)) < world:
            raise UsageError(
                f"{world} processes for steps of {min(map(len, plan))} images: take fewer, or a larger --batch-size"
            )
        passes = [min(self.recipe.accumulate, len(rows) // world) for rows in plan]
        shares = [np.array_split(rows, n * world)[rank::world] for rows, n in zip(plan, passes, strict=True)]
        images = self.trainer.batches.of([share for of_step in shares for share in of_step], course.epoch)
        self.model.train()
        total, rate = torch.zeros((), device=accelerator.device), 0.0
        for done, (rows, of_step) in enumerate(zip(plan, shares, strict=True), 1):
            rate = course.lr * self.schedule.share(course.step)
            for group in self.optimizer.param_groups:
                group["lr"] = rate * group["scale"]
            total += self._step(rows, of_step, images)
            course.step += 1
            course.images_seen += len(rows)
            if self.trainer.report is not None:
                self.trainer.report(course, done, len(plan))
        course.epoch += 1
        mean = float(accelerator.reduce(total, "mean")) / len(plan)
        if not math.isfinite(mean):
            raise DivergedError(
                f"the loss is no number any more in epoch {course.epoch} at a rate of {course.lr:g}: lower --lr"
            )
        return {"epoch": course.epoch, "step": course.step, "lr": rate, "train_loss": mean}

    def _step(self, rows: np.ndarray, shares: list[np.ndarray], images: Any) -> torch.Tensor:
        """Take one step of the optimiser and return this process's part of its loss."""
        accelerator = self.trainer.accelerator
        # Gradients are averaged over the processes, each of which has its share of the sum.
        scale = accelerator.num_processes / max(self.loss.weight(rows), 1e-12)
        total = torch.zeros((), device=accelerator.device)
        for i, share in enumerate(shares):
            last = i == len(shares) - 1
            with nullcontext() if last else accelerator.no_sync(self.model):
                logits = self.model(next(images).to(accelerator.device, non_blocking=True))
                loss = self.loss(logits.float(), share) * scale
                accelerator.backward(loss)
            total += loss.detach()
        if self.recipe.clip:
            accelerator.clip_grad_norm_(list(self.network.trained.values()), self.recipe.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update(self.network.state, self.course.step)
        return total

    def _validate(self, row: dict[str, float]) -> bool:
        """Add the validation to an epoch's row, keep the weights if they are the best, and return whether they are."""
        lesson, course = self.lesson, self.course
        current = self.network.state if self.average is None else self.average.state
        _agree(self.trainer.accelerator, current)
        key = [float(course.epoch), 0.0]  # without validation rows, the last epoch is the best
        if len(lesson.val):
            own = {name: value.clone() for name, value in self.network.state.items()} if self.average else {}
            if self.average is not None:
                self.network.restore(self.average.state)
            logits = self.trainer.logits(self.network, lesson.val, lesson.n_classes, self.recipe.batch_size)
            if own:
                self.network.restore(own)
            loss = float(self.loss(logits.double(), lesson.val)) / max(self.loss.weight(lesson.val), 1e-12)
            value = lesson.value(probabilities(logits, lesson.task)) if math.isfinite(loss) else math.nan
            row |= {"val_loss": loss, f"val_{lesson.metric}": value}
            by_loss = -loss if math.isfinite(loss) else -math.inf
            key = [lesson.sign * value, 0.0] if math.isfinite(value) else [-math.inf, by_loss]
        better = key > course.best or not course.best_epoch
        if better:
            course.best, course.best_epoch, course.waited = key, course.epoch, 0
            self.best_state = {name: value.to("cpu", copy=True) for name, value in current.items()}
        else:
            course.waited += 1
        return better

    def _save(self) -> None:
        accelerator = self.trainer.accelerator
        if self.folder is None or not accelerator.is_main_process:
            return
        checkpoint.save(
            self.folder,
            {
                "training": self.training,
                "course": vars(self.course),
                "state": self.network.state,
                "best_state": self.best_state,
                "average": self.average.state if self.average else {},
                "optimizer": self.optimizer.state_dict(),
                "schedule": self.schedule.state,
                "scaler": accelerator.scaler.state_dict() if accelerator.scaler else {},
            },
        )

    def _resume(self) -> None:
        saved = checkpoint.load(self.folder, self.training) if self.folder is not None else None
        if saved is None:
            return
        self.course = Course(**saved["course"])
        self.network.restore(saved["state"])
        self.best_state = saved["best_state"]
        if self.average is not None:
            for name, value in self.average.state.items():
                value.copy_(saved["average"][name])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.schedule.state = saved["schedule"]
        if self.trainer.accelerator.scaler and saved["scaler"]:
            self.trainer.accelerator.scaler.load_state_dict(saved["scaler"])


def best_rate(
    trainer: Trainer,
    network: Network,
    lesson: Lesson,
    recipe: Recipe,
    note: Callable[[float, float], None],
    known: dict[float, float],
) -> float:
    """Return the rate with the best validation metric after a few epochs at a constant rate, the lowest of equal ones.

    The network is left as it was.

    Args:
        trainer: What trainings share.
        network: As it is to start.
        lesson: What it learns.
        recipe: With the rates.
        note: Called with each rate and its score once that is known.
        known: Scores that are known already.

    Raises:
        DataError: Every rate diverges, or there are no validation rows.

    """
    if not len(lesson.val):
        raise DataError("--lr: there are no validation images to choose a rate on; give one rate")
    trial = replace(recipe, epochs=recipe.lr_epochs, schedule="constant", warmup_steps=0, patience=0, ema=0.0)
    start = {name: value.clone() for name, value in network.state.items()}
    scores = dict(known)
    for lr in sorted(recipe.lrs):
        if lr not in scores:
            try:
                last = trainer.fit(network, lesson, trial, lr).history[-1]
                scores[lr] = lesson.sign * last[f"val_{lesson.metric}"]
            except DivergedError:
                scores[lr] = -math.inf
            network.restore(start)
            note(lr, scores[lr])
    best = max(sorted(scores), key=lambda lr: np.nan_to_num(scores[lr], nan=-math.inf))
    if not math.isfinite(scores[best]):
        raise DataError(f"--lr: none of the rates {', '.join(f'{lr:g}' for lr in sorted(scores))} can be trained with")
    return best


def _agree(accelerator: Accelerator, state: dict[str, torch.Tensor]) -> None:
    """Give every process the state of the first one: batch statistics differ between them."""
    if accelerator.num_processes > 1:
        from accelerate.utils import broadcast

        for value in state.values():
            value.copy_(broadcast(value, from_process=0))
