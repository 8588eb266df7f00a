"""The same picture, or nearly the same, on both sides of a split."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from medprobe.errors import DataError, UsageError
from medprobe.probe.search import neighbours
from medprobe.probe.splits import Part, Split
from medprobe.probe.targets import Floats

DUPLICATES = ("error", "drop", "keep")
NEAR = 0.999  # cosine, of features from which the mean has been taken
# Comparisons of a tested with a training row beyond which near-duplicates are not looked for: about a second.
_MOST_COMPARISONS = 2e7
_LISTED = 3


def image_codes(digests: np.ndarray) -> np.ndarray:
    """Return a code (n,) for each image, equal for equal images, from their digests, uint8 (n, bytes).

    A digest of zeros is that of an image nobody knows: it equals no other.
    """
    whole = np.ascontiguousarray(digests).view(f"V{digests.shape[1]}").ravel()
    codes: np.ndarray = pd.factorize(whole.astype(object))[0]
    unknown = ~digests.any(axis=1)
    codes[unknown] = codes.max(initial=0) + 1 + np.arange(int(unknown.sum()))
    return codes


def joined(groups: np.ndarray | None, codes: np.ndarray) -> np.ndarray | None:
    """Return groups (n,) in which the rows of one image are together too, or ``groups`` where they are already.

    Two patients who share a picture become one group for the purpose of splitting.
    """
    n_images = len(np.unique(codes))
    if n_images == len(codes):
        return groups
    if groups is None:
        return codes
    _, group = np.unique(groups, return_inverse=True)
    _, image = np.unique(codes, return_inverse=True)
    n_groups = int(group.max()) + 1
    size = n_groups + n_images
    edges = coo_matrix((np.ones(len(codes)), (group, n_groups + image)), shape=(size, size))
    _, component = connected_components(edges, directed=False)
    together: np.ndarray = component[group]
    return groups if len(np.unique(together)) == n_groups else together


def without_shared_images(
    split: Split, codes: np.ndarray, ids: np.ndarray, duplicates: str
) -> tuple[Split, tuple[str, ...]]:
    """Return the split without, or with, images that stand on two of its sides, and a note about them.

    Args:
        split: What is to be checked.
        codes: Of the images, (n,).
        ids: Names of the rows, for the message.
        duplicates: ``error``, ``drop`` (the copy that is trained on goes; of training and validation, that of training)
            or ``keep``.

    Raises:
        DataError: An image is on two sides, and ``duplicates`` is ``error``.
        UsageError: ``duplicates`` is none of these.

    """
    if duplicates not in DUPLICATES:
        raise UsageError(f"--duplicates {duplicates}: one of {', '.join(DUPLICATES)}")
    parts, shared = [], 0
    for part in split.parts:
        clean = _without(part, codes)
        lost = len(part.fitted) - len(clean.fitted)
        if lost and duplicates == "error":
            raise DataError(
                f"{lost} images of '{split.name}' are trained on and tested on under another name "
                f"({_pairs(part, codes, ids)}): the result would look better than it is. Mend the split column, or leave "
                "the copies out of training (--duplicates drop)."
            )
        shared += lost
        parts.append(clean if duplicates == "drop" else part)
    if not shared:
        return split, ()
    if duplicates == "drop":
        return replace(split, parts=tuple(parts)), (
            f"{shared} images were left out of training: the same pictures are tested on",
        )
    return split, (f"LEAK: {shared} images are trained on and tested on at once, as was asked for (--duplicates keep)",)


def near_duplicates(X: Floats, split: Split, ids: np.ndarray) -> tuple[str, ...]:
    """Return a note that names tested rows with a training or validation row of nearly the same features, or nothing.

    The cosine is taken of features (n, D) from which their mean is subtracted, as the features of some encoders all point
    the same way. Beyond some size nothing is looked for, and the note says so.
    """
    if sum(len(part.fitted) * len(part.test) for part in split.parts) > _MOST_COMPARISONS:
        return ("too many images to look for near-duplicates across the split",)
    found = near_pairs(X, split)
    if not found:
        return ()
    listed = "; ".join(f"{ids[test]} and {ids[train]}" for _, test, train in found[:_LISTED])
    more = "; ..." if len(found) > _LISTED else ""
    return (f"{len(found)} tested images look the same as a training image to this encoder ({listed}{more})",)


def near_pairs(X: Floats, split: Split) -> list[tuple[float, int, int]]:
    """Return cosine, tested row and its nearest training or validation row, where these are nearly the same, nearest first.

    The cosine is as in :func:`near_duplicates`. Every tested row is compared with every other: of 20,000 it takes seconds, of
    100,000 minutes; :func:`some_tested` makes them fewer.
    """
    centred = X - X.mean(axis=0, dtype=np.float64).astype(X.dtype)
    found: list[tuple[float, int, int]] = []
    for part in split.parts:
        cosine, index = neighbours(centred[part.fitted], centred[part.test], 1, metric="cosine")
        found += [
            (float(cosine[row, 0]), int(part.test[row]), int(part.fitted[index[row, 0]]))
            for row in np.flatnonzero(cosine[:, 0] > NEAR)
        ]
    return sorted(found, reverse=True)


def some_tested(split: Split, most: int, seed: int) -> tuple[Split, str]:
    """Return the split with so few tested rows, at random, that no more than that many pairs are compared, and how few.

    The second value is empty where none had to go.
    """
    n_pairs = sum(len(part.fitted) * len(part.test) for part in split.parts)
    if n_pairs <= most:
        return split, ""
    random, parts = np.random.default_rng(seed), []
    for part in split.parts:
        n = max(1, int(len(part.test) * most / n_pairs))
        parts.append(replace(part, test=np.sort(random.choice(part.test, n, replace=False))))
    some = replace(split, parts=tuple(parts))
    return (
        some,
        f"{len(some.test):,} of the {len(split.test):,} tested images, at random, were compared with all others",
    )


def _without(part: Part, codes: np.ndarray) -> Part:
    train = part.train[~np.isin(codes[part.train], codes[part.test])]
    if part.val is None:
        return replace(part, train=train)
    val = part.val[~np.isin(codes[part.val], codes[part.test])]
    return replace(part, train=train[~np.isin(codes[train], codes[val])], val=val)


def _pairs(part: Part, codes: np.ndarray, ids: np.ndarray) -> str:
    sides = [part.train, part.test] if part.val is None else [part.train, part.val, part.test]
    side_of = {int(row): i for i, rows in enumerate(sides) for row in rows}
    by_code: dict[int, list[int]] = {}
    for row in side_of:
        by_code.setdefault(int(codes[row]), []).append(row)
    pairs = [rows for rows in by_code.values() if len({side_of[row] for row in rows}) > 1]
    listed = "; ".join(" = ".join(str(ids[row]) for row in sorted(rows)[:3]) for rows in pairs[:_LISTED])
    return listed + ("; ..." if len(pairs) > _LISTED else "")
