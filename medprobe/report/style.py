"""How figures look, and how they become files: no browser and no network takes part."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from xml.etree import ElementTree

from medprobe.errors import UsageError
from medprobe.report.words import short

if TYPE_CHECKING:
    from altair import Chart

# Okabe and Ito's colours (Color Universal Design, 2008), without the yellow that is lost on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GREY = "#7F7F7F"
DASHES = ((1, 0), (7, 3), (2, 2), (8, 3, 2, 3), (4, 4), (12, 3), (1, 3))
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right")
SUFFIXES = (".svg", ".png", ".pdf", ".html")

_SVG = "http://www.w3.org/2000/svg"
INK = "#222222"
BELOW: dict[str, Any] = {"title": None, "orient": "bottom", "columns": 1, "symbolOpacity": 1, "symbolStrokeWidth": 0}
"""Legend below a plot, one name a line."""
OF_LINES: dict[str, Any] = {"title": None, "orient": "bottom", "columns": 1, "symbolOpacity": 1} | {
    "symbolType": "stroke", "symbolSize": 500, "symbolStrokeWidth": 2,
}  # fmt: skip
"""Legend of lines without points."""


# One dictionary for the whole chart: Altair's own methods for it copy the chart once each.
_CONFIG: dict[str, Any] = {
    "aria": False,
    "font": "Helvetica, Arial, Liberation Sans, sans-serif",
    "axis": {
        "labelFontSize": 11, "titleFontSize": 12, "titleFontWeight": "normal", "labelColor": INK, "titleColor": INK,
        "gridColor": "#E6E6E6", "domainColor": "#888888", "tickColor": "#888888", "labelLimit": 420, "labelFlush": False,
        "titlePadding": 8,
    },
    "legend": {
        "labelFontSize": 11, "titleFontSize": 11, "titleFontWeight": "normal", "labelLimit": 0, "symbolSize": 80,
        "labelColor": INK, "titleColor": INK, "columnPadding": 16,
    },
    "header": {"labelFontSize": 11, "labelColor": INK, "titleColor": INK, "labelLimit": 300},
    "view": {"stroke": None},
}  # fmt: skip


class Line(NamedTuple):
    """What tells one method from others: readable without colours, too."""

    colour: str
    dash: tuple[int, ...]
    shape: str


def altair() -> Any:
    """Return the module Altair.

    Raises:
        UsageError: It, or vl-convert, is not installed.

    """
    try:
        import altair
        import vl_convert  # noqa: F401 (the charts are worth nothing without)
    except ImportError as error:
        raise UsageError(f"figures need the package {error.name}: pip install 'medprobe[report]'") from error
    return altair


def lines(is_control: Sequence[bool]) -> list[Line]:
    """Return the looks of methods: each its own colour, dash and shape, controls in grey."""
    found, colours = [], 0
    for place, grey in enumerate(is_control):
        colour = GREY if grey else COLOURS[colours % len(COLOURS)]
        colours += not grey
        dash = DASHES[place % len(DASHES)]
        found.append(Line(colour, dash, SHAPES[place % len(SHAPES)]))
    return found


def colour(names: Sequence[str], looks: Sequence[Line], legend: Mapping[str, Any]) -> Any:
    """Return the colours of methods by name."""
    scale = altair().Scale(domain=list(names), range=[look.colour for look in looks])
    return altair().Color("method:N", scale=scale, legend=legend)


def dash(names: Sequence[str], looks: Sequence[Line], legend: Mapping[str, Any] | None) -> Any:
    """Return the dashes of methods by name; with a legend where no points tell them apart."""
    scale = altair().Scale(domain=list(names), range=[list(look.dash) for look in looks])
    return altair().StrokeDash("method:N", scale=scale, legend=legend)


def shape(names: Sequence[str], looks: Sequence[Line]) -> Any:
    """Return the shapes of methods by name."""
    scale = altair().Scale(domain=list(names), range=[look.shape for look in looks])
    return altair().Shape("method:N", scale=scale, legend=BELOW)


def inline(records: Iterable[Mapping[str, Any]]) -> Any:
    """Return records as the data of a chart; a number that is not defined is null.

    They are a tuple, since Altair copies all lists of a chart each time that something is added to it.
    """
    return altair().InlineData(
        values=tuple(
            {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
            for record in records
        )
    )


def finished(chart: Any, title: str, subtitle: Sequence[str]) -> Chart:
    """Return a chart with its title, its subtitle in lines, and the look of all."""
    alt = altair()
    heading = alt.TitleParams(
        short(title, 90), subtitle=list(subtitle), anchor="start", frame="group", fontSize=14, subtitleFontSize=11,
        subtitleColor="#444444", color=INK, offset=12, subtitlePadding=4, limit=0,
    )  # fmt: skip
    whole: Chart = chart.properties(title=heading, background="white", padding=10, config=_CONFIG)
    return whole


def svg(chart: Chart, label: str = "", prefix: str = "") -> str:
    """Return a chart as an SVG element that can stand in a page beside others.

    Args:
        chart: To draw.
        label: What a screen reader says of it.
        prefix: Put before the names within, which a page has in common.

    """
    altair()
    import vl_convert

    root = ElementTree.fromstring(vl_convert.vegalite_to_svg(chart.to_dict()))
    names = {element.get("id", ""): element for element in root.iter() if element.get("id")}
    for name, element in names.items():
        element.set("id", prefix + name)
    for element in root.iter():
        for key, value in element.attrib.items():
            if value.startswith("url(#") and value[5:-1] in names:
                element.set(key, f"url(#{prefix}{value[5:]}")
    root.set("role", "img")
    root.set("aria-label", short(label, 300))
    ElementTree.register_namespace("", _SVG)
    return ElementTree.tostring(root, encoding="unicode")


def pdf(chart: Chart) -> bytes:
    """Return a chart as a PDF of one page, as large as the chart."""
    altair()
    import vl_convert

    made: bytes = vl_convert.vegalite_to_pdf(chart.to_dict())
    return made


def save(chart: Chart, path: str | Path) -> Path:
    """Write a chart to ``.svg``, ``.png`` (300 dots an inch at the printed size), ``.pdf`` or ``.html``; return the path.

    Raises:
        UsageError: The name ends in something else, or vl-convert is not installed.

    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UsageError(f"{path.name}: a figure ends in one of {', '.join(SUFFIXES)}")
    altair()
    import vl_convert

    spec = chart.to_dict()
    if suffix == ".png":
        path.write_bytes(vl_convert.vegalite_to_png(spec, scale=300 / 72, ppi=72))
    elif suffix == ".pdf":
        path.write_bytes(pdf(chart))
    elif suffix == ".svg":
        path.write_text(vl_convert.vegalite_to_svg(spec), encoding="utf-8")
    else:
        # vl-convert's own page holds a script in which a name such as </script> is not escaped.
        title = html.escape(path.stem)
        page = f'<!DOCTYPE html>\n<html lang="en"><meta charset="utf-8"><title>{title}</title>\n{svg(chart)}\n</html>\n'
        path.write_text(page, encoding="utf-8")
    return path
