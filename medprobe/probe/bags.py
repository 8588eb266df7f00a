"""Samples of several rows: the slices of a volume, or the images of a patient, pooled as they are read from a store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from medprobe.errors import DataError, UsageError
from medprobe.probe.leaks import image_codes, joined
from medprobe.probe.targets import Floats
from medprobe.probe.task import missing
from medprobe.storage import Place
from medprobe.store import FeatureStore
from medprobe.store_records import Plan

MEAN, MAX, BOTH = "mean", "max", "mean+max"
POOLS = (MEAN, MAX, BOTH)
AUTO, NONE = "auto", "none"
EVERY = "all"  # the rows of a bag one after the other, for a probe that attends over them
_TOKENS = "tokens"
_ALONE = "\0"  # marks the bag of a row that names none


class Bags:
    """A store whose samples are bags of rows: it is read like a :class:`~medprobe.store.FeatureStore`.

    A bag has the columns that its rows agree on; the others are in ``varying``. Rows without features take no part in
    their bag; a bag of such rows alone is a failure.

    Args:
        store: What is pooled.
        by: The column that names each row's bag; a row without a name is a bag of its own.
        pools: ``mean``, ``max``, ``mean+max`` (one beside the other): the views of the bags are those of the store with
            each of these.

    Raises:
        UsageError: There is no such column, or no such pooling.

    """

    def __init__(self, store: FeatureStore, by: str, pools: Sequence[str] = (MEAN,)) -> None:
        if by not in store.manifest.columns or by == "id":
            known = ", ".join(c for c in store.manifest.columns if c != "id")
            raise UsageError(f"--pool-by {by}: {store.path.name} has no such column; there are: {known}")
        if unknown := [pool for pool in pools if pool not in POOLS]:
            raise UsageError(f"--pool {unknown[0]}: one of {', '.join(POOLS)}, {AUTO}")
        self.store, self.by, self.pools = store, by, tuple(pools)

    @property
    def path(self) -> Place:
        """The store's folder, or its URL."""
        return self.store.path

    @property
    def plan(self) -> Plan:
        """The store's plan, which counts rows."""
        return self.store.plan

    @property
    def encoder(self) -> str:
        """The encoder's name."""
        return self.store.encoder

    @property
    def roles(self) -> Mapping[str, Any]:
        """The store's roles."""
        return self.store.roles

    @property
    def default_view(self) -> str:
        """The encoder's own pooling of an image, with the first pooling of a bag."""
        return pooled_name(self.store.plan.default_view, self.pools[0])

    @property
    def views(self) -> dict[str, int]:
        """Name and width of each view of a bag."""
        return {
            pooled_name(view, pool): width * (1 + (pool == BOTH))
            for view, width in self.store.views.items()
            if view != _TOKENS
            for pool in self.pools
        }

    def view_name(self, view: str | None = None) -> str:
        """Return the view that ``view`` means: the encoder's own, pooled, when None."""
        return view or self.default_view

    @cached_property
    def mask(self) -> np.ndarray:
        """Which bags of ``manifest`` have features, bool (n,)."""
        return np.isin(np.arange(len(self._names)), self._present)

    def middle(self, samples: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the row in the middle of each of these samples, of those that have features: a volume's middle slice."""
        rows = np.flatnonzero(self.store.mask)
        members = [rows[self._rows == sample] for sample in samples]
        return np.array([of[len(of) // 2] for of in members], dtype=np.int64)

    @cached_property
    def manifest(self) -> pd.DataFrame:
        """Every bag, with or without features; column ``id`` first."""
        return self._table(np.arange(len(self._names)))

    @cached_property
    def samples(self) -> pd.DataFrame:
        """The bags that have features, in the order of ``features()``."""
        return self._table(self._present)

    @property
    def failures(self) -> pd.DataFrame:
        """Bags none of whose rows has features: id."""
        lost = np.setdiff1d(np.arange(len(self._names)), self._present)
        return pd.DataFrame({"id": self._names[lost]})

    @property
    def notes(self) -> tuple[str, ...]:
        """What a sample is, and how many rows are missing in how many bags."""
        kept = np.bincount(self._codes[self.store.mask], minlength=len(self._names))
        lost = (np.bincount(self._codes, minlength=len(self._names)) - kept)[self._present]
        said = [f"a sample is a '{self.by}': {len(self._present)} of them pool {int(kept.sum())} images"]
        if lost.any():
            said.append(
                f"INCOMPLETE: {int(lost.sum())} images of {int((lost > 0).sum())} of '{self.by}' have no features; these "
                "are pooled over the rest"
            )
        return tuple(said)

    @cached_property
    def varying(self) -> dict[str, str]:
        """Columns that the rows of a bag do not agree on, each with a bag that shows it."""
        found = {}
        for column in self.store.manifest.columns.drop("id"):
            values = self._values(column)
            numbers, _ = pd.factorize(values)  # -1 for a missing one
            pairs = np.unique(np.stack([self._codes, numbers])[:, numbers >= 0], axis=1)
            several = pairs[0][:-1][pairs[0][1:] == pairs[0][:-1]]
            if len(several):
                found[str(column)] = str(self._names[several[0]])
        return found

    def check(self, flag: str, columns: Sequence[str]) -> None:
        """Raise a DataError if the rows of a bag do not agree on a column that is asked for."""
        for column in columns:
            if column in self.varying:
                bag = self.varying[column]
                rows = self._values(column)[self._codes == int(np.flatnonzero(self._names == bag)[0])]
                values = ", ".join(map(str, rows.dropna().unique()[:3]))
                raise DataError(
                    f"{flag} {column}: the images of {self.by} '{bag}' do not agree on it ({values}); --pool-by {NONE} takes "
                    "every image by itself"
                )

    def features(self, view: str | None = None) -> Floats:
        """Return a view of the bags, float32 (len(samples), width); of ``view (all)`` as :meth:`sequences`.

        Raises:
            DataError: There is no such view, or the store is damaged or not complete.

        """
        name = view or self.default_view
        view, pool = split_name(name)
        if pool not in {*POOLS, EVERY} or view not in self.store.views or view == _TOKENS:
            raise DataError(f"{self.path.name}: no view '{name}'; it has {', '.join(self.views)}")
        if pool == EVERY:
            return self.sequences(view)
        total, largest = self._reduced(self.store.feature_blocks(view).blocks(), self.store.views[view], pool)
        parts = {MEAN: (total,), MAX: (largest,), BOTH: (total, largest)}[pool]
        return np.concatenate(parts, axis=1, dtype=np.float32)

    def sequences(self, view: str) -> Floats:
        """Return the rows of each bag one after the other, (len(samples), longest * width), NaN beyond the last one."""
        values = self.store.features(view, dtype=None)
        order = np.argsort(self._rows, kind="stable")
        counts = np.bincount(self._rows, minlength=len(self._present))
        place = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
        found = np.full((len(counts), int(counts.max(initial=0)), values.shape[1]), np.nan, dtype=values.dtype)
        found[self._rows[order], place] = values[order]
        return found.reshape(len(counts), -1)

    def appearance(self) -> np.ndarray:
        """Return height, width, mean and contrast of the images, their means over each bag, float32 (n, 4)."""
        looks = self.store.appearance()
        mean, _ = self._reduced(iter([looks]), looks.shape[1], MEAN)
        return mean.astype(np.float32)

    def image_digests(self) -> np.ndarray:
        """Return a digest for each bag, uint8 (n, 16), equal for bags that share an image, directly or by others."""
        digests = self.store.image_digests()
        together = joined(self._rows, image_codes(digests))
        assert together is not None
        known = np.argsort(~digests.any(axis=1), kind="stable")  # zeros are of an image nobody knows
        _, first, part = np.unique(together[known], return_index=True, return_inverse=True)
        of_row = np.empty(len(digests), dtype=np.int64)
        of_row[known] = known[first][part]
        found = np.zeros((len(self._present), digests.shape[1]), dtype=digests.dtype)
        found[self._rows] = digests[of_row]
        return found

    def _values(self, column: str) -> pd.Series:
        values = self.store.manifest[column]
        return values.mask(missing(values))

    def _table(self, bags: np.ndarray) -> pd.DataFrame:
        manifest = self.store.manifest
        columns = {"id": self._names[bags]}
        for column in manifest.columns.drop("id"):
            if column not in self.varying:
                known = self._values(column)
                firsts = known.groupby(self._codes).first().reindex(bags)
                if manifest[column].dtype.kind == "O":
                    firsts = firsts.fillna("").astype(object)
                columns[column] = firsts.astype(manifest[column].dtype).to_numpy()
        return pd.DataFrame(columns)

    @cached_property
    def _named(self) -> tuple[np.ndarray, np.ndarray]:
        """Bag of each row of the manifest, and the bags' names, in the order of their first rows."""
        manifest = self.store.manifest
        names = manifest[self.by].map(str).to_numpy(dtype=object)
        alone = np.asarray(missing(manifest[self.by]))
        names[alone] = _ALONE + manifest["id"].to_numpy(dtype=object)[alone]
        codes, found = pd.factorize(names)
        return codes, np.array([name.removeprefix(_ALONE) for name in found], dtype=object)

    @property
    def _codes(self) -> np.ndarray:
        return self._named[0]

    @property
    def _names(self) -> np.ndarray:
        return self._named[1]

    @cached_property
    def _present(self) -> np.ndarray:
        """Numbers of the bags that have features, in their order."""
        return np.unique(self._codes[self.store.mask])

    @cached_property
    def _rows(self) -> np.ndarray:
        """Place of the bag of each row that has features, among the bags that have some."""
        return np.asarray(np.searchsorted(self._present, self._codes[self.store.mask]))

    def _reduced(self, blocks: Iterator[np.ndarray], width: int, pool: str) -> tuple[Floats, Floats]:
        """Return mean and largest value of each feature over each bag, float64 and float32 (n, width), block by block."""
        n = len(self._present)
        total = np.zeros((n, width) if pool != MAX else (0, 0))
        largest = np.full((n, width) if pool != MEAN else (0, 0), -np.inf, dtype=np.float32)
        at = 0
        for block in blocks:
            rows = self._rows[at : at + len(block)]
            at += len(block)
            if not len(rows):
                continue
            order = np.argsort(rows, kind="stable")
            starts = np.flatnonzero(np.diff(rows[order], prepend=-1))
            bags, values = rows[order][starts], block[order]
            if pool != MAX:
                total[bags] += np.add.reduceat(values, starts, axis=0, dtype=np.float64)
            if pool != MEAN:
                largest[bags] = np.maximum(largest[bags], np.maximum.reduceat(values, starts, axis=0))
        if pool != MAX:
            total /= np.bincount(self._rows, minlength=n)[:, None]
        return total, largest


AnyRows = FeatureStore | Bags


def bags_of(store: FeatureStore, pool: str | None, by: str | None) -> AnyRows:
    """Return the store, or its bags where it has any: the volumes that it was made of, or what ``by`` names.

    Args:
        store: The store.
        pool: ``mean`` (the default), ``max``, ``mean+max``, or ``auto``, which leaves the choice to the probe.
        by: The column of bags; None for the recorded one, ``none`` for rows as they are.

    Raises:
        UsageError: There is no such column or pooling, or a pooling and nothing to pool.

    """
    column = store.roles.get("bag") if by is None else None if by == NONE else by
    if column is None:
        if pool is not None:
            raise UsageError(f"--pool {pool}: {store.path.name} has no volumes to pool; --pool-by names a column")
        return store
    return Bags(store, column, POOLS if pool == AUTO else (pool or MEAN,))


def pooled_name(view: str, pool: str) -> str:
    """Return what a pooled view is called."""
    return f"{view} ({pool})"


def split_name(name: str) -> tuple[str, str]:
    """Return the view and the pooling of a pooled view's name."""
    view, _, pool = name.removesuffix(")").rpartition(" (")
    return view, pool
