"""The splits of Palés Huix et al. (WACV 2024), row for row, as their released code makes them."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

_SEED = 42
_CUT = 0.2, 15  # the part of the sorted rows that is held out, and how many more


def drawn_split(n: int, held_out: float) -> np.ndarray:
    """Return train, val or test for each of the n rows of a table: drawn image by image, without a look at groups.

    Args:
        n: Rows of the whole table, images that are not there included.
        held_out: Part of them that is not trained on; half of it, rounded down, is ``val``.

    """
    order = list(range(n))
    random.Random(_SEED).shuffle(order)
    held = int(n * held_out)
    sides = np.full(n, "train", dtype=object)
    sides[order[: held // 2]] = "val"
    sides[order[held // 2 : held]] = "test"
    return sides


def sorted_split(paths: Sequence[str]) -> np.ndarray | None:
    """Return train, val or test for each row of a table whose rows are sorted by path: the first are held out.

    The cuts are at rows that are named by their number in the table before it is sorted, and such a row is on both sides
    of its cut: it counts here as ``train`` rather than held out, and as ``val`` rather than ``test``.

    Returns:
        The sides, in the table's own order; None where the table is too small, or in such an order that the second cut
        falls behind the first.

    """
    n = len(paths)
    order = sorted(range(n), key=paths.__getitem__)
    place = np.empty(n, dtype=np.int64)
    place[order] = np.arange(n)
    part, more = _CUT
    cut = int(n * part) + more
    if cut >= n:
        return None
    first_train = int(place[cut])
    last_val = int(place[(first_train + 1) // 2])
    if last_val > first_train:
        return None
    in_order = np.full(n, "train", dtype=object)
    in_order[:first_train] = "test"
    in_order[: min(last_val + 1, first_train)] = "val"
    return np.asarray(in_order[place])
