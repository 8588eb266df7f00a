"""The figure of a study: mean relative gain over the baseline, a bar for each encoder and head, with its interval."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from medprobe.errors import UsageError
from medprobe.study.show import StudyTable

if TYPE_CHECKING:
    from altair import Chart

_WIDTH = 440
_BAR = 15  # pixels


def gain_figure(table: StudyTable) -> Chart:
    """Return the bars, the highest on top, the head as colour; hollow where a gain is inside the noise.

    Raises:
        UsageError: No method has a gain on every data set, or Altair is not installed.

    """
    from medprobe.report.style import COLOURS, altair, finished, inline

    alt = altair()
    lines = [line for line in table.lines if math.isfinite(line.gain.value)]
    if not lines:
        raise UsageError("no figure: no method has a gain over the baseline on every data set (medprobe study run)")
    shown = {line.method.head for line in lines}
    heads = [label for head in table.study.heads for label in head.labels if label in shown]
    # The view is named where there is more than one of it.
    several = len({(line.method.encoder, line.method.head) for line in lines}) < len(lines)
    records = [
        {
            "method": ", ".join([line.method.encoder, *([line.method.view] if several else []), line.method.head]),
            "head": line.method.head,
            "gain": line.gain.value,
            "low": line.gain.low,
            "high": line.gain.high,
            "sure": line.verdict in {"better", "worse"},
        }
        for line in lines
    ]
    title = "Mean relative gain over the baseline (%)"
    base = alt.Chart(inline(records)).encode(
        y=alt.Y("method:N", sort=None, title=None, axis=alt.Axis(ticks=False, domain=False, grid=False, labelPadding=8))
    )
    colour = alt.Color(
        "head:N",
        scale=alt.Scale(domain=heads, range=[COLOURS[i % len(COLOURS)] for i in range(len(heads))]),
        legend=alt.Legend(title=None, orient="bottom", columns=3),
    )
    filled = alt.condition("datum.sure", alt.value(0.9), alt.value(0.25))
    chart: Chart = (
        base.mark_bar(height=_BAR, strokeWidth=1).encode(
            x=alt.X("gain:Q", title=title), color=colour, stroke=colour, fillOpacity=filled
        )
        + base.mark_rule(strokeWidth=1.4, color="#222222").encode(x=alt.X("low:Q", title=title), x2="high:Q")
        + alt.Chart(inline([{"zero": 0}])).mark_rule(color="#444444").encode(x="zero:Q")
    ).properties(width=_WIDTH, height=alt.Step(_BAR + 7))
    over = f"{len(table.columns)} data set{'s' * (len(table.columns) > 1)}"
    subtitle = [
        f"over {table.study.baseline}, mean over {over}; {table.level:.0%} intervals over patients and seeds",
        "full bars: better or worse after Holm's correction; pale ones: inside the noise, or not once corrected",
    ]
    return finished(chart, table.study.name, subtitle)
