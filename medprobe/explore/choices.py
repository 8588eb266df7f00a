"""What can be chosen: columns and their values, in words that are safe to show."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from medprobe.errors import MedprobeError
from medprobe.explore.state import State
from medprobe.probe.bags import AnyRows
from medprobe.probe.task import class_name, missing
from medprobe.report.words import short, unlike

MOST_VALUES = 50
"""Different values beyond which a column is no choice of values."""


def columns(store: AnyRows) -> list[str]:
    """Return the columns of a store's samples, without their ids."""
    return [str(name) for name in store.samples.columns if name != "id"]


def named(names: Sequence[str], most: int = 48) -> dict[str, str]:
    """Return what each name is shown as: short, in characters that can be seen, no two alike."""
    return dict(zip(names, unlike(short(name, most) or "(empty)" for name in names), strict=True))


def targets(store: AnyRows) -> list[str]:
    """Return what can be predicted: recorded labels first, then columns of few values."""
    recorded = [str(name) for name in store.roles["labels"]]
    several = ["label"] if len(recorded) > 1 and all(name.startswith("label_") for name in recorded) else []
    taken = {*recorded, store.roles["split"], store.roles["group"]}
    others = [name for name in columns(store) if name not in taken and len(values(store, name)) > 1]
    return [*several, *(name for name in recorded if name in columns(store)), *others]


def values(store: AnyRows, column: str) -> list[str]:
    """Return the values of a column in order; of too many, none."""
    if column not in store.samples.columns:
        return []
    cells = store.samples[column]
    kept = cells[~missing(cells)]
    if kept.nunique() > MOST_VALUES:
        return []
    return [class_name(value) for value in sorted(kept.unique().tolist(), key=lambda v: (str(type(v)), v))]


def condition(store: AnyRows, column: str, chosen: Sequence[str]) -> str:
    """Return SQL for a column having one of some values, quoted."""
    name = '"' + column.replace('"', '""') + '"'
    numeric = pd.api.types.is_numeric_dtype(store.samples[column].dtype)
    words = [value if numeric else "'" + value.replace("'", "''") + "'" for value in chosen]
    return f"{name} = {words[0]}" if len(words) == 1 else f"{name} IN ({', '.join(words)})"


def joined(where: str, more: str) -> str:
    """Return a condition narrowed by another."""
    return more if not where.strip() else f"({where}) AND {more}"


def classes(store: AnyRows, state: State) -> list[str]:
    """Return the classes of a state's target as the table has them; none where it is no single column."""
    try:
        target = state.target or next(iter(targets(store)), "")
        return values(store, target)
    except MedprobeError:
        return []
