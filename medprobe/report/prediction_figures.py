"""Figures of predictions: ROC and precision-recall curves, confusion matrices, calibration."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medprobe.errors import UsageError
from medprobe.predictions import Predictions
from medprobe.probe.operating import OperatingPoint
from medprobe.report import curves
from medprobe.report.figures import of_each_encoder
from medprobe.report.style import COLOURS, GREY, INK, OF_LINES, altair, colour, dash, finished, inline, lines
from medprobe.report.words import (
    figure_title,
    group_word,
    interval,
    labels,
    metric_name,
    number,
    people,
    short,
    unlike,
)
from medprobe.results import Row, ranked

if TYPE_CHECKING:
    import altair as alt

OPERATING = "operating"
"""Name of the data of an operating point in a figure, for a page that moves it."""

MOST_CLASSES = 20
"""Classes beyond which a confusion matrix cannot be read."""

_MOST_CURVES = 6
_MOST_BANDS = 3
_MOST_PANELS = 3
_MOST_MATRICES = 6
_SIDE = 300  # pixels of a square plot


class _Outcome(NamedTuple):
    """Whether each tested image has what a curve is about, and the probability that it has."""

    name: str
    row: Row
    truth: NDArray[Any]
    score: NDArray[Any]
    groups: NDArray[Any]


def roc(
    rows: Sequence[Row],
    predictions: Mapping[str, Predictions],
    *,
    n_resamples: int = 1000,
    seed: int = 0,
    point: tuple[float, float] | None = None,
) -> alt.Chart:
    """Return ROC curves with bands: of each encoder's best row, or of several classes, of the best row's classes.

    Args:
        rows: Of one question, those of all metrics: the areas that are shown are theirs.
        predictions: By trial.
        n_resamples: Bootstrap resamples of the bands; 0 for no bands.
        seed: Seed of the resamples.
        point: False-positive and true-positive rate of an operating point to mark: the data set :data:`OPERATING`.

    Raises:
        UsageError: There are no predictions of one draw, or no class that some images have and some lack.

    """
    table, outcomes = _compared(rows, predictions)
    made = _made(curves.roc, outcomes, n_resamples, seed)
    alt = altair()
    diagonal = alt.Chart(inline([{"x": 0.0, "y": 0.0}, {"x": 1.0, "y": 1.0}]))
    guess = diagonal.mark_line(color=GREY, strokeWidth=1, strokeDash=[2, 3]).encode(x="x:Q", y="y:Q")
    titles = ("False-positive rate (1 − specificity)", "True-positive rate (sensitivity)")
    named = _named(rows, outcomes, "auroc", predictions, n_resamples)
    chart = guess + _lines(named, outcomes, made, titles, "linear")
    if point is not None:
        place = alt.InlineData(values=[{"x": point[0], "y": point[1]}], name=OPERATING)
        mark = alt.Chart(place).mark_point(shape="diamond", size=140, filled=True, color=INK, stroke="white", opacity=1)
        chart = chart + mark.encode(x="x:Q", y="y:Q")
    return _titled(chart, "ROC curves", rows, table, outcomes, predictions, "auroc", n_resamples)


def precision_recall(
    rows: Sequence[Row], predictions: Mapping[str, Predictions], *, n_resamples: int = 1000, seed: int = 0
) -> alt.Chart:
    """Return precision-recall curves with bands, and the prevalence that a guess would reach. Arguments as for :func:`roc`.

    Raises:
        UsageError: As for :func:`roc`.

    """
    table, outcomes = _compared(rows, predictions)
    made = _made(curves.precision_recall, outcomes, n_resamples, seed)
    alt = altair()
    named = _named(rows, outcomes, "average_precision", predictions, n_resamples)
    prevalence = [{"y": float(np.mean(o.truth)), "method": name} for name, o in zip(named, outcomes, strict=True)]
    if predictions[table[0].trial].task == "binary":
        prevalence = prevalence[:1]
    guess = alt.Chart(inline(prevalence)).mark_rule(color=GREY, strokeWidth=1, strokeDash=[2, 3]).encode(y="y:Q")
    titles = ("Recall (sensitivity)", "Precision (positive predictive value)")
    chart = guess + _lines(named, outcomes, made, titles, "step-before")
    metric = "average_precision"
    return _titled(chart, "precision against recall", rows, table, outcomes, predictions, metric, n_resamples)


def confusion(rows: Sequence[Row], predictions: Mapping[str, Predictions]) -> alt.Chart:
    """Return the confusion matrix of the best row, counts and shares of each true class; of labels, one matrix each.

    Args:
        rows: Of one question.
        predictions: By trial.

    Raises:
        UsageError: There are no predictions of one draw, or more than :data:`MOST_CLASSES` classes.

    """
    alt = altair()
    row = _with_predictions(rows, predictions)[0]
    held = predictions[row.trial]
    n_classes = len(held.classes)
    subtitle = [short(labels([row])[0], 80), people([row]), "counts, and percent of the true class"]
    title = figure_title(row.question, "confusion")
    if held.task == "multilabel":
        outcomes = _classes(row, held, _MOST_MATRICES)
        panels = []
        for outcome in outcomes:
            cells = 2 * outcome.truth.astype(np.int64) + (outcome.score > 0.5)
            counts = np.bincount(cells, minlength=4).reshape(2, 2)
            panels.append(_matrix(counts, ["absent", "present"]).properties(title=outcome.name))
        if not panels:
            raise UsageError("no label that some of the tested images have and others lack")
        subtitle[2] += f"; a label is predicted above 0.5{_of_how_many(n_classes, len(panels), 'labels')}"
        return finished(alt.concat(*panels, columns=3), title, subtitle)
    if n_classes > MOST_CLASSES:
        raise UsageError(f"a confusion matrix of {n_classes} classes cannot be read (at most {MOST_CLASSES})")
    names = unlike(short(name, 24) for name in held.classes)
    return finished(_matrix(curves.confusion(held), names), title, subtitle)


def operating_matrix(row: Row, point: OperatingPoint, positive: str) -> alt.Chart:
    """Return the confusion matrix of one class against all others at a threshold.

    Args:
        row: Whose predictions it is of.
        point: What comes of the threshold.
        positive: Name of the class.

    """
    names = unlike(short(name, 24) for name in (f"not {positive}", positive))
    said = f"probability of {short(positive, 30)} from {point.threshold:.2f} on; counts, and percent of the true class"
    subtitle = [short(labels([row])[0], 80), people([row]), said]
    return finished(_matrix(point.table, names), figure_title(row.question, "confusion"), subtitle)


def calibration(rows: Sequence[Row], predictions: Mapping[str, Predictions]) -> alt.Chart:
    """Return reliability curves with intervals and histograms: of each encoder's best row, or of the best row's labels.

    Args:
        rows: Of one question, those of all metrics: the calibration errors are theirs.
        predictions: By trial.

    Raises:
        UsageError: There are no predictions of one draw.

    """
    alt = altair()
    table = _with_predictions(rows, predictions)
    best, held = table[0], predictions[table[0].trial]
    errors = {row.trial: row for row in rows if row.metric == "ece" and not row.subgroup}
    if held.task == "multilabel":
        outcomes = _classes(best, held, _MOST_PANELS)
        of = f"probability of each label, {short(labels([best])[0])}"
        of += _of_how_many(len(held.classes), len(outcomes), "labels")
        said = [""] * len(outcomes)
    else:
        encoders = [row for row in of_each_encoder(table) if not row.is_control] or of_each_encoder(table)
        some = encoders[:_MOST_PANELS]
        outcomes = [
            _confidence(name, row, predictions[row.trial]) for name, row in zip(labels(some), some, strict=True)
        ]
        whose = f"of class {short(held.classes[-1], 40)}" if held.task == "binary" else "of the predicted class"
        of = f"probability {whose}{_of_how_many(len(encoders), len(some), 'encoders')}"
        said = [f"calibration error {number(errors[row.trial].value)}" if row.trial in errors else "" for row in some]
    if not outcomes:
        raise UsageError("no label that some of the tested images have and others lack")
    panels = [
        _reliability(
            curves.reliability(o.truth, o.score, o.groups, level=best.ci_level), COLOURS[i]
        ).properties(title=_heading(o.name, text))
        for i, (o, text) in enumerate(zip(outcomes, said, strict=True))
    ]  # fmt: skip
    whole = f", {group_word(best.group)} kept whole" if best.group else ""
    how = f"{curves.N_BINS} bins of equal width with {best.ci_level:.0%} intervals{whole}"
    title = figure_title(best.question, "calibration")
    return finished(alt.hconcat(*panels, spacing=28), title, [people([best]), of, how])


def _with_predictions(rows: Sequence[Row], predictions: Mapping[str, Predictions]) -> list[Row]:
    """Return the ranked rows with predictions of one draw: encoders under test first, then controls."""
    tables = ranked(rows)
    if len(tables) != 1:
        raise UsageError(f"rows of one question make a figure, not of {len(tables)}")
    table = next(iter(tables.values()))
    held = [row for row in table if row.trial in predictions and len(predictions[row.trial].proba) == 1]
    if not held:
        raise UsageError("no predictions stand beside these rows (medprobe probe --out DIR keeps them)")
    return sorted(held, key=lambda row: row.is_control)


def _compared(rows: Sequence[Row], predictions: Mapping[str, Predictions]) -> tuple[list[Row], list[_Outcome]]:
    """Return the rows with predictions, and what is drawn of them: each encoder, or each class of the best row."""
    table = _with_predictions(rows, predictions)
    held = predictions[table[0].trial]
    if held.task != "binary":
        outcomes = _classes(table[0], held, _MOST_CURVES)
    else:
        shown = of_each_encoder(table, _MOST_CURVES)
        outcomes = []
        for name, row in zip(labels(shown), shown, strict=True):
            own = predictions[row.trial]
            if own.task == "binary" and len(np.unique(own.y)) == 2:
                outcomes.append(_Outcome(name, row, own.y, own.proba[0, :, 1], own.groups))
    if not outcomes:
        raise UsageError("no class that some of the tested images have and others lack")
    return table, outcomes


def _classes(row: Row, held: Predictions, most: int) -> list[_Outcome]:
    """Return the classes, or labels, that some tested images have and some lack; of many, the most frequent."""
    found = []
    names = unlike(short(name, 40) for name in held.classes)
    for k, name in enumerate(names):
        known = ~np.isnan(held.y[:, k]) if held.task == "multilabel" else np.ones(len(held.y), dtype=bool)
        truth = held.y[known, k] == 1 if held.task == "multilabel" else held.y == k
        if 0 < np.count_nonzero(truth) < len(truth):
            found.append(_Outcome(name, row, truth.astype(np.int64), held.proba[0, known, k], held.groups[known]))
    frequent = sorted(found, key=lambda o: -int(o.truth.sum()))[:most]
    return [o for o in found if o in frequent] if len(found) <= most else frequent


def _confidence(name: str, row: Row, held: Predictions) -> _Outcome:
    """Return what the calibration error is about: class 1 of two, or whether the predicted class is the true one."""
    if held.task == "binary":
        return _Outcome(name, row, held.y, held.proba[0, :, 1], held.groups)
    right = (held.proba[0].argmax(axis=1) == held.y).astype(np.int64)
    return _Outcome(name, row, right, held.proba[0].max(axis=1), held.groups)


def _named(
    rows: Sequence[Row],
    outcomes: Sequence[_Outcome],
    metric: str,
    predictions: Mapping[str, Predictions],
    n_resamples: int,
) -> list[str]:
    """Return the names of curves, with the metric of the row (and its interval, if bands are drawn) where each has one."""
    values = {row.trial: row for row in rows if row.metric == metric and not row.subgroup}
    found = []
    for outcome in outcomes:
        row = values.get(outcome.row.trial)
        if row is None or predictions[outcome.row.trial].task != "binary":
            positive = int(outcome.truth.sum())
            found.append(f"{outcome.name} ({positive:,} of {len(outcome.truth):,} images)")
        else:
            ends = f" ({interval(row.ci_low, row.ci_high)})" if n_resamples else ""
            found.append(f"{outcome.name}: {number(row.value)}{ends}")
    return unlike(found)


def _made(
    make: Callable[..., curves.Curve], outcomes: Sequence[_Outcome], n_resamples: int, seed: int
) -> list[curves.Curve]:
    """Return the curves; resamples are drawn for those whose band is shown."""
    banded = _n_bands(outcomes)
    return [
        make(
            o.truth, o.score, o.groups, n_resamples=n_resamples if i < banded else 0, level=o.row.ci_level, seed=seed
        )
        for i, o in enumerate(outcomes)
    ]  # fmt: skip


def _lines(
    names: Sequence[str],
    outcomes: Sequence[_Outcome],
    found: Sequence[curves.Curve],
    titles: tuple[str, str],
    interpolate: str,
) -> Any:
    alt = altair()
    looks = lines([o.row.is_control for o in outcomes])
    points = [
        {"method": name, "place": i, "x": x, "y": y}
        for name, curve in zip(names, found, strict=True)
        for i, (x, y) in enumerate(zip(curve.x.tolist(), curve.y.tolist(), strict=True))
    ]
    bands = [
        {"method": name, "x": x, "low": low, "high": high}
        for name, curve in list(zip(names, found, strict=True))[: _n_bands(outcomes)]
        for x, low, high in zip(curve.grid.tolist(), curve.low.tolist(), curve.high.tolist(), strict=True)
    ]
    whole = alt.Scale(domain=[0, 1], nice=False)
    x = alt.X("x:Q", scale=whole, title=titles[0])
    tint = colour(names, looks, OF_LINES)
    band = alt.Chart(inline(bands)).mark_area(opacity=0.18).encode(
        x=x, y=alt.Y("low:Q", scale=whole, title=titles[1]), y2="high:Q", color=tint
    )  # fmt: skip
    line = alt.Chart(inline(points)).mark_line(strokeWidth=2, interpolate=interpolate).encode(
        x=x, y=alt.Y("y:Q", scale=whole, title=titles[1]), color=tint, strokeDash=dash(names, looks, OF_LINES),
        order="place:Q",
    )  # fmt: skip
    return (band + line).properties(width=_SIDE, height=_SIDE)


def _n_bands(outcomes: Sequence[_Outcome]) -> int:
    """Return how many bands can be read upon each other: of few curves all, of more the first alone."""
    return len(outcomes) if len(outcomes) <= _MOST_BANDS else 1


def _titled(
    chart: Any,
    name: str,
    rows: Sequence[Row],
    table: Sequence[Row],
    outcomes: Sequence[_Outcome],
    predictions: Mapping[str, Predictions],
    metric: str,
    n_resamples: int,
) -> alt.Chart:
    best = table[0]
    held = predictions[best.trial]
    subtitle = [people([o.row for o in outcomes])]
    if held.task == "binary":
        whose = f"class {short(held.classes[-1], 40)}; the best row of each encoder, with its {metric_name(metric)}"
        subtitle.append(whose)
    else:
        values = [row for row in rows if row.metric == metric and row.trial == best.trial and not row.subgroup]
        mean = f", mean {metric_name(metric)} {number(values[0].value)}" if values else ""
        what = "labels" if held.task == "multilabel" else "classes"
        against = "" if held.task == "multilabel" else ", each class against the rest"
        subtitle.append(f"{short(labels([best])[0], 60)}{mean}{against}")
        subtitle[-1] += _of_how_many(len(held.classes), len(outcomes), what)
    unit = group_word(best.group) if best.group else "images"
    whose = "" if _n_bands(outcomes) == len(outcomes) else " of the first curve"
    if n_resamples:
        subtitle.append(f"{best.ci_level:.0%} band{whose} at each point, {unit} resampled {n_resamples:,} times")
    return finished(chart, figure_title(best.question, name), subtitle)


def _of_how_many(n: int, shown: int, what: str) -> str:
    return f" ({shown} of {n} {what})" if n > shown else ""


def _matrix(counts: NDArray[np.int64], names: Sequence[str]) -> Any:
    alt = altair()
    totals = counts.sum(axis=1)
    records = [
        {
            "true": names[j], "predicted": names[k], "count": int(counts[j, k]),
            "share": float(counts[j, k] / totals[j]) if totals[j] else 0.0,
            "text": [f"{counts[j, k]:,}", f"{counts[j, k] / totals[j]:.0%}" if totals[j] else ""],
        }
        for j in range(len(names))
        for k in range(len(names))
    ]  # fmt: skip
    side = 58 if len(names) <= 8 else 40
    base = alt.Chart(inline(records)).encode(
        x=alt.X("predicted:N", sort=None, title="Predicted", axis=alt.Axis(labelAngle=-40 if len(names) > 2 else 0)),
        y=alt.Y("true:N", sort=None, title="True"),
    )
    share = alt.Color(
        "share:Q", scale=alt.Scale(domain=[0, 1], range=["#FFFFFF", COLOURS[0]], interpolate="rgb"), legend=None
    )  # fmt: skip
    ink = alt.condition("datum.share > 0.55", alt.value("white"), alt.value("#222222"))
    return (
        base.mark_rect(stroke="#CCCCCC").encode(color=share)
        + base.mark_text(fontSize=11 if side > 40 else 9, lineBreak="\n", dy=-7).encode(text="text:N", color=ink)
    ).properties(width=side * len(names), height=side * len(names))


def _heading(name: str, text: str) -> Any:
    lines = [text] if text else []
    return altair().TitleParams(name, subtitle=lines, fontSize=11, subtitleFontSize=11, limit=_SIDE)


def _reliability(found: curves.Reliability, tint: str) -> Any:
    """Return a reliability curve above the histogram of its probabilities."""
    alt = altair()
    records = [
        {"start": a, "end": a + 1 / curves.N_BINS, "count": int(n), "predicted": p, "observed": o, "low": lo, "high": hi}
        for a, n, p, o, lo, hi in zip(
            found.start.tolist(), found.count.tolist(), found.predicted.tolist(), found.observed.tolist(),
            found.low.tolist(), found.high.tolist(), strict=True,
        )
    ]  # fmt: skip
    whole = alt.Scale(domain=[0, 1], nice=False)
    side = 200
    base = alt.Chart(inline(records))
    x = alt.X("predicted:Q", scale=whole, title=None)
    y = "Observed frequency"
    ideal = alt.Chart(inline([{"x": 0.0, "y": 0.0}, {"x": 1.0, "y": 1.0}]))
    curve = alt.layer(
        ideal.mark_line(color=GREY, strokeWidth=1, strokeDash=[2, 3]).encode(x="x:Q", y="y:Q"),
        base.mark_rule(color=tint, strokeWidth=1.5).encode(x=x, y=alt.Y("low:Q", scale=whole, title=y), y2="high:Q"),
        base.mark_line(color=tint, strokeWidth=1.5).encode(x=x, y=alt.Y("observed:Q", scale=whole, title=y)),
        base.mark_point(color=tint, filled=True, size=35, opacity=1).encode(
            x=x, y=alt.Y("observed:Q", scale=whole, title=y)
        ),
    ).properties(width=side, height=side)
    histogram = base.mark_bar(color=tint, opacity=0.6).encode(
        x=alt.X("start:Q", scale=whole, title="Predicted probability"), x2="end:Q",
        y=alt.Y("count:Q", title="Images", axis=alt.Axis(tickCount=3), scale=alt.Scale(zero=True)), y2=alt.datum(0),
    ).properties(width=side, height=50)  # fmt: skip
    return alt.vconcat(curve, histogram, spacing=8)
