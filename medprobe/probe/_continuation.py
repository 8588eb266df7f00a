"""The order in which problems of several penalties are solved, and where each begins.

All at once, the products of a pass are wide, which is fastest while few passes are needed. With few rows for the number
of features the classes can be separated, and a weak penalty takes a hundred passes from the constant model. From the
solutions at stronger penalties it takes ten or twenty: they change about linearly with log C.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]


def batches(shape: tuple[int, int, int], penalty: Floats, size: int, *, in_turn: bool) -> Iterator[list[Indices]]:
    """Yield lists of batches of at most `size` problems, which are numbered in an array of `shape` (F, n_C, L).

    A list has one batch of any problems; or `in_turn` one for each value of C, in ascending order, of the same folds and
    labels.
    """
    by_fold = np.arange(math.prod(shape)).reshape(shape)
    if in_turn:
        numbers = by_fold.swapaxes(0, 1)[np.argsort(penalty, kind="stable")].reshape(len(penalty), -1)
    else:
        numbers = by_fold.reshape(1, -1)
    for first in range(0, numbers.shape[1], size):
        yield list(numbers[:, first : first + size])


class Path:
    """The last two solutions on the way through ascending values of C."""

    def __init__(self) -> None:
        self._found: list[tuple[float, Floats]] = []

    def add(self, C: float, x: Floats) -> None:
        """Remember solutions x (P, M) at C."""
        self._found = [*self._found[-1:], (math.log(C), x)]

    def guess(self, C: float) -> Floats | None:
        """Where the line through the last two solutions in log C leads, (P, M); None before the first."""
        if not self._found:
            return None
        (before, x_before), (last, x_last) = self._found[0], self._found[-1]
        if last == before:
            return x_last
        along: Floats = x_last + (math.log(C) - last) / (last - before) * (x_last - x_before)
        return along
