"""Result rows: one number each, with its interval and everything that it rests on; tables of them, read and written."""

from __future__ import annotations

import csv
import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

from medprobe.errors import DataError
from medprobe.predictions import Predictions, read_predictions

TABLE = "results.csv"
PREDICTIONS = "predictions"


class Question(NamedTuple):
    """What the rows of one table answer: data set, target, metric and split."""

    data: str
    target: str
    metric: str
    split: str


@dataclass(frozen=True)
class Row:
    """One metric of one probe on one view of one encoder's features.

    Attributes:
        encoder: Name of the encoder.
        view: Which of its vectors.
        probe: Such as ``logreg``.
        target: What was predicted.
        task: ``binary``, ``multiclass``, ``ordinal`` or ``multilabel``.
        metric: Name of the metric.
        value: Its value on the tested images.
        ci_low: Lower end of the confidence interval.
        ci_high: Upper end.
        ci_level: Coverage of the interval, such as 0.95.
        primary: Whether this is the metric that settings were chosen by and encoders are ranked by.
        split: How the images were split.
        n_images: Tested images.
        n_groups: Patients (groups) among them; the images themselves where no group column is known.
        group: The group column, or empty.
        n_train: Images trained on (over folds: on average).
        n_failed: Images of the data set without features; they take no part.
        settings: Chosen settings; one entry a fold where there are folds.
        seconds: Time for choosing, fitting and testing.
        seed: Seed of splits, probes and resamples.
        fingerprint: Of the encoder with weights, preprocessing and precision.
        medprobe: Version that made the row.
        data: Name of the data set.
        shots: Labelled images of each class that were learned from, 0 for all.
        subgroup: The tested images that the value is of, such as ``sex = F``; empty for all.

    """

    encoder: str
    view: str
    probe: str
    target: str
    task: str
    metric: str
    value: float
    ci_low: float
    ci_high: float
    ci_level: float
    primary: bool
    split: str
    n_images: int
    n_groups: int
    group: str
    n_train: int
    n_failed: int
    settings: Any
    seconds: float
    seed: int
    fingerprint: str
    medprobe: str
    notes: tuple[str, ...] = field(default=())
    data: str = ""
    shots: int = 0
    subgroup: str = ""

    @property
    def is_control(self) -> bool:
        """Whether this is no encoder under test but what one has to beat: a control, raw pixels, an untrained network."""
        return self.encoder.startswith(("control: ", "baseline/"))

    @property
    def key(self) -> tuple[str, ...]:
        """What a later row of the same question replaces."""
        return (*self._trial, self.metric, self.subgroup)

    @property
    def trial(self) -> str:
        """Name of the predictions that the row was computed from; all metrics and subgroups of one trial share it."""
        return hashlib.sha256("\0".join(self._trial).encode()).hexdigest()[:16]

    @property
    def question(self) -> Question:
        """What it answers: rows of one question are ranked together."""
        return Question(self.data, self.target, self.metric, self.split)

    @property
    def _trial(self) -> tuple[str, ...]:
        of_store = (self.encoder, self.view, self.fingerprint)
        return (*of_store, self.probe, self.data, self.target, self.split, self.group)

    def to_dict(self) -> dict[str, Any]:
        """Return the row as JSON types; a number that is not defined is None."""
        row = {**asdict(self), "notes": list(self.notes)}
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Row:
        """Return the row that :meth:`to_dict` gave."""
        known = {f.name for f in fields(cls)}
        values = {k: v for k, v in row.items() if k in known}
        for name in ("value", "ci_low", "ci_high"):
            values[name] = math.nan if values[name] is None else float(values[name])
        return cls(**{**values, "notes": tuple(values.get("notes", ()))})


class Results(list[Row]):
    """Rows, and the predictions that they were computed from, by :attr:`Row.trial`."""

    def __init__(self, rows: Iterable[Row] = (), predictions: Mapping[str, Predictions] | None = None) -> None:
        super().__init__(rows)
        self.predictions: dict[str, Predictions] = dict(predictions or {})


def to_json(rows: Iterable[Row]) -> str:
    """Return rows as a JSON list."""
    return json.dumps([row.to_dict() for row in rows], indent=1)


def write_results(rows: Sequence[Row], folder: str | Path) -> Path:
    """Add rows to the table of a folder, in place of earlier ones of the same question; return the table's path.

    The predictions of :class:`Results` are written beside it, so that later results can be compared with them in pairs.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / TABLE
    kept = {row.key: row for row in (read_results([path]) if path.exists() else [])}
    kept |= {row.key: row for row in rows}
    draft = path.with_suffix(".draft")
    with draft.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Row)])
        writer.writeheader()
        for row in kept.values():
            cells = row.to_dict()
            writer.writerow({**cells, "settings": json.dumps(cells["settings"]), "notes": json.dumps(cells["notes"])})
    draft.replace(path)
    if isinstance(rows, Results):
        (folder / PREDICTIONS).mkdir(exist_ok=True)
        for trial, predictions in rows.predictions.items():
            predictions.write(folder / PREDICTIONS / f"{trial}.npz")
    return path


def read_results(paths: Iterable[str | Path]) -> Results:
    """Return the rows of tables (``.csv``), JSON lists (``.json``) and folders with a ``results.csv``.

    Predictions that stand beside a table come with it.

    Raises:
        DataError: A file is missing or holds something else.

    """
    rows = Results()
    for given in map(Path, paths):
        path = given / TABLE if given.is_dir() else given
        if not path.is_file():
            raise DataError(f"{path}: no such results (medprobe probe ... --out DIR writes them)")
        try:
            found = _read_json(path) if path.suffix == ".json" else _read_csv(path)
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: not a table of results ({error})") from error
        for trial in {row.trial for row in found}:
            file = path.parent / PREDICTIONS / f"{trial}.npz"
            if file.is_file():
                rows.predictions[trial] = read_predictions(file)
        rows += found
    return rows


def ranked(rows: Iterable[Row]) -> dict[Question, list[Row]]:
    """Return the rows of the primary metric on all tested images by question, the best first."""
    return _by_question(row for row in rows if row.primary and not row.subgroup)


def subgroups(rows: Iterable[Row]) -> dict[Question, list[Row]]:
    """Return the rows of the primary metric on some of the tested images, by question, in their own order."""
    return _by_question((row for row in rows if row.primary and row.subgroup), in_order=True)


def _by_question(rows: Iterable[Row], *, in_order: bool = False) -> dict[Question, list[Row]]:
    from medprobe.probe.metrics import METRICS

    tables: dict[Question, list[Row]] = {}
    for row in rows:
        tables.setdefault(row.question, []).append(row)
    for question, table in tables.items():
        if not in_order:
            sign = -1 if METRICS[question.metric].higher_is_better else 1
            table.sort(key=lambda row: math.inf if math.isnan(row.value) else sign * row.value)
    return tables


def _read_json(path: Path) -> list[Row]:
    return [Row.from_dict(row) for row in json.loads(path.read_text(encoding="utf-8"))]


def _read_csv(path: Path) -> list[Row]:
    types = {f.name: f.type for f in fields(Row)}
    rows = []
    with path.open(newline="", encoding="utf-8") as file:
        for cells in csv.DictReader(file):
            row: dict[str, Any] = {}
            for name, cell in cells.items():
                kind = types.get(name)
                if name in {"settings", "notes"}:
                    row[name] = json.loads(cell)
                elif kind == "float":
                    row[name] = float(cell) if cell else None
                elif kind == "int":
                    row[name] = int(cell)
                elif kind == "bool":
                    row[name] = cell == "True"
                else:
                    row[name] = cell
            rows.append(Row.from_dict(row))
    return rows
