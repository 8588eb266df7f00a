"""What is to be predicted: columns of a manifest as codes of classes, or as labels."""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from medprobe.errors import DataError, UsageError

# More distinct numbers than this are a measurement, not a class.
_MOST_CLASSES = 100
STUDY = "huix2024"
UNCERTAIN = {"zeros": 0.0, "ones": 1.0, "ignore": np.nan, STUDY: 0.0}


@dataclass(frozen=True)
class Target:
    """A target of the rows that have one.

    Attributes:
        name: As the user named it.
        task: ``binary``, ``multiclass``, ``ordinal`` or ``multilabel``.
        rows: Rows of the samples that have a label, (n,).
        y: Class codes (n,), or labels 0, 1 and NaN (n, L).
        classes: Names of the classes in the order of their codes, or of the labels.
        columns: Columns that it was made from.

    """

    name: str
    task: str
    rows: np.ndarray
    y: np.ndarray
    classes: tuple[str, ...]
    columns: tuple[str, ...]

    @property
    def n_classes(self) -> int:
        """Number of classes, or of labels."""
        return len(self.classes)


def target_of(samples: pd.DataFrame, name: str, *, ordinal: bool = False, uncertain: str | None = None) -> Target:
    """Return the target that ``name`` stands for.

    A column is one class a sample, in the order of numbers or of the alphabet. A comma list (``edema,effusion``), a
    pattern (``finding_*``) or the common start of columns (``label`` for ``label_0, label_1, ...``) is multi-label:
    0, 1 or missing. With ``uncertain``, -1 counts as 0 (``zeros``), as 1 (``ones``) or as missing (``ignore``);
    ``huix2024`` is the rule of Palés Huix et al. (WACV 2024): -1 and missing count as 0, and a row of nothing but 0 has No
    Finding.

    Raises:
        UsageError: There is no such column, ordinal classes that are no numbers, or no label No Finding where the rule
            needs one.
        DataError: Fewer than two classes, values that are no classes, or labels other than 0, 1 and missing.

    """
    if uncertain is not None and uncertain not in UNCERTAIN:
        raise UsageError(f"--uncertain {uncertain}: one of {', '.join(UNCERTAIN)}")
    columns = target_columns(samples, name)
    if uncertain is not None:
        samples = samples.assign(**{column: _settled(samples[column], uncertain) for column in columns})
    if uncertain == STUDY:
        samples = samples.assign(**_with_no_finding(samples[columns]))
    if len(columns) > 1:
        if ordinal:
            raise UsageError(
                f"--target {name}: quadratic_kappa is for one column of grades, not for {len(columns)} labels"
            )
        return _labels(samples, name, columns)
    column = samples[columns[0]]
    present = ~missing(column)
    values = column[present]
    if not len(values):
        raise DataError(f"--target {name}: the column is empty")
    numeric = pd.api.types.is_numeric_dtype(values.dtype)
    codes, found = pd.factorize(values.to_numpy(dtype="float64" if numeric else object), sort=True)
    if len(found) < 2:
        raise DataError(
            f"--target {name}: there is only one class ({class_name(found[0])}) among {len(values)} samples"
        )
    if len(found) > _MOST_CLASSES and (numeric or len(found) > len(values) / 2):
        raise DataError(
            f"--target {name}: {len(found)} different values among {len(values)} samples are not classes; "
            "put them into ranges, or name another column"
        )
    if ordinal and not numeric:
        raise UsageError(
            f"--target {name}: quadratic_kappa needs grades that are numbers; code the classes as 0, 1, 2, ..."
        )
    task = "ordinal" if ordinal else ("binary" if len(found) == 2 else "multiclass")
    return Target(
        name, task, np.flatnonzero(present), codes.astype(np.int64), tuple(class_name(v) for v in found), (columns[0],)
    )


def target_columns(samples: pd.DataFrame, name: str) -> list[str]:
    """Return the columns that the name of a target stands for.

    Raises:
        UsageError: There are none.

    """
    known = [c for c in samples.columns if c != "id"]
    if name in known:
        return [name]
    if "," in name:
        found = list(dict.fromkeys(part.strip() for part in name.split(",") if part.strip()))
        absent = [c for c in found if c not in known]
        if absent:
            raise UsageError(f"--target {absent[0]}: no such column; there are: {', '.join(known)}")
        return found
    found = fnmatch.filter(known, name) or [c for c in known if c.startswith(f"{name}_")]
    if not found:
        raise UsageError(f"--target {name}: no such column; there are: {', '.join(known)}")
    return found


def _labels(samples: pd.DataFrame, name: str, columns: list[str]) -> Target:
    parts = []
    for column in columns:
        values = pd.to_numeric(samples[column].replace("", np.nan), errors="coerce").to_numpy(dtype="float64")
        wrong = ~missing(samples[column]).to_numpy() & ~np.isin(values, (0.0, 1.0))
        if wrong.any():
            example = samples[column].iloc[int(np.flatnonzero(wrong)[0])]
            raise DataError(
                f"--target {name}: column '{column}' holds {example!r}; a label is 0, 1 or empty (for -1: --uncertain)"
            )
        parts.append(values)
    labels = np.stack(parts, axis=1)
    rows = np.flatnonzero(~np.isnan(labels).all(axis=1))
    if not len(rows):
        raise DataError(f"--target {name}: all of its columns are empty")
    return Target(name, "multilabel", rows, labels[rows], tuple(columns), tuple(columns))


def _settled(column: pd.Series, uncertain: str) -> pd.Series:
    """Return labels as numbers with a decision on the uncertain ones, which are -1; words stay as they are."""
    numbers = pd.to_numeric(column.where(~missing(column)), errors="coerce")
    words = numbers.isna() & ~missing(column)
    return column if words.any() else numbers.astype("float64").mask(numbers == -1, UNCERTAIN[uncertain])


def _with_no_finding(labels: pd.DataFrame) -> pd.DataFrame:
    """Return labels of which none is missing, and No Finding is 1 where all are 0; words stay as they are."""
    none = [column for column in labels.columns if re.sub("[^a-z]", "", column.lower()).endswith("nofinding")]
    if len(none) != 1:
        raise UsageError(f"--uncertain {STUDY}: one of the labels has to be called No Finding")
    filled = labels.mask(labels.apply(missing), 0.0)
    nothing = (filled.apply(pd.to_numeric, errors="coerce") == 0).all(axis=1)
    return filled.assign(**{none[0]: filled[none[0]].mask(nothing, 1.0)})


def missing(column: pd.Series) -> Any:
    """Return which values of a column are absent or empty."""
    return column.isna() | (column == "")


def class_name(value: Any) -> str:
    """Return a class as text: 1.0, as a column with missing values holds it, is ``1``."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
