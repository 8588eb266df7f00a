"""From a picture to the pixels that an encoder sees: window, resize and crop, spelled out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from PIL import Image

from medprobe.images.window import FILE, VOLUME_RULE, Window

Crop = Literal["center", "none", "pad", "fit"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True)
class Geometry:
    """Resize and crop of an image, as torchvision does them for Pillow images, always with antialiasing.

    Attributes:
        size: Height and width of the result; with ``fit`` the most that they may be.
        resize: Length of the shorter side (aspect kept), or height and width (aspect not kept), or None for no resize.
        crop: ``center`` cuts the middle out (black where the image is smaller), ``none`` takes the resized image as it
            is, ``pad`` fits the whole image inside ``size`` and centres it on black (``resize`` is not used), ``fit`` makes
            it no larger than ``size`` and leaves it at that.
        interpolation: Filter of the resize.
        exact_decode: Decode a JPEG in full even where it is far larger than needed.
        window: How grey values of a DICOM file or a volume become 0..255.
        slicing: How volumes are cut into slices, in words; empty for images.

    """

    size: tuple[int, int]
    resize: int | tuple[int, int] | None
    crop: Crop = "center"
    interpolation: Interpolation = "bicubic"
    exact_decode: bool = False
    window: Window = FILE
    slicing: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return every value as plain JSON types."""
        resize = list(self.resize) if isinstance(self.resize, tuple) else self.resize
        volumes = {"slices": self.slicing, "volumes": VOLUME_RULE} if self.slicing else {}
        return {
            **volumes,
            "size": list(self.size),
            "resize": resize,
            "crop": self.crop,
            "interpolation": self.interpolation,
            "antialias": True,
            "window": str(self.window),
            "jpeg_decode": "exact" if self.exact_decode else "reduced to no less than twice the resized shorter side",
        }

    @property
    def image_bytes(self) -> int:
        """Bytes of one image of that size, as 8-bit RGB."""
        return 3 * math.prod(self.size)

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """Return width and height of an image of that width and height after the resize, before the crop."""
        if self.crop in {"pad", "fit"}:
            scale = min(self.size[0] / height, self.size[1] / width, *([1.0] if self.crop == "fit" else []))
            return max(1, round(width * scale)), max(1, round(height * scale))
        if self.resize is None:
            return width, height
        if isinstance(self.resize, tuple):
            return self.resize[1], self.resize[0]
        short, long = min(width, height), max(width, height)
        longer = int(self.resize * long / short)  # torchvision's rounding
        return (self.resize, longer) if width <= height else (longer, self.resize)

    def apply(self, image: Image.Image) -> Image.Image:
        """Return the resized and cropped image."""
        target = self.resized(*image.size)
        if image.size != target:
            image = image.resize(target, _RESAMPLING[self.interpolation])
        height, width = self.size
        if image.size == (width, height) or self.crop == "fit":
            return image
        left, top = round((image.width - width) / 2.0), round((image.height - height) / 2.0)
        if image.width < width:
            left = -((width - image.width) // 2)
        if image.height < height:
            top = -((height - image.height) // 2)
        return image.crop((left, top, left + width, top + height))
