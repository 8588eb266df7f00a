"""What is asked of a store: which rows, what they are to be told apart by, and who is trained and tested on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import numpy as np

from medprobe.errors import DataError, UsageError
from medprobe.probe.bags import AnyRows, Bags
from medprobe.probe.columns import Columns, Samples
from medprobe.probe.conditions import Conditions
from medprobe.probe.controls import APPEARANCE, COLUMNS, SHUFFLED, column_features, describing_columns, shuffled
from medprobe.probe.features import Features
from medprobe.probe.leaks import joined, without_shared_images
from medprobe.probe.metrics import check_metrics, default_metrics, primary_metric
from medprobe.probe.splits import (
    Split,
    few_shots,
    fold_split,
    given_split,
    hold_out_split,
    leave_out_split,
    n_groups,
)
from medprobe.probe.targets import Floats
from medprobe.probe.task import Target, target_columns
from medprobe.probe.whatif import WhatIf, mislabelled, subgroup_names
from medprobe.storage import Place

DEFAULT_FOLDS = 5


@dataclass(frozen=True)
class Wish:
    """What is asked of every store: the arguments of :func:`medprobe.probe` that make a question."""

    target: str | None = None
    metric: str | None = None
    group: str | None = None
    split_col: str | None = None
    n_folds: int | None = None
    test_size: float | None = None
    leave_out: str | None = None
    what_if: WhatIf = field(default_factory=WhatIf)
    shots: Sequence[int] = ()
    repeats: int = 5
    subgroups: Sequence[str] = ()
    duplicates: str = "error"
    seed: int = 0

    def __post_init__(self) -> None:
        ways = {
            "--split-col": self.split_col,
            "--folds": self.n_folds,
            "--test-size": self.test_size,
            "--leave-out": self.leave_out,
        }
        given = [flag for flag, value in ways.items() if value is not None]
        if len(given) > 1:
            raise UsageError(f"{' and '.join(given)}: give one of them")
        if any(shots < 1 for shots in self.shots) or self.repeats < 1:
            raise UsageError("--shots and --repeats: at least 1")

    @property
    def makes_split(self) -> bool:
        """Whether a split is to be made here, whatever the store has recorded."""
        return (self.n_folds, self.test_size, self.leave_out) != (None, None, None)


@dataclass(frozen=True)
class Question:
    """What is asked of one store's features.

    Attributes:
        target: What is predicted, and for which rows of the store's samples. All else here counts these rows.
        taught: Targets that are learned from: those of ``target``, unless some are made wrong on purpose.
        groups: A number for each row's patient, (n,), or None where no column of them is known.
        together: What a split keeps whole: the patients, those who share a picture joined.
        group: Name of the column of patients.
        splits: One split, or as many draws of few labels from it, all with the same tested rows.
        shots: Labelled images of each class that are learned from, 0 for all.
        subgroups: Tested rows to report by themselves: a name for each row, by column; empty names are left out.
        data: Name of the data set.
        notes: What has to be known about the result.
        metrics: Names of metrics, the primary one among them.
        primary: The one that settings are chosen by.

    """

    target: Target
    taught: np.ndarray
    groups: np.ndarray | None
    together: np.ndarray | None
    group: str
    splits: tuple[Split, ...]
    shots: int
    subgroups: Mapping[str, np.ndarray]
    data: str
    notes: tuple[str, ...]
    metrics: tuple[str, ...]
    primary: str

    @property
    def split(self) -> Split:
        """The split, or the first of its draws."""
        return self.splits[0]


class Asked(Samples, Protocol):
    """What a question is asked of: a feature store, or anything else that knows samples and their images."""

    @property
    def path(self) -> Place:
        """Where it is, for messages."""

    @property
    def roles(self) -> Mapping[str, Any]:
        """Columns that are ``labels``, the ``group`` and the ``split``, and the name of the ``data``."""


def ask(store: Asked, wish: Wish, rows: np.ndarray | None = None, known: Columns | None = None) -> Question:
    """Return what is asked of a store (or the like), or of some rows of its samples.

    Args:
        store: The store.
        wish: What is asked.
        rows: Of its samples; None for all.
        known: Its columns, where more than one question is asked of samples that do not change.

    Raises:
        UsageError: A column or number of the wish cannot work.
        DataError: The target is unusable, or a group or a picture is on both sides of a split.

    """
    known = known or Columns(store)
    samples = known.samples if rows is None else known.samples.iloc[rows].reset_index(drop=True)
    if not len(samples):
        raise DataError(f"{store.path}: no sample has features")
    columns = [c for c in samples.columns if c != "id"]
    target = wish.target or _only_label(store)
    bag = None if isinstance(store, Bags) else store.roles.get("bag")
    group_col = (store.roles["group"] or bag) if wish.group is None else (None if wish.group == "none" else wish.group)
    given = store.roles["split"] if not wish.makes_split else None
    named = [
        ("--group", group_col),
        ("--split-col", wish.split_col or given),
        ("--leave-out", wish.leave_out),
        *(("--subgroup", column) for column in wish.subgroups),
    ]
    if isinstance(store, Bags):
        store.check("--target", target_columns(store.store.manifest, target))
        for flag, column in named:
            store.check(flag, () if column is None else (column,))
    conditions = known.conditions if rows is None else Conditions(samples)
    asked = wish.what_if.target(samples, conditions, target, ordinal=wish.metric == "quadratic_kappa")
    for flag, column in named:
        if column is not None and column not in columns:
            raise UsageError(f"{flag} {column}: no such column; there are: {', '.join(columns)}")
    place = asked.rows if rows is None else rows[asked.rows]

    def at(coded: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        return coded[0][place], coded[1]

    groups, names = (None, None) if group_col is None else at(known.groups(group_col))
    codes = known.images[place]
    parts = None if bag is None else at(known.groups(bag))[0]
    together = groups if parts is None else joined(groups, parts)
    together = joined(together, codes) if known.doubled else together
    split_col = wish.split_col or given
    if wish.n_folds is not None:
        split = fold_split(asked.y, together, wish.n_folds, wish.seed)
    elif wish.test_size is not None:
        split = hold_out_split(asked.y, together, wish.test_size, wish.seed)
    elif wish.leave_out is not None:
        split = leave_out_split(at(known.texts(wish.leave_out)), wish.leave_out, together)
    elif split_col is not None:
        split = given_split(at(known.texts(split_col)), split_col, groups, names)
    else:
        split = fold_split(asked.y, together, min(DEFAULT_FOLDS, n_groups(together, len(asked.y))), wish.seed)
    if isinstance(store, Bags):  # bags of another column are other samples, not to be ranked with these
        split = replace(split, name=f"{split.name}, by {store.by}")
    split = wish.what_if.split(split, conditions, asked.rows)
    split, notes = without_shared_images(split, codes, known.ids[place], wish.duplicates)
    primary = wish.metric or primary_metric(asked.task)
    noise = wish.what_if.label_noise
    return Question(
        target=asked,
        taught=asked.y if noise is None else mislabelled(asked.y, noise, asked.n_classes, wish.seed),
        groups=groups,
        together=together,
        group=group_col or "",
        splits=(split,),
        shots=0,
        subgroups={column: subgroup_names(samples[column].iloc[asked.rows]) for column in wish.subgroups},
        data=str(store.roles.get("data") or ""),
        notes=notes,
        metrics=check_metrics((primary, *default_metrics(asked.task)), asked.task),
        primary=primary,
    )


def with_shots(question: Question, wish: Wish) -> list[Question]:
    """Return the question, or one for each number of shots: as many draws from what the split trains on."""
    if not wish.shots:
        return [question]
    draw = partial(few_shots, question.split, question.taught, question.together)
    return [
        replace(
            question,
            shots=shots,
            splits=tuple(
                draw(shots, wish.seed + repeat, f"{shots} shots x {wish.repeats}") for repeat in range(wish.repeats)
            ),
        )
        for shots in dict.fromkeys(wish.shots)
    ]


def controls(
    store: AnyRows, features: Features, question: Question, wish: Wish, named: Sequence[str]
) -> list[tuple[Features, Question]]:
    """Return what is probed for comparison: the features with shuffled labels, and what is known without an encoder.

    ``features`` are those of the question's rows.

    Raises:
        UsageError: A named column does not exist.

    """
    samples = store.samples.iloc[features.rows]
    unknown = [name for name in named if name not in samples.columns]
    if unknown:
        raise UsageError(f"--control-col {unknown[0]}: no such column; there are: {', '.join(samples.columns)}")
    y = shuffled(question.target.y, question.groups, wish.seed)
    meaningless = replace(question, target=replace(question.target, y=y), taught=y, subgroups={})
    found = [(replace(features, encoder=SHUFFLED, view=f"{features.encoder} {features.view}"), meaningless)]
    looks = store.appearance()[features.rows]
    found.append((Features.of_known(APPEARANCE, "height, width, mean, contrast", looks), question))
    without = (
        *question.target.columns,
        *store.roles["labels"],
        store.roles["split"],
        store.roles.get("bag"),
        question.group,
        wish.split_col,
        wish.leave_out,
    )
    columns = list(named) or describing_columns(samples, [name for name in without if name])
    if columns:
        known: Floats = column_features(samples, columns)
        found.append((Features.of_known(COLUMNS, ", ".join(columns), known), question))
    return found


def _only_label(store: Asked) -> str:
    labels = [str(name) for name in store.roles["labels"]]
    if len(labels) == 1:
        return labels[0]
    if labels and all(name.startswith("label_") for name in labels):
        return "label"
    columns = ", ".join(c for c in store.samples.columns if c != "id")
    raise UsageError(f"--target: name the column to predict; {store.path.name} has: {columns}")
