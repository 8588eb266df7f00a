"""Which of several pictures are samples: frames of a file, slices of a volume."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from medprobe.errors import UsageError

Kind = Literal["first", "middle", "all", "every", "spread"]
_KINDS: dict[str, Kind] = {"first": "first", "middle": "middle", "all": "all"}
_NUMBERED = re.compile(r"(every:)?([0-9]{1,9})")


@dataclass(frozen=True)
class Frames:
    """Which of several pictures are samples of their own.

    Attributes:
        kind: ``first``, ``middle``, ``all``, ``every`` so many, or so many of them ``spread`` evenly.
        number: The step of ``every``, the number of ``spread``.

    """

    kind: Kind = "first"
    number: int = 1

    def __str__(self) -> str:
        """Return what :func:`parse_frames` reads."""
        if self.kind == "spread":
            return str(self.number)
        return f"every:{self.number}" if self.kind == "every" else self.kind

    def of(self, n: int) -> Sequence[int]:
        """Return the numbers, from 0, of the chosen ones among n; of a spread, the middles of equal parts."""
        if self.kind == "middle":
            return range(n // 2, n // 2 + 1)
        if self.kind == "spread" and self.number < n:
            return [(2 * i + 1) * n // (2 * self.number) for i in range(self.number)]
        return range(0, 1 if self.kind == "first" else n, self.number if self.kind == "every" else 1)


def parse_frames(text: str) -> Frames:
    """Return the choice of frames that a user writes: ``first``, ``middle``, ``all`` or ``every:N``.

    Raises:
        UsageError: It is none of these.

    """
    found = _parsed(text)
    if found is None or found.kind == "spread":
        raise UsageError(f"frames {text!r}: give first, middle, all or every:N")
    return found


def parse_slices(text: str) -> Frames:
    """Return the choice of slices that a user writes, which may also be the number of evenly spaced ones.

    Raises:
        UsageError: It is none of these.

    """
    found = _parsed(text)
    if found is None:
        raise UsageError(f"slices {text!r}: give all, every:N, N (evenly spaced), first or middle")
    return found


def _parsed(text: str) -> Frames | None:
    plain = text.strip().lower()
    if plain in _KINDS:
        return Frames(_KINDS[plain])
    match = _NUMBERED.fullmatch(plain)
    return Frames("every" if match[1] else "spread", int(match[2])) if match and int(match[2]) > 0 else None
