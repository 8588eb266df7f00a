"""A store's objects in an object store, where nothing can be renamed, synced or locked, and any number may write at once.

What can be relied on is that an object is put whole, and that all readers see the last one put. So whoever puts a store's
first object first has made it; a block's record is put after its chunks; and whoever has written a block looks whether
it is all still there, and writes it again if another process was at it, too.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import zarr
from zarr.storage import MemoryStore

from medprobe.errors import DataError
from medprobe.remote import Bucket, bucket
from medprobe.storage import Url
from medprobe.store import THUMBNAIL_ARRAY, FeatureStore
from medprobe.store_records import Commit, Failure, Plan, chunk_key, commit_key
from medprobe.store_writer import create_arrays, write_skeleton

ROOT = "zarr.json"
_TABLE = "samples/"
_TABLE_ROOT = f"{_TABLE}zarr.json"  # put last: where it is, the skeleton is whole
_ROUNDS = 6


def create_store(
    url: Url, plan: Plan, samples: pd.DataFrame, roles: Mapping[str, Any], meta: Mapping[str, Any]
) -> FeatureStore:
    """Return a store of that plan without any block; one that is there already is opened as it is.

    Raises:
        DataError: Its server does not take it.

    """
    objects = _skeleton(plan, samples, roles, meta)
    bucket(url).put_new(ROOT, objects.pop(ROOT))
    store = FeatureStore(url, partial=True)  # perhaps another's, who was first
    if store.plan == plan and not store.has_samples:
        _put_skeleton(bucket(url), objects)
        store = FeatureStore(url, partial=True)
    return store


def replace_samples(
    url: Url, plan: Plan, samples: pd.DataFrame, roles: Mapping[str, Any], thumbnail_bytes: int
) -> None:
    """Put another table of samples in the place of the one that is there, and whatever else is missing before the blocks.

    Until it is all there, readers find no table.

    Raises:
        DataError: Its server does not take it.

    """
    objects = _skeleton(plan, samples, roles, {"thumbnail_bytes": thumbnail_bytes})
    del objects[ROOT]
    _put_skeleton(bucket(url), objects)


def write_block(
    url: Url,
    plan: Plan,
    index: int,
    arrays: Mapping[str, np.ndarray],
    failures: Sequence[Failure],
    made_with: Mapping[str, str],
) -> Commit:
    """Put a block's chunks, then its commit record; return the record.

    Raises:
        DataError: Its server does not take them, or another process writes the same block again and again.

    """
    objects = _chunks(plan, index, arrays)
    chunks = {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in objects.items()}
    commit = Commit(index, plan.digest, chunks, tuple(failures), dict(made_with))
    record = commit_key(index)
    files = {chunk_key(name, index): data for name, data in objects.items()}
    there = bucket(url)
    for attempt in range(_ROUNDS):
        if attempt:
            time.sleep(random.uniform(0, 0.2 * 2**attempt))
        there.delete([record])
        tags = _put_all(there, files)
        tags[record] = there.put(record, commit.dumped())
        other = [key for key, tag in _tags(there, tags).items() if tag != tags[key]]
        if all(_is_at(there, key, files[key] if key in files else commit.dumped()) for key in other):
            return commit
    raise DataError(
        f"{url}: block {index} was changed by another process whenever it had been written; is the same command at work "
        "elsewhere? Run it again when that is done."
    )


def remove_store(url: Url) -> None:
    """Delete a store; commit records first, so that what is left by an interruption promises nothing.

    Raises:
        DataError: Its server does not.

    """
    there = bucket(url)
    keys = [key for key, _ in there.list()]
    there.delete(key for key in keys if key.startswith("commits/"))
    there.delete([ROOT])
    there.delete(key for key in keys if not key.startswith("commits/") and key != ROOT)


def _skeleton(plan: Plan, samples: pd.DataFrame, roles: Mapping[str, Any], meta: Mapping[str, Any]) -> dict[str, bytes]:
    return _written(lambda memory: write_skeleton(memory, plan, samples, roles, meta))


def _put_skeleton(there: Bucket, objects: Mapping[str, bytes]) -> None:
    there.delete([_TABLE_ROOT])
    there.delete(key for key, _ in there.list(_TABLE) if key not in objects)
    _put_all(there, {key: data for key, data in objects.items() if key != _TABLE_ROOT})
    there.put(_TABLE_ROOT, objects[_TABLE_ROOT])


def _chunks(plan: Plan, index: int, arrays: Mapping[str, np.ndarray]) -> dict[str, bytes]:
    """Return the chunk of each array as Zarr would write it."""
    rows = plan.block(index)

    def write(memory: MemoryStore) -> None:
        group = zarr.create_group(memory, zarr_format=3)
        create_arrays(group, plan, arrays[THUMBNAIL_ARRAY].shape[1] if THUMBNAIL_ARRAY in arrays else 0)
        for name, values in arrays.items():
            assert len(values) == rows.stop - rows.start, (name, values.shape, rows)
            with zarr.config.set({"array.write_empty_chunks": True}):
                group[name][rows] = values  # type: ignore[index]

    written = _written(write)
    return {name: written[chunk_key(name, index)] for name in arrays}


def _written(write: Callable[[MemoryStore], None]) -> dict[str, bytes]:
    objects: dict[str, Any] = {}
    write(MemoryStore(objects))
    return {key: buffer.to_bytes() for key, buffer in objects.items()}


def _is_at(there: Bucket, key: str, data: bytes) -> bool:
    try:
        return there.get(key) == data
    except FileNotFoundError:
        return False


def _put_all(there: Bucket, objects: Mapping[str, bytes]) -> dict[str, str]:
    tags = there.map(lambda item: there.put(*item), objects.items())
    return dict(zip(objects, tags, strict=True))


def _tags(there: Bucket, keys: Mapping[str, str]) -> dict[str, str]:
    entries = there.map(there.head, keys)
    return {key: "" if entry is None else entry.tag for key, entry in zip(keys, entries, strict=True)}
