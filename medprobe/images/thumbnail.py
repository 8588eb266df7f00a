"""Small pictures of images, for people to look at: the whole image, its shape kept, as JPEG."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from medprobe.images.geometry import Geometry

SIDE = 96  # pixels of the longer side; smaller images stay as they are
MAX_BYTES = 8192  # of one; noise of that size takes some 6,500 at the first quality
GEOMETRY = Geometry(size=(SIDE, SIDE), resize=None, crop="fit", interpolation="lanczos")

_QUALITIES = (80, 60, 40, 20)


def jpeg(pixels: np.ndarray) -> bytes:
    """Return an image, uint8 (height, width, 3), of at most ``SIDE`` pixels a side as a JPEG file of at most ``MAX_BYTES``."""
    image = Image.fromarray(pixels)
    for quality in _QUALITIES:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        if file.tell() <= MAX_BYTES:
            break
    else:
        raise AssertionError(f"{image.size}: no JPEG of {MAX_BYTES} bytes")
    return file.getvalue()
