"""Tables that users bring: everything read as text first, then typed without changing what it says, and digested."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from medprobe.errors import DataError, UsageError

# Columns that name a person. They stay out of a store unless the user lists them (--keep-col).
IDENTIFYING_COLUMNS = frozenset(
    """name patient_name patientname first_name last_name surname mrn medical_record_number ssn social_security_number
    birth_date birthdate date_of_birth dob patientbirthdate address email phone telephone""".split()  # noqa: SIM905
)
_MISSING = ["", "NA", "N/A", "NaN", "nan", "null"]


def read_table(path: Path) -> pd.DataFrame:
    """Return a CSV, TSV or Parquet table; the cells of text files stay text, empty ones are missing.

    Raises:
        DataError: It cannot be read, or has columns of one name or of a name that a store cannot hold.
        UsageError: It is Parquet, and the package that reads it is not installed.

    """
    try:
        if path.suffix.lower() == ".parquet":
            table = pd.read_parquet(path)
            table = table.reset_index(drop=table.index.name is None)
        else:
            # Everything as text first: patient 007 must not become patient 7.
            table = pd.read_csv(
                path,
                dtype=str,
                keep_default_na=False,
                na_values=_MISSING,
                sep="\t" if path.suffix.lower() == ".tsv" else ",",
            )
    except ImportError as error:
        raise UsageError(
            f"{path}: Parquet needs a package that is not installed: pip install 'medprobe[parquet]'"
        ) from error
    except Exception as error:
        raise DataError(f"{path}: could not be read as a table: {error}") from error
    if not isinstance(table.index, pd.RangeIndex):  # pandas takes a surplus first field for row names
        raise DataError(f"{path}: rows have more fields than the header has columns (a separator at their end?)")
    table.columns = [str(c) for c in table.columns]
    double = [c for c, n in Counter(table.columns).items() if n > 1]
    if double:
        raise DataError(f"{path}: column '{double[0]}' is there twice")
    bad = [c for c in table.columns if "/" in c or c in {".", "..", ""}]
    if bad:
        raise DataError(f"{path}: a column may not be called '{bad[0]}'; rename it")
    return table


def typed(column: pd.Series) -> pd.Series:
    """Return a column as int64, float64 or text; text that would change as a number (007) stays text."""
    if pd.api.types.is_datetime64_any_dtype(column.dtype):
        return texts(column)
    if pd.api.types.is_bool_dtype(column.dtype) or pd.api.types.is_numeric_dtype(column.dtype):
        return column.astype("float64") if column.isna().any() else column
    present = column.dropna()
    numbers = pd.to_numeric(present, errors="coerce")
    inexact = present.astype(str).str.match(r"^[+-]?(0\d|\d{16,}$)")
    if not len(present) or numbers.isna().any() or inexact.any():
        return texts(column)
    if len(present) == len(column) and (numbers == numbers.round()).all() and numbers.abs().max() < 2**53:
        return numbers.astype("int64")
    return pd.to_numeric(column).astype("float64")


def marks_of(column: pd.Series, name: str) -> pd.DataFrame:
    """Return 0 or 1 for each finding that cells such as ``Effusion|Mass`` name, missing where a cell is empty.

    Columns are called ``<name>_<finding>``, in the order of the alphabet; there are none where no cell names several.
    """
    told = column.map(
        lambda value: [word.strip().replace("/", "_") for word in value.split("|")] if isinstance(value, str) else []
    )
    if not (told.str.len() > 1).any():
        return pd.DataFrame(index=column.index)
    findings = sorted({word for words in told for word in words if word})
    marks = {f"{name}_{word}": told.map(lambda words, w=word: float(w in words)) for word in findings}
    return pd.DataFrame(marks).where(told.map(any), np.nan).astype("float64")


def texts(column: pd.Series) -> pd.Series:
    """Return a column as text, empty where a value is missing."""
    return column.map(as_text, na_action="ignore").astype(object).where(column.notna(), "")


def as_text(value: object) -> str | float:
    """Return a value as text, a whole float without its ``.0`` and a missing value as it is."""
    if isinstance(value, float | np.floating):
        if np.isnan(value):
            return float("nan")
        return str(int(value)) if float(value).is_integer() else str(value)
    return value if isinstance(value, str) else str(value)


def leaves_folder(path: str) -> bool:
    """Return whether a relative path leads out of the folder that it starts from."""
    return Path(os.path.normpath(path)).parts[:1] == ("..",)


def ids_digest(ids: Sequence[str] | pd.Series) -> str:
    """Return the SHA-256 of sample ids in their order."""
    digest = hashlib.sha256()
    for sample in ids:
        digest.update(str(sample).encode() + b"\0")
    return digest.hexdigest()


def table_digest(samples: pd.DataFrame) -> str:
    """Return the SHA-256 of the names and values of all columns."""
    digest = hashlib.sha256()
    for name in samples.columns:
        values = storable(samples[name])
        digest.update(f"{name}|{values.dtype.kind}\n".encode())
        if values.dtype.kind == "O":
            digest.update("\0".join(values).encode())
        else:
            digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def storable(column: pd.Series) -> np.ndarray:
    """Return a column as int64, float64 or an object array of strings, in which a missing value is the empty string."""
    if pd.api.types.is_bool_dtype(column.dtype) and not column.hasnans:
        return np.asarray(column, dtype="int64")
    if pd.api.types.is_integer_dtype(column.dtype) and not column.hasnans:
        return np.asarray(column, dtype="int64")
    if pd.api.types.is_numeric_dtype(column.dtype):
        return np.asarray(column.to_numpy(dtype="float64", na_value=np.nan))
    return np.array(["" if pd.isna(v) else str(v) for v in column], dtype=object)
