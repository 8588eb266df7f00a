"""A table of labels beside a folder of images, joined by whatever identifier the two share."""

from __future__ import annotations

import re
from collections.abc import Collection

import numpy as np
import pandas as pd

from medprobe.errors import DataError, UsageError
from medprobe.storage import Place
from medprobe.tables import IDENTIFYING_COLUMNS, read_table, typed

# How tables call an identifier, without case and punctuation; the finest first.
_NAMES = {
    "sop_instance_uid": {"sopinstanceuid", "sopuid", "imageuid", "instanceuid"},
    "path": {"path", "file", "filepath", "filename", "image", "imagepath", "id", "imageid"},
    "series_uid": {"seriesinstanceuid", "seriesuid", "series"},
    "study_uid": {"studyinstanceuid", "studyuid", "study"},
    "accession_number": {"accessionnumber", "accession"},
    "patient_id": {"patientid", "patient", "subject", "subjectid"},
}
_OF_PATHS = ("path", "file_name", "stem")


def join_labels(
    identifiers: pd.DataFrame, labels: Place, key: str | None = None, keep_cols: Collection[str] = ()
) -> tuple[pd.DataFrame, list[str]]:
    """Return the columns that a table has on each image, and what a user should be told.

    Images without a row have empty cells. Columns that identify a patient or a file are left out.

    Args:
        identifiers: What is known of each image: ``path``, ``file_name``, ``stem``, and for DICOM files ``patient_id``,
            ``study_uid``, ``series_uid``, ``sop_instance_uid`` and ``accession_number``.
        labels: A CSV, TSV or Parquet table, one row an image, series, study or patient.
        key: Its column to join by; the finest identifier by its name unless given.
        keep_cols: Columns to keep although they look as if they named a person.

    Raises:
        DataError: The table has no such identifier, holds one twice, or none that an image has.
        UsageError: The named column does not exist.

    """
    table = read_table(labels)
    named = {re.sub(r"[^a-z0-9]", "", column.lower()): column for column in reversed(table.columns)}
    if key is not None and key not in table.columns:
        raise UsageError(f"--labels-key {key}: {labels.name} has no such column; there are: {', '.join(table.columns)}")
    kinds = [kind for kind in _NAMES if kind in identifiers.columns]
    pairs = [
        (column, identifier)
        for kind in kinds
        for name in sorted(_NAMES[kind])
        if (column := named.get(name) if key is None else key) is not None
        for identifier in (_OF_PATHS if kind == "path" else (kind,))
    ]
    if not pairs:
        raise DataError(
            f"{labels}: no column that identifies an image, a series, a study or a patient (there are: "
            f"{', '.join(table.columns)}). Name it with --labels-key."
        )
    matches = [(column, by, identifiers[by].isin(table[column].dropna())) for column, by in dict.fromkeys(pairs)]
    key, by, has_row = next((match for match in matches if match[2].any()), matches[0])
    if not has_row.any():
        raise DataError(
            f"{labels}: its column {' or '.join(dict.fromkeys(repr(column) for column, _ in pairs))} holds none of the "
            f"images' identifiers ({', '.join(dict.fromkeys(by for _, by in pairs))})"
        )
    keys = table[key].dropna()
    double = keys[keys.duplicated()]
    if len(double):  # the identifier itself may name a patient
        raise DataError(
            f"{labels}: column '{key}' holds {len(double)} values twice (first: data row {double.index[0] + 1})"
        )
    rows = identifiers[by].map({value: row for row, value in keys.items()})
    of_dicom = {name for kind in kinds if kind != "path" for name in _NAMES[kind]}
    left_out = {
        column
        for name, column in named.items()
        if column.lower() in IDENTIFYING_COLUMNS or name in of_dicom or column in {key, "id"}
    } - set(keep_cols)
    taken = table.drop(columns=[c for c in table.columns if c in left_out])
    values = {column: typed(taken[column].reindex(rows).reset_index(drop=True)) for column in taken.columns}
    notes = [
        f"{labels.name}: {has_row.sum()} of {len(identifiers)} images have labels there, by their {by.replace('_', ' ')}"
    ]
    unused = len(keys) - rows.dropna().nunique()
    if unused:
        notes.append(f"{labels.name}: {unused} rows are of no image here")
    return pd.DataFrame(values, index=np.arange(len(identifiers))), notes
