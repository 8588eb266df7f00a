"""The trainings of one call: every part of every draw of a question, each from the same start."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medprobe.encoders.base import Encoder
from medprobe.errors import DataError
from medprobe.finetune import checkpoint
from medprobe.finetune.augment import derived
from medprobe.finetune.data import ReadImages
from medprobe.finetune.heads import Mode, Network
from medprobe.finetune.lora import merge_adapters
from medprobe.finetune.loss import probabilities
from medprobe.finetune.outcome import read_rates, write_history, write_rates, write_tensorboard, write_weights
from medprobe.finetune.recipe import Recipe
from medprobe.finetune.train import Course, Lesson, Trainer, best_rate
from medprobe.probe.answers import Answer, Reporting, reported
from medprobe.probe.question import Question
from medprobe.probe.splits import Part, inner_folds, n_groups
from medprobe.results import Results


@dataclass(frozen=True)
class Progress:
    """How far a fine-tuning has come.

    Attributes:
        training: Which of several trainings (of folds, or of few labels), from 1.
        trainings: How many there are.
        course: Of this one, or of one that tries a learning rate.
        epochs: The most that it can have.
        step: Steps that are done in the epoch under way.
        steps: Steps of it; 0 between two epochs.

    """

    training: int
    trainings: int
    course: Course
    epochs: int
    step: int
    steps: int


class Trainings:
    """Trains an encoder for questions.

    Args:
        encoder: The encoder, changed in place.
        fingerprint: Of it, as it is at the beginning.
        mode: What of it is trained.
        view: Which of its vectors a linear head is given.
        recipe: How.
        preset: Name of the recipe, if it has one.
        images: What is learned from and tested on.
        folder: Where everything is kept, if it is.
        trainer: What the trainings share.
        tensorboard: Write the epochs for TensorBoard, too.
        progress: Called after each step.

    """

    def __init__(
        self,
        encoder: Encoder,
        fingerprint: str,
        mode: Mode,
        view: str | None,
        recipe: Recipe,
        preset: str | None,
        images: ReadImages,
        folder: Path | None,
        trainer: Trainer,
        *,
        tensorboard: bool = False,
        progress: Callable[[Progress], None] | None = None,
    ) -> None:
        self.encoder, self.fingerprint, self.mode, self.view, self.recipe = encoder, fingerprint, mode, view, recipe
        self.images, self.folder, self.trainer = images, folder, trainer
        self.tensorboard, self.progress = tensorboard, progress
        self.probe = f"finetune-{mode.label}" + (f"@{preset}" if preset else "")
        self._start: dict[str, torch.Tensor] = {}

    def answer(self, questions: Sequence[Question], reporting: Reporting) -> Results:
        """Return the rows and predictions of all questions."""
        results = Results()
        n = sum(len(split.parts) for question in questions for split in question.splits)
        number, seed = 0, reporting.seed
        for question in questions:
            proba, settings, learned, view = [], [], [], ""
            for split in question.splits:
                of_parts = []
                for part in split.parts:
                    number += 1
                    lesson = lesson_of(question, part, len(self.images.samples), seed)
                    test = question.target.rows[part.test]
                    network = self._network(lesson.n_classes, seed, again=number < n)
                    found, facts = self._trained(network, lesson, test, number, n, seed)
                    of_parts.append(found)
                    settings.append(facts)
                    learned.append(len(lesson.train))
                    view = network.view
                proba.append(np.concatenate(of_parts))
            seconds = sum(facts.pop("seconds") for facts in settings)
            answer = Answer(
                question=question,
                proba=np.stack(proba),
                encoder=self.encoder.name,
                view=view,
                probe=self.probe,
                fingerprint=self.fingerprint,
                n_train=round(float(np.mean(learned))),
                n_failed=len(self.images.failures),
                settings=settings[0] if len(settings) == 1 else settings,
                seconds=round(seconds, 3),
            )
            ids = self.images.samples["id"].to_numpy()[question.target.rows]
            rows, predictions = reported(answer, ids, reporting)
            results += rows
            results.predictions[rows[0].trial] = predictions
        return results

    def _network(self, n_classes: int, seed: int, *, again: bool) -> Network:
        """Return the network as every training starts: with the weights that the encoder came with, and the same head."""
        module = self.encoder.module
        if self._start:
            merge_adapters(self.encoder)
            module.load_state_dict(self._start)
        elif again:
            self._start = {name: value.to("cpu", copy=True) for name, value in module.state_dict().items()}
        self.encoder.freeze()
        torch.manual_seed(derived(seed, 2))
        return Network(self.encoder, n_classes, self.mode, self.view)

    def _trained(
        self, network: Network, lesson: Lesson, test: np.ndarray, number: int, n: int, seed: int
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Return the probabilities of tested rows by a network that is trained on a part, and what it took."""
        recipe, accelerator = self.recipe, self.trainer.accelerator
        folder = None if self.folder is None else self.folder if n == 1 else self.folder / str(number)
        training = checkpoint.digest(
            {
                "encoder": self.fingerprint, "view": network.view, "mode": asdict(self.mode), "recipe": asdict(recipe),
                "seed": seed, "metric": lesson.metric, "ids": self.images.samples["id"].tolist(),
                "y": np.nan_to_num(lesson.y, nan=-1).tolist(),
                "rows": [lesson.train.tolist(), lesson.val.tolist(), test.tolist()],
            }
        )  # fmt: skip
        done = checkpoint.load(folder, training) if folder is not None else None
        if done is not None and "proba" in done:
            return done["proba"].numpy(), done["facts"]
        report = partial(self._report, number, n) if self.progress is not None else None
        trainer = replace(self.trainer, report=report)
        lr = recipe.lrs[0]
        if len(recipe.lrs) > 1:
            scores = read_rates(folder, training)

            def note(rate: float, score: float) -> None:
                scores[rate] = score
                if accelerator.is_main_process:
                    write_rates(folder, training, scores)

            lr = best_rate(trainer, network, lesson, recipe, note, scores)
        n_trained = sum(p.numel() for p in network.trained.values())
        course = trainer.fit(network, lesson, recipe, lr, folder, training)
        logits = trainer.logits(network, test, lesson.n_classes, recipe.batch_size)
        proba = probabilities(logits, lesson.task)
        facts = {
            "mode": self.mode.name,
            "lr": lr,
            "epochs": course.epoch,
            "best_epoch": course.best_epoch,
            "parameters_trained": n_trained,
            "images_seen": course.images_seen,
            **course.energy,
            "seconds": course.seconds,
        }
        if folder is not None and accelerator.is_main_process:
            of = {"encoder": self.encoder.name, "mode": self.mode.label, "view": network.view}
            write_weights(self.encoder, network, folder, of)
            write_history(course.history, folder)
            if self.tensorboard:
                write_tensorboard(course.history, folder)
            # Last: what is read first, by a call that comes after this one.
            checkpoint.save(folder, {"training": training, "proba": torch.from_numpy(proba), "facts": facts})
        accelerator.wait_for_everyone()
        return proba, facts

    def _report(self, number: int, n: int, course: Course, step: int, steps: int) -> None:
        assert self.progress is not None
        self.progress(Progress(number, n, course, self.recipe.epochs, step, steps))


def lesson_of(question: Question, part: Part, n_samples: int, seed: int) -> Lesson:
    """Return what is learned on a part of a split, with rows counted over all samples.

    Validation rows are the part's own, or an inner fold of its training rows; none where few shots leave nothing for one.

    Args:
        question: What is asked.
        part: Rows of the question.
        n_samples: Number of samples.
        seed: Of the inner fold.

    Raises:
        DataError: The part has one class, or one group, only.

    """
    train, val = part.train, part.val
    if val is None:
        train, val = _inner_fold(question, train, seed)
    taught = question.taught[train]
    if taught.ndim == 1 and len(np.unique(taught)) < 2:
        raise DataError(f"--target {question.target.name}: a training part has one class only; use fewer folds")
    rows = question.target.rows
    y = np.full((n_samples, *question.taught.shape[1:]), -1 if question.taught.ndim == 1 else np.nan)
    y[rows] = question.taught
    return Lesson(
        y=y.astype(question.taught.dtype),
        train=rows[train],
        val=rows[val],
        task=question.target.task,
        metric=question.primary,
        n_classes=question.target.n_classes,
    )


def _inner_fold(question: Question, train: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    y = question.taught[train]
    groups = None if question.together is None else question.together[train]
    rarest = int(np.unique(y, return_counts=True)[1].min()) if y.ndim == 1 else len(y)
    if question.shots and (rarest < 2 or n_groups(groups, len(y)) < 2):
        return train, train[:0]
    fit, held_out = inner_folds(y, groups, seed)[0]
    return train[fit], train[held_out]
