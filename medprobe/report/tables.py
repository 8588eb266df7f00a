"""The tables of a report."""

from __future__ import annotations

import math
from collections.abc import Sequence

from medprobe.leaderboard import describe_settings
from medprobe.probe.compare import Difference, Ranks
from medprobe.report.content import Table
from medprobe.report.words import (
    encoder_name,
    group_word,
    interval,
    labels,
    metric_name,
    number,
    p_value,
    question_title,
    short,
)
from medprobe.results import Question, Row

__all__ = [
    "Table",
    "differences",
    "fingerprints",
    "leaderboard",
    "learning_curve",
    "ranks",
    "settings_and_metrics",
    "subgroups",
]


def leaderboard(question: Question, table: Sequence[Row]) -> Table:
    """Return the rows of a question, encoders and controls in one ranking."""
    unit = [group_word(table[0].group)] if table[0].group else []
    level = f"{table[0].ci_level:.0%} interval"
    header = ("#", "encoder", "view", "probe", metric_name(question.metric), level, "images", *unit, "trained on")
    rows = tuple(
        (
            str(place), *_who(row), number(row.value), interval(row.ci_low, row.ci_high), f"{row.n_images:,}",
            *([f"{row.n_groups:,}"] if unit else []), f"{row.n_train:,}",
        )
        for place, row in enumerate(table, 1)
    )  # fmt: skip
    numeric = frozenset({0, *range(4, len(header))})
    return Table(f"Leaderboard: {question_title(question)}", header, rows, numeric, main=True)


def differences(question: Question, found: Sequence[Difference]) -> Table:
    """Return differences as :func:`medprobe.compare` gives them: the row that ranks higher minus the other."""
    delong = any(math.isfinite(d.p_delong) for d in found)
    shots = any(d.first.shots for d in found)
    unit = [group_word(found[0].first.group)] if found[0].first.group else []
    header = (
        *(["labels of each class"] if shots else []), "better", "than", "difference", "interval", "p", "p (Holm)",
        *(["p (DeLong)"] if delong else []), "images", *unit,
    )  # fmt: skip
    rows = []
    for d in found:
        first, second = labels([d.first, d.second])
        rows.append(
            (
                *([str(d.first.shots)] if shots else []), first, second, number(d.difference, signed=True),
                interval(d.low, d.high, signed=True), p_value(d.p_value), p_value(d.p_holm),
                *([p_value(d.p_delong)] if delong else []), f"{d.n_images:,}", *([f"{d.n_groups:,}"] if unit else []),
            )
        )  # fmt: skip
    words = 3 if shots else 2
    numeric = frozenset({*range(words, len(header)), *([0] if shots else [])})
    return Table(f"Differences in pairs: {question_title(question)}", header, tuple(rows), numeric)


def subgroups(question: Question, rows: Sequence[Row]) -> Table:
    """Return the primary metric of each subgroup and method."""
    some = [row for row in rows if row.subgroup and row.primary]
    unit = [group_word(some[0].group)] if some[0].group else []
    header = ("subgroup", "encoder", "view", "probe", metric_name(question.metric), "interval", "images", *unit)
    cells = tuple(
        (
            short(row.subgroup), *_who(row), number(row.value), interval(row.ci_low, row.ci_high), f"{row.n_images:,}",
            *([f"{row.n_groups:,}"] if unit else []),
        )
        for row in sorted(some, key=lambda row: [other.subgroup for other in some].index(row.subgroup))
    )  # fmt: skip
    return Table(f"Subgroups: {question_title(question)}", header, cells, frozenset(range(4, len(header))))


def learning_curve(question: Question, points: Sequence[Row]) -> Table:
    """Return a line a method, a column a number of labelled images of each class."""
    budgets = sorted({row.shots for row in points})
    lines: dict[tuple[str, str, str], dict[int, Row]] = {}
    for row in points:
        lines.setdefault((row.encoder, row.view, row.probe), {})[row.shots] = row
    cells = []
    for by_shots in lines.values():
        found = [by_shots.get(shots) for shots in budgets]
        values = ["" if r is None else f"{number(r.value)} ({interval(r.ci_low, r.ci_high)})" for r in found]
        cells.append((*_who(next(iter(by_shots.values()))), *values))
    header = ("encoder", "view", "probe", *(f"{shots} shot{'s' * (shots > 1)}" for shots in budgets))
    numeric = frozenset(range(3, len(header)))
    return Table(f"Learning curve: {question_title(question)}", header, tuple(cells), numeric, main=True)


def ranks(found: Ranks) -> Table:
    """Return average ranks; methods of one letter are not told apart."""
    rows = []
    for place, (method, average) in enumerate(zip(found.methods, found.average, strict=True)):
        letters = "".join(chr(ord("a") + i) for i, (low, high) in enumerate(found.cliques) if low <= place <= high)
        rows.append((*(short(part) for part in method), f"{average:.2f}", letters))
    header = ("encoder", "view", "probe", "average rank", "not told apart")
    return Table("Average ranks, 1 for the best", header, tuple(rows), frozenset({3}))


def settings_and_metrics(rows: Sequence[Row]) -> tuple[Table, ...]:
    """Return the settings of each trial, and every metric of each on all tested images."""
    primary = [row for row in rows if row.primary and not row.subgroup]
    several = len({(row.target, row.split) for row in primary}) > 1
    asked = ("target", "split") if several else ()

    def who(row: Row) -> tuple[str, ...]:
        return (short(row.target), short(row.split, 40), *_who(row)) if several else _who(row)

    settings = []
    for row in primary:
        chosen = short(describe_settings(row.settings or {}), 120)
        settings.append((*who(row), chosen, f"{row.n_train:,}", f"{row.seconds:.1f}", str(row.seed)))
    header = (*asked, "encoder", "view", "probe", "settings", "trained on", "seconds", "seed")
    whole = [row for row in rows if not row.subgroup]
    names = list(dict.fromkeys(row.metric for row in whole))
    values = {(row.trial, row.metric): row for row in whole}
    metrics = []
    for row in {row.trial: row for row in primary}.values():
        found = [values.get((row.trial, name)) for name in names]
        shown = ["" if r is None else f"{number(r.value)} ({interval(r.ci_low, r.ci_high)})" for r in found]
        metrics.append((*who(row), *shown))
    heads = (*asked, "encoder", "view", "probe", *map(metric_name, names))
    n_words = len(heads) - len(names)
    return (
        Table(
            "Chosen settings; over folds, the range of their values",
            header,
            tuple(settings),
            frozenset(range(len(header) - 3, len(header))),
        ),
        Table(
            f"All metrics with {primary[0].ci_level:.0%} intervals",
            heads,
            tuple(metrics),
            frozenset(range(n_words, len(heads))),
        ),
    )


def fingerprints(rows: Sequence[Row]) -> Table:
    """Return which weights, preprocessing and precision each encoder's features are of."""
    found = dict.fromkeys((short(row.encoder), row.fingerprint) for row in rows if row.fingerprint)
    cells = tuple((name, short(value, 64)) for name, value in found)
    return Table("Fingerprints of encoder, weights, preprocessing and precision", ("encoder", "fingerprint"), cells)


def _who(row: Row) -> tuple[str, str, str]:
    name = encoder_name(row)
    return (
        f"control: {name}" if row.encoder.startswith("control: ") else name,
        short(row.view, 40),
        short(row.probe, 24),
    )
