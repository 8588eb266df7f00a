"""Figures of result rows: leaderboard, differences in pairs, learning curve, subgroups. :func:`save` writes them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from medprobe.errors import UsageError
from medprobe.probe.controls import SHUFFLED
from medprobe.probe.metrics import METRICS
from medprobe.report.style import BELOW, COLOURS, GREY, altair, colour, dash, finished, inline, lines, save, shape
from medprobe.report.words import (
    ALPHA,
    axis_title,
    group_word,
    interval,
    labels,
    metric_name,
    number,
    p_equals,
    people,
    question_title,
    short,
    unlike,
)
from medprobe.results import Row, ranked, subgroups

if TYPE_CHECKING:
    import altair as alt

    from medprobe.probe.compare import Difference

__all__ = ["SAME", "TOLD_APART", "differences", "leaderboard", "learning_curve", "of_each_encoder", "save", "subgroup"]

TOLD_APART, SAME = f"told apart (Holm p < {ALPHA:g})", "not told apart"

_APART = "controls and baselines:"
_ROW = 22  # pixels a method
_WIDTH = 400
_MOST_METHODS = 6  # in one plot of lines


def leaderboard(rows: Sequence[Row], *, unsure: str = "") -> alt.Chart:
    """Return the rows of one question with their intervals, the best on top, and controls apart in grey.

    Args:
        rows: Of one question; those of other metrics and of subgroups do not count.
        unsure: Probe whose intervals are still to come.

    Raises:
        UsageError: There is no row with a value.

    """
    alt = altair()
    table = _primary(rows)
    names = labels(table)
    records = [
        {
            "method": name, "value": row.value, "low": row.ci_low, "high": row.ci_high,
            "kind": "control or baseline" if row.is_control else "encoder",
            "text": number(row.value) + ("" if row.probe == unsure else f" ({interval(row.ci_low, row.ci_high)})"),
        }
        for name, row in zip(names, table, strict=True)
    ]  # fmt: skip
    y = _places(records, "kind", {"encoder": "", "control or baseline": _APART})
    kind = _kind("kind", ("encoder", "control or baseline"), (COLOURS[0], GREY), ("circle", "square"))
    chart = _forest(inline(records), alt.X("value:Q", scale=alt.Scale(zero=False), title=_axis(table[0])), y, kind)
    level = f"{table[0].ci_level:.0%}"
    unit = group_word(table[0].group) if table[0].group else "images"
    to_come = f"; those of {unsure} are to come" if unsure else ""
    subtitle = [people(table), f"{level} intervals, {unit} resampled{to_come}"]
    return finished(chart, question_title(table[0].question), subtitle)


def differences(found: Sequence[Difference], leader: Row) -> alt.Chart:
    """Return the leader's metric minus that of each other method, with intervals and Holm's p-values.

    Args:
        found: Differences of one question, all of them to the leader.
        leader: The row that all others are compared with.

    Raises:
        UsageError: There are none.

    """
    alt = altair()
    against = [(d, 1) if d.first is leader else (d, -1) for d in found if leader in (d.first, d.second)]
    against = [(d, sign) for d, sign in against if math.isfinite(d.difference)]
    if not against:
        raise UsageError("no differences in pairs: they need two rows with predictions of the same images")
    others = [d.second if sign > 0 else d.first for d, sign in against]
    records = []
    for (d, sign), name, other in zip(against, labels(others), others, strict=True):
        low, high = sorted((sign * d.low, sign * d.high)) if math.isfinite(d.low) else (math.nan, math.nan)
        ends = interval(low, high, signed=True)
        records.append(
            {
                "method": name, "value": sign * d.difference, "low": low, "high": high,
                "p_holm": d.p_holm, "verdict": TOLD_APART if d.p_holm < ALPHA else SAME,
                "text": f"{number(sign * d.difference, signed=True)} ({ends}), {p_equals(d.p_holm)}",
                "kind": "control or baseline" if other.is_control else "encoder",
            }
        )  # fmt: skip
    y = _places(records, "kind", {"encoder": "", "control or baseline": _APART})
    kind = _kind("verdict", (TOLD_APART, SAME), (COLOURS[0], COLOURS[4]), ("diamond", "circle"))
    metric = found[0].question.metric
    title = f"Difference in {metric_name(metric)}: {short(labels([leader])[0], 40)} minus the other"
    zero = alt.Chart(inline([{"zero": 0}])).mark_rule(color="#444444", strokeDash=[4, 3]).encode(x="zero:Q")
    chart = zero + _forest(inline(records), alt.X("value:Q", title=title), y, kind)
    images, groups = {d.n_images for d, _ in against}, {d.n_groups for d, _ in against}
    of = f" of {max(groups):,} {group_word(leader.group)}" if leader.group else ""
    subtitle = [
        f"on the same {max(images):,} images{of}; {leader.ci_level:.0%} intervals for each pair alone",
        "p: Holm's, corrected for all lines",
    ]
    return finished(chart, f"{question_title(found[0].question)}: differences in pairs", subtitle)


def learning_curve(rows: Sequence[Row]) -> alt.Chart:
    """Return the metric against the number of labelled images of each class, a line a method.

    Args:
        rows: Of one data set, target and metric; those of all labels, other metrics and subgroups do not count.

    Raises:
        UsageError: No row is of few labels.

    """
    alt = altair()
    points = [row for row in rows if row.shots and row.primary and not row.subgroup and math.isfinite(row.value)]
    if not points:
        raise UsageError("no learning curve: no row is of few labels (medprobe probe --shots 1,5,10)")
    of_method: dict[tuple[str, str, str], list[Row]] = {}
    for row in points:
        of_method.setdefault(_method(row), []).append(row)
    best = sorted(points, key=lambda row: (row.is_control, -row.shots, _worst_last(row)))
    shown = [row for row in best if row is max(of_method[_method(row)], key=lambda other: other.shots)]
    few = shown if len(shown) <= _MOST_METHODS else of_each_encoder(shown)
    kept = "" if few == shown else "; the best row of each encoder"
    shown = few
    names = labels(shown)
    looks = lines([row.is_control for row in shown])
    # Intervals at one number of labels stand side by side, not on each other.
    beside = [1.06 ** (place - (len(shown) - 1) / 2) for place in range(len(shown))]
    records = [
        {"method": name, "shots": row.shots, "x": row.shots * aside}
        | {"value": row.value, "low": row.ci_low, "high": row.ci_high}
        for name, last, aside in zip(names, shown, beside, strict=True)
        for row in sorted(of_method[_method(last)], key=lambda row: row.shots)
    ]
    budgets = sorted({row.shots for row in points})
    domain = [budgets[0] / 1.4, budgets[-1] * 1.4]
    x = alt.X(
        "x:Q", scale=alt.Scale(type="log", domain=domain, nice=False), axis=alt.Axis(values=budgets, format="d"),
        title="Labelled images of each class (logarithmic)",
    )  # fmt: skip
    y = alt.Y("value:Q", scale=alt.Scale(zero=False), title=axis_title(points[0].metric))
    base = alt.Chart(inline(records)).encode(x=x, color=colour(names, looks, BELOW))
    chart = (
        base.mark_rule(strokeWidth=1.2).encode(y=alt.Y("low:Q", title=axis_title(points[0].metric)), y2="high:Q")
        + base.mark_line(strokeWidth=2).encode(y=y, strokeDash=dash(names, looks, legend=None))
        + base.mark_point(filled=True, size=60, opacity=1).encode(y=y, shape=shape(names, looks))
    ).properties(width=_WIDTH, height=300)
    first = points[0]
    heading = f"{question_title(first.question._replace(split='few labels of each class'))}"
    draws = "means over draws of the labels; intervals resample " + (
        group_word(first.group) if first.group else "images"
    )
    return finished(chart, heading, [people(points) + kept, f"{draws} and draws"])


def subgroup(rows: Sequence[Row]) -> alt.Chart:
    """Return the best row of each encoder in each subgroup of the tested images, with intervals.

    Args:
        rows: Of one question, those of all images among them.

    Raises:
        UsageError: No row is of a subgroup.

    """
    alt = altair()
    parts = [row for table in subgroups(rows).values() for row in table if math.isfinite(row.value)]
    if not parts:
        raise UsageError("no subgroups: no row is of some of the images alone (medprobe probe --subgroup COLUMN)")
    shown = [row for row in of_each_encoder(_primary(rows)) if row.encoder != SHUFFLED]
    names = labels(shown)
    looks = lines([row.is_control for row in shown])
    by_trial = {row.trial: name for row, name in zip(shown, names, strict=True)}
    titles = _subgroup_titles(parts)
    whole = f"all · {people(shown)}"
    records = [
        {"subgroup": titles.get(row.subgroup, whole), "method": by_trial[row.trial]}
        | {"value": row.value, "low": row.ci_low, "high": row.ci_high}
        for row in (*shown, *parts)
        if row.trial in by_trial
    ]
    y = alt.Y(
        "subgroup:N", sort=None, title=None, scale=alt.Scale(paddingInner=0.25, paddingOuter=0.1),
        axis=alt.Axis(ticks=False, domain=False, grid=False, labelPadding=8),
    )  # fmt: skip
    base = alt.Chart(inline(records)).encode(
        y=y, yOffset=alt.YOffset("method:N", sort=None, scale=alt.Scale(padding=0)), color=colour(names, looks, BELOW)
    )
    x = alt.X("value:Q", scale=alt.Scale(zero=False), title=_axis(shown[0]))
    chart = (
        base.mark_rule(strokeWidth=1.5).encode(x=alt.X("low:Q", title=_axis(shown[0])), x2="high:Q")
        + base.mark_point(filled=True, size=55, opacity=1).encode(x=x, shape=shape(names, looks))
    ).properties(width=_WIDTH, height=alt.Step(14))
    subtitle = ["the best row of each encoder; 95 % intervals within the subgroup, not corrected for their number"]
    subtitle = [line.replace("95 %", f"{shown[0].ci_level:.0%}") for line in subtitle]
    return finished(chart, f"{question_title(shown[0].question)}, by subgroup", subtitle)


def of_each_encoder(table: Sequence[Row], most: int = _MOST_METHODS) -> list[Row]:
    """Return the first row of each encoder under test, and of each control, in their order; of many the first."""
    first: dict[str, Row] = {}
    for row in table:
        first.setdefault(row.encoder, row)
    encoders = [row for row in first.values() if not row.is_control]
    controls = [row for row in first.values() if row.is_control]
    kept = encoders[:most]
    return kept + controls[: max(1, most - len(kept))]


def _primary(rows: Sequence[Row]) -> list[Row]:
    tables = ranked(rows)
    if len(tables) != 1:
        raise UsageError(f"rows of one question make a figure, not of {len(tables)}")
    table = [row for row in next(iter(tables.values())) if math.isfinite(row.value)]
    if not table:
        raise UsageError("no row of the question has a value")
    return table


def _axis(row: Row) -> str:
    return axis_title(row.metric)


def _places(records: list[dict[str, Any]], by: str, headings: dict[str, str]) -> Any:
    """Return the axis of methods: kind after kind, each below its heading."""
    alt = altair()
    kinds = [kind for kind in headings if any(record[by] == kind for record in records)]
    domain: list[str] = []
    for kind in kinds:
        domain += [headings[kind]] if len(kinds) > 1 and headings[kind] else []
        domain += [record["method"] for record in records if record[by] == kind]
    heading = f"datum.value === '{_APART}'"
    axis = alt.Axis(
        ticks=False, domain=False, grid=False, labelPadding=8,
        labelFontStyle=alt.condition(heading, alt.value("italic"), alt.value("normal")),
    )  # fmt: skip
    return alt.Y("method:N", scale=alt.Scale(domain=unlike(domain)), title=None, axis=axis)


def _kind(field: str, names: Sequence[str], colours: Sequence[str], shapes: Sequence[str]) -> dict[str, Any]:
    alt = altair()
    legend = alt.Legend(title=None, orient="bottom", direction="horizontal")
    return {
        "color": alt.Color(f"{field}:N", scale=alt.Scale(domain=list(names), range=list(colours)), legend=legend),
        "shape": alt.Shape(f"{field}:N", scale=alt.Scale(domain=list(names), range=list(shapes)), legend=legend),
    }


def _forest(data: Any, x: Any, y: Any, kind: dict[str, Any]) -> Any:
    """Return a point, an interval and a text for each method."""
    alt = altair()
    base = alt.Chart(data).encode(y=y)
    title = x.to_dict()["title"]
    return alt.layer(
        base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", title=title), x2="high:Q", color=kind["color"]),
        base.mark_point(filled=True, size=80, opacity=1).encode(x=x, **kind),
        base.mark_text(align="left", dx=10, fontSize=11, color="#222222").encode(x=alt.XValue(_WIDTH), text="text:N"),
    ).properties(width=_WIDTH, height=alt.Step(_ROW))


def _method(row: Row) -> tuple[str, str, str]:
    return row.encoder, row.view, row.probe


def _worst_last(row: Row) -> float:
    return -row.value if METRICS[row.metric].higher_is_better else row.value


def _subgroup_titles(parts: Sequence[Row]) -> dict[str, str]:
    """Return what each subgroup is called, with its images and patients."""
    first: dict[str, Row] = {}
    for row in parts:
        first.setdefault(row.subgroup, row)
    titles = unlike(f"{short(name, 36)} · {people([row])}" for name, row in first.items())
    return dict(zip(first, titles, strict=True))
