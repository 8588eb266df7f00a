"""Making a store and writing its blocks, so that no interruption at any point leaves a row that is wrong."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.storage import MemoryStore

from medprobe.errors import DataError
from medprobe.storage import Place, Url
from medprobe.store import (
    APPEARANCE_ARRAY,
    DERIVED,
    DIGEST_ARRAY,
    DIGEST_BYTES,
    FORMAT,
    SAMPLES_DRAFT,
    STAMP_ARRAY,
    THUMBNAIL_ARRAY,
    WITH_THUMBNAILS,
    FeatureStore,
)
from medprobe.store_records import Commit, Failure, Plan
from medprobe.tables import storable, table_digest


def create_store(
    path: Place,
    plan: Plan,
    samples: pd.DataFrame,
    roles: Mapping[str, Any],
    *,
    card: Mapping[str, str],
    versions: Mapping[str, str],
    thumbnail_bytes: int = 0,
) -> FeatureStore:
    """Return a store of that plan without any block; an existing one is opened as it is.

    The skeleton is made under another name and renamed, so that a store is there whole or not at all, whoever else tries.
    With ``thumbnail_bytes`` it keeps a thumbnail of up to so many bytes for each row.
    """
    meta = {"format": FORMAT, "plan": asdict(plan), "card": dict(card), "versions": dict(versions)}
    if thumbnail_bytes:
        meta |= {"format": WITH_THUMBNAILS, "thumbnail_bytes": thumbnail_bytes}
    if isinstance(path, Url):
        from medprobe import store_objects

        return store_objects.create_store(path, plan, samples, roles, meta)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.draft")
    try:
        draft.mkdir(mode=0o700)  # features can identify patients: private to the user
        write_skeleton(draft, plan, samples, roles, meta)
        draft.rename(path)
    except OSError:
        if not path.exists():  # else somebody else was first
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return FeatureStore(path, partial=True)


def is_store_at(path: Place) -> bool:
    """Return whether something is there already: a folder of any kind, or at a URL a store."""
    return path.exists() if isinstance(path, Path) else (path / "zarr.json").is_file()


def remove_store(path: Place) -> None:
    """Delete a store."""
    if isinstance(path, Path):
        shutil.rmtree(path)
    else:
        from medprobe import store_objects

        store_objects.remove_store(path)


def write_skeleton(
    draft: Path | MemoryStore,
    plan: Plan,
    samples: pd.DataFrame,
    roles: Mapping[str, Any],
    meta: Mapping[str, Any],
) -> None:
    """Write everything of a store that is there before its blocks."""
    group = zarr.create_group(draft, zarr_format=3, attributes={"medprobe": meta})
    for name in ("commits", "features", "sources"):
        group.create_group(name)
    create_arrays(group, plan, meta.get("thumbnail_bytes", 0))
    _write_samples(group, "samples", samples, roles)


def create_arrays(group: zarr.Group, plan: Plan, thumbnail_bytes: int) -> None:
    """Write the metadata of every array that is filled block by block."""
    for view, width in plan.views.items():
        _create_array(group, f"features/{view}", (plan.rows, width), plan.block_rows, plan.dtypes[view])
    _create_array(group, DIGEST_ARRAY, (plan.rows, DIGEST_BYTES), plan.block_rows, "uint8")
    _create_array(group, STAMP_ARRAY, (plan.rows, 2), plan.block_rows, "int64")
    _create_array(group, APPEARANCE_ARRAY, (plan.rows, 4), plan.block_rows, "float32")
    if thumbnail_bytes:
        shape = plan.rows, thumbnail_bytes
        _create_array(group, THUMBNAIL_ARRAY, shape, plan.block_rows, "uint8", ZstdCodec(level=3))


def replace_samples(store: FeatureStore, samples: pd.DataFrame, roles: Mapping[str, Any]) -> bool:
    """Bring the store's table of samples up to date (labels, groups, splits); return whether anything differed."""
    try:
        same = store.samples_group.attrs["sha256"] == table_digest(samples) and store.roles == _plain(roles)
    except DataError:
        same = False
    if isinstance(store.path, Url):
        from medprobe import store_objects

        if not same:
            store_objects.replace_samples(store.path, store.plan, samples, roles, store.thumbnail_bytes)
        return not same
    table, old = store.path / "samples", store.path / "samples.old"
    shutil.rmtree(old, ignore_errors=True)  # of a process that was killed while it swept
    if same and table.exists():
        return False
    _write_samples(zarr.open_group(store.path, mode="r+"), SAMPLES_DRAFT, samples, roles)
    if table.exists():
        table.rename(old)  # at once, as a table of which a part is left would hide the draft from readers
    (store.path / SAMPLES_DRAFT).rename(table)
    shutil.rmtree(old, ignore_errors=True)
    return True


def write_block(
    store: FeatureStore,
    index: int,
    arrays: Mapping[str, np.ndarray],
    failures: Sequence[Failure],
    made_with: Mapping[str, str],
) -> Commit:
    """Write a block whole, then its commit record, each on the disk before the next; return the record.

    ``arrays`` holds every one of ``store.array_names``. A block is a chunk of each, which Zarr writes beside and renames: no
    old file is read or written into, a torn one or one that is another store's as well.
    """
    if isinstance(store.path, Url):
        from medprobe import store_objects

        return store_objects.write_block(store.path, store.plan, index, arrays, failures, made_with)
    rows = store.plan.block(index)
    record = store.commit_path(index)
    record.unlink(missing_ok=True)
    group = zarr.open_group(store.path, mode="r+")
    chunks = {}
    for name in store.array_names:
        values = arrays[name]
        assert len(values) == rows.stop - rows.start, (name, values.shape, rows)
        file = store.chunk_path(name, index)
        with zarr.config.set({"array.write_empty_chunks": True}):
            group[name][rows] = values  # type: ignore[index]
        _sync(file)
        _sync(file.parent)
        data = file.read_bytes()
        chunks[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    commit = Commit(index, store.plan.digest, chunks, tuple(failures), dict(made_with))
    _write_whole(record, commit.dumped())
    return commit


def take_over(store: FeatureStore, base: FeatureStore, index: int) -> None:
    """Commit a full block that stands in another store, of the same rows, in this one, without a copy if that can be."""
    record = store.commit_path(index)
    record.unlink(missing_ok=True)
    for name in store.array_names:
        file = store.chunk_path(name, index)
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = file.with_name(f".{file.name}.{secrets.token_hex(4)}.draft")
        try:
            try:
                os.link(base.chunk_path(name, index), draft)
            except OSError:  # across file systems, or one without links
                shutil.copyfile(base.chunk_path(name, index), draft)
                _sync(draft)
            draft.replace(file)  # never written in place: the file may be the other store's as well
        finally:
            draft.unlink(missing_ok=True)
        _sync(file.parent)
    _write_whole(record, replace(base.commits[index], plan=store.plan.digest).dumped())


def write_derived(store: FeatureStore, name: str, data: bytes) -> None:
    """Keep what was computed from a store's features in its folder, whole or not at all, if that can be written.

    Such a file can be made again: nothing is lost without it, and a reader has to see for itself whether it still fits. At a
    URL nothing is kept.
    """
    if isinstance(store.path, Url):
        return
    path = store.path / DERIVED / name
    with contextlib.suppress(OSError):
        path.parent.mkdir(exist_ok=True)
        _write_whole(path, data)


def _write_samples(group: zarr.Group, name: str, samples: pd.DataFrame, roles: Mapping[str, Any]) -> None:
    attributes = {"columns": list(samples.columns), "roles": _plain(roles), "sha256": table_digest(samples)}
    target = group.create_group(name, overwrite=True, attributes=attributes)
    for column in samples.columns:
        values = storable(samples[column])
        text = values.dtype.kind == "O"
        array = target.create_array(
            column,
            shape=values.shape,
            chunks=(min(max(len(values), 1), 65536),),
            dtype="str" if text else values.dtype,
            compressors=[ZstdCodec(level=3, checksum=True)],
            dimension_names=("row",),
        )
        array[:] = values


def _create_array(
    group: zarr.Group, name: str, shape: tuple[int, int], block_rows: int, dtype: str, *codecs: ZstdCodec
) -> None:
    group.create_array(
        name,
        shape=shape,
        chunks=(min(block_rows, shape[0]), shape[1]),
        dtype=dtype,
        compressors=[*codecs, Crc32cCodec()],  # features do not compress; a flipped bit must not go unseen
        dimension_names=("row", "feature"),
    )


def _plain(value: Mapping[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(value))
    return plain


def _write_whole(path: Path, data: bytes) -> None:
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.draft")
    try:
        with draft.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
