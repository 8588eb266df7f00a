"""Who is trained on and who is tested on. A patient is on one side only."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from medprobe.errors import DataError, UsageError
from medprobe.manifest import SPLIT_NAMES

# A hold-out is put together from folds this fine.
_FINE_FOLDS = 20
_HEAD = 16  # times as many rows as are drawn, among which so many groups are looked for first
INNER_FOLDS = 5


@dataclass(frozen=True)
class Part:
    """Rows to train on, to choose settings on (none: by inner folds of the training rows) and to test on."""

    train: np.ndarray
    val: np.ndarray | None
    test: np.ndarray

    @property
    def fitted(self) -> np.ndarray:
        """Rows that the chosen settings are fitted to at the end: training rows, then validation rows."""
        return self.train if self.val is None else np.concatenate([self.train, self.val])


@dataclass(frozen=True)
class Split:
    """A name for the tables, and one part, or one a fold."""

    name: str
    parts: tuple[Part, ...]

    @property
    def test(self) -> np.ndarray:
        """Tested rows of all parts, in the order of the parts."""
        return np.concatenate([part.test for part in self.parts])


def texts(values: Sequence[object] | pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Return a code (n,) for each value, and for each code its text without spaces around, empty where it is missing."""
    codes, found = pd.factorize(values if isinstance(values, pd.Series) else pd.Series(values, dtype=object))
    words = np.array([*(str(value).strip() for value in np.asarray(found, dtype=object)), ""], dtype=object)
    words[np.isin(words, ["nan", "None"])] = ""
    codes[codes < 0] = len(found)
    return codes, words


def given_split(
    coded: tuple[np.ndarray, np.ndarray], column: str, groups: np.ndarray | None, names: np.ndarray | None = None
) -> Split:
    """Return the split that a column states: train, val (optional) and test; rows with an empty value take no part.

    Args:
        coded: Values of the column, as :func:`texts` gives them.
        column: Its name, for messages.
        groups: Groups (patients) of the rows, or None.
        names: What the groups, numbers then, are called in messages.

    Raises:
        DataError: Another word than these, no rows for train or test, or a group on two sides.

    """
    codes, words = coded
    words = np.array([word.lower() for word in words], dtype=object)
    unknown = sorted({words[code] for code in np.unique(codes)} - {*SPLIT_NAMES, "", "nan", "none"})
    if unknown:
        raise DataError(f"--split-col {column}: '{unknown[0]}' is none of train, val, test")
    sides = np.array([SPLIT_NAMES.get(word, "") for word in words])
    rows = {side: np.flatnonzero((sides == side)[codes]) for side in ("train", "val", "test")}
    for side in ("train", "test"):
        if not len(rows[side]):
            raise DataError(f"--split-col {column}: no labelled image with features is in '{side}'")
    if groups is not None:
        check_leaks(rows, groups, names)
    val = rows["val"] if len(rows["val"]) else None
    return Split(column, (Part(rows["train"], val, rows["test"]),))


def fold_split(y: np.ndarray, groups: np.ndarray | None, n_folds: int, seed: int) -> Split:
    """Return K folds in which every row is tested once, stratified by class, with each group in one fold.

    Raises:
        UsageError: Fewer than two folds, or more folds than groups.

    """
    parts = [Part(train, None, test) for train, test in folds(y, groups, n_folds, seed, flag="--folds")]
    return Split(f"{n_folds} folds", tuple(parts))


def hold_out_split(y: np.ndarray, groups: np.ndarray | None, test_size: float, seed: int) -> Split:
    """Return one split with about ``test_size`` of the rows (of whole groups) to test on, stratified by class.

    Raises:
        UsageError: ``test_size`` is not between 0 and 1.

    """
    if not 0 < test_size < 1:
        raise UsageError(f"--test-size {test_size}: a share between 0 and 1")
    n = min(_FINE_FOLDS, n_groups(groups, len(y)))
    fine = [test for _, test in folds(y, groups, n, seed, flag="--test-size")]
    order = np.random.default_rng(seed).permutation(n)
    picked = order[: min(max(round(test_size * n), 1), n - 1)]
    test = np.sort(np.concatenate([fine[i] for i in picked]))
    train = np.setdiff1d(np.arange(len(y)), test)
    return Split(f"hold-out {test_size:g}", (Part(train, None, test),))


def leave_out_split(coded: tuple[np.ndarray, np.ndarray], column: str, groups: np.ndarray | None) -> Split:
    """Return one part for each value of a column (a site, a scanner): tested on it, trained on all the others.

    Rows without a value take no part; a group (patient) with images of several values is not trained on where it is
    tested on.

    Args:
        coded: Values of the column, as :func:`texts` gives them.
        column: Its name.
        groups: Groups (patients) of the rows, or None.

    Raises:
        DataError: The column has fewer than two values.

    """
    codes, words = coded
    present = (words != "")[codes]
    names = sorted({words[code] for code in np.unique(codes)} - {""})
    if len(names) < 2:
        raise DataError(f"--leave-out {column}: the column has {len(names)} values; there is nothing to leave out")
    parts = []
    for name in names:
        tested = (words == name)[codes]
        trained = present & ~tested
        if groups is not None:
            trained &= ~np.isin(groups, groups[tested])
        if not trained.any():
            raise DataError(f"--leave-out {column}: every group outside of '{name}' has images in it, too")
        parts.append(Part(np.flatnonzero(trained), None, np.flatnonzero(tested)))
    return Split(f"leave one of {len(names)} {column} out", tuple(parts))


def folds(
    y: np.ndarray, groups: np.ndarray | None, n_folds: int, seed: int, *, flag: str = "--folds"
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return pairs of training and held-out rows: stratified unless multi-label, groups kept together.

    Raises:
        UsageError: Fewer than two folds, or more folds than groups.

    """
    # A given split needs none of them, and they are slow to import.
    from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold

    available = n_groups(groups, len(y))
    if not 2 <= n_folds <= available:
        unit = "images" if groups is None else "groups"
        raise UsageError(
            f"{flag}: {n_folds} folds of {available} {unit} cannot be made; take between 2 and {available}"
        )
    multilabel = y.ndim > 1
    if not multilabel:  # scikit-learn refuses to stratify when every class is rarer than there are folds
        multilabel = int(np.bincount(y).max()) < n_folds
    options = {"n_splits": n_folds, "shuffle": True, "random_state": seed}
    if groups is None:
        splitter = KFold(**options) if multilabel else StratifiedKFold(**options)
    else:
        splitter = GroupKFold(**options) if multilabel else StratifiedGroupKFold(**options)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        pairs = list(splitter.split(np.zeros(len(y)), None if multilabel else y, groups))
    return [(train, test) for train, test in pairs if len(train) and len(test)]


def inner_folds(
    y: np.ndarray, groups: np.ndarray | None, seed: int, n_folds: int = INNER_FOLDS
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the folds of a training part on which settings are chosen: no more than the rarest class has rows, if any.

    Raises:
        DataError: There is only one group to train on.

    """
    available = n_groups(groups, len(y))
    if available < 2:
        raise DataError("the training part is a single group (patient): no settings can be chosen on others")
    rarest = int(np.unique(y, return_counts=True)[1].min()) if y.ndim == 1 else n_folds
    return folds(y, groups, min(n_folds, available, max(rarest, 2)), seed)


def few_shots(split: Split, y: np.ndarray, groups: np.ndarray | None, shots: int, seed: int, words: str) -> Split:
    """Return the split with few labels to learn from: ``shots`` rows of each class, of as many groups as there are.

    Of several labels, as many rows that have each of them, and as many that have none. Validation rows take no part:
    their labels would be beyond the budget.

    Args:
        split: Whose training rows are drawn from; its tested rows stay.
        y: Class codes (n,), or labels (n, L).
        groups: Groups (patients) of the rows, or None.
        shots: Rows of a class.
        seed: Of the draw.
        words: What the name of the split is continued with.

    Raises:
        UsageError: A class has fewer rows than that.

    """
    random = np.random.default_rng(seed)
    parts = []
    for part in split.parts:
        if y.ndim == 1:
            wanted = [part.train[y[part.train] == code] for code in np.unique(y[part.train])]
        else:
            wanted = [part.train[y[part.train, label] == 1] for label in range(y.shape[1])]
            wanted.append(part.train[np.nansum(y[part.train], axis=1) == 0])
            wanted = [rows for rows in wanted if len(rows)]
        fewest = min(len(rows) for rows in wanted)
        if y.ndim == 1 and fewest < shots:
            raise UsageError(f"--shots {shots}: a class has {fewest} rows only to learn from in '{split.name}'")
        drawn = np.unique(np.concatenate([_from_many_groups(rows, groups, shots, random) for rows in wanted]))
        parts.append(Part(drawn, None, part.test))
    return Split(f"{split.name}, {words}", tuple(parts))


def _from_many_groups(rows: np.ndarray, groups: np.ndarray | None, n: int, random: np.random.Generator) -> np.ndarray:
    """Return ``n`` of the rows: one of each group in a random order, then a second one of each, and so on."""
    rows = random.permutation(rows)
    if groups is None:
        return rows[:n]
    head = rows[: _HEAD * n]
    first = np.sort(np.unique(groups[head], return_index=True)[1])
    if len(first) >= n:  # one of each group is enough, as it is of few from many
        return head[first[:n]]
    turn = pd.Series(groups[rows]).groupby(groups[rows]).cumcount().to_numpy()
    return rows[np.argsort(turn, kind="stable")][:n]


def check_leaks(sides: dict[str, np.ndarray], groups: np.ndarray, names: np.ndarray | None = None) -> None:
    """Raise a DataError that names the groups (patients) found on more than one side of a split.

    Args:
        sides: Rows of each side.
        groups: Groups of all rows (n,), or numbers of ``names``.
        names: What they are called.

    """
    if names is None:
        names, groups = np.unique(groups, return_inverse=True)
    present = {side: np.bincount(groups[rows], minlength=len(names)) > 0 for side, rows in sides.items()}
    order = list(sides)
    for i, first in enumerate(order):
        for second in order[i + 1 :]:
            shared = np.flatnonzero(present[first] & present[second])
            if len(shared):
                some = [str(names[group]) for group in shared[:5]]
                listed = ", ".join(some) + (", ..." if len(shared) > 5 else "")
                raise DataError(
                    f"{len(shared)} groups are in both {first} and {second} ({listed}): images of one patient on both sides "
                    "make a result look better than it is. Mend the split column, or let medprobe split (--folds 5)."
                )


def n_groups(groups: np.ndarray | None, n_rows: int) -> int:
    """Return the number of groups, or of rows where there are none."""
    return n_rows if groups is None else len(np.unique(groups))
