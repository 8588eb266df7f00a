"""Tables of known data sets, read strictly: a cell that cannot be what it should be is named by file, column and row."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from medprobe.errors import DataError

_UNREADABLE = (OSError, ValueError, EOFError, zlib.error)  # of a parser and of a compressed file that is cut short
_MOST_SHOWN = 30  # characters of a wrong value


@dataclass(frozen=True)
class Table:
    """A table as text, empty cells missing.

    Attributes:
        path: Its file.
        frame: Its cells.

    """

    path: Path
    frame: pd.DataFrame

    @classmethod
    def read(cls, path: Path, columns: Sequence[str]) -> Table:
        """Return a table that has these columns.

        Raises:
            DataError: It cannot be read, or lacks one.

        """
        try:
            frame = _frame(path)
        except _UNREADABLE as error:
            raise DataError(f"{path}: could not be read as a table: {error}") from error
        if not isinstance(frame.index, pd.RangeIndex):  # pandas takes a surplus first field for row names
            raise DataError(f"{path}: rows have more fields than the header has columns")
        lacking = [column for column in columns if column not in frame.columns]
        if lacking:
            raise DataError(f"{path}: no column '{lacking[0]}'; there are: {', '.join(frame.columns)}")
        return cls(path, frame)

    def __len__(self) -> int:
        return len(self.frame)

    def words(self, column: str) -> pd.Series:
        """Return text, empty where a cell is."""
        return self.frame[column].fillna("").str.strip().astype(object)

    def names(self, column: str, *, unique: bool = False) -> pd.Series:
        """Return text of which no cell is empty and, if asked for, no two are the same.

        Raises:
            DataError: One is.

        """
        words = self.words(column)
        self.refuse(column, words == "", "is empty")
        if unique:
            self.refuse(column, words.duplicated(), "repeats an earlier row")
        return words

    def coded(self, column: str, codes: Mapping[str, object]) -> pd.Series:
        """Return what each word of a column stands for.

        Raises:
            DataError: A word stands for nothing, or a cell is empty.

        """
        words = self.names(column)
        self.refuse(column, ~words.isin([*codes]), f"is none of {', '.join(codes)}")
        return words.map(codes)

    def numbers(self, column: str, among: Sequence[float] = (), *, filled: bool = False) -> np.ndarray:
        """Return numbers, float64 (n,), NaN where a cell is empty.

        Args:
            column: Its name.
            among: The only ones that may be; any unless given.
            filled: Whether no cell may be empty.

        Raises:
            DataError: A cell holds something else.

        """
        words = self.names(column) if filled else self.words(column)
        values = pd.to_numeric(words.where(words != ""), errors="coerce").to_numpy(dtype=np.float64)
        told = (words != "").to_numpy()
        self.refuse(column, told & ~np.isfinite(values), "is no number")
        if among:
            choice = ", ".join(f"{value:g}" for value in among)
            self.refuse(column, told & ~np.isin(values, among), f"is none of {choice}")
        return np.asarray(values)

    def refuse(self, column: str, wrong: np.ndarray | pd.Series, why: str) -> None:
        """Raise a DataError that names the first of the wrong rows, if there is one."""
        rows = np.flatnonzero(np.asarray(wrong))
        if not len(rows):
            return
        value = self.words(column).iloc[rows[0]]
        shown = f", '{value[:_MOST_SHOWN]}'," if value and why.startswith("is no") else ""
        more = f" (and in {len(rows) - 1} more rows)" if len(rows) > 1 else ""
        raise DataError(f"{self.path}: column '{column}'{shown} {why} in data row {rows[0] + 1}{more}")


def header(path: Path) -> tuple[str, ...] | None:
    """Return the names of a table's columns, or None where it cannot be read."""
    try:
        return tuple(_frame(path, nrows=0).columns)
    except _UNREADABLE:
        return None


def _frame(path: Path, nrows: int | None = None) -> pd.DataFrame:
    frame = pd.read_csv(path, dtype=str, encoding="utf-8-sig", keep_default_na=False, na_values=[""], nrows=nrows)
    frame.columns = [str(column).strip() for column in frame.columns]
    return frame
