"""Metrics of predicted probabilities, for one test set or for thousands of bootstrap resamples of it at once.

Tasks: ``binary``, ``multiclass``, ``ordinal`` (classes in order) and ``multilabel``. Definitions, in every task:

- The predicted class is the most probable one (the first on a tie: 0.5 against 0.5 is class 0); a label is predicted
  when its probability is above 0.5.
- Ties in a score count half in the area under the ROC curve. Average precision is the sum of precision times step in
  recall over the distinct scores, without interpolation; it is that of class 1 in a binary task.
- Averages over classes are unweighted, over the classes present in ``y``; averages over labels are unweighted, over the
  labels of which ``y`` has both values. :attr:`Scorer.left_out` names the others.
- Missing labels (NaN) are left out of their own label only.

"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from medprobe.errors import DataError, UsageError

Floats = NDArray[np.float64]

TASKS = ("binary", "multiclass", "ordinal", "multilabel")
"""Names of the tasks."""

_ECE_BINS = 15

# Doubles in one block of weights: few enough for the processor's cache.
_BLOCK = 2**18
_MIN_STEP = 32


@dataclass(frozen=True)
class Metric:
    """A metric: its name in results and commands, the tasks that it is defined for, and its definition in one line."""

    name: str
    tasks: tuple[str, ...]
    higher_is_better: bool
    description: str


METRICS: dict[str, Metric] = {
    name: Metric(name, tasks, higher, description)
    for name, tasks, higher, description in (
        ("auroc", TASKS, True, "area under the ROC curve; mean of one-vs-rest classes, or of labels"),
        ("average_precision", TASKS, True, "area under the precision-recall steps; mean of classes or labels"),
        ("accuracy", TASKS, True, "fraction of right predictions; mean of labels"),
        ("balanced_accuracy", TASKS, True, "mean recall of classes; labels: mean of (sensitivity + specificity) / 2"),
        ("macro_recall", TASKS, True, "mean recall of classes (equals balanced accuracy); labels: mean sensitivity"),
        ("macro_f1", TASKS, True, "mean F1 score of classes (both of them when binary), or of labels"),
        ("quadratic_kappa", ("ordinal",), True, "Cohen's kappa weighted by the squared distance of the grades' codes"),
        ("log_loss", TASKS, False, "mean negative natural logarithm of the true class's probability; mean of labels"),
        ("brier", TASKS, False, "mean squared error of class 1's probability, or summed over classes; mean of labels"),
        ("ece", TASKS, False, "expected calibration error, 15 equal-width bins of the probability; mean of labels"),
    )
}
"""Every metric by name."""

_DEFAULT = {
    "binary": ("auroc", "average_precision", "balanced_accuracy", "accuracy", "macro_f1", "brier", "ece"),
    "multiclass": ("balanced_accuracy", "accuracy", "macro_f1", "auroc", "average_precision", "brier", "ece"),
    "ordinal": ("quadratic_kappa", "balanced_accuracy", "accuracy", "macro_f1", "auroc", "brier", "ece"),
    "multilabel": ("auroc", "average_precision", "balanced_accuracy", "macro_f1", "brier", "ece"),
}


def default_metrics(task: str) -> tuple[str, ...]:
    """Return the names of the metrics reported for a task, the primary one first.

    Raises:
        UsageError: There is no such task.

    """
    if task not in _DEFAULT:
        raise UsageError(f"there is no task {task!r}; the tasks are {', '.join(TASKS)}")
    return _DEFAULT[task]


def primary_metric(task: str) -> str:
    """Return the name of the metric by which settings are chosen and models ranked.

    Raises:
        UsageError: There is no such task.

    """
    return default_metrics(task)[0]


def check_metrics(names: Iterable[str], task: str) -> tuple[str, ...]:
    """Return the names, once each and in their order, when all of them are defined for the task.

    Raises:
        UsageError: A name is unknown or the metric is not defined for the task.

    """
    default_metrics(task)
    valid = [name for name, metric in METRICS.items() if task in metric.tasks]
    names = tuple(dict.fromkeys(names))
    for name in names:
        if name not in valid:
            reason = f"is not defined for the {task} task" if name in METRICS else "is unknown"
            raise UsageError(f"the metric {name!r} {reason}; --metric takes one of {', '.join(valid)}")
    return names


class Scorer:
    """The metrics of one set of predictions, and of any number of bootstrap resamples of its rows.

    Everything that does not depend on the resample (sort orders, ties, cells of the confusion matrix, bins, losses) is
    worked out once; a resample is then a vector of weights, and most metrics of all resamples are one matrix product.

    Two definitions differ between papers. The expected calibration error here has bins (a, b] of width 1/15; it is the
    mean over bins, weighted by their rows, of the distance of observed frequency and mean probability. For two classes
    and for labels these are of class 1 (Naeini, Cooper and Hauskrecht, AAAI 2015), for more classes of the predicted
    class (Guo, Pleiss, Sun and Weinberger, ICML 2017). The Brier score is the mean of (p - y)^2 of class 1 for two
    classes and for labels, at most 1; for more classes the squares are summed over the classes (Brier, Monthly Weather
    Review 1950), at most 2.

    Args:
        task: Name of the task.
        y: Codes 0 to K - 1, shape (n,), or for labels 0, 1 and NaN (missing), shape (n, L).
        proba: Probabilities, shape (n, K) with rows that sum to one (K = 2 when binary), or (n, L).

    Attributes:
        task: Name of the task.
        n_rows: Number of rows n.
        n_columns: Number of classes K or of labels L.
        left_out: Codes of the classes that ``y`` lacks, or of the labels of which ``y`` has not both values: averages
            over classes or labels go without them.

    Raises:
        UsageError: There is no such task.
        DataError: Shapes, codes or probabilities are not as described.

    """

    def __init__(self, task: str, y: ArrayLike, proba: ArrayLike) -> None:
        default_metrics(task)
        self.task = task
        proba = np.asarray(proba)
        self._epsilon = float(np.finfo(proba.dtype if proba.dtype.kind == "f" else np.float64).eps)
        self._proba = _checked_proba(task, proba)
        self.n_rows, self.n_columns = self._proba.shape
        self._y = _checked_y(task, y, self._proba.shape)
        if task == "multilabel":
            self._kept = np.any(self._y == 0, axis=0) & np.any(self._y == 1, axis=0)
        else:
            self._kept = np.bincount(self._y, minlength=self.n_columns) > 0
        self.left_out: tuple[int, ...] = tuple(np.flatnonzero(~self._kept).tolist())

    def same_rows(self, other: Scorer) -> bool:
        """Return whether the other scorer has the same task and the same truth, row by row."""
        return self.task == other.task and np.array_equal(self._y, other._y, equal_nan=self.task == "multilabel")

    def value(self, name: str) -> float:
        """Return the metric of the rows as they are; NaN where it is undefined. See :meth:`replicates_many`."""
        if name == "auroc":  # settings are chosen by it: a fraction of the work that resamples need
            areas = [_area(score, positive) for score, positive, _ in self._ranked_columns]
            return float(np.mean(areas)) if areas else np.nan
        return float(self.replicates(name, np.ones((1, self.n_rows)))[0])

    def replicates(self, name: str, weights: NDArray[Any]) -> Floats:
        """Return one metric of each resample, shape (B,). See :meth:`replicates_many`."""
        return self.replicates_many((name,), weights)[name]

    def replicates_many(self, names: Sequence[str], weights: NDArray[Any]) -> dict[str, Floats]:
        """Return each metric of each resample, shape (B,), by name.

        A metric is undefined (NaN) in a resample that lacks a class or label value which ``y`` has and which the metric
        needs: every present class for averages over classes, both values of every label that counts for labels.

        Args:
            names: Names of metrics; work that they have in common is done once.
            weights: How many times each row was drawn, shape (B, n): whole numbers, not negative. Column-major memory
                order is the faster one.

        Raises:
            UsageError: A metric is unknown or not defined for the task.
            DataError: ``weights`` has another shape.

        """
        names = check_metrics(names, self.task)
        if weights.ndim != 2 or weights.shape[1] != self.n_rows:
            raise DataError(f"the weights of {self.n_rows} rows have shape (B, {self.n_rows}), not {weights.shape}")
        out = {name: np.empty(len(weights)) for name in names}
        evaluate = self._label_metrics if self.task == "multilabel" else self._class_metrics
        step = max(_MIN_STEP, _BLOCK // max(self.n_rows, self.n_columns**2))
        with np.errstate(divide="ignore", invalid="ignore"):
            for start in range(0, len(weights), step):
                columns = np.ascontiguousarray(weights[start : start + step].T, dtype=np.float64)
                block = evaluate(names, columns)
                for name in names:
                    out[name][start : start + step] = block[name]
        return out

    def _class_metrics(self, names: Sequence[str], weights: Floats) -> dict[str, Floats]:
        """Return the metrics of a task with one class a row; ``weights`` has shape (n, B)."""
        total = weights.sum(axis=0)
        table = (self._cells @ weights).reshape(self.n_columns, self.n_columns, -1)
        true, predicted, hits = table.sum(axis=1), table.sum(axis=0), np.einsum("kkb->kb", table)
        complete = np.where((true[self._kept] > 0).all(axis=0), 1.0, np.nan)
        recall = (hits[self._kept] / true[self._kept]).mean(axis=0)
        # A class that is neither true nor predicted does not count; one that is only predicted has an F1 score of 0.
        named = true + predicted
        f1 = (2 * hits / np.maximum(named, 1.0)).sum(axis=0) / (named > 0).sum(axis=0) * complete
        out = {
            "accuracy": hits.sum(axis=0) / total,
            "macro_f1": f1,
            "balanced_accuracy": recall,
            "macro_recall": recall,
        }
        if "quadratic_kappa" in names:
            out["quadratic_kappa"] = _quadratic_kappa(table, true, predicted, total)
        if not {"log_loss", "brier"}.isdisjoint(names):
            out["log_loss"], out["brier"] = (loss[:, 0] @ weights / total for loss in self._losses)
        if "ece" in names:
            out["ece"] = np.abs(self._bins @ weights).sum(axis=0) / total
        for name, values in self._ranked(names, weights).items():
            # A class that the resample lacks has no area, and so the mean has none.
            out[name] = values.mean(axis=0)
        return out

    def _label_metrics(self, names: Sequence[str], weights: Floats) -> dict[str, Floats]:
        """Return the metrics of the multi-label task; ``weights`` has shape (n, B)."""
        tn, fp, fn, tp = np.moveaxis((self._cells @ weights).reshape(self.n_columns, 4, -1), 1, 0)
        rows = tn + fp + fn + tp
        seen = ~np.isnan(self._y).all(axis=0)
        defined = np.where((tp + fn > 0) & (tn + fp > 0), 1.0, np.nan)
        sensitivity, specificity = tp / (tp + fn), tn / (tn + fp)
        out = {
            "accuracy": _mean(((tn + tp) / rows)[seen]),
            "balanced_accuracy": _mean((defined * (sensitivity + specificity) / 2)[self._kept]),
            "macro_recall": _mean((defined * sensitivity)[self._kept]),
            "macro_f1": _mean((defined * 2 * tp / (2 * tp + fp + fn))[self._kept]),
        }
        if not {"log_loss", "brier"}.isdisjoint(names):
            out["log_loss"], out["brier"] = (_mean((loss.T @ weights / rows)[seen]) for loss in self._losses)
        if "ece" in names:
            gaps = np.abs(self._bins @ weights).reshape(self.n_columns, _ECE_BINS, -1).sum(axis=1)
            out["ece"] = _mean((gaps / rows)[seen])
        for name, values in self._ranked(names, weights).items():
            out[name] = _mean(values)
        return out

    def _ranked(self, names: Sequence[str], weights: Floats) -> dict[str, Floats]:
        """Return AUROC and average precision, where asked for, of each ranking, shape (rankings, B)."""
        wanted = [name for name in ("auroc", "average_precision") if name in names]
        out = {name: np.full((max(1, len(self._rankings)), weights.shape[1]), np.nan) for name in wanted}
        for row, ranking in enumerate(self._rankings if wanted else ()):
            positives, negatives = ranking.positives @ weights, ranking.negatives @ weights
            np.cumsum(negatives, axis=0, out=negatives)
            all_positives, all_negatives = positives.sum(axis=0), negatives[-1]
            above = negatives[:-1]
            if "auroc" in wanted:
                pairs = all_positives * all_negatives
                lost = np.einsum("tb,tb->b", positives, above)
                if ranking.ties is not None:
                    lost -= 0.5 * np.einsum("tb,tb->b", positives, ranking.ties @ weights)
                out["auroc"][row] = (pairs - lost) / pairs
            if "average_precision" in wanted:
                found = np.cumsum(positives, axis=0)
                # Nothing drawn so far: no step in recall either, so any precision will do.
                called = np.add(found, above, out=above)
                precision = np.divide(found, np.maximum(called, 1.0, out=called), out=found)
                area = np.einsum("tb,tb->b", positives, precision) / all_positives
                out["average_precision"][row] = np.where(all_negatives > 0, area, np.nan)
        return out

    @cached_property
    def _ranked_columns(self) -> list[tuple[Floats, NDArray[np.bool_], NDArray[np.intp]]]:
        """Scores, whether they are of positive rows, and these rows, for each class or label that is ranked."""
        columns = np.flatnonzero(self._kept)
        if self.task == "multilabel":
            truths = self._y[:, columns]
        elif len(columns) < 2:
            return []
        else:
            columns = columns[1:] if self.task == "binary" else columns
            truths = (self._y[:, None] == columns).astype(np.float64)
        found = []
        for column, truth in zip(columns, truths.T, strict=True):
            rows = np.flatnonzero(~np.isnan(truth))
            found.append((self._proba[rows, column], truth[rows] == 1, rows))
        return found

    @cached_property
    def _rankings(self) -> list[_Ranking]:
        return [_Ranking(*column, self.n_rows) for column in self._ranked_columns]

    @cached_property
    def _cells(self) -> Any:
        """Sparse indicators: of cell (true, predicted) of the one confusion matrix, or of the four cells of a label."""
        if self.task != "multilabel":
            cell = self._y * self.n_columns + self._proba.argmax(axis=1)
            return _indicator(cell, np.arange(self.n_rows), self.n_columns**2, self.n_rows)
        rows, labels = np.nonzero(~np.isnan(self._y))
        cell = labels * 4 + 2 * self._y[rows, labels].astype(np.int64) + (self._proba[rows, labels] > 0.5)
        return _indicator(cell, rows, 4 * self.n_columns, self.n_rows)

    @cached_property
    def _losses(self) -> tuple[Floats, Floats]:
        """Log loss and squared error of each row, shape (n, 1), or of each label of each row, 0 where missing."""
        clipped = np.clip(self._proba, self._epsilon, 1 - self._epsilon)
        if self.task == "multilabel":
            missing = np.isnan(self._y)
            log_loss = -np.log(np.where(self._y == 1, clipped, 1 - clipped))
            return np.where(missing, 0.0, log_loss), np.where(missing, 0.0, (self._proba - self._y) ** 2)
        rows = np.arange(self.n_rows)
        truth = np.zeros_like(self._proba)
        truth[rows, self._y] = 1.0
        squares = (self._proba - truth) ** 2
        brier = squares[:, 1:] if self.task == "binary" else squares.sum(axis=1, keepdims=True)
        return -np.log(clipped[rows, self._y])[:, None], brier

    @cached_property
    def _bins(self) -> Any:
        """Sparse (bins, n), or (labels x bins, n): outcome minus probability of each row, in its bin."""
        edges = np.linspace(0.0, 1.0, _ECE_BINS + 1)[1:-1]
        if self.task == "multilabel":
            rows, labels = np.nonzero(~np.isnan(self._y))
            confidence, outcome = self._proba[rows, labels], self._y[rows, labels]
            bins = labels * _ECE_BINS + np.searchsorted(edges, confidence, side="left")
            return _indicator(bins, rows, _ECE_BINS * self.n_columns, self.n_rows, outcome - confidence)
        if self.task == "binary":
            confidence, outcome = self._proba[:, 1], self._y == 1
        else:
            confidence, outcome = self._proba.max(axis=1), self._proba.argmax(axis=1) == self._y
        bins = np.searchsorted(edges, confidence, side="left")
        return _indicator(bins, np.arange(self.n_rows), _ECE_BINS, self.n_rows, outcome - confidence)


class _Ranking:
    """The order of one column of scores, as sparse sums over rows.

    Step t is the t-th highest of the scores that positive rows have. Row t of ``positives`` (T, n) sums the positive
    rows of step t; of ``negatives`` (T + 1, n) the negative rows from there up to the step above, its last row those
    below every step; of ``ties`` (T, n), None where it would be empty, the negative rows with the very score of step t.
    """

    def __init__(self, score: Floats, positive: NDArray[np.bool_], rows: NDArray[np.intp], n_rows: int) -> None:
        steps = np.unique(score[positive])
        step = len(steps) - np.searchsorted(steps, score, side="right")
        tied = ~positive & np.isin(score, steps)
        self.positives = _indicator(step[positive], rows[positive], len(steps), n_rows)
        self.negatives = _indicator(step[~positive], rows[~positive], len(steps) + 1, n_rows)
        self.ties = _indicator(step[tied], rows[tied], len(steps), n_rows) if tied.any() else None


def _area(score: Floats, positive: NDArray[np.bool_]) -> float:
    """Return the share of pairs of a positive and a negative row that the score has in order, a tie counting half."""
    above, below = np.sort(score[positive]), np.sort(score[~positive])
    lost = np.searchsorted(above, below, "left") + np.searchsorted(above, below, "right")
    return 1.0 - float(lost.sum()) / (2.0 * len(above) * len(below))


def _checked_proba(task: str, proba: NDArray[Any]) -> Floats:
    checked = np.asarray(proba, dtype=np.float64)
    if checked.ndim != 2 or 0 in checked.shape:
        raise DataError(f"probabilities have shape (n, classes or labels) with at least one row, not {checked.shape}")
    if not (np.isfinite(checked).all() and checked.min() >= 0 and checked.max() <= 1):
        raise DataError("probabilities must be finite and between 0 and 1")
    if task == "binary" and checked.shape[1] != 2:
        raise DataError(f"a binary task has probabilities of shape (n, 2), not {checked.shape}")
    if task != "multilabel" and np.abs(checked.sum(axis=1) - 1).max() > 1e-3:
        raise DataError(f"the probabilities of a row must sum to one in a {task} task")
    return checked


def _checked_y(task: str, y: ArrayLike, shape: tuple[int, ...]) -> NDArray[Any]:
    y = np.asarray(y)
    expected = shape if task == "multilabel" else shape[:1]
    if y.shape != expected:
        raise DataError(f"y of a {task} task with probabilities of shape {shape} has shape {expected}, not {y.shape}")
    if task == "multilabel":
        y = y.astype(np.float64)
        if not (np.isnan(y) | np.isin(y, (0, 1))).all():
            raise DataError("labels are 0, 1 or NaN (missing)")
        return y
    if y.dtype.kind not in "biu" or y.min() < 0 or y.max() >= shape[1]:
        raise DataError(f"y of a {task} task holds whole numbers from 0 to {shape[1] - 1}, the codes of the classes")
    return y.astype(np.int64)


def _indicator(
    index: NDArray[Any], rows: NDArray[Any], size: int, n_rows: int, values: NDArray[np.floating[Any]] | None = None
) -> Any:
    """Return the sparse matrix (size, n_rows) with ``values`` (default 1) at (index, rows)."""
    data = np.ones(len(rows)) if values is None else values
    return sparse.csr_array((data, (index, rows)), shape=(size, n_rows))


def _mean(values: Floats) -> Floats:
    """Return the mean over labels, shape (B,); NaN when there is no label."""
    return values.mean(axis=0) if len(values) else np.full(values.shape[1], np.nan)


def _quadratic_kappa(table: Floats, true: Floats, predicted: Floats, total: Floats) -> Floats:
    codes = np.arange(len(table))
    distance = (codes[:, None] - codes).astype(np.float64) ** 2
    observed = np.einsum("jk,jkb->b", distance, table)
    expected = np.einsum("jb,jb->b", true, distance @ predicted) / total
    kappa: Floats = 1 - observed / expected
    return kappa
