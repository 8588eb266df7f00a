"""From a Hugging Face image processor's configuration to preprocessing with every value spelled out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medprobe.encoders.base import LoadOptions, Preprocess
from medprobe.errors import UsageError
from medprobe.images.geometry import Geometry

_INTERPOLATIONS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers
_CONVNEXT_SQUASHES_FROM = 384  # pixels; below, its processor resizes and crops


def preprocess_of(folder: Path, what: str, options: LoadOptions) -> Preprocess:
    """Return the preprocessing that the image processor saved in a folder does.

    Raises:
        UsageError: There is no such file, or it asks for something else than resize, crop, scale to 0..1 and normalise.

    """
    from transformers import AutoImageProcessor

    loader: Any = AutoImageProcessor

    try:
        processor = loader.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UsageError(f"--model {what}: {folder} has no preprocessor_config.json that transformers knows") from error
    return from_config(processor.to_dict(), what, options)


def from_config(config: Mapping[str, Any], what: str, options: LoadOptions) -> Preprocess:
    """Return the preprocessing of an image processor's configuration, complete with its class's defaults."""
    factor = config.get("rescale_factor", 1 / 255)
    if not config.get("do_rescale", True) or not math.isclose(factor, 1 / 255, rel_tol=1e-3):
        raise UsageError(f"--model {what}: its processor scales pixels by {factor}, which is not 1/255")
    size, resize, crop = _resize_and_crop(config, what)
    if options.image_size:
        target = options.image_size
        scale = target / size[0]
        resize = (
            round(resize * scale) if isinstance(resize, int) else (round(resize[0] * scale), round(resize[1] * scale))
        )
        size = (target, target)
    normalised = config.get("do_normalize", True)
    return Preprocess(
        geometry=Geometry(
            size=size,
            resize=resize,
            crop=crop,
            interpolation=_interpolation(config, what),
            exact_decode=options.exact_decode,
        ),
        mean=_triple(config["image_mean"]) if normalised else (0.0, 0.0, 0.0),
        std=_triple(config["image_std"]) if normalised else (1.0, 1.0, 1.0),
    )


def _resize_and_crop(config: Mapping[str, Any], what: str) -> tuple[tuple[int, int], int | tuple[int, int], Any]:
    """Return final size, what is resized to (an int: the shorter side), and how it is cropped."""
    size = config.get("size")
    size = {"shortest_edge": size} if isinstance(size, int) else dict(size or {})
    cropped = _crop_size(config) if config.get("do_center_crop") else None
    if "height" in size and "width" in size:
        both = (int(size["height"]), int(size["width"]))
        return (cropped or both), both, ("center" if cropped else "none")
    if "shortest_edge" not in size:
        raise UsageError(f"--model {what}: its processor has no fixed size ({size or 'none'})")
    side = int(size["shortest_edge"])
    if config.get("crop_pct") and cropped is None:
        if side >= _CONVNEXT_SQUASHES_FROM:
            return (side, side), (side, side), "none"
        return (side, side), int(side / config["crop_pct"]), "center"
    return (cropped or (side, side)), side, "center"


def _crop_size(config: Mapping[str, Any]) -> tuple[int, int]:
    crop = config["crop_size"]
    return (crop, crop) if isinstance(crop, int) else (int(crop["height"]), int(crop["width"]))


def _interpolation(config: Mapping[str, Any], what: str) -> Any:
    number = int(config.get("resample", 2))
    if number not in _INTERPOLATIONS:
        raise UsageError(f"--model {what}: its processor resizes with Pillow's filter {number}, which is not supported")
    return _INTERPOLATIONS[number]


def _triple(values: Any) -> tuple[float, float, float]:
    first, second, third = (float(v) for v in (values if len(values) == 3 else list(values) * 3))
    return first, second, third
