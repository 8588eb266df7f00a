"""Which rows differ, beyond what chance would do: paired on the same patients, corrected for their number, and over tasks."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from medprobe.errors import UsageError
from medprobe.predictions import Predictions
from medprobe.probe.bootstrap import delong, holm, paired_differences
from medprobe.probe.controls import SHUFFLED
from medprobe.probe.metrics import METRICS, Scorer
from medprobe.results import Question, Results, Row, ranked, read_results

_CONTROL = "control: "


@dataclass(frozen=True)
class Difference:
    """A row's metric minus another's, on the images that both were tested on.

    Attributes:
        question: What both answer.
        first: The row that ranks higher.
        second: The other one.
        difference: Metric of the first minus that of the second.
        low: Lower end of its interval, resampled by groups; NaN where there is none.
        high: Upper end, likewise.
        p_value: Two-sided p-value of no difference.
        p_holm: The same, corrected for all differences of the question (Holm).
        p_delong: DeLong's for two areas under the ROC curve; NaN for other metrics. It takes all images as independent.
        n_images: Images in common.
        n_groups: Groups (patients) among them.

    """

    question: Question
    first: Row
    second: Row
    difference: float
    low: float
    high: float
    p_value: float
    p_holm: float
    p_delong: float
    n_images: int
    n_groups: int


@dataclass(frozen=True)
class Ranks:
    """Average ranks of methods over several tasks, with the difference that two of them need to be told apart.

    Friedman's test and Nemenyi's critical difference, as in Demsar (Journal of Machine Learning Research 2006).

    Attributes:
        methods: Encoder, view and probe, the best first.
        average: Their average ranks, 1 for the best.
        critical_difference: Average ranks that differ by less are not told apart.
        p_value: Of Friedman's test that all methods are alike; NaN for two methods.
        cliques: First and last place (in ``methods``) of each longest run of methods that are not told apart.
        tasks: Questions that all the methods answered, one of each target of each data set.

    """

    methods: tuple[tuple[str, str, str], ...]
    average: tuple[float, ...]
    critical_difference: float
    p_value: float
    cliques: tuple[tuple[int, int], ...]
    tasks: tuple[Question, ...]

    def letters(self, place: int) -> str:
        """Return the letters of a method's cliques: methods of one letter are not told apart."""
        return "".join(chr(ord("a") + i) for i, (low, high) in enumerate(self.cliques) if low <= place <= high)


@dataclass(frozen=True)
class Comparison:
    """Rows, their differences in pairs, and ranks over tasks where there are several."""

    rows: Results
    differences: list[Difference]
    ranks: Ranks | None


def compare(
    results: Results | str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    against: str | None = None,
    every_pair: bool = False,
    n_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Return what is told apart among results: those of :func:`medprobe.probe`, or folders that they were written to.

    Arguments and errors are those of :func:`paired` and :func:`~medprobe.results.read_results`.
    """
    if not isinstance(results, Results):
        paths = [results] if isinstance(results, str | os.PathLike) else list(results)
        results = read_results([Path(path) for path in paths])
    differences = paired(
        results, against=against, every_pair=every_pair, n_resamples=n_resamples, level=level, seed=seed
    )
    return Comparison(results, differences, critical_difference(results))


def paired(
    results: Results,
    *,
    against: str | None = None,
    every_pair: bool = False,
    n_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> list[Difference]:
    """Return the differences of each question's best encoder, or of a named one, to the other rows.

    Rows without predictions beside them take no part, nor do those with shuffled labels.

    Args:
        results: Rows with predictions.
        against: Encoder whose best row is compared with all others.
        every_pair: Compare all rows with all others.
        n_resamples: Bootstrap resamples.
        level: Coverage of the intervals.
        seed: Seed of the resamples.

    Raises:
        UsageError: No row with predictions is of the encoder ``against``.

    """
    tables = {
        question: [row for row in table if row.trial in results.predictions and math.isfinite(row.value)]
        for question, table in ranked(row for row in results if row.encoder != SHUFFLED).items()
    }
    if against is not None and not any(row.encoder == against for table in tables.values() for row in table):
        known = ", ".join(sorted({row.encoder for table in tables.values() for row in table}))
        raise UsageError(f"--against {against}: no result of it with predictions; there are: {known or 'none'}")
    found: list[Difference] = []
    for question, table in tables.items():
        table, kept = _alike(table, results.predictions)
        leaders = [i for i, row in enumerate(table) if (row.encoder == against if against else not row.is_control)]
        if len(table) < 2 or (against and not leaders):
            continue
        leader = leaders[0] if leaders else 0
        if every_pair:
            pairs = [(a, b) for a in range(len(table)) for b in range(a + 1, len(table))]
        else:
            pairs = [(min(leader, i), max(leader, i)) for i in range(len(table)) if i != leader]
        scorers = [[Scorer(p.task, p.y, draw) for draw in p.proba] for p in kept]
        groups = kept[0].groups
        differences = paired_differences(scorers, pairs, question.metric, groups, n_resamples, level, seed)
        corrected = holm([d.p_value for d in differences])
        found += [
            Difference(
                question, table[a], table[b], d.difference, d.low, d.high, d.p_value, float(p_holm),
                _delong(question, kept[a], kept[b]), len(groups), len(np.unique(groups)),
            )
            for (a, b), d, p_holm in zip(pairs, differences, corrected, strict=True)
        ]  # fmt: skip
    return found


def critical_difference(rows: Sequence[Row], alpha: float = 0.05) -> Ranks | None:
    """Return average ranks over the tasks of the rows, or None with fewer than two tasks or methods.

    A task is a target of a data set: the test takes tasks as independent, so that of several questions of one (other
    splits or metrics) the first counts alone, and rows of few shots do not count. Only methods that answered every task
    take part, controls do not.

    Args:
        rows: Of several tasks.
        alpha: Probability of telling any two methods apart that are alike.

    """
    tables: dict[Question, list[Row]] = {}
    for question, table in ranked(r for r in rows if not r.shots and not r.encoder.startswith(_CONTROL)).items():
        if all((question.data, question.target) != (other.data, other.target) for other in tables):
            tables[question] = table
    values: dict[tuple[str, str, str], dict[Question, float]] = {}
    for question, table in tables.items():
        sign = -1 if METRICS[question.metric].higher_is_better else 1
        for row in table:
            values.setdefault((row.encoder, row.view, row.probe), {})[question] = sign * row.value
    methods = [
        method
        for method, by_task in values.items()
        if len(by_task) == len(tables) and np.isfinite(list(by_task.values())).all()
    ]
    n, k = len(tables), len(methods)
    if n < 2 or k < 2:
        return None
    by_task = np.array([[values[method][task] for method in methods] for task in tables])
    average = stats.rankdata(by_task, axis=1).mean(axis=0)
    order = np.argsort(average, kind="stable")
    q = stats.studentized_range.ppf(1 - alpha, k, np.inf) / np.sqrt(2)
    critical = float(q * np.sqrt(k * (k + 1) / (6 * n)))
    p_value = float(stats.friedmanchisquare(*by_task.T).pvalue) if k > 2 else math.nan
    return Ranks(
        methods=tuple(methods[i] for i in order),
        average=tuple(average[order].tolist()),
        critical_difference=critical,
        p_value=p_value,
        cliques=_cliques(average[order], critical),
        tasks=tuple(tables),
    )


def _alike(table: Sequence[Row], predictions: dict[str, Predictions]) -> tuple[list[Row], list[Predictions]]:
    """Return the rows that were tested on the truth of the best one, with predictions of the images that all share."""
    if not table:
        return [], []
    held = [predictions[row.trial] for row in table]
    best = held[0]
    kept = [
        i
        for i, p in enumerate(held)
        if len(p.proba) == len(best.proba) and p.task == best.task and np.array_equal(p.classes, best.classes)
    ]
    common = set(best.ids.tolist())
    for i in kept:
        common &= set(held[i].ids.tolist())
    ids = np.array(sorted(common), dtype=str)
    if len(ids) < 2:
        return [], []
    chosen = {i: _of(held[i], ids) for i in kept}
    same = [i for i in kept if np.array_equal(chosen[i].y, chosen[kept[0]].y, equal_nan=best.y.dtype.kind == "f")]
    return [table[i] for i in same], [chosen[i] for i in same]


def _of(predictions: Predictions, ids: np.ndarray) -> Predictions:
    place = {name: i for i, name in enumerate(predictions.ids.tolist())}
    rows = np.array([place[name] for name in ids.tolist()])
    return Predictions(
        ids,
        predictions.groups[rows],
        predictions.y[rows],
        predictions.proba[:, rows],
        predictions.task,
        predictions.classes,
    )


def _delong(question: Question, first: Predictions, second: Predictions) -> float:
    if question.metric != "auroc" or first.task != "binary" or len(first.proba) > 1:
        return math.nan
    return delong(first.y, first.proba[0, :, 1], second.proba[0, :, 1]).p_value


def _cliques(average: np.ndarray, critical: float) -> tuple[tuple[int, int], ...]:
    runs = [(i, int(np.searchsorted(average, rank + critical, side="right")) - 1) for i, rank in enumerate(average)]
    return tuple((a, b) for i, (a, b) in enumerate(runs) if b > a and (i == 0 or runs[i - 1][1] < b))
