"""A Vega-Lite figure as an element of a NiceGUI page, drawn by the Vega that comes with vl-convert."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, TypeVar

from nicegui import ui

Found = TypeVar("Found")

VEGA = "/medprobe/vega.js"


class Figure(ui.element, component="vega.js"):
    """A figure that is drawn anew whenever :meth:`show` is called.

    Args:
        selection: Name of an interval selection in the figures.
        on_region: Called with its ends (left, right, bottom, top), or nothing where it is cleared.

    """

    def __init__(self, selection: str = "", on_region: Callable[[tuple[float, ...]], Any] | None = None) -> None:
        super().__init__()
        self.props["selection"] = selection
        self.classes("figure")
        if on_region is not None:
            self.on("region", lambda event: on_region(region(event.args)))

    def show(self, spec: str, question: int = 0) -> None:
        """Draw a specification in JSON, the answer to the question of that number."""
        if (self.props.get("spec"), self.props.get("question")) != (spec, question):
            self.props["spec"], self.props["question"] = spec, question
            self.update()

    def put(self, name: str, values: Sequence[Mapping[str, float]]) -> None:
        """Replace one of the figure's named data sets."""
        self.run_method("put", name, list(values))


async def threaded(work: Callable[..., Found], *given: Any, **named: Any) -> Found:
    """Return what a function gives, computed beside the page's event loop."""
    return await asyncio.to_thread(work, *given, **named)


def region(value: Any) -> tuple[float, ...]:
    """Return the ends of a selection as Vega tells it, or nothing."""
    try:
        return tuple(float(end) for axis in ("x", "y") for end in sorted(value[axis]))
    except (KeyError, TypeError, ValueError):
        return ()


@cache
def vega() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as one script that fetches nothing."""
    import vl_convert

    script: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return script
