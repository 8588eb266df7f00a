"""From result rows to the report's contents: one section a question, then learning curves, tasks, data, methods, versions."""

from __future__ import annotations

import hashlib
import math
import platform
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from medprobe.errors import UsageError
from medprobe.predictions import Predictions
from medprobe.probe.atlas import Method
from medprobe.probe.compare import Comparison, Difference, Ranks
from medprobe.probe.controls import SHUFFLED
from medprobe.report import stores as of_stores
from medprobe.report import tables
from medprobe.report.content import Block, Figure, Items, Report, Section, Text
from medprobe.report.methods import AUTHORS_ADD, numbered, paragraphs
from medprobe.report.numbers import numbers
from medprobe.report.summary import controls, leader_of, standing
from medprobe.report.words import counted, group_word, p_equals, people, question_title, short
from medprobe.results import Question, Results, Row, ranked
from medprobe.store import FeatureStore

Draw = Callable[[], Any]


def build(
    found: Comparison,
    *,
    figures: bool = True,
    sources: Sequence[Path] = (),
    n_resamples: int = 1000,
    seed: int = 0,
    stores: Sequence[FeatureStore] = (),
    map_method: Method = "pca",
) -> Report:
    """Return what a report says of results and their differences.

    Args:
        found: Rows with their predictions, differences and ranks, of :func:`medprobe.compare`.
        figures: Whether figures are drawn.
        sources: Files that the rows were read from.
        n_resamples: Bootstrap resamples of the differences, which the text names, and of bands.
        seed: Seed of the bands' resamples, and of maps.
        stores: Stores that the rows may be of: they tell of exclusions, columns and encoders, and are mapped.
        map_method: How they are mapped.

    Raises:
        UsageError: There is no row of a primary metric, or figures are asked for and Altair is missing.

    """
    if figures:
        from medprobe.report.style import altair

        altair()
    whole = ranked(row for row in found.rows if not row.shots)
    curves = _curves(found.rows)
    if not whole and not curves:
        raise UsageError("a report needs a row of a primary metric on all tested images")
    summary, sections = [], []
    for question, table in whole.items():
        pairs = [d for d in found.differences if d.question == question]
        summary.append(Section(question_title(question), (Items(tuple(standing(table, pairs))),)))
        sections.append(_question(question, table, pairs, found.rows, figures, n_resamples, seed))
    for question, points in curves.items():
        pairs = [
            d for d in found.differences if d.first.shots and d.question._replace(split=question.split) == question
        ]
        summary.append(Section(question_title(question), (Items(tuple(_curve_sentences(points, pairs))),)))
        sections.append(_learning(question, points, pairs, found.rows, figures))
    if found.ranks is not None:
        sections.append(_ranks(found.ranks))
    told = [store for store in stores if any(row.fingerprint == store.plan.fingerprint for row in found.rows)]
    if figures and (maps := of_stores.maps(told, found.rows, map_method, seed)) is not None:
        sections.append(maps)
    said, references = numbered(paragraphs(found, n_resamples))
    sections += [
        _data(found.rows, told),
        Section("Settings and all metrics", tables.settings_and_metrics(found.rows)),
        Section("Methods", (*map(Text, said), Items(tuple(references)))),
        Section("For the authors to add", (Items(AUTHORS_ADD),)),
        _provenance(found.rows, sources, told),
    ]
    targets = list(dict.fromkeys(short(question.target) for question in (*whole, *curves)))
    title = f"medprobe report: {', '.join(targets[:3])}" + (f" and {len(targets) - 3} more" if len(targets) > 3 else "")
    return Report(title, tuple(summary), tuple(sections), numbers(found))


def _question(
    question: Question,
    table: Sequence[Row],
    pairs: Sequence[Difference],
    rows: Results,
    figures: bool,
    n_resamples: int,
    seed: int,
) -> Section:
    mine = [row for row in rows if not row.shots and row.question._replace(metric=question.metric) == question]
    mine = [row for row in mine if row.metric == question.metric or not row.primary]
    leader = leader_of(table, pairs)
    blocks: list[Block] = [tables.leaderboard(question, table)]
    if figures:
        blocks.append(_leaderboard_figure(mine))
    if pairs:
        blocks.append(tables.differences(question, pairs))
    if figures:
        blocks.append(_difference_figure(pairs, leader))
        blocks += _prediction_figures(mine, rows.predictions, n_resamples, seed)
    if any(row.subgroup for row in mine):
        blocks += [tables.subgroups(question, mine), *([_subgroup_figure(mine)] if figures else [])]
    blocks += [Text("Controls and baselines:"), Items(tuple(verdict.text for verdict in controls(table, pairs)))]
    notes = tuple(dict.fromkeys(short(note, 400) for row in table for note in row.notes))
    if notes:
        blocks += [Text("Notes:"), Items(notes)]
    return Section(question_title(question), tuple(blocks))


def _figure(name: str, caption: str, draw: Draw) -> Figure:
    try:
        return Figure(name, caption, draw())
    except UsageError as error:
        return Figure(name, caption, missing=str(error))


def _leaderboard_figure(rows: Sequence[Row]) -> Figure:
    from medprobe.report.figures import leaderboard

    caption = (
        "Each row's metric with its confidence interval; controls and baselines in grey. Two intervals that overlap do "
    )
    caption += "not mean that two methods are alike: see the differences in pairs."
    return _figure("leaderboard", caption, lambda: leaderboard(rows))


def _difference_figure(pairs: Sequence[Difference], leader: Row) -> Figure:
    from medprobe.report.figures import differences

    caption = (
        "Differences on the same images, groups resampled together. An interval is that of its pair alone, the p-value "
    )
    caption += "is corrected for all pairs (Holm), so that an interval without zero may have a p-value above 0.05."
    return _figure("differences in pairs", caption, lambda: differences(pairs, leader))


def _subgroup_figure(rows: Sequence[Row]) -> Figure:
    from medprobe.report.figures import subgroup

    caption = (
        "The best row of each encoder in each subgroup. Subgroups are small and many: a difference here is a question, "
    )
    caption += "not a finding."
    return _figure("subgroups", caption, lambda: subgroup(rows))


def _prediction_figures(
    rows: Sequence[Row], predictions: Mapping[str, Predictions], n_resamples: int, seed: int
) -> list[Figure]:
    from medprobe.report import prediction_figures as draw

    band = "Bands are pointwise: quantiles of resamples of whole groups."
    of: dict[str, Any] = {"n_resamples": n_resamples, "seed": seed}
    return [
        _figure("ROC curves", f"Dotted: a guess. {band}", lambda: draw.roc(rows, predictions, **of)),
        _figure(
            "precision against recall",
            f"Dotted: the prevalence, which a guess reaches. {band}",
            lambda: draw.precision_recall(rows, predictions, **of),
        ),
        _figure(
            "confusion matrix",
            "The most probable class counts as predicted; of two classes that is a threshold of 0.5.",
            lambda: draw.confusion(rows, predictions),
        ),
        _figure(
            "calibration",
            "Observed frequency against predicted probability, and how many images had it. Wilson intervals of the effective "
            "number of images. On the dotted line, probabilities are frequencies.",
            lambda: draw.calibration(rows, predictions),
        ),
    ]


def _curves(rows: Sequence[Row]) -> dict[Question, list[Row]]:
    found: dict[Question, list[Row]] = {}
    for question, table in ranked(row for row in rows if row.shots).items():
        found.setdefault(question._replace(split="few labels of each class"), []).extend(table)
    return found


def _curve_sentences(points: Sequence[Row], pairs: Sequence[Difference]) -> list[str]:
    """Return what the largest number of labels says."""
    most = max(row.shots for row in points)
    question = next(row.question for row in points if row.shots == most)
    table = [row for row in points if row.question == question]
    return [
        f"With {most} labelled images of each class:",
        *standing(table, [d for d in pairs if d.question == question]),
    ]


def _learning(
    question: Question, points: Sequence[Row], pairs: Sequence[Difference], rows: Results, figures: bool
) -> Section:
    blocks: list[Block] = [tables.learning_curve(question, points)]
    if figures:
        from medprobe.report.figures import learning_curve

        caption = "Means over draws of so few labelled images, with intervals that resample groups and draws."
        blocks.append(_figure("learning curve", caption, lambda: learning_curve(points)))
    if pairs:
        blocks.append(tables.differences(question, pairs))
    return Section(question_title(question), tuple(blocks))


def _ranks(ranks: Ranks) -> Section:
    text = (
        f"Methods of one letter are not told apart: critical difference {ranks.critical_difference:.2f} (Nemenyi, 5%)."
    )
    if math.isfinite(ranks.p_value):
        text += f" Friedman's test: {p_equals(ranks.p_value)}."
    return Section(f"Average rank over {len(ranks.tasks)} tasks", (tables.ranks(ranks), Text(text)))


def _data(rows: Results, stores: Sequence[FeatureStore]) -> Section:
    """Return who was tested, the classes, and what took no part."""
    primary = [row for row in rows if row.primary and not row.subgroup]
    said = []
    for question in dict.fromkeys(row.question for row in primary):
        table = [row for row in primary if row.question == question]
        trained = sorted({row.n_train for row in table})
        learned = f"{trained[0]:,}" if len(trained) == 1 else f"{trained[0]:,} to {trained[-1]:,}"
        said.append(f"{question_title(question)}: tested on {people(table)}, trained on {learned} images at a time.")
    failed = {short(row.encoder): row.n_failed for row in primary if row.n_failed}
    excluded = [
        f"{name}: {counted(count, 'image')} without features (not readable, or not finite: medprobe info names them)."
        for name, count in failed.items()
    ] or ["No image was excluded for want of features."]
    excluded.append("What was left out before embedding is not known here.")
    asked = dict.fromkeys(row.question for row in primary)
    # Rows of several metrics or label budgets are of the same images: their classes are listed once.
    classes = dict.fromkeys(_classes(question, primary, rows.predictions) for question in asked)
    counted_classes = [found for found in classes if found]
    return Section("Data", (Items(tuple(said)), *counted_classes, Items(tuple(excluded)), *of_stores.described(stores)))


def _classes(question: Question, rows: Sequence[Row], predictions: Mapping[str, Predictions]) -> tables.Table | None:
    row = next((r for r in rows if r.question == question and r.trial in predictions and r.encoder != SHUFFLED), None)
    if row is None:
        return None
    held = predictions[row.trial]
    unit = group_word(row.group) if row.group else ""
    cells = []
    for k, name in enumerate(held.classes):
        having = held.y[:, k] == 1 if held.task == "multilabel" else held.y == k
        known = np.count_nonzero(~np.isnan(held.y[:, k])) if held.task == "multilabel" else len(held.y)
        images = int(np.count_nonzero(having))
        share = f"{images / known:.1%}" if known else ""
        groups = [f"{len(np.unique(held.groups[having])):,}"] if unit else []
        cells.append((short(name), f"{images:,}", share, *groups))
    what, several = ("label", "labels") if held.task == "multilabel" else ("class", "classes")
    header = (what, "tested images", "share", *([unit] if unit else []))
    caption = f"{short(question.target)}: {len(cells)} {several} of the tested images"
    return tables.Table(caption, header, tuple(cells), frozenset(range(1, len(header))))


def _provenance(rows: Results, sources: Sequence[Path], stores: Sequence[FeatureStore]) -> Section:
    packages = ("medprobe", "numpy", "scipy", "scikit-learn", "altair", "vl-convert-python")
    versions = [f"python {platform.python_version()}"]
    for name in packages:
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    made = sorted({row.medprobe for row in rows})
    said = [
        f"Rows made by medprobe {', '.join(short(version, 20) for version in made)}.",
        f"Report made by {', '.join(versions)}.",
    ]
    for source in sources:
        digest = hashlib.sha256(source.read_bytes()).hexdigest()
        said.append(f"{short('/'.join(source.parts[-2:]), 100)}: sha256 {digest}")
    cards = [of_stores.encoders(stores)] if stores else []
    return Section("Provenance", (Items(tuple(said)), tables.fingerprints(rows), *cards))
