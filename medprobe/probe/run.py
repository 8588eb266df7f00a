"""``probe``: from stores and a target to result rows."""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from medprobe.errors import UsageError
from medprobe.predictions import Predictions
from medprobe.probe.answers import Answer, Reporting, reported
from medprobe.probe.bags import EVERY, AnyRows, Bags, bags_of, pooled_name
from medprobe.probe.families import ATTENTIVE, DEFAULT_FAMILIES, Family, attentive_family, family
from medprobe.probe.features import AUTO, TOKENS, Features, features_of
from medprobe.probe.leaks import near_duplicates
from medprobe.probe.presets import preset_of
from medprobe.probe.question import Question, Wish, ask, with_shots
from medprobe.probe.question import controls as control_trials
from medprobe.probe.selection import Fitted, fit_part
from medprobe.probe.whatif import WhatIf
from medprobe.results import Results, Row
from medprobe.storage import AnyPlace, Url
from medprobe.store import FeatureStore, open_store

log = logging.getLogger("medprobe")

AnyStore = AnyPlace | FeatureStore


@dataclass(frozen=True)
class Trial:
    """A kind of probe, the features that it is given (or that share of their principal components), and what is asked."""

    family: Family
    features: Features
    question: Question
    pca: float | None = None


def probe(
    stores: AnyStore | Sequence[AnyStore],
    target: str | None = None,
    *,
    probes: Sequence[str] = (),
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
    label_noise: float | None = None,
    shots: Sequence[int] = (),
    repeats: int = 5,
    concat: Sequence[AnyStore] = (),
    pca: float | None = None,
    subgroups: Sequence[str] = (),
    preset: str | None = None,
    pool: str | None = None,
    pool_by: str | None = None,
    duplicates: str = "error",
    controls: bool = False,
    control_cols: Sequence[str] = (),
    n_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    save_model: str | os.PathLike[str] | None = None,
    partial: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Results:
    """Return a row for each metric of each probe on each store, and the predictions that it was computed from.

    Settings are chosen by the primary metric on validation rows, or on inner folds of the training rows; then the probe is
    fitted to training and validation rows together, and only then it sees the test rows. Features are standardised on the
    rows that a probe is fitted to. Groups (patients) stay on one side of every split, and the intervals resample groups.

    Args:
        stores: Stores, or their paths.
        target: Column to predict; see :func:`~medprobe.probe.task.target_of`. The recorded label column by default.
        probes: Any of ``logreg``, ``knn``, ``mlp``, ``ridge``, ``prototype``, ``attentive``; the preset's, or the first
            three, by default.
        view: Name of the view; each encoder's default one unless given; ``auto`` chooses among all like a setting.
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
        uncertain: What a label of -1 counts as in multi-label targets: ``zeros``, ``ones``, ``ignore``, or ``huix2024``.
        label_noise: Share of the labels to learn from that are made wrong on purpose; the tested ones stay.
        shots: Numbers of labelled images of each class to learn from: rows for each of them.
        repeats: Draws of so few labels; values are means over them, and the intervals know of them.
        concat: Stores whose features are put beside those of each store, joined by the ids of the samples.
        pca: Number of principal components to keep, or share of the variance; found on the rows that are fitted to.
        subgroups: Columns by whose values the tested images are reported, too; numbers in quarters.
        preset: Published protocol to follow instead of medprobe's own; see :mod:`medprobe.probe.presets`.
        pool: How the slices of a volume become one vector: ``mean`` (the default), ``max``, ``mean+max``, or ``auto``, which
            chooses like a setting.
        pool_by: Column whose rows are one sample: the recorded one (of volumes) by default, ``"none"`` for each row by itself.
        duplicates: What to do about a picture on two sides of a given split: ``error``, ``drop`` it from training, or
            ``keep`` it. Splits that are made here keep equal pictures together.
        controls: Also probe what has to be beaten: shuffled labels, the images' size and brightness, and columns of the
            manifest alone.
        control_cols: The columns of that control; by default all that describe a sample and are no label, group or split.
        n_resamples: Bootstrap resamples; 0 for values without intervals.
        level: Coverage of the intervals.
        seed: Seed of splits, probes and resamples.
        save_model: Folder in which each probe is saved for :func:`medprobe.predict`: the one that was tested, or over
            folds, one that is fitted to all rows.
        partial: Use the finished blocks of a store that is not complete.
        progress: Called with a line on what is being done.

    Raises:
        UsageError: A name or number cannot work.
        DataError: A store is incomplete or damaged, a target is unusable, or a group is on both sides of a split.

    """
    several = [stores] if isinstance(stores, str | os.PathLike | Url | FeatureStore) else list(stores)
    protocol = None if preset is None else preset_of(preset)
    if protocol is not None and not probes:
        families = list(protocol.families)
    else:
        families = [family(name) for name in dict.fromkeys(probes or DEFAULT_FAMILIES) if name != ATTENTIVE]
    if pca is not None and ATTENTIVE in probes:
        raise UsageError(f"--pca: not with --probe {ATTENTIVE}, whose features are many tokens")
    if save_model is not None and shots:
        raise UsageError("--save-model: not with --shots, where each draw makes another probe")
    what_if = WhatIf(where, train_where, test_where, tuple(relabel), uncertain, label_noise)
    splitting = (split_col, n_folds, test_size, leave_out)
    wish = Wish(target, metric, group, *splitting, what_if, shots, repeats, subgroups, duplicates, seed)
    reporting = Reporting(n_resamples, level, seed)
    beside = [_opened(store, partial, pool, pool_by) for store in concat]
    results = Results()
    for i, store in enumerate(_opened(store, partial, pool, pool_by) for store in several):
        features = features_of([store, *beside], view)
        question = ask(store, wish, features.rows if beside else None)
        if protocol is not None:
            question = protocol.asked(question, metric)
        features = features.of(question.target.rows)
        ids = store.samples["id"].to_numpy()[features.rows]
        near = near_duplicates(next(iter(features.views.values())), question.split, ids)
        question = replace(question, notes=question.notes + features.notes + near)
        asked = with_shots(question, wish)
        trials = [Trial(each, features, q, pca) for q in asked for each in families]
        if ATTENTIVE in probes:
            trials += [Trial(*_attentive(store, features, view), q) for q in asked]
        if (controls or control_cols) and i == 0:
            known = control_trials(store, features, question, wish, control_cols)
            trials += [
                # What is known without an encoder is a handful of numbers.
                Trial(family("logreg"), f, q, pca if f.fingerprint else None)
                for f, each in known
                for q in with_shots(each, wish)
            ]
        for trial in trials:
            if progress is not None:
                asking = f"{trial.question.target.name} ({trial.question.split.name})"
                progress(f"{trial.features.encoder}: {trial.family.name} on {asking}")
            rows, predictions, fitted = _run(trial, ids, len(store.failures), reporting)
            results += rows
            results.predictions[rows[0].trial] = predictions
            if save_model is not None and not rows[0].encoder.startswith("control: "):
                from medprobe.probe.deploy import save_trial

                save_trial(trial, fitted, rows, [store, *beside], Path(save_model), seed=seed)
    return results


def _attentive(store: AnyRows, features: Features, view: str | None) -> tuple[Family, Features]:
    """Return the attentive probe of a store, and what it attends over: patch tokens of the rows, or the rows of bags."""
    if isinstance(store, Bags):
        name = store.plan.default_view if view in {None, AUTO} else str(view)
        kept, width, named = store.features(pooled_name(name, EVERY)), store.store.views[name], pooled_name(name, EVERY)
    elif TOKENS in store.views:
        kept, named = store.features(TOKENS, dtype=None), TOKENS  # as they are stored: they are large
        width = store.views["mean" if "mean" in store.views else store.plan.default_view]
    else:
        raise UsageError(f"--probe {ATTENTIVE}: {store.path.name} holds no patch tokens (medprobe embed --tokens)")
    tokens = replace(
        features,
        encoder=store.encoder,
        view=named,
        fingerprint=store.plan.fingerprint,
        views={named: kept[features.rows]},
        parts={named: (named,)},
    )
    return attentive_family(kept.shape[1] // width, ragged=isinstance(store, Bags)), tokens


def _opened(store: AnyStore, partial: bool, pool: str | None, by: str | None) -> AnyRows:
    return bags_of(store if isinstance(store, FeatureStore) else open_store(store, partial=partial), pool, by)


def _run(
    trial: Trial, ids: np.ndarray, n_failed: int, reporting: Reporting
) -> tuple[list[Row], Predictions, list[Fitted]]:
    """Return the rows of a trial, what was predicted, and the probes of the parts of its first draw."""
    answer, fitted = answered(trial, n_failed, reporting.seed)
    return *reported(answer, ids, reporting), fitted


def answered(trial: Trial, n_failed: int, seed: int) -> tuple[Answer, list[Fitted]]:
    """Return what a trial predicts for the tested images, and the probes of the parts of its first draw.

    Args:
        trial: What is asked of which features.
        n_failed: Images of the store that have no features.
        seed: Of inner folds and probes.

    Raises:
        DataError: A part of the split has one class, or one group, only.

    """
    question, features = trial.question, trial.features
    started = time.perf_counter()
    with warnings.catch_warnings(record=True) as unfinished:
        warnings.simplefilter("always", ConvergenceWarning)
        by_draw = [
            [fit_part(trial.family, features.views, question, part, seed, trial.pca) for part in split.parts]
            for split in question.splits
        ]
    proba = np.stack(
        [
            np.concatenate(
                [
                    fitted.proba(features.views, part.test, question)
                    for fitted, part in zip(draw, split.parts, strict=True)
                ]
            )
            for draw, split in zip(by_draw, question.splits, strict=True)
        ]
    )
    seconds = round(time.perf_counter() - started, 3)
    notes = question.notes
    if unfinished:
        notes += (f"{features.encoder}, {trial.family.name}: {unfinished[0].message}",)
    chosen = [fitted.settings for draw in by_draw for fitted in draw]
    learned = [part.fitted if trial.family.refit else part.train for split in question.splits for part in split.parts]
    answer = Answer(
        question=replace(question, notes=notes),
        proba=proba,
        encoder=features.encoder,
        view=features.view if trial.pca is None else f"{features.view}, PCA {trial.pca:g}",
        probe=trial.family.name,
        fingerprint=features.fingerprint,
        n_train=round(float(np.mean([len(rows) for rows in learned]))),
        n_failed=n_failed,
        settings=chosen[0] if len(chosen) == 1 else chosen,
        seconds=seconds,
    )
    return answer, by_draw[0]
