"""Questions to the same features: only some of the samples, or other classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pandas as pd

from medprobe.errors import DataError, UsageError
from medprobe.probe.conditions import Conditions
from medprobe.probe.splits import Part, Split
from medprobe.probe.task import Target, class_name, missing, target_columns, target_of

_MOST_SUBGROUPS = 10  # numbers of more different values are reported in quarters


@dataclass(frozen=True)
class WhatIf:
    """Which samples take part, and what their classes are: the arguments of :func:`medprobe.probe`."""

    where: str | None = None
    train_where: str | None = None
    test_where: str | None = None
    relabel: tuple[str, ...] = ()
    uncertain: str | None = None
    label_noise: float | None = None

    def target(self, samples: pd.DataFrame, conditions: Conditions, name: str, *, ordinal: bool) -> Target:
        """Return the target of the samples that take part, with rows counted over all samples.

        Args:
            samples: A row each.
            conditions: On the same.
            name: Of the target.
            ordinal: Whether its classes are grades.

        """
        kept = np.arange(len(samples)) if self.where is None else np.flatnonzero(conditions.where(self.where))
        some = samples[target_columns(samples, name)].iloc[kept]
        if self.relabel:
            if name not in samples.columns:
                raise UsageError(f"--relabel: {name} is no single column of classes")
            some = some.assign(**{name: relabelled(some[name], self.relabel)})
        asked = target_of(some, name, ordinal=ordinal, uncertain=self.uncertain)
        rules = f" ({'; '.join(self.relabel)})" if self.relabel else ""
        return replace(asked, name=asked.name + rules, rows=kept[asked.rows])

    def split(self, split: Split, conditions: Conditions, rows: np.ndarray) -> Split:
        """Return the split with what is learned from and tested on narrowed, and all conditions in its name."""
        flags = {"where": self.where, "train where": self.train_where, "test where": self.test_where}
        words = "".join(f", {flag} {condition}" for flag, condition in flags.items() if condition is not None)
        if self.label_noise is not None:
            words += f", {self.label_noise:.0%} wrong labels"
        masks = [
            None if condition is None else conditions.where(condition, flag)[rows]
            for flag, condition in (("--train-where", self.train_where), ("--test-where", self.test_where))
        ]
        return narrowed(split, masks[0], masks[1], words)


def narrowed(split: Split, train: np.ndarray | None, test: np.ndarray | None, words: str) -> Split:
    """Return the split with some rows alone to learn from (training and validation) and to test on.

    Args:
        split: To be narrowed.
        train: Rows that may be learned from, boolean (n,), or None for all.
        test: Rows that may be tested on, likewise.
        words: What the name of the split is continued with.

    Raises:
        DataError: A part has nothing left to train or to test on.

    """

    def kept(rows: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
        return rows if mask is None else rows[mask[rows]]

    parts = []
    for part in split.parts:
        val = None if part.val is None else kept(part.val, train)
        clean = Part(kept(part.train, train), val if val is not None and len(val) else None, kept(part.test, test))
        if not len(clean.test) and len(split.parts) > 1:
            continue
        for rows, flag in ((clean.train, "--train-where"), (clean.test, "--test-where")):
            if not len(rows):
                raise DataError(f"{flag}: '{split.name}' has no sample left on that side")
        parts.append(clean)
    if not parts:
        raise DataError(f"--test-where: '{split.name}' has no sample left on that side")
    return replace(split, name=f"{split.name}{words}", parts=tuple(parts))


def relabelled(column: pd.Series, rules: Sequence[str]) -> pd.Series:
    """Return a column with classes merged, renamed or dropped, as numbers where all names are.

    Args:
        column: Classes.
        rules: ``2,3,4=refer`` makes one class of three; ``U=`` drops one; classes without a rule stay.

    Raises:
        UsageError: A rule without ``=``, or a class that the column does not have.

    """
    codes, found = pd.factorize(column.where(~missing(column)))
    words = [class_name(value) for value in np.asarray(found, dtype=object)]
    known = sorted(set(words))
    mapped: dict[str, str] = {}
    for rule in rules:
        old, equals, new = rule.partition("=")
        if not equals:
            raise UsageError(f"--relabel {rule}: expected old,old=new, such as 2,3,4=refer, or old= to drop it")
        for name in (part.strip() for part in old.split(",")):
            if name not in known:
                raise UsageError(f"--relabel {rule}: no class '{name}'; there are: {', '.join(known)}")
            mapped[name] = new.strip()
    names = np.array([*(mapped.get(word, word) for word in words), ""], dtype=object)
    numbers = pd.to_numeric(pd.Series(names).where(names != ""), errors="coerce").to_numpy(dtype="float64")
    all_numbers = not (np.isnan(numbers) & (names != "")).any()
    return pd.Series((numbers if all_numbers else names)[codes], index=column.index, name=column.name)


def mislabelled(y: np.ndarray, share: float, n_classes: int, seed: int) -> np.ndarray:
    """Return targets of which a share is wrong: another class, each as likely, or the opposite label.

    Args:
        y: Class codes (n,), or labels 0, 1 and NaN (n, L), of which the missing ones stay missing.
        share: Between 0 and 1.
        n_classes: Number of classes.
        seed: Of the draw.

    Raises:
        UsageError: The share is out of range.

    """
    if not 0 < share < 1:
        raise UsageError(f"--label-noise {share:g}: a share of the labels between 0 and 1")
    random = np.random.default_rng(seed)
    wrong = y.copy()
    present = np.flatnonzero(~np.isnan(y.ravel()))
    chosen = random.choice(present, round(share * len(present)), replace=False)
    if y.ndim == 2:
        wrong.ravel()[chosen] = 1 - wrong.ravel()[chosen]
    else:
        wrong[chosen] = (wrong[chosen] + random.integers(1, n_classes, len(chosen))) % n_classes
    return wrong


def subgroup_names(column: pd.Series) -> np.ndarray:
    """Return the subgroup of each row (n,), empty where the value is missing: a value, or a quarter of many numbers."""
    absent = missing(column).to_numpy()
    if column.dtype.kind in "iuf" and column.nunique() > _MOST_SUBGROUPS:
        numbers = column.to_numpy(dtype="float64")
        edges = np.unique(np.nanquantile(numbers, [0, 0.25, 0.5, 0.75, 1]))
        quarter = np.searchsorted(edges[1:-1], numbers)
        words, codes = [f"{low:g} to {high:g}" for low, high in pairwise(edges)], quarter
    else:
        codes, found = pd.factorize(column)
        words = [class_name(value) for value in found]
    return np.where(absent, "", np.array([*words, ""])[codes])
