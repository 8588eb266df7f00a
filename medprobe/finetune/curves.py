"""The figure of a training: loss of training and validation, and the validation metric, by epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from medprobe.report.style import COLOURS, OF_LINES, altair, finished, inline
from medprobe.report.words import metric_name

_WIDTH, _HEIGHT = 420, 180
_LOSSES = {"train_loss": "training loss", "val_loss": "validation loss"}


def curves(history: Sequence[Mapping[str, float]], title: str = "Fine-tuning") -> Any:
    """Return an Altair chart of a training's epochs.

    Args:
        history: A row an epoch: ``epoch``, ``train_loss``, perhaps ``val_loss`` and ``val_<metric>``.
        title: Of the chart.

    Raises:
        UsageError: Altair is not installed.

    """
    alt = altair()
    metric = next((name for name in history[0] if name.startswith("val_") and name != "val_loss"), None)
    panels = [_panel([name for name in _LOSSES if name in history[0]], _LOSSES, history, "loss")]
    if metric is not None:
        name = metric_name(metric.removeprefix("val_"))
        panels.append(_panel([metric], {metric: f"validation {name}"}, history, name))
    return finished(alt.vconcat(*panels), title, [f"{len(history)} epochs"])


def _panel(columns: Sequence[str], names: Mapping[str, str], history: Sequence[Mapping[str, float]], title: str) -> Any:
    alt = altair()
    shown = [names[column] for column in columns]
    records = [
        {"epoch": row["epoch"], "value": row[column], "what": names[column]}
        for row in history
        for column in columns
        if math.isfinite(row[column])
    ]
    colour = alt.Color(
        "what:N", scale=alt.Scale(domain=shown, range=list(COLOURS[: len(shown)])), legend=alt.Legend(**OF_LINES)
    )
    dash = alt.StrokeDash("what:N", scale=alt.Scale(domain=shown, range=[[1, 0], [6, 3]][: len(shown)]), legend=None)
    return (
        alt.Chart(inline(records), width=_WIDTH, height=_HEIGHT)
        .mark_line()
        .encode(
            x=alt.X("epoch:Q", title="epoch", axis=alt.Axis(tickMinStep=1, format="d")),
            y=alt.Y("value:Q", title=title, scale=alt.Scale(zero=False)),
            color=colour,
            strokeDash=dash,
        )
    )
