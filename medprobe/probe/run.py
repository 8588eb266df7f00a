"""``probe``: from stores and a target to result rows."""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from medprobe.errors import DataError, UsageError
from medprobe.probe.bootstrap import intervals
from medprobe.probe.controls import COLUMNS, SHUFFLED, column_features, describing_columns, shuffled
from medprobe.probe.families import DEFAULT_FAMILIES, Family, family
from medprobe.probe.leaks import image_codes, joined, near_duplicates, without_shared_images
from medprobe.probe.metrics import METRICS, Scorer, check_metrics, default_metrics, primary_metric
from medprobe.probe.splits import (
    Part,
    Split,
    fold_split,
    given_split,
    hold_out_split,
    inner_folds,
    leave_out_split,
    n_groups,
)
from medprobe.probe.targets import Floats, Fold
from medprobe.probe.task import Target
from medprobe.probe.whatif import WhatIf
from medprobe.results import Row
from medprobe.store import FeatureStore, open_store

log = logging.getLogger("medprobe")

DEFAULT_FOLDS = 5
_FOLDS_FOR_ERROR = 3
_SIMPLER = 2  # a decade of the logistic probe's C


@dataclass(frozen=True)
class _Question:
    """What is asked of one store: rows of its features, targets, patients and how they are split.

    ``together`` are the groups that a split keeps whole: the patients, those who share a picture joined.
    """

    target: Target
    groups: np.ndarray | None
    together: np.ndarray | None
    group: str
    split: Split
    notes: tuple[str, ...]
    metrics: tuple[str, ...]
    primary: str


@dataclass(frozen=True)
class _Wish:
    """What is asked of every store: the arguments of :func:`probe` that make a question."""

    target: str | None
    metric: str | None
    group: str | None
    split_col: str | None
    n_folds: int | None
    test_size: float | None
    leave_out: str | None
    what_if: WhatIf
    duplicates: str
    seed: int


@dataclass(frozen=True)
class _Trial:
    """A probe of some features, and what its rows are called."""

    encoder: str
    view: str
    fingerprint: str
    family: Family
    X: Floats
    question: _Question


def probe(
    stores: str | os.PathLike[str] | FeatureStore | Sequence[str | os.PathLike[str] | FeatureStore],
    target: str | None = None,
    *,
    probes: Sequence[str] = DEFAULT_FAMILIES,
    view: str | None = None,
    metric: str | None = None,
    group: str | None = None,
    split_col: str | None = None,
    n_folds: int | None = None,
    test_size: float | None = None,
    leave_out: str | None = None,
    where: str | None = None,
    train_where: str | None = None,
    test_where: str | None = None,
    relabel: Sequence[str] = (),
    uncertain: str | None = None,
    duplicates: str = "error",
    controls: bool = False,
    control_cols: Sequence[str] = (),
    n_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    partial: bool = False,
    progress: Callable[[str], None] | None = None,
) -> list[Row]:
    """Return a row for each metric of each probe on each store.

    Settings are chosen by the primary metric on validation rows, or on inner folds of the training rows; then the probe is
    fitted to training and validation rows together, and only then it sees the test rows. Features are standardised on the
    rows that a probe is fitted to. Groups (patients) stay on one side of every split, and the intervals resample groups.

    Args:
        stores: Stores, or their paths.
        target: Column to predict; see :func:`~medprobe.probe.task.target_of`. The recorded label column by default.
        probes: Any of ``logreg``, ``knn``, ``mlp``, ``ridge``, ``prototype``.
        view: Name of the view; each encoder's default one unless given.
        metric: Primary metric; ``quadratic_kappa`` makes the target ordinal.
        group: Column of patients; the recorded one by default, ``"none"`` for no grouping.
        split_col: Column with train, val and test; the recorded one by default unless folds or a test size are given.
        n_folds: Test every image once, in that many folds.
        test_size: Share of the images to hold out for testing.
        leave_out: Column of sites, scanners or the like: each is tested once, by what all the others teach.
        where: SQL condition over the columns: only these samples take part.
        train_where: Only these are learned from (settings are chosen on them, too).
        test_where: Only these are tested on.
        relabel: Rules that merge or drop classes of the target, such as ``2,3,4=refer`` and ``U=``.
        uncertain: What a label of -1 counts as in multi-label targets: ``zeros``, ``ones`` or ``ignore``.
        duplicates: What to do about a picture on two sides of a given split: ``error``, ``drop`` it from training, or
            ``keep`` it. Splits that are made here keep equal pictures together.
        controls: Also probe what has to be beaten: columns of the manifest alone, and shuffled labels.
        control_cols: The columns of that control; by default all that describe a sample and are no label, group or split.
        n_resamples: Bootstrap resamples.
        level: Coverage of the intervals.
        seed: Seed of splits, probes and resamples.
        partial: Use the finished blocks of a store that is not complete.
        progress: Called with a line on what is being done.

    Raises:
        UsageError: A name or number cannot work.
        DataError: A store is incomplete or damaged, a target is unusable, or a group is on both sides of a split.

    """
    several = [stores] if isinstance(stores, str | os.PathLike | FeatureStore) else list(stores)
    families = [family(name) for name in dict.fromkeys(probes)]
    ways = {"--split-col": split_col, "--folds": n_folds, "--test-size": test_size, "--leave-out": leave_out}
    given = [flag for flag, value in ways.items() if value is not None]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)}: give one of them")
    what_if = WhatIf(where, train_where, test_where, tuple(relabel), uncertain)
    wish = _Wish(target, metric, group, split_col, n_folds, test_size, leave_out, what_if, duplicates, seed)
    rows: list[Row] = []
    for store in (s if isinstance(s, FeatureStore) else open_store(s, partial=partial) for s in several):
        question = _ask(store, wish)
        X = store.features(view)[question.target.rows]
        near = near_duplicates(X, question.split, store.samples["id"].to_numpy()[question.target.rows])
        question = replace(question, notes=question.notes + near)
        of = (store.encoder, view or store.plan.default_view, store.plan.fingerprint)
        trials = [_Trial(*of, each, X, question) for each in families]
        if (controls or control_cols) and not rows:
            trials += _controls(store, trials[0], wish, control_cols)
        for trial in trials:
            if progress is not None:
                progress(f"{trial.encoder}: {trial.family.name} on {question.target.name} ({question.split.name})")
            rows += _probe_one(trial, len(store.failures), n_resamples, level, seed)
    return rows


def _ask(store: FeatureStore, wish: _Wish) -> _Question:
    samples = store.samples
    if not len(samples):
        raise DataError(f"{store.path}: no sample has features")
    columns = [c for c in samples.columns if c != "id"]
    named = wish.target or _only_label(store)
    asked = wish.what_if.target(samples, named, ordinal=wish.metric == "quadratic_kappa")
    group_col = store.roles["group"] if wish.group is None else (None if wish.group == "none" else wish.group)
    for flag, column in (("--group", group_col), ("--split-col", wish.split_col), ("--leave-out", wish.leave_out)):
        if column is not None and column not in columns:
            raise UsageError(f"{flag} {column}: no such column; there are: {', '.join(columns)}")
    groups = None if group_col is None else _group_names(samples[group_col].to_numpy(), asked.rows)
    codes = image_codes(store.image_digests()[asked.rows])
    together = joined(groups, codes)
    split_col = wish.split_col or store.roles["split"]
    if wish.n_folds is not None:
        split = fold_split(asked.y, together, wish.n_folds, wish.seed)
    elif wish.test_size is not None:
        split = hold_out_split(asked.y, together, wish.test_size, wish.seed)
    elif wish.leave_out is not None:
        split = leave_out_split(list(samples[wish.leave_out].iloc[asked.rows]), wish.leave_out, together)
    elif split_col is not None:
        split = given_split(list(samples[split_col].iloc[asked.rows]), split_col, groups)
    else:
        split = fold_split(asked.y, together, min(DEFAULT_FOLDS, n_groups(together, len(asked.y))), wish.seed)
    split = wish.what_if.split(split, samples, asked.rows)
    split, notes = without_shared_images(split, codes, samples["id"].to_numpy()[asked.rows], wish.duplicates)
    names = default_metrics(asked.task)
    primary = primary_metric(asked.task) if wish.metric is None else wish.metric
    metrics = check_metrics((primary, *names), asked.task)
    return _Question(asked, groups, together, group_col or "", split, notes, metrics, primary)


def _controls(store: FeatureStore, trial: _Trial, wish: _Wish, named: Sequence[str]) -> list[_Trial]:
    """Return what is probed for comparison: the trial's features with shuffled labels, and columns of the store alone."""
    question, samples, logistic = trial.question, store.samples, family("logreg")
    target = question.target
    meaningless = replace(question, target=replace(target, y=shuffled(target.y, question.groups, wish.seed)))
    trials = [replace(trial, encoder=SHUFFLED, view=trial.encoder, family=logistic, question=meaningless)]
    unknown = [name for name in named if name not in samples.columns]
    if unknown:
        raise UsageError(f"--control-col {unknown[0]}: no such column; there are: {', '.join(samples.columns)}")
    without = {
        *target.columns,
        *store.roles["labels"],
        store.roles["split"],
        question.group,
        wish.split_col,
        wish.leave_out,
    }
    columns = list(named) or describing_columns(samples, [name for name in without if name])
    if columns:
        features = column_features(samples.iloc[target.rows], columns)
        trials.append(_Trial(COLUMNS, ", ".join(columns), "", logistic, features, question))
    return trials


def _only_label(store: FeatureStore) -> str:
    labels = [str(name) for name in store.roles["labels"]]
    if len(labels) == 1:
        return labels[0]
    if labels and all(name.startswith("label_") for name in labels):
        return "label"
    columns = ", ".join(c for c in store.manifest.columns if c != "id")
    raise UsageError(f"--target: name the column to predict; {store.path.name} has: {columns}")


def _group_names(names: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the group of each row as text; a row without one is a group by itself."""
    text = np.array([str(name) for name in names[rows]], dtype=object)
    empty = np.isin(text, ["", "nan", "None"])
    text[empty] = [f"(no group, row {row})" for row in rows[empty]]
    return text.astype(str)


def _probe_one(trial: _Trial, n_failed: int, n_resamples: int, level: float, seed: int) -> list[Row]:
    from medprobe import __version__

    question = trial.question
    started = time.perf_counter()
    with warnings.catch_warnings(record=True) as unfinished:
        warnings.simplefilter("always", ConvergenceWarning)
        fitted = [_fit_and_predict(trial, part, seed) for part in question.split.parts]
    settings = [chosen for chosen, _ in fitted]
    test = question.split.test
    groups = None if question.groups is None else question.groups[test]
    scorer = Scorer(question.target.task, question.target.y[test], np.concatenate([proba for _, proba in fitted]))
    found = intervals(scorer, question.metrics, groups, n_resamples, level, seed)
    seconds = time.perf_counter() - started
    notes = _notes(question, scorer)
    if unfinished:
        notes += (f"{trial.encoder}, {trial.family.name}: {unfinished[0].message}",)
    return [
        Row(
            encoder=trial.encoder,
            view=trial.view,
            probe=trial.family.name,
            target=question.target.name,
            task=question.target.task,
            metric=name,
            value=interval.value,
            ci_low=interval.low,
            ci_high=interval.high,
            ci_level=level,
            primary=name == question.primary,
            split=question.split.name,
            n_images=len(test),
            n_groups=n_groups(groups, len(test)),
            group=question.group,
            n_train=round(float(np.mean([len(part.fitted) for part in question.split.parts]))),
            n_failed=n_failed,
            settings=settings[0] if len(settings) == 1 else settings,
            seconds=round(seconds, 3),
            seed=seed,
            fingerprint=trial.fingerprint,
            medprobe=__version__,
            notes=notes
            + (
                (f"{interval.n_degenerate} of {interval.n_resamples} resamples lack a class",)
                if interval.n_degenerate
                else ()
            ),
        )
        for name, interval in found.items()
    ]


def _fit_and_predict(trial: _Trial, part: Part, seed: int) -> tuple[dict[str, Any], Floats]:
    """Return the settings chosen without the test rows, and the probabilities of the test rows."""
    X, each, question = trial.X, trial.family, trial.question
    y, groups = question.target.y, question.together
    rows, n = part.fitted, len(part.train)
    if part.val is None:
        pairs = inner_folds(y[rows], None if groups is None else groups[rows], seed)[: each.inner_folds]
    else:
        pairs = [(np.arange(n), np.arange(n, len(rows)))]
    scaled = _standardised(X[rows], slice(n))
    if y.ndim == 1 and len(np.unique(y[rows])) < 2:
        raise DataError(f"--target {question.target.name}: a training part has one class only; use fewer folds")
    swept = each.sweep(scaled, y[rows], pairs, question.target.n_classes, seed)
    settings = _best(swept, y[rows], pairs, each, question)
    estimator = each.build(settings, seed).fit(X[rows], y[rows])
    return settings, _all_classes(estimator, X[part.test], question.target)


def _best(
    swept: Sequence[tuple[dict[str, Any], list[Floats]]],
    y: np.ndarray,
    pairs: Sequence[Fold],
    each: Family,
    question: _Question,
) -> dict[str, Any]:
    """Return the settings with the best primary metric on the held-out rows, the first of equal ones.

    Where the sweep is ordered and there are folds to tell the noise from, the first settings (the most regularised) are
    taken whose score is within one standard error (over the folds) of the best: the one-standard-error rule of Breiman,
    Friedman, Olshen and Stone (Classification and Regression Trees, 1984, section 3.4.3). It goes no further than
    ``_SIMPLER`` places from the best: with few patients the error is wide enough to excuse a model of nothing.
    """
    sign = 1 if METRICS[question.primary].higher_is_better else -1

    def score(rows: np.ndarray, proba: Floats) -> float:
        return sign * Scorer(question.target.task, y[rows], _clean(proba)).value(question.primary)

    held_out = np.concatenate([val for _, val in pairs])
    scores = np.array([score(held_out, np.concatenate(proba)) for _, proba in swept])
    best = int(np.argmax(np.nan_to_num(scores, nan=-np.inf)))
    if each.ordered and len(pairs) >= _FOLDS_FOR_ERROR:
        by_fold = [score(val, proba) for (_, val), proba in zip(pairs, swept[best][1], strict=True)]
        error = np.std(by_fold, ddof=1) / np.sqrt(len(by_fold))
        if np.isfinite(error):
            simplest = max(0, best - _SIMPLER)
            best = simplest + int(np.argmax(scores[simplest:] >= scores[best] - error))
    return swept[best][0]


def _all_classes(estimator: Any, X: Floats, target: Target) -> Floats:
    """Return probabilities (n, all classes): a class that no training row had gets zero."""
    proba = np.asarray(estimator.predict_proba(X), dtype=np.float64)
    if target.task == "multilabel" or proba.shape[1] == target.n_classes:
        return _clean(proba)
    full = np.zeros((len(X), target.n_classes))
    full[:, np.asarray(estimator.classes_, dtype=np.int64)] = proba
    return _clean(full)


def _clean(proba: Floats) -> Floats:
    """Return probabilities within [0, 1]: single precision may leave it by a rounding error."""
    return np.clip(np.asarray(proba, dtype=np.float64), 0.0, 1.0)


def _standardised(X: Floats, fitted_on: slice) -> Floats:
    mean = X[fitted_on].mean(axis=0, dtype=np.float64)
    scale = X[fitted_on].std(axis=0, dtype=np.float64)
    scale[scale <= 1e-7 * np.maximum(np.abs(mean), 1e-7)] = 1.0
    scaled: Floats = (X - mean.astype(X.dtype)) / scale.astype(X.dtype)
    return scaled


def _notes(question: _Question, scorer: Scorer) -> tuple[str, ...]:
    notes = list(question.notes)
    if question.groups is None:
        notes.append("no group column is known: every image counts as a patient of its own (--group)")
    if scorer.left_out:
        names = ", ".join(question.target.classes[i] for i in scorer.left_out)
        notes.append(f"not in the tested images, so not in the averages: {names}")
    return tuple(notes)
