"""The numbers of a report for machines."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from medprobe.probe.compare import Comparison


def numbers(found: Comparison) -> dict[str, Any]:
    """Return rows, differences and ranks as JSON types; a number that is not defined is None."""
    differences = [
        {**asdict(d), "question": d.question._asdict(), "first": d.first.to_dict(), "second": d.second.to_dict()}
        for d in found.differences
    ]
    ranks = found.ranks and {**asdict(found.ranks), "tasks": [task._asdict() for task in found.ranks.tasks]}
    plain: dict[str, Any] = _plain(
        {"rows": [row.to_dict() for row in found.rows], "differences": differences, "ranks": ranks}
    )
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
