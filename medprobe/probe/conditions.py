"""SQL conditions on the columns of samples."""

from __future__ import annotations

import threading
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from medprobe.errors import DataError, UsageError

_ROW = "__row"


class Conditions:
    """Conditions on the columns of samples, one after the other.

    Args:
        samples: A row each; they must not change.

    """

    def __init__(self, samples: pd.DataFrame) -> None:
        self._samples = samples
        self._lock = threading.Lock()

    def where(self, condition: str, flag: str = "--where") -> np.ndarray:
        """Return which samples (n,) an SQL condition over their columns holds for; unknown (NULL) is no.

        DuckDB evaluates it: ``age > 60 AND site IN ('A', 'B')``. It can read no file.

        Raises:
            UsageError: DuckDB is not installed, does not understand the condition, or it is more than a condition.
            DataError: No sample is left.

        """
        try:
            import duckdb
        except ModuleNotFoundError as error:
            raise UsageError(f"{flag} needs duckdb, which is not installed: pip install 'medprobe[whatif]'") from error
        query = f"SELECT {_ROW} FROM samples WHERE ({condition})"
        with self._lock:
            try:
                if (
                    len(self._database.extract_statements(query)) > 1
                ):  # the next could change what later ones are asked of
                    raise UsageError(f"{flag} {condition}: more than one condition")
                found = self._database.execute(query).fetchnumpy()[_ROW]
            except duckdb.Error as error:
                columns = ", ".join(c for c in self._samples.columns)
                reason = str(error).splitlines()[0]
                raise UsageError(f"{flag} {condition}: {reason} (columns: {columns})") from error
        if not len(found):
            raise DataError(f"{flag} {condition}: no sample is left")
        mask = np.zeros(len(self._samples), dtype=bool)
        mask[np.asarray(found, dtype=np.int64)] = True
        return mask

    @cached_property
    def _database(self) -> Any:
        import duckdb

        table = self._samples.assign(**{_ROW: np.arange(len(self._samples))})
        # Missing numbers are NaN in a table, which SQL would call larger than all others.
        table = table.astype({c: "Float64" for c in table if table[c].dtype.kind == "f"})
        database = duckdb.connect(":memory:", config={"enable_external_access": "false"})
        database.register("samples", table)
        return database
