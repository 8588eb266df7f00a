"""What is left to do in a store, and whether its images are still the ones that it was made from."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np

from medprobe.errors import DataError
from medprobe.images.decode import CHUNK, opened, reading
from medprobe.images.raster import ImageError, UnreachableError, content_digest
from medprobe.images.sources import ImageSource, Payload, stamps_of
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
    damaged = store.damaged_blocks(mine)
    if damaged:
        log.warning("%s: %d damaged blocks are made again", store.path.name, len(damaged))
    to_do = {*filter(mine, store.missing_blocks), *damaged}
    changed: list[int] = []
    finished = [*filter(mine, sorted(store.commits.keys() - to_do))]
    for index, (digests, stamps) in zip(finished, store.sources(finished), strict=True):
        failed = {failure.row for failure in store.commits[index].failures}
        differing = _changed_rows(store.plan.block(index), digests, stamps, images, check_digest)
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


def _changed_rows(
    rows: slice, digests: np.ndarray, stamps: np.ndarray, images: ImageSource, check_digest: bool
) -> list[int]:
    known = dict(zip(range(rows.start, rows.stop), digests, strict=True))
    now = [None] * len(known) if check_digest else stamps_of(images, range(rows.start, rows.stop))
    doubtful = [row for row, was, at in zip(known, stamps, now, strict=True) if at != tuple(was)]
    changed = []
    for start in range(0, len(doubtful), CHUNK):
        part = doubtful[start : start + CHUNK]
        payloads = [images.payload(row) for row in part]
        with reading(payloads) as (read, _):
            found = [_digest(payload, read) for payload in payloads]
        changed += [row for row, digest in zip(part, found, strict=True) if not np.array_equal(known[row], digest)]
    return changed


def _digest(payload: Payload, read: Callable[[str], bytes]) -> np.ndarray:
    try:
        return content_digest(*opened(payload, read))
    except UnreachableError as error:  # which says nothing of the image
        raise DataError(f"an image could not be compared with the one that was embedded: {error.reason}") from None
    except ImageError:
        return np.zeros(0, dtype=np.uint8)
