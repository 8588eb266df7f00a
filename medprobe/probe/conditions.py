"""SQL conditions on the columns of samples."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from medprobe.errors import DataError, UsageError

_ROW = "__row"


class Conditions:
    """Conditions on the columns of samples.

    Args:
        samples: A row each; they must not change.

    """

    def __init__(self, samples: pd.DataFrame) -> None:
        self._samples = samples

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
        try:
            # A connection of its own, so that no condition waits for a slow one.
            with self._database.cursor() as connection:
                connection.register("samples", self._table)
                found = connection.view("samples").filter(condition).project(_ROW).fetchnumpy()[_ROW]
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
    def _table(self) -> pd.DataFrame:
        table = self._samples.assign(**{_ROW: np.arange(len(self._samples))})
        # Missing numbers are NaN in a table, which SQL would call larger than all others.
        return table.astype({c: "Float64" for c in table if table[c].dtype.kind == "f"})

    @cached_property
    def _database(self) -> Any:
        import duckdb

        return duckdb.connect(":memory:", config={"enable_external_access": "false"})
