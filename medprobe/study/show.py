"""``study show``: from the finished cells to the study's table, with intervals, gains over the baseline, and ranks."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from medprobe.errors import DataError
from medprobe.predictions import Predictions
from medprobe.probe.bootstrap import holm
from medprobe.probe.compare import Ranks, critical_difference
from medprobe.results import Results, Row
from medprobe.study.cache import Cache
from medprobe.study.gains import DataSamples, Estimate, estimate, mean_gain, resampled
from medprobe.study.schema import Cell, Head, Study
from medprobe.study.toml import read_study

BASELINE, BETTER, WORSE, NOISE, ALONE = "baseline", "better", "worse", "inside the noise", "not once corrected"
_ALPHA = 0.05
_LEVEL = 0.95


class Method(NamedTuple):
    """Encoder, view (empty for its default one) and head, as the study names them."""

    encoder: str
    view: str
    head: str


@dataclass(frozen=True)
class Column:
    """A data set of the table, with its metric and who was tested."""

    data: str
    metric: str
    n_images: int
    n_groups: int
    group: str


@dataclass(frozen=True)
class Line:
    """A method's row of the table.

    Attributes:
        method: Encoder, view and head; the view is the one that was probed.
        values: By data set; those that are not all there are not.
        gains: Relative gain over the baseline in per cent, by data set.
        gain: Their mean, NaN unless there is one for every data set.
        p_holm: Its p-value, corrected for all lines of the table (Holm).
        verdict: ``baseline``, ``better``, ``worse``, ``inside the noise``, ``better (not once corrected)``, or nothing.
        against: Encoder and head that it is relative to.
        rank: Average rank over the data sets, NaN where it takes no part.
        letters: Methods of one letter are not told apart by their ranks.
        shots: Labelled images of each class, 0 for all.
        missing: Data sets with cells that are not there.

    """

    method: Method
    values: Mapping[str, Estimate]
    gains: Mapping[str, Estimate]
    gain: Estimate
    p_holm: float = math.nan
    verdict: str = ""
    against: str = ""
    rank: float = math.nan
    letters: str = ""
    shots: int = 0
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class StudyTable:
    """A study's table.

    Attributes:
        study: The study.
        columns: Its data sets, those with a finished cell.
        lines: Its methods, the highest mean gain first.
        ranks: Over the data sets, or None with fewer than two.
        notes: What has to be known about it.
        level: Coverage of the intervals.

    """

    study: Study
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    ranks: Ranks | None
    notes: tuple[str, ...] = field(default=())
    level: float = _LEVEL


@dataclass
class _Found:
    """What the finished cells of one data set hold, by method."""

    rows: dict[Method, Row] = field(default_factory=dict)
    predictions: dict[Method, dict[int, Predictions]] = field(default_factory=dict)


def show_study(
    path: str | os.PathLike[str],
    *,
    folder: str | os.PathLike[str] | None = None,
    only: Sequence[str] = (),
    n_resamples: int | None = None,
    seed: int = 0,
) -> StudyTable:
    """Return the table of a study from the cells that are finished; neither images nor stores are needed.

    Args:
        path: The study's file, or the name of one that comes with medprobe.
        folder: That :func:`~medprobe.study.run.run_study` wrote to; its default one unless given.
        only: Filters, as there. The baseline's cells are found without being named.
        n_resamples: Bootstrap resamples, the study's unless given.
        seed: Seed of the resamples.

    Raises:
        UsageError: The study or a filter cannot work.
        DataError: The study cannot be read, or no cell is finished.

    """
    study = read_study(path)
    folder = study.out if folder is None else Path(folder)
    cells = study.cells(only)
    cache = Cache(folder)
    wanted = {cell.data.name for cell in cells}
    heads = {cell.head for cell in cells}
    heads |= {_head(study, head.against) for head in heads if head.against is not None}
    beside = [
        cell
        for cell in study.cells()
        if cell.data.name in wanted and cell.encoder.name == study.baseline and cell.head in heads
    ]
    found: dict[str, _Found] = {}
    unfinished: dict[tuple[str, ...], list[Cell]] = {}
    shown: set[Method] = set()
    asked = set(cells)
    for cell in dict.fromkeys((*cells, *beside)):
        results = cache.read(cell)
        if results is None:
            unfinished.setdefault((*cell.pair, cell.view, *cell.head.labels), []).append(cell)
            continue
        for method, row, predictions in _methods(cell, results):
            of_data = found.setdefault(cell.data.name, _Found())
            of_data.rows.setdefault(method, row)
            of_data.predictions.setdefault(method, {})[cell.seed] = predictions
            if cell in asked:
                shown.add(method)
    if not found:
        hints = "".join(f"\n  {cell}: {cache.failure(cell)}" for cell in cells[:5] if cache.failure(cell))
        raise DataError(f"{folder}: no cell of {study.path} is finished: medprobe study run {study.path}{hints}")
    notes = [note for cells in unfinished.values() for note in _missing(cells, cache)]
    samples: dict[str, DataSamples[Method]] = {}
    columns = []
    said: dict[str, list[str]] = {}
    for place, data in enumerate(study.data):
        if data.name not in found:
            continue
        of_data = found[data.name]
        first = next(iter(of_data.rows.values()))
        metric = data.metric or first.metric
        resamples = study.resamples if n_resamples is None else n_resamples
        samples[data.name] = resampled(of_data.predictions, metric, resamples, _seed(seed, place))
        columns.append(Column(data.name, metric, samples[data.name].n_images, samples[data.name].n_groups, first.group))
        notes += [f"{data.name}: {note}" for note in samples[data.name].notes]
        for note in dict.fromkeys(note for row in of_data.rows.values() for note in row.notes):
            said.setdefault(note, []).append(data.name)
    notes += [f"{', '.join(names)}: {note}" for note, names in said.items()]
    lines = [_line(study, method, found, samples, wanted) for method in _in_order(study, shown)]
    ranks = critical_difference([row for line in lines for row in _rows(line, found, samples)])
    return StudyTable(study, tuple(columns), tuple(_ordered(_ranked(_corrected(lines), ranks))), ranks, tuple(notes))


def _seed(seed: int, place: int) -> int:
    # Data sets are resampled independently of each other.
    return int(np.random.SeedSequence([seed, place]).generate_state(1)[0])


def _methods(cell: Cell, results: Results) -> Iterator[tuple[Method, Row, Predictions]]:
    for row in results:
        if row.primary and not row.subgroup and row.trial in results.predictions:
            method = Method(cell.encoder.name, cell.view, cell.head.label(row.probe, row.shots))
            yield method, row, results.predictions[row.trial]


def _missing(cells: Sequence[Cell], cache: Cache) -> Iterator[str]:
    """Yield a sentence on cells of one method on one data set that are not there."""
    failed = [cell for cell in cells if cache.failure(cell)]
    if failed:
        more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        yield f"failed: {failed[0]}{more}: {cache.failure(failed[0])}"
    if len(failed) < len(cells):
        rest = [cell for cell in cells if cell not in failed]
        more = f" (and {len(rest) - 1} more)" if len(rest) > 1 else ""
        yield f"not run yet: {rest[0]}{more}"


def _in_order(study: Study, methods: set[Method]) -> list[Method]:
    place = {encoder.name: i for i, encoder in enumerate(study.encoders)}
    labels = [label for head in study.heads for label in head.labels]
    return sorted(methods, key=lambda m: (place[m.encoder], m.view, labels.index(m.head)))


def _head(study: Study, label: str) -> Head:
    return next(head for head in study.heads if label in head.labels)


def _line(
    study: Study,
    method: Method,
    found: Mapping[str, _Found],
    samples: Mapping[str, DataSamples[Method]],
    wanted: set[str],
) -> Line:
    head = _head(study, method.head)
    baseline = _baseline(study, head.against or method.head)
    rows = [of_data.rows[method] for of_data in found.values() if method in of_data.rows]
    seeds = len(head.seeds or study.seeds)
    there = [
        name
        for name, of_data in samples.items()
        if method in of_data.runs and len({seed for seed, _ in of_data.runs[method]}) == seeds
    ]
    values = {name: samples[name].value(method, _LEVEL) for name in there}
    shown = Method(method.encoder, rows[0].view, method.head)
    against = f"{baseline.encoder}, {baseline.head}"
    missing = tuple(name for name in (data.name for data in study.data) if name in wanted and name not in there)
    if method == baseline:
        zero = Estimate(0.0, math.nan, math.nan)
        return Line(
            shown, values, dict.fromkeys(there, zero), zero, verdict=BASELINE, against=against, shots=rows[0].shots,
            missing=missing,
        )  # fmt: skip
    paired = {name: samples[name].gain(method, baseline) for name in there if baseline in samples[name].runs}
    groups = {name: samples[name].n_groups for name in paired}
    gains = {name: estimate(sample, groups[name], _LEVEL) for name, sample in paired.items()}
    gain = Estimate(math.nan, math.nan, math.nan)
    if paired and set(paired) == wanted:
        gain = mean_gain(list(paired.values()), list(groups.values()), _LEVEL)
    return Line(shown, values, gains, gain, against=against, shots=rows[0].shots, missing=missing)


def _baseline(study: Study, label: str) -> Method:
    """Return the method of the baseline encoder that has a head: its first view."""
    encoder = next(encoder for encoder in study.encoders if encoder.name == study.baseline)
    view = encoder.views[0] if encoder.views and _head(study, label).finetune is None else ""
    return Method(study.baseline, view, label)


def _rows(line: Line, found: Mapping[str, _Found], samples: Mapping[str, DataSamples[Method]]) -> Iterator[Row]:
    """Yield a row for each data set, as ranks over tasks are made from: the value is the mean over seeds."""
    for name, value in line.values.items():
        row = next(iter(found[name].rows.values()))
        yield replace(
            row, data=name, target=row.target, metric=samples[name].metric, split="", encoder=line.method.encoder,
            view=line.method.view, probe=line.method.head, value=value.value, shots=line.shots,
        )  # fmt: skip


def _corrected(lines: Sequence[Line]) -> list[Line]:
    """Return the lines with Holm's p-values and what they amount to."""
    adjusted = holm([line.gain.p_value for line in lines])
    found = []
    for line, p_holm in zip(lines, adjusted, strict=True):
        gain, verdict = line.gain, line.verdict
        if math.isfinite(gain.low):
            direction = BETTER if gain.value > 0 else WORSE
            sure = direction if p_holm < _ALPHA else f"{direction} ({ALONE})"
            verdict = NOISE if gain.low <= 0 <= gain.high else sure
        found.append(replace(line, p_holm=float(p_holm), verdict=verdict))
    return found


def _ranked(lines: Sequence[Line], ranks: Ranks | None) -> list[Line]:
    if ranks is None:
        return list(lines)
    place: dict[tuple[str, ...], int] = {method: i for i, method in enumerate(ranks.methods)}
    found = []
    for line in lines:
        i = place.get(tuple(line.method))
        found.append(line if i is None else replace(line, rank=ranks.average[i], letters=ranks.letters(i)))
    return found


def _ordered(lines: Sequence[Line]) -> list[Line]:
    return sorted(lines, key=lambda line: math.inf if math.isnan(line.gain.value) else -line.gain.value)
