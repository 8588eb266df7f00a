"""What is left to do in a store, and whether its images are still the ones that it was made from."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np

from medprobe.errors import DataError
from medprobe.images.decode import opened
from medprobe.images.raster import ImageError, content_digest
from medprobe.images.sources import ImageSource, Payload
from medprobe.store import FeatureStore

log = logging.getLogger("medprobe")


def blocks_to_do(
    store: FeatureStore,
    images: ImageSource,
    *,
    mine: Callable[[int], bool] = lambda block: True,
    check_digest: bool = False,
) -> list[int]:
    """Return the blocks to make: missing ones, damaged ones, and ones whose unreadable images have changed since.

    Only those that are ``mine`` are looked at: another process may be at the others.

    An image counts as changed when its file's size or time differs from the record and its bytes do too; with
    ``check_digest`` the bytes of all are compared.

    Raises:
        DataError: An image that has features is not the one that they were made from.

    """
    damaged = [index for index in store.damaged_blocks() if mine(index)]
    if damaged:
        log.warning("%s: %d damaged blocks are made again", store.path.name, len(damaged))
    to_do = {*filter(mine, store.missing_blocks), *damaged}
    changed: list[int] = []
    for index in filter(mine, sorted(store.commits.keys() - to_do)):
        failed = {failure.row for failure in store.commits[index].failures}
        differing = _changed_rows(store, index, images, check_digest)
        if failed.intersection(differing):
            to_do.add(index)
        changed += [row for row in differing if row not in failed]
    if changed:
        ids = ", ".join(str(store.manifest["id"].iloc[row]) for row in changed[:3])
        raise DataError(
            f"{store.path}: {len(changed)} images have changed or gone since they were embedded (first: {ids}). "
            "Use another folder (-o), or --overwrite to embed everything again."
        )
    return sorted(to_do)


def _changed_rows(store: FeatureStore, index: int, images: ImageSource, check_digest: bool) -> list[int]:
    digests, stamps = store.sources(index)
    start = store.plan.block(index).start
    changed = []
    for i, (digest, stamp) in enumerate(zip(digests, stamps, strict=True)):
        row = start + i
        if (check_digest or images.stamp(row) != tuple(stamp)) and not np.array_equal(
            digest, _digest(images.payload(row))
        ):
            changed.append(row)
    return changed


def _digest(payload: Payload) -> np.ndarray:
    try:
        return content_digest(*opened(payload))
    except ImageError:
        return np.zeros(0, dtype=np.uint8)
