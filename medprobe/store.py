"""The feature store: one encoder's features of one manifest, in one Zarr v3 folder.

Rows stand in blocks. A block is written whole by one worker and then declared by a commit record that holds the SHA-256 of
each of its chunk files; a block without a valid record does not exist for a reader. ``docs/store-format.md`` says enough
to write another reader.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import zarr

from medprobe.errors import DataError, UnreadableError
from medprobe.storage import AnyPlace, Place, located, storage_at
from medprobe.store_place import whereabouts
from medprobe.store_records import Commit, Plan, chunk_key, commit_key
from medprobe.tables import ids_digest, table_digest

FORMAT = 2
WITH_THUMBNAILS = 3  # the same, and thumbnails: an older reader would take its blocks for incomplete
DIGEST_BYTES = 16
# What each row was made from stands beside its features and is committed with them: the digest of the image's bytes, and
# its file's size and time of change (nanoseconds).
DIGEST_ARRAY = "sources/digest"
STAMP_ARRAY = "sources/stamp"
# What can be known of an image without looking at it: height and width of the source, mean and standard deviation of its
# values as the encoder gets them.
APPEARANCE_ARRAY = "sources/appearance"
SAMPLES_DRAFT = "samples.draft"
# Thumbnails, in stores that are asked to keep them: each row a JPEG file, filled up with zeros.
THUMBNAIL_ARRAY = "sources/thumbnail"
# Folder of what was computed from the features and can be computed again, such as a map of them.
DERIVED = "derived"
_WHOLE_BLOCKS = 8  # that are read at once from an object store, to be digested


class FeatureStore:
    """One encoder's features, opened for reading; :mod:`medprobe.embed` writes it.

    ``samples`` and ``features()`` have the same rows in the same order: the samples that have features. The others are in
    ``failures``, with a reason.

    Args:
        path: The store's folder, or a URL.
        partial: Read the finished blocks of a store that is not complete.

    Raises:
        DataError: There is no store, it is of another format, or (unless ``partial``) blocks are missing when rows are read.

    """

    def __init__(self, path: AnyPlace, *, partial: bool = False) -> None:
        self.path: Place = whereabouts(located(path))
        self.partial = partial
        self._storage = storage_at(self.path)
        self._arrays: dict[str, Any] = {}  # those that have been opened: a request each, at a URL
        try:
            self._group = zarr.open_group(self._storage.zarr(), mode="r", zarr_format=3)
        except (OSError, ValueError, KeyError) as error:
            self._refuse_unreadable(error)
            raise DataError(f"{self.path}: no feature store there (medprobe embed makes one)") from error
        meta: Any = self._group.attrs.get("medprobe")
        if not isinstance(meta, Mapping) or "format" not in meta:
            raise DataError(f"{self.path}: a Zarr group, but not a medprobe feature store")
        if meta["format"] not in {FORMAT, WITH_THUMBNAILS}:
            remedy = "upgrade medprobe" if meta["format"] > FORMAT else "embed the images again (--overwrite)"
            raise DataError(
                f"{self.path}: written in store format {meta['format']}; this medprobe reads formats {FORMAT} and "
                f"{WITH_THUMBNAILS}: {remedy}"
            )
        self.plan = Plan(**meta["plan"])
        self.card: Mapping[str, str] = meta["card"]
        self.versions: Mapping[str, str] = meta["versions"]
        self.thumbnail_bytes = int(meta.get("thumbnail_bytes", 0))  # of each row; 0 where none are kept

    @property
    def encoder(self) -> str:
        """The encoder's name."""
        return str(self.plan.encoder["name"])

    @property
    def views(self) -> Mapping[str, int]:
        """Name and width of each view."""
        return self.plan.views

    @property
    def roles(self) -> Mapping[str, Any]:
        """Columns that are ``labels``, the ``group`` and the ``split``, as recorded when the store was made."""
        return self.samples_group.attrs["roles"]  # type: ignore[return-value]

    @cached_property
    def commits(self) -> Mapping[int, Commit]:
        """Commit records of the blocks that are complete, by their sizes (``verify`` looks at their digests)."""
        self._size_of = self._storage.sizes()

        def committed(index: int) -> Commit | None:
            commit = self._record(index)
            return commit if commit is not None and self._fits(commit, index) else None

        found = enumerate(self._storage.map(committed, range(self.plan.n_blocks)))
        commits = {index: commit for index, commit in found if commit is not None}
        if len(commits) < self.plan.n_blocks and FeatureStore(self.path).plan != self.plan:
            raise DataError(f"{self.path}: it was extended or made again while it was open; open it once more")
        return commits

    def _refuse_unreadable(self, error: Exception) -> None:
        if isinstance(error, OSError) and error.errno in (errno.EIO, errno.EACCES):
            raise UnreadableError(f"{self.path} could not be read: {error.strerror}") from error

    @property
    def missing_blocks(self) -> list[int]:
        """Numbers of the blocks that are still to be made."""
        return [index for index in range(self.plan.n_blocks) if index not in self.commits]

    @cached_property
    def manifest(self) -> pd.DataFrame:
        """Every sample of the manifest, with or without features; column ``id`` first."""
        try:
            names = [str(name) for name in self.samples_group.attrs["columns"]]  # type: ignore[union-attr]
            columns = {name: np.asarray(self.samples_group[name][:]) for name in names}  # type: ignore[index]
        except (OSError, ValueError, KeyError) as error:
            self._refuse_unreadable(error)
            raise DataError(
                f"{self.path}: its table of samples is damaged ({error}); run the embed command again"
            ) from error
        if any(len(values) != self.plan.rows for values in columns.values()):
            raise DataError(f"{self.path}: it was extended while it was open; open it once more")
        return pd.DataFrame({k: v.astype(object) if v.dtype.kind == "T" else v for k, v in columns.items()})

    @property
    def samples(self) -> pd.DataFrame:
        """The samples that have features, in the order of ``features()``."""
        return self.manifest[self.mask].reset_index(drop=True)

    @property
    def mask(self) -> np.ndarray:
        """Boolean (rows of the manifest,): which samples have features."""
        self._check_complete()
        mask = np.zeros(self.plan.rows, dtype=bool)
        for index, commit in self.commits.items():
            mask[self.plan.block(index)] = True
            mask[[failure.row for failure in commit.failures]] = False
        return mask

    @property
    def failures(self) -> pd.DataFrame:
        """Samples without features: id, row, stage, reason."""
        rows = [failure for _, commit in sorted(self.commits.items()) for failure in commit.failures]
        ids = self.manifest["id"].to_numpy()
        records = [(ids[f.row], f.row, f.stage, f.reason) for f in rows]
        return pd.DataFrame(records, columns=["id", "row", "stage", "reason"])

    def view_name(self, view: str | None) -> str:
        """Return the name of a view, that of the default one for None.

        Raises:
            DataError: There is no such view.

        """
        view = self.plan.default_view if view is None else view
        if view not in self.views:
            raise DataError(f"{self.path.name}: no view '{view}'; it has {', '.join(self.views)}")
        return view

    def features(self, view: str | None = None, dtype: Any = np.float32) -> np.ndarray:
        """Return a view (the default one unless named) of shape (len(samples), width), finite; dtype None is the stored one.

        Raises:
            DataError: No such view, an incomplete store (unless opened with ``partial``), or a damaged chunk.

        """
        view = self.view_name(view)
        mask, values = self.mask, self._array(f"features/{view}")
        values = values if mask.all() else values[mask]
        return values if dtype is None else values.astype(dtype, copy=False)

    def feature_blocks(self, view: str | None = None) -> StoredBlocks:
        """Return a view to be read block by block, for features that are larger than memory.

        Raises:
            DataError: As :meth:`features`; a damaged chunk when it is read.

        """
        return StoredBlocks(self, self.view_name(view))

    def image_digests(self) -> np.ndarray:
        """Return the digest of each sample's image, uint8 (len(samples), 16): equal for equal files."""
        digests: np.ndarray = self._array(DIGEST_ARRAY)[self.mask]
        return digests

    def appearance(self) -> np.ndarray:
        """Return height and width of each sample's source image, mean and contrast of its values, float32 (n, 4)."""
        looks: np.ndarray = self._array(APPEARANCE_ARRAY)[self.mask]
        return looks

    def thumbnails(self, rows: Sequence[int] | np.ndarray) -> list[bytes | None]:
        """Return small JPEG files of some rows of the manifest, failed ones too; None where a row has none.

        None have any in a store that was made without ``--thumbnails``; an image that could not be read has none, nor has a
        row whose block is still to be made.

        Raises:
            IndexError: There is no such row.
            DataError: A damaged chunk.

        """
        wanted = np.asarray(rows, dtype=np.int64)
        if len(wanted) and not (wanted.min() >= 0 and wanted.max() < self.plan.rows):
            raise IndexError(f"{self.path.name} has rows 0 to {self.plan.rows - 1}")
        found: list[bytes | None] = [None] * len(wanted)
        blocks = wanted // self.plan.block_rows
        for index in set(blocks.tolist()) & self.commits.keys() if self.thumbnail_bytes else ():
            span = self.plan.block(index)
            packed = self._array(THUMBNAIL_ARRAY, span)
            for place in np.flatnonzero(blocks == index):
                found[place] = packed[wanted[place] - span.start].tobytes().rstrip(b"\0") or None
        return found

    def sources(self, indices: Iterable[int]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield digests, uint8 (rows, 16), and stamps, int64 (rows, 2), of committed blocks' images, failed ones too."""

        def of(rows: slice) -> tuple[np.ndarray, np.ndarray]:
            return self._array(DIGEST_ARRAY, rows), self._array(STAMP_ARRAY, rows)

        return self._storage.map(of, map(self.plan.block, indices))

    def block_arrays(self, index: int) -> dict[str, np.ndarray]:
        """Return a committed block of every one of ``array_names``, as it is stored."""
        return {name: self._array(name, self.plan.block(index)) for name in self.array_names}

    def verify(self) -> Iterator[str]:
        """Yield a sentence for each block, chunk or table that is missing or not as it was written."""
        for problems in self._storage.map(self._block_problems, range(self.plan.n_blocks), _WHOLE_BLOCKS):
            yield from problems
        try:
            digest = table_digest(self.manifest)
        except DataError as error:
            yield str(error)
        else:
            if digest != self.samples_group.attrs["sha256"]:
                yield "samples: not as written"
            if ids_digest(self.manifest["id"]) != self.plan.manifest_sha256:
                yield "samples: other ids than the plan's"

    def damaged_blocks(self, among: Callable[[int], bool] = lambda block: True) -> list[int]:
        """Return the committed blocks whose chunk files no longer have the SHA-256 of their record; all, or some of them."""
        asked = list(filter(among, self.commits))
        problems = self._storage.map(self._block_problems, asked, _WHOLE_BLOCKS)
        return [index for index, found in zip(asked, problems, strict=True) if found]

    @property
    def array_names(self) -> list[str]:
        """Arrays that are written block by block: the views, and what the images were."""
        of_images = [DIGEST_ARRAY, STAMP_ARRAY, APPEARANCE_ARRAY, *([THUMBNAIL_ARRAY] if self.thumbnail_bytes else [])]
        return [*(f"features/{view}" for view in self.views), *of_images]

    def commit_path(self, index: int) -> Path:
        """Return where the commit record of a block stands, in a folder."""
        assert isinstance(self.path, Path)
        return self.path / commit_key(index)

    def chunk_path(self, name: str, index: int) -> Path:
        """Return the file of one block of one array, in a folder."""
        assert isinstance(self.path, Path)
        return self.path / chunk_key(name, index)

    def __repr__(self) -> str:
        size = f"{self.plan.rows} samples, {len(self.commits)}/{self.plan.n_blocks} blocks"
        return f"FeatureStore({self.encoder}, {size}, views {dict(self.views)})"

    def _repr_html_(self) -> str:
        from medprobe.store_html import store_html

        return store_html(self)

    @property
    def has_samples(self) -> bool:
        """Whether its table of samples is there, without which a store has only been begun."""
        return "samples" in self._group

    @cached_property
    def samples_group(self) -> zarr.Group:
        """The Zarr group of the manifest's columns; its attributes are their order, roles and digest."""
        for name in ("samples", SAMPLES_DRAFT):  # whole, and all there is, while the old table makes way for it
            if name in self._group:
                return self._group[name]  # type: ignore[return-value]
        raise DataError(f"{self.path}: its table of samples is missing; run the embed command again")

    def _array(self, name: str, rows: slice | None = None) -> np.ndarray:
        rows = rows or slice(0, self.plan.rows)  # a longer store that has taken this one's place begins with its rows
        try:
            if name not in self._arrays:
                self._arrays[name] = self._group[name]
            return np.asarray(self._arrays[name][rows])
        except (OSError, ValueError, KeyError) as error:
            raise DataError(
                f"{self.path}: {name} is damaged: medprobe verify names the blocks, the embed command makes them again"
            ) from error

    def _check_complete(self) -> None:
        if self.missing_blocks and not self.partial:
            raise DataError(
                f"{self.path}: {len(self.missing_blocks)} of {self.plan.n_blocks} blocks are still to be made: run the same "
                "embed command again, or open it with partial=True (--partial) to use what is there"
            )

    def _fits(self, commit: Commit, index: int) -> bool:
        if commit.plan != self.plan.digest or commit.block != index or set(commit.chunks) != set(self.array_names):
            return False
        return all(self._size_of(chunk_key(name, index)) == chunk["bytes"] for name, chunk in commit.chunks.items())

    def _record(self, index: int) -> Commit | None:
        try:
            return Commit.parse(self._storage.get(commit_key(index)))
        except OSError:
            return None

    def _block_problems(self, index: int) -> list[str]:
        commit = self._record(index)
        if commit is None or commit.plan != self.plan.digest or commit.block != index:
            return [f"block {index}: not complete (no valid commit record)"]
        found = ((name, self._chunk_problem(commit, name, index)) for name in self.array_names)
        return [f"block {index}: {name}: {problem}" for name, problem in found if problem]

    def _chunk_problem(self, commit: Commit, name: str, index: int) -> str | None:
        try:
            data = self._storage.get(chunk_key(name, index))
        except OSError:
            return "chunk file is missing"
        wanted = commit.chunks.get(name, {})
        if len(data) != wanted.get("bytes"):
            return f"chunk file has {len(data)} bytes instead of {wanted.get('bytes')}"
        same = hashlib.sha256(data).hexdigest() == wanted.get("sha256")
        return None if same else "chunk file has changed (SHA-256 differs)"


class StoredBlocks:
    """A view of a store, block by block; ``shape`` is that of the whole."""

    def __init__(self, store: FeatureStore, view: str) -> None:
        self._store, self._view, self._mask = store, view, store.mask
        self.shape = int(self._mask.sum()), store.views[view]

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield the features of each block in turn, float32 (rows with features, width)."""
        for index in sorted(self._store.commits):
            rows = self._store.plan.block(index)
            values = self._store._array(f"features/{self._view}", rows)
            yield values[self._mask[rows]].astype(np.float32, copy=False)


def open_store(path: AnyPlace, *, partial: bool = False) -> FeatureStore:
    """Return the feature store in a folder or at a URL; see :class:`FeatureStore`."""
    return FeatureStore(path, partial=partial)
