"""Adding images to stores: the order of the samples, what is taken over, and when the longer store takes its place."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from medprobe.embed.job import Job
from medprobe.embed.resume import blocks_to_do
from medprobe.errors import DataError, UnreadableError
from medprobe.images.sources import ImageSource
from medprobe.manifest import Manifest
from medprobe.storage import Place
from medprobe.store import FeatureStore
from medprobe.store_extension import drafts_of, extended_path
from medprobe.store_place import put_in_place
from medprobe.store_writer import take_over
from medprobe.tables import ids_digest

log = logging.getLogger("medprobe")


def in_store_order(manifest: Manifest, stores: Sequence[Place]) -> Manifest:
    """Return a manifest with the samples of a store first, in its order, and those that it lacks behind them in their own.

    Of several stores, and of drafts that extend them, the one with the most samples decides, unless it has others.

    Raises:
        UnreadableError: The disk refuses to read one of them.

    """
    ids = manifest.samples["id"]
    first = np.zeros(0, dtype=np.intp)
    for path in (found for store in stores for found in (store, *drafts_of(store))):
        try:
            store = FeatureStore(path, partial=True)
            if not len(first) < store.plan.rows <= len(ids):
                continue
            if store.plan.manifest_sha256 == ids_digest(ids[: store.plan.rows]):
                rows = np.arange(store.plan.rows)
            else:
                rows = pd.Index(ids).get_indexer(store.manifest["id"])
        except UnreadableError:  # read a moment later, it would be a store of other samples
            raise
        except DataError:  # whatever is wrong with it is said when it is opened to go on
            continue
        if (rows >= 0).all():
            first = rows
    order = np.concatenate([first, np.setdiff1d(np.arange(len(ids)), first)])
    return manifest if np.array_equal(order, np.arange(len(ids))) else manifest.in_order(order)


def rows_to_do(
    job: Job, images: ImageSource, *, mine: Callable[[int], bool], check_digest: bool, dry_run: bool
) -> dict[int, slice]:
    """Return the blocks to make, and which rows of each are to be embedded; a draft takes over what is not.

    Raises:
        DataError: An image that has features is not the one that they were made from, or the disk refuses.

    """
    taken: set[int] = set()
    begun: dict[int, int] = {}
    for base in job.bases:
        left = blocks_to_do(base, images, mine=lambda i: mine(i) and i not in taken, check_digest=check_digest)
        sound = [i for i in base.commits if mine(i) and i not in taken.union(left)]
        for index in sound:
            if base.plan.block(index) != job.store.plan.block(index):
                begun[index] = base.plan.rows
                continue
            taken.add(index)
            if not dry_run and index not in job.store.commits:
                _take_over(job, base, index)
    if taken:
        job.store = FeatureStore(job.store.path, partial=True)
    left = blocks_to_do(job.store, images, mine=lambda i: mine(i) and i not in taken, check_digest=check_digest)
    blocks = {index: job.store.plan.block(index) for index in left}
    return {index: slice(begun.get(index, rows.start), rows.stop) for index, rows in blocks.items()}


def _take_over(job: Job, base: FeatureStore, index: int) -> None:
    try:
        take_over(job.store, base, index)
    except OSError as error:
        raise DataError(
            f"{base.path}: block {index} could not be taken over: {error.strerror or error}. Nothing of it is lost; run the "
            "same command again when there is room."
        ) from error


def in_place(job: Job) -> Place:
    """Return where a job's store lies now; a draft that is complete takes the place of the store that it extends."""
    draft = job.store.path
    store = extended_path(draft)
    if store is None or not isinstance(draft, Path):
        return draft
    try:
        is_complete = not FeatureStore(draft, partial=True).missing_blocks
    except DataError:  # another process has put it in place
        return store
    if is_complete:
        try:
            put_in_place(draft, store, [path for path in drafts_of(store) if path != draft])
        except OSError as error:
            raise DataError(
                f"{store}: the longer store could not take its place: {error.strerror or error}. Nothing is lost; run the "
                "same command again."
            ) from error
    return draft if draft.exists() else store
