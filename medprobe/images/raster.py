"""Image files and arrays to 8-bit RGB, with every way that a file can be wrong turned into a reason."""

from __future__ import annotations

import hashlib
import io
import stat
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeGuard

import numpy as np
from PIL import Image, ImageChops, ImageFile, UnidentifiedImageError

from medprobe.errors import DataError, UsageError
from medprobe.images.geometry import Geometry
from medprobe.images.png import lacks_pixels, mark_last_row
from medprobe.images.sources import Box, Source
from medprobe.images.window import FILE, Window

IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".jp2", ".dcm", ".dicom"}
)
SEVERAL = "several frames ({}): --frames first, middle, all or every:N chooses"
_DICM = slice(128, 132)  # where a DICOM file says that it is one
# Pillow's own, beyond which it warns of a decompression bomb; here that warning is an error.
MAX_PIXELS = 89_478_485
MAX_BYTES = 1 << 30
DIGEST_BYTES = 16

# Deeper grey than 8 bits is spread from each image's own darkest to its lightest value: monotone, nothing saturated.
SIXTEEN_BIT_RULE = "linear from the image's own minimum..maximum to 0..255"
# What a store says of its images' colours.
COLOUR_RULE = f"RGB; grey repeated over three channels; alpha over black; deeper than 8 bits {SIXTEEN_BIT_RULE}"

# Only what labs keep images in: fewer decoders are fewer ways in for a hostile file.
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000")
_DEEP_MODES = {"I", "F", "I;16", "I;16L", "I;16B", "I;16N"}
_TIFF_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0
_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(DataError):
    """An image that cannot be used. ``reason`` is short and stable; no path and nothing of the file is in the message."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def read_source(path: str | Path) -> bytes:
    """Return the bytes of a file.

    Raises:
        ImageError: It is missing, empty, not readable, no regular file, or larger than ``MAX_BYTES``.

    """
    path = Path(path)
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise ImageError("a folder, not an image")
        if not stat.S_ISREG(status.st_mode):
            raise ImageError("no regular file")  # opening a pipe would wait for ever
        if status.st_size > MAX_BYTES:
            raise ImageError(f"too large: over {MAX_BYTES >> 20} MiB")
        with path.open("rb") as file:
            data = file.read(status.st_size + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise ImageError("missing") from None
    except PermissionError:
        raise ImageError("no permission to read it") from None
    except (OSError, ValueError):
        raise ImageError("unreadable") from None
    if not data:
        raise ImageError("empty file")
    return data


def open_source(path: str | Path) -> BinaryIO:
    """Return a file, opened for reading.

    Raises:
        ImageError: It is missing, not readable, or no regular file.

    """
    try:
        if not stat.S_ISREG(Path(path).stat().st_mode):
            raise ImageError("no regular file")
        return Path(path).open("rb")
    except (FileNotFoundError, NotADirectoryError):
        reason = "missing"
    except PermissionError:
        reason = "no permission to read it"
    except (OSError, ValueError):
        reason = "unreadable"
    raise ImageError(reason)


@dataclass(frozen=True)
class Region:
    """What of a source is meant.

    Attributes:
        frame: Number of a frame of several, from 0; None for a file of one.
        box: Left, top, width and height of what is cut out, in pixels of the upright image; None for all of it.

    """

    frame: int | None = None
    box: Box | None = None


WHOLE = Region()


def content_digest(source: Source, region: Region = WHOLE) -> np.ndarray:
    """Return the BLAKE2b digest of a file's bytes, or of an array, its shape and dtype, and of what is meant, uint8 (16,)."""
    if not isinstance(source, bytes | np.ndarray):
        return source.digest()
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    if region != WHOLE:
        digest.update(f"frame {region.frame} box {region.box}\n".encode())
    if isinstance(source, np.ndarray):
        digest.update(f"{source.dtype.str}{source.shape}".encode())
        source = np.ascontiguousarray(source).tobytes()
    digest.update(source)
    return np.frombuffer(digest.digest(), dtype=np.uint8)


def load_rgb(source: bytes | np.ndarray, geometries: Sequence[Geometry]) -> list[np.ndarray]:
    """Return an image once for each geometry, uint8 (height, width, 3): :func:`read_rgb` without the size."""
    return read_rgb(source, geometries)[1]


def read_rgb(
    source: Source, geometries: Sequence[Geometry], region: Region = WHOLE, beside: Sequence[Geometry] = ()
) -> tuple[tuple[int, int], list[np.ndarray]]:
    """Return the image's own height and width, and the image once for each geometry, uint8 (height, width, 3).

    It is decoded once. A JPEG that is much larger than needed is decoded at a half, a quarter or an eighth of its size,
    never below twice what the largest geometry needs (unless a geometry asks for ``exact_decode``). EXIF orientation is
    applied, an alpha channel is laid over black (the background that medical images have), grey is repeated over three
    channels, grey deeper than 8 bits follows ``SIXTEEN_BIT_RULE``.

    Args:
        source: A file's bytes, a slice, or pixels (H, W), (H, W, 1) or (H, W, 3) as uint8 or uint16.
        geometries: What is wanted; they share one window.
        region: Which frame of a file of several, and what is cut out of it before it is resized; the size that is
            returned is then of that.
        beside: More geometries, whose images come last. They have no say in how much of a JPEG is decoded, so that the
            others are the same with and without them.

    Raises:
        ImageError: The source is no image that can be used, with the reason; no other exception whatever the bytes.
        UsageError: It is DICOM, and the packages that read it are not installed.

    """
    with _reasons():
        image, (height, width) = _picture(source, geometries, geometries[0].window, region)
        own = height, width
        for geometry in (*geometries, *beside):
            width, height = geometry.resized(*image.size)
            if width * height > MAX_PIXELS:  # a thread of a picture: its longer side grows with its shorter one
                raise ImageError(f"too large: over {MAX_PIXELS:,} pixels once resized")
        return own, [np.asarray(geometry.apply(image)) for geometry in (*geometries, *beside)]


def mask_box(source: bytes) -> Box:
    """Return the smallest box around the pixels of a mask that are above its lowest value.

    Raises:
        ImageError: It is no image that can be used, or has one value only.
        UsageError: It is DICOM, and the packages that read it are not installed.

    """
    with _reasons():
        grey = np.asarray(_picture(source, (), FILE, WHOLE)[0]).max(axis=2)
    rows, columns = (np.flatnonzero((grey > grey.min()).any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        raise ImageError("nothing in it")
    return int(columns[0]), int(rows[0]), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1


def _picture(
    source: Source, geometries: Sequence[Geometry], window: Window, region: Region
) -> tuple[Image.Image, tuple[int, int]]:
    """Return what is meant of a source, perhaps reduced, and the height and width of that in full."""
    if not isinstance(source, bytes | np.ndarray):
        source, window = source.shown(window)
    pixels = _of_dicom(source, window, region.frame) if _is_dicom(source) else source
    if isinstance(pixels, np.ndarray):
        image = _from_array(pixels)
        width, height = image.size
    else:
        image, (width, height) = _decode(pixels, geometries, region)
    if region.box is None:
        return image, (height, width)
    left, top, width, height = region.box
    if width < 1 or height < 1 or left < 0 or top < 0 or left + width > image.width or top + height > image.height:
        raise ImageError("a box that is not inside the image")
    return image.crop((left, top, left + width, top + height)), (height, width)


def squared(pixels: np.ndarray, height: float, width: float) -> np.ndarray:
    """Return an image, uint8, whose pixels are square, by more of them along the longer side of a pixel, bilinear.

    Args:
        pixels: Grey (H, W) or colour (H, W, 3).
        height: Of a pixel.
        width: Of a pixel, in the same unit.

    Raises:
        ImageError: It would be too large.

    """
    rows, columns = (float(n) for n in pixels.shape[:2])
    rows, columns = (rows * (height / width), columns) if height > width else (rows, columns * (width / height))
    if rows * columns > MAX_PIXELS or max(rows, columns) > MAX_PIXELS:
        raise ImageError(f"too large: over {MAX_PIXELS:,} pixels once its pixels are square")
    size = round(columns), round(rows)
    if size == pixels.shape[1::-1]:
        return pixels
    return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).resize(size, Image.Resampling.BILINEAR))


def count_frames(path: str) -> int:
    """Return how many pictures a file holds; their pixels are not decoded.

    Raises:
        ImageError: It cannot be read, or is no image.
        UsageError: It is DICOM, and the packages that read it are not installed.

    """
    data = read_source(path)
    if _is_dicom(data):
        from medprobe.images.dicom import n_frames

        return n_frames(data)
    with _reasons():
        return int(getattr(Image.open(io.BytesIO(data), formats=_FORMATS), "n_frames", 1))


def is_dicom_file(path: str | Path) -> bool:
    """Return whether a file says that it is one of DICOM; one that cannot be read does not."""
    path = Path(path)
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return False  # opening a pipe would wait for ever
        with path.open("rb") as file:
            return _is_dicom(file.read(_DICM.stop))
    except (OSError, ValueError):
        return False


def _is_dicom(source: bytes | np.ndarray) -> TypeGuard[bytes]:
    return isinstance(source, bytes) and source[_DICM] == b"DICM"


def _of_dicom(data: bytes, window: Window, frame: int | None) -> np.ndarray:
    """Return a frame of a DICOM file, or its only one, as the window shows it, uint8 (H, W, 3)."""
    from medprobe.images.dicom import n_frames, read_dicom

    if frame is None and (n := n_frames(data)) > 1:
        raise ImageError(SEVERAL.format(n))
    return read_dicom(data, frame=frame or 0, window=window)


@contextmanager
def _reasons() -> Iterator[None]:
    """Turn whatever Pillow raises into a reason; its own messages carry paths and bytes of the file."""
    before = ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS  # other packages change them for the whole process
    ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = False, MAX_PIXELS
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except (ImageError, UsageError):
        raise
    except UnidentifiedImageError:
        raise ImageError("not an image") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise ImageError(f"too large: over {MAX_PIXELS:,} pixels") from None
    except MemoryError:
        raise ImageError("too large for the memory") from None
    except OSError as error:
        raise ImageError("truncated" if "truncated" in str(error).lower() else "damaged") from None
    except Exception:  # a hostile file may raise anything from a decoder
        raise ImageError("damaged") from None
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = before


def _decode(data: bytes, geometries: Sequence[Geometry], region: Region) -> tuple[Image.Image, tuple[int, int]]:
    """Return a file's picture, perhaps reduced, and the width and height that it has in the file."""
    if not data:
        raise ImageError("empty file")
    image: Image.Image = Image.open(io.BytesIO(data), formats=_FORMATS)
    n = getattr(image, "n_frames", 1)
    if region.frame is None and n > 1:
        raise ImageError(SEVERAL.format(n))
    if region.frame is not None:
        if region.frame >= n:
            raise ImageError("no such frame")
        image.seek(region.frame)
    width, height = image.size
    if image.format == "JPEG" and geometries and region.box is None and not any(g.exact_decode for g in geometries):
        _reduce(image, geometries)
    mark = mark_last_row(image) if image.format == "PNG" and n == 1 else None
    image.load()
    if mark is not None and lacks_pixels(image, data, mark):
        raise ImageError("lacks pixels")
    # Pillow turns this polarity round for 8 bits and fewer only.
    negative = image.mode in _DEEP_MODES and getattr(image, "tag_v2", {}).get(_TIFF_PHOTOMETRIC) == _WHITE_IS_ZERO
    rgb = _to_rgb(_upright(image))
    if (rgb.width > rgb.height) != (width > height):  # turned upright
        width, height = height, width
    return ImageChops.invert(rgb) if negative else rgb, (width, height)


def _upright(image: Image.Image) -> Image.Image:
    """Turn an image as its EXIF says; a broken EXIF block is no reason to lose a picture."""
    try:
        turn = _UPRIGHT.get(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # Pillow raises one kind for each way that a block can be broken
        return image
    return image if turn is None else image.transpose(turn)


def _reduce(image: Image.Image, geometries: Sequence[Geometry]) -> None:
    """Ask the JPEG decoder for the smallest of its sizes that keeps twice what each geometry resizes to."""
    scale = min(
        side / (2 * need)
        for geometry in geometries
        for size in (image.size, image.size[::-1])  # the orientation tag may swap the sides
        for side, need in zip(size, geometry.resized(*size), strict=True)
    )
    if scale >= 2:
        image.draft(None, (int(image.width / scale), int(image.height / scale)))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in _DEEP_MODES:
        return _from_array(np.asarray(image))
    if image.mode in {"LA", "PA", "RGBA", "La", "RGBa"} or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image).convert("RGB")
    if image.mode in {"1", "L", "P", "CMYK", "YCbCr", "LAB", "HSV", "RGBX"}:
        return image.convert("RGB")
    raise ImageError(f"unsupported pixel mode {image.mode}")


def _from_array(pixels: np.ndarray) -> Image.Image:
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.size == 0 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)):
        raise ImageError(f"pixels of shape {pixels.shape}")
    if pixels.dtype != np.uint8:
        pixels = _spread(pixels)
    return Image.fromarray(np.ascontiguousarray(pixels)).convert("RGB")


def _spread(pixels: np.ndarray) -> np.ndarray:
    """Turn deep grey or colour into uint8, by ``SIXTEEN_BIT_RULE``."""
    low, high = float(pixels.min()), float(pixels.max())
    if not np.isfinite(high - low):
        raise ImageError("pixels that are not finite")
    scale = 255.0 / (high - low) if high > low else 0.0
    if pixels.dtype.kind == "u" and pixels.itemsize == 2:  # a table costs an eighth of the memory and time
        table = np.zeros(1 << 16, dtype=np.uint8)
        table[int(low) : int(high) + 1] = np.rint(np.arange(high - low + 1) * scale)
        return np.take(table, pixels)
    return np.rint((pixels.astype(np.float64) - low) * scale).astype(np.uint8)
