"""Pixels against torchvision's and Pillow's, and every way that a file can be wrong."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import zlib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile
from torchvision.transforms import v2

from medprobe.images import raster
from medprobe.images.geometry import Geometry
from medprobe.images.raster import ImageError, content_digest, load_rgb, read_source

RNG = np.random.default_rng(0)
MODES = {m.value: m for m in v2.InterpolationMode}


def encoded(image: Image.Image, file_format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def noise(height: int, width: int) -> Image.Image:
    return Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8))


def whole(height: int, width: int) -> Geometry:
    return Geometry((height, width), None, crop="none")


def load(data: bytes | np.ndarray, geometry: Geometry) -> np.ndarray:
    (pixels,) = load_rgb(data, [geometry])
    return pixels


def reason(data: bytes | np.ndarray, geometry: Geometry | None = None) -> str:
    with pytest.raises(ImageError) as caught:
        load_rgb(data, [geometry or Geometry((8, 8), 8)])
    return caught.value.reason


# ---- geometry


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 90), st.integers(1, 90)),
    st.one_of(st.none(), st.integers(1, 70), st.tuples(st.integers(1, 70), st.integers(1, 70))),
    st.tuples(st.integers(1, 70), st.integers(1, 70)),
    st.sampled_from(["nearest", "bilinear", "bicubic", "lanczos"]),
)
def test_resize_and_crop_are_torchvisions(size, resize, crop, interpolation):
    image = noise(*size)
    steps = [v2.Resize(resize, interpolation=MODES[interpolation])] if resize else []
    expected = np.asarray(v2.Compose([*steps, v2.CenterCrop(crop)])(image))
    np.testing.assert_array_equal(
        load(encoded(image), Geometry(crop, resize, interpolation=interpolation)), expected, strict=True
    )


@pytest.mark.parametrize(("size", "inside"), [((100, 50), (48, 24)), ((50, 100), (24, 48)), ((10, 5), (48, 24))])
def test_padding_keeps_all_of_the_image_in_the_middle_of_black(size, inside):
    image = Image.new("RGB", size[::-1], "white")
    pixels = load(encoded(image), Geometry((48, 48), None, crop="pad"))
    rows, columns = (np.flatnonzero(pixels.any(axis=(2, axis))) for axis in (1, 0))
    assert (len(rows), len(columns)) == inside
    assert rows[0] == 48 - 1 - rows[-1]
    assert columns[0] == 48 - 1 - columns[-1]
    assert set(np.unique(pixels)) == {0, 255}


def test_one_decode_serves_every_geometry():
    data = encoded(noise(70, 50))
    geometries = [Geometry((8, 8), 8), whole(70, 50), Geometry((20, 30), (20, 30), crop="none"), Geometry((8, 8), 8)]
    for pixels, geometry in zip(load_rgb(data, geometries), geometries, strict=True):
        assert pixels.shape == (*geometry.size, 3)
        assert pixels.dtype == np.uint8
        np.testing.assert_array_equal(pixels, load(data, geometry))


def test_a_geometry_names_all_that_decides_pixels():
    one = Geometry((8, 9), 8)
    others = [
        Geometry((8, 8), 8),
        Geometry((8, 9), (8, 8)),
        Geometry((8, 9), 8, crop="pad"),
        Geometry((8, 9), 8, interpolation="lanczos"),
        Geometry((8, 9), 8, exact_decode=True),
    ]
    assert len({one, *others, Geometry((8, 9), 8)}) == 6
    assert all(other.to_dict() != one.to_dict() for other in others)


# ---- reduced decode


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    rng = np.random.default_rng(1)
    canvas = np.full((1800, 2400), 128.0)
    for cells in (3, 9, 30, 120, 500):
        coarse = Image.fromarray(rng.standard_normal((cells, cells), dtype=np.float32))
        canvas += np.asarray(coarse.resize((2400, 1800), Image.Resampling.BICUBIC)) * max(60 / cells, 4)
    canvas = canvas[:, :, None] * np.array([1.0, 0.8, 0.9]) + rng.normal(0, 8, (1800, 2400, 3))
    return Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"mode": "L"}, {"mode": "CMYK"}])
@pytest.mark.parametrize("geometry", [Geometry((224, 224), 256), Geometry((96, 160), (96, 160), crop="none")])
def test_a_reduced_jpeg_differs_by_less_than_one_level(photo, options, geometry):
    options = dict(options)
    data = encoded(photo.convert(options.pop("mode", "RGB")), "JPEG", quality=90, **options)
    full = np.asarray(geometry.apply(Image.open(io.BytesIO(data)).convert("RGB")))
    reduced = load(data, geometry)
    assert 0 < np.abs(reduced.astype(int) - full).mean() < 1
    np.testing.assert_array_equal(
        load(data, Geometry(geometry.size, geometry.resize, geometry.crop, exact_decode=True)), full
    )


@pytest.mark.parametrize(
    ("geometries", "shorter"),
    [
        ([Geometry((224, 224), 224)], 450),
        ([Geometry((224, 224), 226)], 900),
        ([Geometry((64, 64), 64)], 225),
        ([Geometry((64, 64), 64), Geometry((224, 224), 256)], 900),
        ([Geometry((64, 64), 64), Geometry((64, 64), 64, exact_decode=True)], 1800),
        ([Geometry((224, 224), None)], 1800),
        ([Geometry((400, 100), (400, 100), crop="none")], 900),
        ([Geometry((300, 300), None, crop="pad")], 450),
    ],
)
def test_a_jpeg_keeps_twice_what_the_largest_geometry_needs(photo, monkeypatch, geometries, shorter):
    decoded = []
    turn = raster._to_rgb
    monkeypatch.setattr(raster, "_to_rgb", lambda image: decoded.append(min(image.size)) or turn(image))
    load_rgb(encoded(photo, "JPEG"), geometries)
    assert decoded == [shorter]


def test_a_squashed_jpeg_keeps_twice_the_need_of_each_side(monkeypatch):
    decoded = []
    turn = raster._to_rgb
    monkeypatch.setattr(raster, "_to_rgb", lambda image: decoded.append(image.size) or turn(image))
    wide = encoded(noise(10, 80).resize((4000, 500)), "JPEG")
    load_rgb(wide, [Geometry((400, 100), (400, 100), crop="none")])
    load_rgb(wide, [Geometry((100, 100), (100, 100), crop="none")])
    assert decoded == [(4000, 500), (2000, 250)]


def test_a_reduced_jpeg_is_turned_and_refused_like_a_full_one(photo):
    exif = Image.Exif()
    exif[0x0112] = 6
    geometry = Geometry((64, 64), 64)
    data = encoded(photo, "JPEG", exif=exif)
    upright = load(encoded(photo.transpose(Image.Transpose.ROTATE_270), "JPEG"), geometry)
    assert np.abs(load(data, geometry).astype(int) - upright).mean() < 1
    for lost in (2, 1000, len(data) // 2):
        assert reason(data[:-lost], geometry) == "truncated"


# ---- modes


@pytest.mark.parametrize(
    ("mode", "file_format"),
    [
        ("1", "PNG"), ("L", "PNG"), ("P", "PNG"), ("P", "GIF"), ("RGB", "PNG"), ("RGB", "TIFF"), ("RGB", "BMP"),
        ("RGB", "PPM"), ("L", "PPM"), ("CMYK", "TIFF"), ("CMYK", "JPEG"), ("YCbCr", "JPEG"), ("YCbCr", "TIFF"),
        ("LAB", "TIFF"), ("RGB", "JPEG2000"), ("L", "JPEG2000"), ("RGB", "WEBP"),
    ],
)  # fmt: skip
def test_modes_without_alpha_are_pillows(mode, file_format):
    data = encoded(noise(12, 10).convert(mode), file_format)
    expected = Image.open(io.BytesIO(data))
    assert expected.mode == mode or (mode, file_format) == ("YCbCr", "JPEG")
    np.testing.assert_array_equal(load(data, whole(12, 10)), np.asarray(expected.convert("RGB")))


def test_adobe_cmyk_and_ycck_keep_their_colours():
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    for adobe in (encoded(red, "JPEG", quality=100), encoded(red, "JPEG", quality=100, keep_rgb=False)):
        assert b"Adobe" in adobe
        np.testing.assert_allclose(load(adobe, whole(16, 16))[8, 8], (255, 0, 0), atol=3)


@pytest.mark.parametrize(("mode", "file_format"), [("RGBA", "PNG"), ("LA", "PNG"), ("PA", "TIFF"), ("RGBA", "WEBP")])
def test_alpha_lies_over_black(mode, file_format):
    image = noise(12, 10).convert({"PA": "P", "LA": "L"}.get(mode, "RGB"))
    opaque = np.asarray(image.convert("RGB")).astype(float)
    alpha = np.tile(np.array([0, 128, 255], dtype=np.uint8), (12, 4))[:, :10]
    image = image.convert(mode)
    image.putalpha(Image.fromarray(alpha))
    options = {"lossless": True, "exact": True} if file_format == "WEBP" else {}
    pixels = load(encoded(image, file_format, **options), whole(12, 10))
    np.testing.assert_allclose(pixels, opaque * (alpha / 255.0)[:, :, None], atol=1)


def test_a_transparent_colour_is_black():
    image = Image.new("RGB", (4, 4), (200, 100, 50))
    assert load(encoded(image, transparency=(200, 100, 50)), whole(4, 4)).max() == 0
    np.testing.assert_array_equal(load(encoded(image, transparency=(1, 2, 3)), whole(4, 4))[0, 0], (200, 100, 50))


def test_a_transparent_palette_entry_is_black():
    image = Image.new("P", (4, 4), 1)
    image.putpalette([10, 20, 30, 200, 100, 50])
    np.testing.assert_array_equal(load(encoded(image), whole(4, 4))[0, 0], (200, 100, 50))
    assert load(encoded(image, transparency=1), whole(4, 4)).max() == 0


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_every_orientation_is_undone_once(orientation, file_format):
    stored = np.zeros((16, 24, 3), dtype=np.uint8)
    stored[:8, :8] = 255
    turned = {
        1: stored, 2: stored[:, ::-1], 3: stored[::-1, ::-1], 4: stored[::-1], 5: stored.swapaxes(0, 1),
        6: np.rot90(stored, -1), 7: stored[::-1, ::-1].swapaxes(0, 1), 8: np.rot90(stored),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(
        Image.fromarray(stored), file_format, **({"quality": 100} if file_format != "TIFF" else {}), exif=exif
    )
    assert np.abs(load(data, whole(*turned.shape[:2])).astype(int) - turned).max() < 8


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_a_broken_exif_block_costs_no_picture(file_format):
    exif = Image.Exif()
    exif[0x0112], exif[0x010E], exif[0x011A] = 6, "d" * 30, 72.0
    exif.get_ifd(0x8769)[0x9000] = b"0230"
    good = exif.tobytes()
    blocks = [good[:12], good[:6] + b"MM\0\xff" + good[10:]]
    rng = np.random.default_rng(2)
    for _ in range(150):
        block = bytearray(good)
        for place in rng.integers(10, len(block), 4):
            block[place] = rng.choice([0, 1, 2, 3, 5, 7, 12, 255])
        blocks.append(bytes(block))
    image = noise(8, 8)
    for block in blocks:
        assert load(encoded(image, file_format, exif=block), whole(8, 8)).shape == (8, 8, 3)


# ---- deep grey


def deep(kind: str, values: np.ndarray) -> bytes | np.ndarray:
    if kind == "array":
        return values.astype(np.uint16)
    file_format, _, mode = kind.partition(" ")
    if mode == "I;16B":
        image = Image.frombytes(mode, values.shape[::-1], values.astype(">u2").tobytes())
    else:
        image = Image.fromarray(values.astype({"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]))
    assert image.mode == mode
    return encoded(image, file_format)


@pytest.mark.parametrize(
    "kind", ["PNG I;16", "TIFF I;16", "TIFF I;16B", "TIFF I", "TIFF F", "PPM I;16", "JPEG2000 I;16", "array"]
)
@pytest.mark.parametrize(("low", "high"), [(0, 4095), (1000, 1100), (300, 60_000), (0, 65_535)])
def test_deep_grey_stays_monotone_and_uses_the_whole_range(kind, low, high):
    ramp = np.linspace(low, high, 4096).astype(np.int64).reshape(64, 64)
    pixels = load(deep(kind, ramp), whole(64, 64))
    expected = np.rint((ramp - low) * (255 / (high - low)))
    np.testing.assert_array_equal(pixels, np.repeat(expected[:, :, None], 3, axis=2))
    assert (pixels == 255).mean() < 0.02


def test_constant_deep_grey_is_black():
    assert load(np.full((5, 4), 900, dtype=np.uint16), whole(5, 4)).max() == 0


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_white_is_zero_is_turned_round_at_every_depth(dtype):
    ramp = np.linspace(0, 255 if dtype == np.uint8 else 4000, 256).astype(dtype).reshape(16, 16)
    tag = struct.pack("<HHI", 262, 3, 1)  # the photometric interpretation, one short
    black = encoded(Image.fromarray(ramp), "TIFF")
    assert black.count(tag + b"\x01") == 1
    white = black.replace(tag + b"\x01", tag + b"\x00")
    np.testing.assert_array_equal(load(white, whole(16, 16)), 255 - load(black, whole(16, 16)))


def test_pixels_that_are_not_finite_are_refused():
    for value in (np.nan, np.inf):
        pixels = np.zeros((4, 4), dtype=np.float32)
        pixels[1, 1] = value
        assert reason(encoded(Image.fromarray(pixels), "TIFF")) == "pixels that are not finite"


# ---- arrays


@pytest.mark.parametrize("shape", [(9, 7), (9, 7, 1), (9, 7, 3)])
def test_arrays_are_read_as_they_are(shape):
    pixels = RNG.integers(0, 256, shape, dtype=np.uint8)
    expected = pixels if shape[2:] == (3,) else np.repeat(pixels.reshape(9, 7, 1), 3, axis=2)
    np.testing.assert_array_equal(load(pixels, whole(9, 7)), expected)
    np.testing.assert_array_equal(load(np.asfortranarray(pixels)[::-1], whole(9, 7)), expected[::-1])


@pytest.mark.parametrize("shape", [(), (4,), (4, 4, 2), (4, 4, 4), (1, 4, 4, 3), (0, 4), (4, 0, 3)])
def test_other_arrays_are_refused(shape):
    assert reason(np.zeros(shape, dtype=np.uint8)) == f"pixels of shape {shape}"


def test_a_digest_tells_bytes_shapes_and_types_apart():
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    sources = [b"", b"a", pixels, pixels.T, pixels.reshape(4, 3), pixels.astype(np.uint16), pixels.tobytes()]
    digests = [content_digest(source) for source in sources]
    assert all(d.shape == (raster.DIGEST_BYTES,) and d.dtype == np.uint8 for d in digests)
    assert len({d.tobytes() for d in digests}) == len(sources)
    np.testing.assert_array_equal(content_digest(pixels.T), content_digest(pixels.T.copy()))


# ---- what is refused


@pytest.mark.parametrize("mode", ["L", "RGB", "I;16"])
def test_a_big_tiff_is_read_like_a_small_one(mode):
    values = np.linspace(0, 60_000, 48 * 40).reshape(48, 40).astype(np.uint16)
    image = Image.fromarray(values) if mode == "I;16" else Image.fromarray((values >> 8).astype(np.uint8)).convert(mode)
    found = []
    for big in (False, True):
        buffer = io.BytesIO()
        image.save(buffer, "TIFF", big_tiff=big)
        assert buffer.getvalue()[2] == (43 if big else 42)
        found.append(load(buffer.getvalue(), whole(48, 40)))
    np.testing.assert_array_equal(*found)
    assert found[0].std() > 10


@pytest.mark.parametrize("file_format", ["GIF", "TIFF", "PNG", "WEBP"])
def test_several_frames_are_refused_in_words(file_format):
    data = encoded(noise(8, 8), file_format, save_all=True, append_images=[noise(8, 8), noise(8, 8)])
    assert reason(data).startswith("several frames (3)")


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "TIFF", "GIF", "WEBP", "BMP", "PPM", "JPEG2000"])
def test_truncated_files_are_refused_whatever_other_packages_set(monkeypatch, file_format):
    data = encoded(noise(150, 200), file_format)
    for allowed in (False, True):
        monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", allowed)
        for kept in (len(data) // 2, len(data) - 40):
            assert reason(data[:kept]) in {"truncated", "damaged"}
        assert ImageFile.LOAD_TRUNCATED_IMAGES is allowed


PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
PNG_KINDS = [(1, 0), (2, 0), (4, 0), (8, 0), (16, 0), (8, 2), (16, 2), (1, 3), (8, 3), (8, 4), (16, 4), (8, 6), (16, 6)]


def png(bits: int, colour: int, pixels: np.ndarray, *, interlaced: bool, lost: int = 0, parts: int = 1) -> bytes:
    """A PNG of samples (H, W, channels), its stream shorter by so many bytes and sound, in so many chunks."""
    height, width, _ = pixels.shape
    views = [pixels[y::down, x::across] for x, y, across, down in PASSES] if interlaced else [pixels]
    stream = b""
    for view in views:
        for row in view if view.size else ():
            shifts = np.arange(bits - 1, -1, -1)
            stream += b"\0" + np.packbits(((row.ravel()[:, None] >> shifts) & 1).astype(bool)).tobytes()
    body = zlib.compress(stream[: len(stream) - lost])
    cuts = np.linspace(0, len(body), parts + 1).astype(int)
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlaced)
    palette = [(b"PLTE", bytes(range(256)) * 3)] if colour == 3 and bits == 8 else [(b"PLTE", b"abcdef")]
    chunks = [(b"IHDR", header), *(palette if colour == 3 else [])]
    chunks += [(b"IDAT", body[a:b]) for a, b in pairwise(cuts)] + [(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


@pytest.mark.parametrize(("bits", "colour"), PNG_KINDS)
@pytest.mark.parametrize("interlaced", [False, True])
def test_a_png_whose_stream_is_sound_and_short_is_refused(bits, colour, interlaced):
    pixels = RNG.integers(0, 1 << bits, (11, 13, {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]))
    whole_file = png(bits, colour, pixels, interlaced=interlaced, parts=3)
    expected = Image.open(io.BytesIO(whole_file))
    expected.load()
    assert load(whole_file, whole(11, 13)).shape == (11, 13, 3)
    if bits == 8 and colour == 2:
        np.testing.assert_array_equal(load(whole_file, whole(11, 13)), pixels)
    row = 1 + (13 * pixels.shape[2] * bits + 7) // 8
    for rows in (1, 2, 4):  # of the last pass, where there are several
        short = png(bits, colour, pixels, interlaced=interlaced, lost=rows * row)
        Image.open(io.BytesIO(short)).load()  # Pillow reads it, with black in place of what is missing
        assert reason(short) == "lacks pixels"
    assert reason(png(bits, colour, pixels, interlaced=interlaced, lost=1)) in {"truncated", "lacks pixels"}


@pytest.mark.parametrize("value", [0, 1, 85, 255])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_a_png_of_one_colour_is_read_whatever_its_colour(mode, value):
    image = Image.new("L", (300, 200), value)
    image = Image.fromarray(np.full((200, 300), value * 257, np.uint16)) if mode == "I;16" else image.convert(mode)
    data = encoded(image)
    assert load(data, whole(200, 300)).shape == (200, 300, 3)
    ending = Image.open(io.BytesIO(data))
    raster.mark_last_row(ending)  # a picture that really ends in the mark
    marked = Image.new(ending.mode, ending.size)
    marked.im = ending.im
    assert load(encoded(marked), whole(200, 300)).shape == (200, 300, 3)


def test_a_png_is_inflated_piece_by_piece():
    pixels = np.zeros((500, 400, 3), dtype=np.int64)  # a thousandth of its size when compressed
    assert load(png(8, 2, pixels, interlaced=True, parts=2), Geometry((8, 8), 8)).shape == (8, 8, 3)
    assert reason(png(8, 2, pixels, interlaced=True, parts=2, lost=1 + 400 * 3)) == "lacks pixels"


def test_bombs_are_refused_at_the_limit_whatever_other_packages_set(monkeypatch):
    monkeypatch.setattr(raster, "MAX_PIXELS", 10_000)
    for pillows in (None, 100):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pillows)
        assert load(encoded(Image.new("L", (100, 100))), whole(8, 8)).shape == (8, 8, 3)
        for side in (101, 300):  # Pillow warns from once the limit and raises from twice
            assert reason(encoded(Image.new("L", (100, side)))) == "too large: over 10,000 pixels"
        assert pillows == Image.MAX_IMAGE_PIXELS


def test_the_limit_is_the_one_that_is_told():
    data = bytearray(encoded(Image.new("L", (8, 8))))
    data[16:24] = struct.pack(">II", 5, raster.MAX_PIXELS // 5 + 1)  # the size that the header claims
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    assert reason(bytes(data)) == f"too large: over {raster.MAX_PIXELS:,} pixels"


def test_a_thread_of_a_picture_does_not_fill_the_memory():
    data = encoded(Image.new("RGB", (20_000, 1), "red"))
    assert reason(data, Geometry((224, 224), 256)).startswith("too large")
    assert load(data, Geometry((8, 8), (8, 8), crop="none")).shape == (8, 8, 3)


def test_reading_a_path_gives_its_bytes_or_a_reason_without_its_name(tmp_path, monkeypatch):
    path = tmp_path / "CANARY^JANE.png"
    path.write_bytes(b"abc")
    assert read_source(path) == read_source(str(path)) == b"abc"
    (tmp_path / "CANARY_empty").touch()
    (tmp_path / "CANARY_loop").symlink_to(tmp_path / "CANARY_loop")
    cases: list[tuple[Path | str, str]] = [
        (tmp_path / "CANARY_none", "missing"),
        (path / "CANARY_below_a_file", "missing"),
        (tmp_path, "a folder, not an image"),
        (tmp_path / "CANARY_empty", "empty file"),
        (tmp_path / "CANARY_loop", "unreadable"),
        (tmp_path / ("CANARY" * 60), "unreadable"),
        ("CANARY\0", "unreadable"),
    ]
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "CANARY_pipe")
        cases.append((tmp_path / "CANARY_pipe", "no regular file"))
    for place, expected in cases:
        with pytest.raises(ImageError) as caught:
            read_source(place)
        assert caught.value.reason == str(caught.value) == expected
    monkeypatch.setattr(raster, "MAX_BYTES", 3)
    assert read_source(path) == b"abc"
    monkeypatch.setattr(raster, "MAX_BYTES", 2)
    with pytest.raises(ImageError, match="too large"):
        read_source(path)


def test_a_file_that_may_not_be_read_says_so(tmp_path, monkeypatch):
    path = tmp_path / "x.png"
    path.write_bytes(b"abc")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ImageError, match=r"^no permission to read it$"):
        read_source(path)


# ---- whatever the bytes

EXIF = Image.Exif()
EXIF[0x0112], EXIF[0x010E] = 6, "CANARY"
SMALL = noise(24, 32)
FRAMES = {"save_all": True, "append_images": [noise(24, 32)]}
SEEDS = [
    encoded(SMALL, "JPEG", exif=EXIF),
    encoded(SMALL.convert("CMYK"), "JPEG"),
    encoded(SMALL, "PNG", exif=EXIF),
    encoded(SMALL.convert("P"), "PNG", transparency=3),
    encoded(Image.fromarray(RNG.integers(0, 60_000, (24, 32), dtype=np.uint16)), "PNG"),
    encoded(SMALL, "TIFF"),
    encoded(Image.fromarray(RNG.integers(0, 60_000, (24, 32), dtype=np.uint16)), "TIFF"),
    encoded(SMALL, "TIFF", **FRAMES),
    encoded(SMALL, "GIF"),
    encoded(SMALL, "GIF", **FRAMES),
    encoded(SMALL, "WEBP", exif=EXIF),
    encoded(SMALL, "BMP"),
    encoded(SMALL, "PPM"),
    encoded(SMALL, "JPEG2000"),
]


@settings(max_examples=600, deadline=None)
@given(
    st.sampled_from(SEEDS),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=5),
    st.booleans(),
    st.one_of(st.none(), st.floats(0, 1)),
)
def test_mutated_files_give_pixels_or_a_reason(seed, changes, near_the_head, kept):
    data = bytearray(seed)
    reach = min(len(data), 200) if near_the_head else len(data)
    for place, value in changes:
        data[int(place * reach)] = value
    if kept is not None:
        data = data[: int(kept * len(data))]
    told = ""
    try:
        pixels = load(bytes(data), Geometry((16, 16), 16))
    except ImageError as error:
        told = error.reason + str(error)
    else:
        assert pixels.shape == (16, 16, 3)
        assert pixels.dtype == np.uint8
    assert "CANARY" not in told
    assert len(told) < 200


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_else(data):
    with contextlib.suppress(ImageError):
        load_rgb(data, [Geometry((8, 8), 8)])
