"""Grey and colour of DICOM files against pydicom's and against formulas."""

from __future__ import annotations

import numpy as np
import pytest
from dicom_helpers import (
    CORPUS,
    dataset,
    encoded,
    grey,
    outcome,
    palette_dataset,
    ramp,
    reason,
    table,
)

from medprobe.errors import UsageError
from medprobe.images.dicom import (
    FILE,
    Window,
    parse_window,
    read_dicom,
    stored_values,
)
from medprobe.images.dicom_values import VoiWindow, expand_segments
from medprobe.images.raster import ImageError
from medprobe.images.window import WINDOWS

pydicom = pytest.importorskip("pydicom", reason="needs pydicom: pip install 'medprobe[dicom]'")

from pydicom.dataset import Dataset  # noqa: E402
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut  # noqa: E402


@pytest.mark.parametrize("text", ["file", "-600,1500", "p1-99", "p0.5-99.9", "40.5,80", *WINDOWS])
def test_windows_are_read_and_written(text):
    window = parse_window(text)
    assert parse_window(str(window)) == window
    assert parse_window(f" {text.upper()} ") == window


def test_a_window_says_what_it_is():
    assert parse_window("lung") == parse_window("-600, 1500") == Window("fixed", (-600, 1500))
    assert parse_window("p2-98") == Window("percentile", (2, 98))
    assert parse_window("file") == FILE


@pytest.mark.parametrize(
    "text", ["", "lungs", "1", "1,2,3", "40,0", "40,-1", "p99-1", "p1-101", "p5", "nan,1", "1e9,1"]
)
def test_other_windows_are_refused(text):
    with pytest.raises(UsageError, match="window"):
        parse_window(text)


@pytest.mark.filterwarnings("ignore")
def test_grey_of_real_files_is_pydicoms():
    """Every grey file that has a window or a table of its own, through pydicom's modality and VOI functions."""
    compared = 0
    for path in CORPUS:
        ds = pydicom.dcmread(path, force=True, stop_before_pixels=True)
        if not str(ds.get("PhotometricInterpretation", "")).startswith("MONO") or "PixelAspectRatio" in ds:
            continue
        if not (ds.get("VOILUTSequence") or ds.get("WindowWidth")) or "PixelPaddingValue" in ds:
            continue
        if path.stat().st_size > 1_000_000:
            continue
        values = outcome(stored_values, path.read_bytes())
        if isinstance(values, ImageError):
            continue
        expected = apply_voi_lut(apply_modality_lut(values, ds), ds)
        bits = ds.VOILUTSequence[0].LUTDescriptor[2] if ds.get("VOILUTSequence") else None
        pixels = read_dicom(path.read_bytes())[:, :, 0]
        if pixels.shape != values.shape:
            continue
        np.testing.assert_allclose(pixels, shown_by(expected, ds, bits), atol=1, err_msg=path.name)
        compared += 1
    assert compared >= 15


def shown_by(expected: np.ndarray, ds: Dataset, bits: int | None) -> np.ndarray:
    """Return pydicom's windowed values, which keep the range of the values before, as 0..255."""
    if bits:
        low, high = 0, (1 << bits) - 1
    else:
        slope, intercept = float(ds.get("RescaleSlope") or 1), float(ds.get("RescaleIntercept") or 0)
        low = -(1 << ds.BitsStored - 1) if ds.PixelRepresentation else 0
        low, high = (v * slope + intercept for v in (low, low + (1 << ds.BitsStored) - 1))
    levels = (expected.astype(float) - low) / (high - low) * 255
    return 255 - levels if ds.PhotometricInterpretation == "MONOCHROME1" else levels


@pytest.mark.filterwarnings("ignore")
def test_palettes_of_real_files_are_pydicoms():
    compared = 0
    for path in CORPUS:
        ds = pydicom.dcmread(path, force=True)
        if ds.get("PhotometricInterpretation") != "PALETTE COLOR" or ds.original_encoding == (False, False):
            continue  # pydicom reads tables as little endian always
        values = stored_values(path.read_bytes())
        expected = apply_color_lut(values, ds)
        pixels = read_dicom(path.read_bytes())
        np.testing.assert_allclose(pixels, expected * (255 / np.iinfo(expected.dtype).max), atol=0.5, err_msg=path.name)
        compared += 1
    assert compared >= 1


@pytest.mark.parametrize("bits", range(8, 17))
@pytest.mark.parametrize("kind", ["u", "i"])
@pytest.mark.parametrize("colours", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("window", ["none", "file", "LINEAR_EXACT", "SIGMOID", "fixed", "p0-100", "lut"])
def test_ramps_stay_ramps(bits, kind, colours, window):
    values = ramp(bits, kind)
    low, width = int(values.min()), 1 << bits
    ds = dataset(values, bits=bits, colours=colours, RescaleSlope=2, RescaleIntercept=-1000)
    center = 2 * (low + width / 2) - 1000
    if window in {"file", "LINEAR_EXACT", "SIGMOID"}:
        ds.WindowCenter, ds.WindowWidth = center, 2 * width * (0.5 if window == "SIGMOID" else 1)
        ds.VOILUTFunction = "LINEAR" if window == "file" else window
    elif window == "lut":
        del ds.RescaleSlope, ds.RescaleIntercept
        ds.VOILUTSequence = table(low % 65536, np.linspace(0, 4095, min(width, 65536)).round(), 12)
    chosen = {"fixed": Window("fixed", (center, 2 * width)), "p0-100": parse_window("p0-100")}.get(window, FILE)
    shown = grey(ds, window=chosen).ravel().astype(int)
    steps = np.diff(shown) if colours == "MONOCHROME2" else -np.diff(shown)
    assert (steps >= 0).all()
    assert len(np.unique(shown)) >= (170 if window == "SIGMOID" else 250)
    assert np.isin(shown, (0, 255)).mean() < 0.01


def test_the_formulas_of_the_standard():
    x = np.array([-100.0, 39.0, 40.0, 41.0, 200.0])
    np.testing.assert_allclose(VoiWindow(40, 81)(x), (x - 39.5) / 80 + 0.5)
    np.testing.assert_allclose(VoiWindow(40, 80, "LINEAR_EXACT")(x), (x - 40) / 80 + 0.5)
    np.testing.assert_allclose(VoiWindow(40, 80, "SIGMOID")(x), 1 / (1 + np.exp(-4 * (x - 40) / 80)))
    np.testing.assert_array_equal(VoiWindow(40, 1)(x), [0, 0, 1, 1, 1])  # a threshold between 39 and 40


@pytest.mark.parametrize("seed", range(40))
def test_windows_are_pydicoms_within_one_level(seed):
    rng = np.random.default_rng(seed)
    kind, bits = rng.choice(["u", "i"]), int(rng.integers(8, 17))
    values = ramp(bits, kind)
    width = float(rng.uniform(1, 2 << bits))
    ds = dataset(
        values,
        bits=bits,
        colours=str(rng.choice(["MONOCHROME1", "MONOCHROME2"])),
        WindowCenter=[round(float(rng.uniform(-width, width)), 2), 7],
        WindowWidth=[round(width, 2), 7],
        VOILUTFunction=str(rng.choice(["LINEAR", "LINEAR_EXACT", "SIGMOID"])),
        RescaleSlope=round(float(rng.uniform(0.2, 3)), 3),
        RescaleIntercept=round(float(rng.uniform(-1024, 1024)), 1),
    )
    expected = shown_by(apply_voi_lut(apply_modality_lut(values, ds), ds), ds, None)
    np.testing.assert_allclose(grey(ds), expected, atol=1)


@pytest.mark.parametrize("seed", range(20))
def test_tables_are_pydicoms_within_one_level(seed):
    rng = np.random.default_rng(seed)
    bits = int(rng.choice([10, 12, 16]))  # with 8, pydicom counts entries modulo 256
    entries = np.sort(rng.integers(0, 1 << bits, int(rng.integers(2, 3000))))
    ds = dataset(ramp(12), bits=12, WindowCenter=5, WindowWidth=5)
    ds.VOILUTSequence = table(int(rng.integers(0, 2000)), entries, bits)
    if seed % 2:
        ds.ModalityLUTSequence = table(int(rng.integers(0, 1000)), np.sort(rng.integers(0, 4096, 3000)), 16)
    shown = grey(ds)
    expected = apply_voi_lut(apply_modality_lut(ramp(12), ds), ds).astype(float) / ((1 << bits) - 1) * 255
    np.testing.assert_allclose(shown, expected, atol=1)


@pytest.mark.parametrize("packed", [False, True])
def test_a_table_of_eight_bits_in_words_or_bytes(packed):
    entries = np.sort(np.random.default_rng(0).integers(0, 256, 1000))
    ds = dataset(ramp(12), bits=12)
    ds.VOILUTSequence = table(100, entries, 8)
    if packed:
        ds.VOILUTSequence[0].LUTData = entries.astype(np.uint8).tobytes()
    np.testing.assert_array_equal(grey(ds), entries[np.clip(ramp(12).astype(int) - 100, 0, 999)])


def test_a_table_for_values_below_zero():
    values = ramp(12, "i")
    ds = dataset(values, bits=12)
    ds.VOILUTSequence = table(-2048 % 65536, np.arange(4096), 12)
    np.testing.assert_allclose(grey(ds), (values + 2048.0) / 4095 * 255, atol=0.51)


@pytest.mark.parametrize("percentiles", [(1, 99), (0, 100), (2.5, 50), (99, 99.9)])
def test_percentile_windows_are_numpys(percentiles):
    values = np.random.default_rng(3).gamma(2.0, 300, (70, 50)).astype(np.uint16)
    low, high = np.percentile(values, percentiles)
    expected = np.clip((values - low) / (high - low), 0, 1) * 255
    window = Window("percentile", percentiles)
    np.testing.assert_allclose(grey(dataset(values), window=window), expected, atol=0.51)
    wide = dataset(values.astype(np.uint32), RescaleSlope=-3)  # values that are too many for a table
    np.testing.assert_allclose(grey(wide, window=Window("percentile", (0, 100))), 255 - spread(values), atol=0.51)


def spread(values: np.ndarray) -> np.ndarray:
    return (values - float(values.min())) / (float(values.max()) - float(values.min())) * 255


def test_a_fixed_window_is_in_the_files_units():
    values = ramp(12)
    ds = dataset(values, bits=12, RescaleSlope=1, RescaleIntercept=-1024, WindowCenter=9, WindowWidth=9)
    expected = np.clip((values - 1024.0 + 600) / 1500 + 0.5, 0, 1) * 255
    np.testing.assert_allclose(grey(ds, window=parse_window("lung")), expected, atol=0.51)


def test_eight_bits_stay_as_they_are_without_a_window():
    values = np.random.default_rng(0).integers(30, 200, (20, 30)).astype(np.uint8)
    np.testing.assert_array_equal(grey(dataset(values)), values)
    np.testing.assert_array_equal(grey(dataset(values, colours="MONOCHROME1")), 255 - values)
    np.testing.assert_array_equal(grey(dataset((values - 128).view(np.int8))), values)


def test_deeper_grey_spreads_over_its_own_range():
    values = np.random.default_rng(0).integers(300, 2000, (20, 30)).astype(np.int16)
    np.testing.assert_allclose(grey(dataset(values)), spread(values), atol=0.51)
    assert not grey(dataset(np.full((4, 4), 77, np.uint16))).any()


@pytest.mark.parametrize("width", [0, -5, 0.5, "", None])
def test_a_window_without_a_meaning_is_none(width):
    values = ramp(10)
    ds = dataset(values, bits=10, WindowCenter=0, WindowWidth=width)
    np.testing.assert_allclose(grey(ds), spread(values), atol=0.51)


def test_a_broken_window_matters_only_where_it_is_used():
    ds = dataset(ramp(12), bits=12, WindowCenter="11", WindowWidth="22")
    data = encoded(ds).replace(b"DS\x02\x0011", b"DS\x02\x00??")
    assert reason(data) == "unreadable header: WindowCenter"
    assert grey(data, window=parse_window("p1-99")).any()


@pytest.mark.parametrize("colours", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(("value", "limit"), [(-2000, None), (-2000, -1900), (-1900, -2000)])
def test_padding_is_black_and_not_counted(colours, value, limit):
    values = np.random.default_rng(1).integers(0, 1000, (40, 40)).astype(np.int16)
    padded = values.copy()
    padded[:10] = -2000 if limit is None else np.linspace(-2000, -1900, 400).reshape(10, 40)
    ds = dataset(padded, colours=colours, PixelPaddingValue=value)
    if limit is not None:
        ds.PixelPaddingRangeLimit = limit
    inverted = colours == "MONOCHROME1"
    for window in (FILE, Window("percentile", (1, 99))):
        shown = grey(ds, window=window)
        assert not shown[:10].any()
        low, high = np.percentile(values[10:], (0, 100) if window == FILE else (1, 99))
        levels = np.clip((values[10:] - low) / (high - low), 0, 1) * 255
        np.testing.assert_allclose(shown[10:], 255 - levels if inverted else levels, atol=0.51)


def test_padding_alone_is_black():
    assert not grey(dataset(np.full((4, 4), 9, np.uint16), PixelPaddingValue=9, colours="MONOCHROME1")).any()


def test_padding_is_written_with_or_without_a_sign():
    values = np.array([[-2000, 0, 500, 1000]], dtype=np.int16)
    ds = dataset(values)
    ds.add_new("PixelPaddingValue", "US", -2000 % 65536)
    np.testing.assert_array_equal(grey(ds), [[0, 0, 128, 255]])
    ds = dataset(ramp(12), bits=12)
    ds.add_new("PixelPaddingValue", "US", 63536)  # which 12 bits cannot hold
    assert (grey(ds).ravel()[100:] > 0).all()


@pytest.mark.parametrize("floats", ["FloatPixelData", "DoubleFloatPixelData"])
def test_floating_point_pixels(floats):
    dtype, padding = ("<f4", "Float") if floats == "FloatPixelData" else ("<f8", "DoubleFloat")
    values = np.random.default_rng(0).normal(size=(6, 8)).astype(dtype)
    values[0] = -9
    ds = dataset(np.zeros((6, 8), np.uint8), **{f"{padding}PixelPaddingValue": -9.0})
    del ds.PixelData, ds.BitsStored, ds.HighBit, ds.BitsAllocated, ds.PixelRepresentation
    values[1, 1] = np.nan
    setattr(ds, floats, values.tobytes())
    expected = spread_finite(values)
    shown = grey(ds)
    np.testing.assert_allclose(shown, expected, atol=0.51)
    np.testing.assert_array_equal(stored_values(encoded(ds)), values)
    setattr(ds, floats, np.full((6, 8), np.nan, dtype).tobytes())
    assert reason(ds) == "pixels that are not finite"


def spread_finite(values: np.ndarray) -> np.ndarray:
    used = np.isfinite(values) & (values != -9)
    low, high = values[used].min(), values[used].max()
    return np.where(used, (np.where(used, values, low) - low) / (high - low) * 255, 0)


@pytest.mark.parametrize("planar", [0, 1])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_rgb_of_either_order_and_depth(planar, dtype):
    values = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (5, 7, 3)).astype(dtype)
    ds = dataset(values, colours="RGB")
    if planar:
        ds.PlanarConfiguration = 1
        ds.PixelData = np.moveaxis(values, -1, 0).tobytes() + b"\0" * (values.nbytes % 2)
    np.testing.assert_array_equal(stored_values(encoded(ds)), values)
    np.testing.assert_allclose(read_dicom(encoded(ds)), values * (255 / np.iinfo(dtype).max), atol=0.5)


def test_ybr_is_converted_and_its_halved_colours_are_spread():
    rng = np.random.default_rng(0)
    values = rng.integers(0, 256, (4, 6, 3)).astype(np.uint8)
    ds = dataset(values, colours="YBR_FULL")
    expected = pydicom.pixels.convert_color_space(values, "YBR_FULL", "RGB")
    np.testing.assert_array_equal(read_dicom(encoded(ds)), expected)
    values[:, 1::2, 1:] = values[:, ::2, 1:]
    ds = dataset(values, colours="YBR_FULL_422")
    pairs = values.reshape(-1, 2, 3)
    ds.PixelData = np.concatenate([pairs[:, :, 0], pairs[:, 0, 1:]], axis=1).tobytes()
    expected = pydicom.pixels.convert_color_space(values, "YBR_FULL", "RGB")
    np.testing.assert_array_equal(read_dicom(encoded(ds)), expected)
    ds.PixelData = values.tobytes()
    assert reason(ds) == "more pixel data than its photometric interpretation has"


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_palettes(dtype):
    rng = np.random.default_rng(0)
    tables = [rng.integers(0, np.iinfo(dtype).max, 40).astype(dtype) for _ in range(3)]
    values = rng.integers(0, 60, (6, 8)).astype(np.uint8)
    index = np.clip(values.astype(int) - 5, 0, 39)
    expected = np.stack([t[index] for t in tables], axis=-1) * (255 / np.iinfo(dtype).max)
    ds = palette_dataset(values, tables, first=5)
    np.testing.assert_allclose(read_dicom(encoded(ds)), expected, atol=0.5)
    del ds.GreenPaletteColorLookupTableData
    assert reason(ds) == "damaged lookup table"


def test_segmented_palettes():
    # Three of their own, a line of three to 10, then the first segment again, cut at eight entries.
    words = np.array([0, 3, 1, 2, 4, 1, 3, 10, 2, 1, 0, 0], dtype=np.uint16)
    entries = [1, 2, 4, 6, 8, 10, 1, 2]
    np.testing.assert_array_equal(expand_segments(words, 8), entries)
    ds = palette_dataset(np.arange(8, dtype=np.uint8)[None], [words * 1] * 3, segmented=True)
    np.testing.assert_allclose(read_dicom(encoded(ds))[0, :, 0], np.array(entries) * (255 / 65535), atol=0.5)


@pytest.mark.parametrize("words", [[1, 3, 10], [0, 0, 0, 0], [2, 1, 0, 0], [0, 1, 5, 2, 1, 6, 0], [0, 2, 5], [7, 1, 5]])
def test_broken_segments_are_refused(words):
    with pytest.raises(ImageError, match="damaged lookup table"):
        expand_segments(np.array(words, dtype=np.uint16), 8)
