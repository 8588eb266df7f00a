"""From a name such as ``timm/vit_small_patch16_224`` to a loaded encoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, cast

from medprobe.errors import UsageError

if TYPE_CHECKING:
    from medprobe.encoders.base import Encoder, LoadOptions

ENTRY_POINT_GROUP = "medprobe.encoders"

# Each module has load(spec, options) -> Encoder and catalogue() -> dict of name to one line. Imported when asked for.
FAMILIES: Mapping[str, str] = {
    "aimv2": "medprobe.encoders.aliases",
    "baseline": "medprobe.encoders.baseline",
    "blip": "medprobe.encoders.blip",
    "coca": "medprobe.encoders.aliases",
    "dino": "medprobe.encoders.dino",
    "dinov2": "medprobe.encoders.dinov2",
    "dinov3": "medprobe.encoders.dinov3",
    "hf": "medprobe.encoders.huggingface",
    "imagenet": "medprobe.encoders.imagenet",
    "mae": "medprobe.encoders.mae",
    "openclip": "medprobe.encoders.openclip",
    "sam": "medprobe.encoders.sam",
    "sam2": "medprobe.encoders.sam2",
    "seem": "medprobe.encoders.seem",
    "siglip2": "medprobe.encoders.aliases",
    "timm": "medprobe.encoders.timm",
}


@dataclass(frozen=True)
class Spec:
    """A model's name, taken apart: ``family/name[@tag]``."""

    family: str
    name: str
    tag: str | None = None

    def __str__(self) -> str:
        return f"{self.family}/{self.name}" + (f"@{self.tag}" if self.tag else "")


def parse_spec(text: str) -> Spec:
    """Return the parts of ``family/name[@tag]``.

    Raises:
        UsageError: The text has no family, or one that neither medprobe nor an installed plug-in knows.

    """
    family, slash, rest = text.partition("/")
    if not slash or not rest:
        raise UsageError(f"--model {text}: expected family/name, such as timm/resnet50; families: {_known()}")
    if family not in FAMILIES and family not in plugins():
        raise UsageError(f"--model {text}: no family '{family}'; families: {_known()}")
    name, _, tag = rest.partition("@")
    return Spec(family, name, tag or None)


def load_encoder(model: str, options: LoadOptions | None = None) -> Encoder:
    """Return the encoder of that name on the CPU in float32, frozen, in evaluation mode.

    Raises:
        UsageError: There is no such family or model, or a package that it needs is not installed.
        DataError: A weights file does not fit.

    """
    spec = parse_spec(model)
    try:
        from medprobe.encoders.base import LoadOptions

        load = _loader(spec.family)
        return load(spec, options or LoadOptions()).freeze()
    except ModuleNotFoundError as error:
        raise UsageError(
            f"--model {model} needs the package '{error.name}', which is not installed: pip install 'medprobe[embed]'"
        ) from error


def catalogue() -> dict[str, str]:
    """Return name and one line of every model that medprobe knows by name, by family; imports every family."""
    found: dict[str, str] = {}
    for module in FAMILIES.values():
        found |= import_module(module).catalogue()
    return found


def _loader(family: str) -> Callable[[Spec, LoadOptions], Encoder]:
    added = plugins()
    load = added[family].load() if family in added else import_module(FAMILIES[family]).load
    return cast("Callable[[Spec, LoadOptions], Encoder]", load)


def plugins() -> dict[str, EntryPoint]:
    """Return the families that installed packages add under the entry point group ``medprobe.encoders``."""
    found = entry_points(group=ENTRY_POINT_GROUP)
    return {point.name: point for point in found if point.name not in FAMILIES}


def _known() -> str:
    return ", ".join(sorted({*FAMILIES, *plugins()}))
