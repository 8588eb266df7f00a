"""The figure of a training: loss of training and validation, and the validation metric, by epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medprobe.errors import UsageError
from medprobe.leaderboard import METRIC_NAMES

_WIDTH, _HEIGHT = 420, 180
_COLOURS, _DASHES = ("#0072B2", "#D55E00"), ((1, 0), (6, 3))  # readable without colours, too
_LOSSES = {"train_loss": "training loss", "val_loss": "validation loss"}


def write_curves(history: Sequence[Mapping[str, float]], folder: Path) -> None:
    """Write ``curves.svg`` and ``curves.png``.

    Args:
        history: A row an epoch: ``epoch``, ``train_loss``, perhaps ``val_loss`` and ``val_<metric>``.
        folder: Where to.

    Raises:
        UsageError: Altair, or vl-convert, is not installed.

    """
    try:
        import altair
        import vl_convert
    except ImportError as error:
        raise UsageError(f"figures need the package {error.name}: pip install 'medprobe[report]'") from error
    metric = next((name for name in history[0] if name.startswith("val_") and name != "val_loss"), None)
    panels = [_panel(altair, {k: v for k, v in _LOSSES.items() if k in history[0]}, history, "loss")]
    if metric is not None:
        name = metric.removeprefix("val_")
        name = METRIC_NAMES.get(name, name)
        panels.append(_panel(altair, {metric: f"validation {name}"}, history, name))
    chart = altair.vconcat(*panels).properties(background="white", padding=10).to_dict()
    (folder / "curves.svg").write_text(vl_convert.vegalite_to_svg(chart), encoding="utf-8")
    (folder / "curves.png").write_bytes(vl_convert.vegalite_to_png(chart, scale=2))


def _panel(alt: Any, names: Mapping[str, str], history: Sequence[Mapping[str, float]], title: str) -> Any:
    records = [
        {"epoch": row["epoch"], "value": row[column], "what": what}
        for row in history
        for column, what in names.items()
        if math.isfinite(row[column])
    ]
    shown = list(names.values())
    colour, dash = (alt.Scale(domain=shown, range=[list(x) if isinstance(x, tuple) else x for x in looks[: len(shown)]])
                    for looks in (_COLOURS, _DASHES))  # fmt: skip
    legend = alt.Legend(title=None, orient="bottom", symbolType="stroke", symbolSize=500)
    return (
        alt.Chart(alt.InlineData(values=records), width=_WIDTH, height=_HEIGHT)
        .mark_line()
        .encode(
            x=alt.X("epoch:Q", title="epoch", axis=alt.Axis(tickMinStep=1, format="d")),
            y=alt.Y("value:Q", title=title, scale=alt.Scale(zero=False)),
            color=alt.Color("what:N", scale=colour, legend=legend),
            strokeDash=alt.StrokeDash("what:N", scale=dash, legend=legend),
        )
    )
