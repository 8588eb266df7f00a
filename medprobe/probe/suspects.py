"""What in a data set deserves a second look: labels that are likely wrong, and pictures nearly the same across a split."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medprobe.errors import UsageError
from medprobe.probe.bags import bags_of
from medprobe.probe.families import ATTENTIVE, family
from medprobe.probe.features import Features, features_of
from medprobe.probe.label_errors import likely_label_errors
from medprobe.probe.leaks import image_codes, near_pairs
from medprobe.probe.question import DEFAULT_FOLDS, Question, Wish, ask
from medprobe.probe.selection import fit_part
from medprobe.probe.targets import Floats
from medprobe.probe.whatif import WhatIf
from medprobe.store import FeatureStore, open_store

LABELS, DUPLICATES = "label_errors.csv", "near_duplicates.csv"


@dataclass(frozen=True)
class Suspects:
    """What deserves a second look.

    Attributes:
        labels: ``id``, ``target``, ``given``, ``suggested`` and ``confidence`` of each label that is likely wrong, the surest
            first.
        duplicates: ``tested`` and ``trained`` (ids), their ``cosine``, whether they are the ``same_file``, and the target of
            each, for pairs on two sides of the split, the nearest first.
        split: The split of the duplicates.
        how: What the labels were held against, in words.
        n_images: Images with a label.

    """

    labels: pd.DataFrame
    duplicates: pd.DataFrame
    split: str
    how: str
    n_images: int

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON types."""
        tables = {"labels": self.labels.to_dict("records"), "duplicates": self.duplicates.to_dict("records")}
        return {**tables, "split": self.split, "how": self.how, "n_images": self.n_images}

    def write(self, folder: Path) -> None:
        """Write both tables into a folder as CSV files."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, table in ((LABELS, self.labels), (DUPLICATES, self.duplicates)):
            draft = folder / f"{name}.draft"
            table.to_csv(draft, index=False)
            draft.replace(folder / name)


def suspects(
    store: str | os.PathLike[str] | FeatureStore,
    target: str | None = None,
    *,
    probe: str = "logreg",
    view: str | None = None,
    group: str | None = None,
    n_folds: int = DEFAULT_FOLDS,
    split_col: str | None = None,
    where: str | None = None,
    relabel: Sequence[str] = (),
    uncertain: str | None = None,
    pool: str | None = None,
    pool_by: str | None = None,
    seed: int = 0,
    partial: bool = False,
) -> Suspects:
    """Return labels that are likely wrong, and pictures that are nearly the same on two sides of a split.

    Every image is predicted once by a probe that learned from other patients, in folds whatever split the store has; see
    :func:`~medprobe.probe.label_errors.likely_label_errors`. Of several labels each is looked at by itself.

    Args:
        store: A store, or its path.
        target: Column whose labels are doubted; the recorded one by default.
        probe: What predicts: ``logreg``, ``knn``, ``mlp``, ``ridge`` or ``prototype``.
        view: Name of the view; the encoder's default one unless given.
        group: Column of patients; the recorded one by default, ``"none"`` for no grouping.
        n_folds: Folds of the predictions.
        split_col: Column whose sides are searched for pairs; the recorded one by default, the folds where there is none.
        where: SQL condition over the columns: only these samples.
        relabel: Rules that merge or drop classes of the target.
        uncertain: What a label of -1 counts as in multi-label targets.
        pool: How the slices of a volume become one vector.
        pool_by: Column whose rows are one sample.
        seed: Of folds and probe.
        partial: Use the finished blocks of a store that is not complete.

    Raises:
        UsageError: A name or number cannot work.
        DataError: The store is incomplete or damaged, or the target is unusable.

    """
    if probe == ATTENTIVE:
        raise UsageError(f"--probe {ATTENTIVE}: name another one, which takes one vector an image")
    opened = store if isinstance(store, FeatureStore) else open_store(store, partial=partial)
    rows = bags_of(opened, pool, pool_by)
    what_if = WhatIf(where=where, relabel=tuple(relabel), uncertain=uncertain)
    doubted = ask(rows, Wish(target, None, group, n_folds=n_folds, what_if=what_if, seed=seed))
    given = Wish(target, None, group, split_col=split_col, what_if=what_if, duplicates="keep", seed=seed)
    question = ask(rows, given) if split_col or rows.roles["split"] else doubted
    features = features_of([rows], view).of(doubted.target.rows)
    ids = rows.samples["id"].to_numpy()[features.rows]
    codes = image_codes(rows.image_digests()[features.rows])
    return Suspects(
        labels=_labels(doubted, _predicted(doubted, features, probe, seed), ids),
        duplicates=_duplicates(question, features, ids, codes),
        split=question.split.name,
        how=f"{features.encoder} ({features.view}), {probe}, {doubted.split.name}",
        n_images=len(ids),
    )


def _predicted(question: Question, features: Features, probe: str, seed: int) -> Floats:
    """Return probabilities of every row of a question, (n, K), by a probe that did not learn from its group."""
    proba = np.zeros((len(question.target.y), question.target.n_classes))
    for part in question.split.parts:
        fitted = fit_part(family(probe), features.views, question, part, seed)
        proba[part.test] = fitted.proba(features.views, part.test, question)
    return proba


def _labels(question: Question, proba: Floats, ids: np.ndarray) -> pd.DataFrame:
    target = question.target
    if target.task != "multilabel":
        asked = [(target.name, np.arange(len(ids)), target.y, proba, np.array(target.classes, dtype=object))]
    else:
        asked = []
        for k, name in enumerate(target.classes):
            known = np.flatnonzero(~np.isnan(target.y[:, k]))
            of_two = np.column_stack([1 - proba[known, k], proba[known, k]])
            asked.append((name, known, target.y[known, k], of_two, np.array(["0", "1"], dtype=object)))
    tables = []
    for name, rows, y, probabilities, classes in asked:
        groups = None if question.groups is None else question.groups[rows]
        found = likely_label_errors(probabilities, y, groups)
        columns = {"id": ids[rows][found["row"]], "target": name}
        columns |= {column: classes[found[column]] for column in ("given", "suggested")}
        tables.append(pd.DataFrame({**columns, "confidence": found["confidence"]}))
    every = pd.concat(tables, ignore_index=True)
    return every.sort_values("confidence", ascending=False, kind="stable", ignore_index=True)


def _duplicates(question: Question, features: Features, ids: np.ndarray, codes: np.ndarray) -> pd.DataFrame:
    y, classes = question.target.y, np.array(question.target.classes, dtype=object)
    of_each = classes[y] if y.ndim == 1 else np.array([",".join(classes[row == 1]) for row in y], dtype=object)
    records = []
    seen: set[frozenset[int]] = set()  # over folds each of a pair is tested once
    for cosine, test, train in near_pairs(next(iter(features.views.values())), question.split):
        if frozenset((test, train)) not in seen:
            seen.add(frozenset((test, train)))
            same = bool(codes[test] == codes[train])
            records.append((ids[test], ids[train], cosine, same, of_each[test], of_each[train]))
    columns = ["tested", "trained", "cosine", "same_file", "tested_label", "trained_label"]
    return pd.DataFrame(records, columns=columns)
