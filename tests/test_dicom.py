"""Stored DICOM values against pydicom's, in every encoding, and what is known of a file without its pixels."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from dicom_helpers import (
    CORPUS,
    LOSSLESS,
    NATIVE,
    compressed,
    dataset,
    encode,
    encoded,
    fragmented,
    grey,
    messages,
    outcome,
    ramp,
    reason,
)
from PIL import Image

from medprobe.errors import UsageError
from medprobe.images.dicom import (
    Frames,
    dicom_columns,
    n_frames,
    parse_frames,
    read_dicom,
    stored_values,
)
from medprobe.images.raster import MAX_PIXELS, ImageError

pydicom = pytest.importorskip("pydicom", reason="needs pydicom: pip install 'medprobe[dicom]'")
imagecodecs = pytest.importorskip("imagecodecs", reason="needs imagecodecs: pip install 'medprobe[dicom]'")

from pydicom import uid  # noqa: E402
from pydicom.dataset import Dataset  # noqa: E402
from pydicom.encaps import encapsulate_extended  # noqa: E402
from pydicom.pixels import get_decoder  # noqa: E402
from pydicom.sequence import Sequence  # noqa: E402

# ---- what a user writes


def test_frames_are_chosen():
    assert [list(parse_frames(t).of(5)) for t in ("first", "middle", "all", "every:2")] == [
        [0],
        [2],
        [0, 1, 2, 3, 4],
        [0, 2, 4],
    ]
    assert all(list(parse_frames(t).of(1)) == [0] for t in ("first", "middle", "all", "every:7"))
    assert str(parse_frames("EVERY:3")) == "every:3"
    assert parse_frames("all") == Frames("all")


@pytest.mark.parametrize("text", ["", "last", "every", "every:0", "every:-1", "every:x", "2"])
def test_other_frames_are_refused(text):
    with pytest.raises(UsageError, match="frames"):
        parse_frames(text)


# ---- real files


def reference(ds: Dataset, frame: int) -> list[np.ndarray]:
    """Return what each of pydicom's decoders makes of a frame, but for those that round in their own way."""
    try:
        syntax = ds.file_meta.TransferSyntaxUID
        decoder = get_decoder(syntax)
        plugins = decoder.available_plugins or ("",)
    except (AttributeError, KeyError, NotImplementedError):
        return []
    if syntax in (uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit):
        plugins = [p for p in plugins if p != "pylibjpeg"]  # an inverse transform other than libjpeg's, up to 3 apart
    found = []
    for plugin in plugins:
        try:
            found.append(decoder.as_array(ds, index=frame, decoding_plugin=plugin, as_rgb=True)[0])
        except Exception:  # a file that pydicom does not decode, or not by this plugin
            continue
    return found


@pytest.mark.filterwarnings("ignore")
def test_stored_values_of_real_files_are_pydicoms():
    compared = set()
    for path in CORPUS:
        data = path.read_bytes()
        frames = outcome(n_frames, data)
        chosen = [0] if isinstance(frames, ImageError) else sorted({0, frames // 2, frames - 1})
        ours = {f: outcome(stored_values, data, frame=f) for f in chosen}
        ds = pydicom.dcmread(path, force=True)
        for frame, values in ours.items():
            expected = reference(ds, frame)
            if isinstance(values, ImageError):
                assert not expected, (path.name, values.reason)
            for pixels in expected:
                np.testing.assert_array_equal(values, pixels, err_msg=path.name)
                compared.add(path.name)
    assert len(compared) >= 60  # pydicom's own files with the decoders that come with it and Pillow


@pytest.mark.filterwarnings("ignore")
def test_real_files_are_shown_or_refused():
    shown = 0
    for path in CORPUS:
        pixels = outcome(read_dicom, str(path))
        if isinstance(pixels, ImageError):
            assert path.name not in messages(pixels)
            continue
        assert pixels.dtype == np.uint8, path
        assert pixels.ndim == 3, path
        assert pixels.shape[2] == 3, path
        assert pixels.flags.c_contiguous, path
        shown += 1
    assert shown >= 90


@pytest.mark.parametrize("kind", ["u", "i"])
def test_bits_that_do_not_count_are_left_out(kind):
    values = ramp(12, kind)
    overlay = np.random.default_rng(0).integers(0, 16, values.shape).astype(np.uint16) << 12
    high = (values.view(np.uint16) & 0xFFF) | overlay
    low = (values.view(np.uint16) << 4) | (overlay >> 12)
    for stored, high_bit in ((high, 11), (low, 15)):
        ds = dataset(stored.view(values.dtype), bits=12, HighBit=high_bit)
        np.testing.assert_array_equal(stored_values(encoded(ds)), values)


# ---- encodings


@pytest.mark.parametrize("syntax", NATIVE)
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.uint32])
def test_native_encodings(syntax, dtype):
    values = np.random.default_rng(0).integers(0, 100, (3, 5, 7)).astype(dtype)
    ds = dataset(values)
    if syntax == uid.ExplicitVRBigEndian:
        ds.PixelData = values.astype(values.dtype.newbyteorder(">")).tobytes() + b"\0" * (values.nbytes % 2)
    data = encoded(ds, syntax)
    assert n_frames(data) == 3
    for frame in range(3):
        np.testing.assert_array_equal(stored_values(data, frame=frame), values[frame])
    if syntax not in (uid.DeflatedExplicitVRLittleEndian, uid.ExplicitVRBigEndian):
        headerless = io.BytesIO()
        pydicom.dcmwrite(headerless, strip(ds), implicit_vr=syntax == uid.ImplicitVRLittleEndian, little_endian=True)
        np.testing.assert_array_equal(stored_values(headerless.getvalue(), frame=2), values[2])


def strip(ds: Dataset) -> Dataset:
    bare = Dataset()
    bare.update(ds)
    return bare


def test_big_endian_words_of_two_samples():
    values = np.random.default_rng(0).integers(0, 256, (3, 5, 7)).astype(np.uint8)
    ds = dataset(values)
    padded = np.append(values.ravel(), np.uint8(0))
    ds.PixelData = padded.view(np.uint16).byteswap().tobytes()
    ds["PixelData"].VR = "OW"
    data = encoded(ds, uid.ExplicitVRBigEndian)
    for frame in range(3):
        np.testing.assert_array_equal(stored_values(data, frame=frame), values[frame])


def test_single_bits_whose_frames_begin_within_a_byte():
    values = np.random.default_rng(0).integers(0, 2, (3, 5, 7)).astype(np.uint8)
    ds = dataset(values, bits=1)
    ds.BitsAllocated = 1
    packed = np.packbits(values.ravel(), bitorder="little").tobytes()
    ds.PixelData = packed + b"\0" * (len(packed) % 2)
    data = encoded(ds)
    for frame in range(3):
        np.testing.assert_array_equal(grey(data, frame=frame), values[frame] * 255)


@pytest.mark.parametrize("codec", LOSSLESS)
@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16])
def test_lossless_encodings(codec, dtype):
    info = np.iinfo(dtype)
    values = np.random.default_rng(0).integers(info.min, info.max, (33, 21), endpoint=True).astype(dtype)
    data = compressed(dataset(values), [encode(codec, values)], LOSSLESS[codec])
    np.testing.assert_array_equal(stored_values(data), values)


@pytest.mark.parametrize("codec", ["rle", "jpeg", "jpegls", "jpeg2000"])
def test_lossless_colour(codec):
    values = np.random.default_rng(0).integers(0, 256, (33, 21, 3)).astype(np.uint8)
    coded = encode(codec, values)
    if codec == "jpeg":
        coded = imagecodecs.jpeg8_encode(values, lossless=True, colorspace="RGB", outcolorspace="RGB")
    ds = dataset(values, colours="YBR_RCT" if codec == "jpeg2000" else "RGB")
    np.testing.assert_array_equal(read_dicom(compressed(ds, [coded], LOSSLESS[codec])), values)


@pytest.mark.parametrize("kind", ["u", "i"])
def test_twelve_bit_jpeg(kind):
    x, y = np.meshgrid(np.linspace(0, 3, 64), np.linspace(0, 2, 48))
    values = (1500 * np.sin(x) * np.cos(y) + (0 if kind == "i" else 2000)).astype(f"{kind}2")
    coded = imagecodecs.jpeg8_encode((values & 0xFFF).astype(np.uint16), level=100, bitspersample=12)
    stored = stored_values(compressed(dataset(values, bits=12), [coded], uid.JPEGExtended12Bit))
    assert stored.dtype == values.dtype
    if kind == "u":  # a sign in a lossy picture is a jump at zero, which rings
        np.testing.assert_allclose(stored, values, atol=8)


def test_jpeg_colours_are_what_the_picture_says():
    x, y = np.meshgrid(np.linspace(0, 255, 64), np.linspace(0, 255, 48))
    rgb = np.stack([x, y, 255 - x], axis=-1).astype(np.uint8)
    ds = dataset(rgb, colours="YBR_FULL_422")
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "JPEG", quality=95)  # JFIF, which is YCbCr
    for colours in ("YBR_FULL_422", "YBR_FULL", "RGB"):
        ds.PhotometricInterpretation = colours
        shown = read_dicom(compressed(ds, [buffer.getvalue()], uid.JPEGBaseline8Bit)).astype(int)
        assert np.abs(shown - rgb).mean() < 3
    plain = imagecodecs.jpeg8_encode(rgb, level=95, colorspace="RGB", outcolorspace="RGB")  # Adobe's mark, or names
    unnamed = plain.replace(b"R\x11\0G\x11\0B\x11\0", b"\0\x11\0\1\x11\0\2\x11\0").replace(
        b"R\0G\0B\0", b"\0\0\1\0\2\0"
    )
    assert b"Adobe" in unnamed
    unmarked = plain.replace(b"Adobe", b"adobe")
    assert len({plain, unnamed, unmarked}) == 3
    for coded in (plain, unnamed, unmarked):
        for colours in ("RGB", "YBR_FULL_422"):
            ds.PhotometricInterpretation = colours
            shown = read_dicom(compressed(ds, [coded], uid.JPEGBaseline8Bit)).astype(int)
            assert np.abs(shown - rgb).mean() < 3


def test_frames_are_found_by_every_kind_of_table():
    values = np.random.default_rng(0).integers(0, 4000, (4, 16, 12)).astype(np.uint16)
    frames = [encode("jpeg2000", v) for v in values]
    frames = [f + b"\0" * (len(f) % 2) for f in frames]
    extended = dataset(values)
    extended.PixelData, extended.ExtendedOffsetTable, extended.ExtendedOffsetTableLengths = encapsulate_extended(frames)
    extended["PixelData"].is_undefined_length = True
    halves = [part for f in frames for part in (f[:50], f[50:])]
    starts = np.cumsum([0, *(len(f) + 16 for f in frames[:-1])]).tolist()
    files = {
        "basic table": compressed(dataset(values), frames, uid.JPEG2000Lossless),
        "no table": compressed(dataset(values), frames, uid.JPEG2000Lossless, table=False),
        "extended table": encoded(extended, uid.JPEG2000Lossless),
        "fragments and table": fragmented(dataset(values), halves, starts),
        "fragments alone": fragmented(dataset(values), halves),
        "a table of one": fragmented(dataset(values), frames, [0]),
        "a table to nowhere": fragmented(dataset(values), frames, [0, 3, 5, 7]),
    }
    for name, data in files.items():
        assert n_frames(data) == 4
        for i in range(4):
            np.testing.assert_array_equal(stored_values(data, frame=i), values[i], err_msg=name)
        assert reason(data, frame=4) == reason(data, frame=-1) == "no such frame"


def test_frames_have_windows_and_sizes_of_their_own():
    values = np.stack([ramp(12)] * 2)
    ds = dataset(values, bits=12)
    ds.PerFrameFunctionalGroupsSequence = Sequence([Dataset(), Dataset()])
    for item, center in zip(ds.PerFrameFunctionalGroupsSequence, (500, 3000), strict=True):
        window, units = Dataset(), Dataset()
        window.WindowCenter, window.WindowWidth, window.VOILUTFunction = center, 1000, "LINEAR_EXACT"
        units.RescaleSlope, units.RescaleIntercept = 1, -100
        item.FrameVOILUTSequence = Sequence([window])
        item.PixelValueTransformationSequence = Sequence([units])
    measures = Dataset()
    measures.PixelSpacing = [1.0, 0.5]
    ds.SharedFunctionalGroupsSequence = Sequence([Dataset()])
    ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence = Sequence([measures])
    for frame, center in enumerate((500, 3000)):
        expected = np.clip((values[frame] - 100.0 - center) / 1000 + 0.5, 0, 1) * 255
        shown = grey(ds, frame=frame)
        assert shown.shape == (128, 64)
        np.testing.assert_allclose(shown[::127], expected[::63], atol=1)


# ---- shape of pixels


@pytest.mark.parametrize(
    ("attributes", "shape"),
    [
        ({}, (30, 40)),
        ({"PixelSpacing": [2.0, 1.0]}, (60, 40)),
        ({"PixelSpacing": [0.5, 1.0]}, (30, 80)),
        ({"PixelSpacing": [1.0, 1.001]}, (30, 40)),
        ({"PixelSpacing": [0.0, 0.0], "ImagerPixelSpacing": [3.0, 1.0]}, (90, 40)),
        ({"PixelSpacing": [1.0, 1.0], "ImagerPixelSpacing": [3.0, 1.0], "PixelAspectRatio": [5, 1]}, (30, 40)),
        ({"NominalScannedPixelSpacing": [1.0, 1.5]}, (30, 60)),
        ({"PixelAspectRatio": [4, 3]}, (40, 40)),
    ],
)
def test_pixels_become_square(attributes, shape):
    values = np.random.default_rng(0).integers(0, 256, (30, 40)).astype(np.uint8)
    shown = grey(dataset(values, **attributes))
    assert shown.shape == shape
    assert abs(shown.mean() - values.mean()) < 2
    colour = np.stack([values] * 3, axis=-1)
    assert read_dicom(encoded(dataset(colour, colours="RGB", **attributes))).shape == (*shape, 3)


def test_pixels_that_are_lines_are_refused():
    ds = dataset(np.zeros((30, 40), np.uint8), PixelSpacing=[1e-9, 1.0])
    assert reason(ds) == f"too large: over {MAX_PIXELS:,} pixels once its pixels are square"


# ---- columns


def columns_file(tmp_path: Path, **attributes) -> Path:
    ds = dataset(ramp(12), bits=12, Manufacturer="ACME", ViewPosition="PA", PatientID="p 7", **attributes)
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SOPInstanceUID = "1.2", "1.2.3", "1.2.3.4"
    ds.Laterality, ds.BurnedInAnnotation, ds.PatientIdentityRemoved = "L", "NO", "YES"
    ds.ImageType = ["ORIGINAL", "PRIMARY"]
    path = tmp_path / "image.dcm"
    path.write_bytes(encoded(ds))
    return path


def test_columns(tmp_path):
    path = columns_file(tmp_path, StudyDate="20200102")
    expected = {
        "modality": "OT",
        "manufacturer": "ACME",
        "view_position": "PA",
        "laterality": "L",
        "rows": "64",
        "columns": "64",
        "frames": "1",
        "photometric": "MONOCHROME2",
        "bits": "12",
        "burned_in_annotation": "NO",
        "identity_removed": "YES",
        "patient_id": "p 7",
        "study_uid": "1.2",
        "series_uid": "1.2.3",
        "sop_instance_uid": "1.2.3.4",
        "transfer_syntax": uid.ExplicitVRLittleEndian,
    }
    assert dicom_columns(str(path)) == expected
    more = dicom_columns(str(path), ["StudyDate", "0008,0008", "00200060", "PixelData", "WindowCenter"])
    assert more == expected | {
        "StudyDate": "20200102",
        "0008,0008": "ORIGINAL\\PRIMARY",
        "00200060": "L",
        "PixelData": "",
        "WindowCenter": "",
    }
    path.write_bytes(path.read_bytes()[:-5000])  # the pixels are not looked at
    assert dicom_columns(str(path)) == expected


def test_columns_of_unreadable_or_endless_values_are_empty(tmp_path):
    path = columns_file(tmp_path, PatientComments="x" * 5000, RescaleSlope="1", StudyDescription="two\nlines")
    path.write_bytes(path.read_bytes().replace(b"US\x02\x00\x0c\x00", b"US\x01\x00\x0c\x00", 1))
    columns = dicom_columns(str(path), ["PatientComments", "StudyDescription"])
    assert columns["PatientComments"] == ""
    assert columns["StudyDescription"] == "two lines"


@pytest.mark.parametrize("tag", ["Patientname", "0010", "zzzz,0010", ""])
def test_unknown_attributes_are_refused(tmp_path, tag):
    with pytest.raises(UsageError, match="DICOM attribute"):
        dicom_columns(str(columns_file(tmp_path)), [tag])


def test_columns_of_no_dicom_file(tmp_path):
    for name, data in (("a.png", b"\x89PNG" + bytes(200)), ("empty.dcm", b"")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ImageError, match="not a DICOM file"):
            dicom_columns(str(tmp_path / name))
    for name, message in (("none.dcm", "missing"), (".", "no regular file"), ("a\0b", "unreadable")):
        with pytest.raises(ImageError, match=message) as caught:
            dicom_columns(str(tmp_path / name))
        assert str(tmp_path) not in str(caught.value)
        with pytest.raises(ImageError):
            n_frames(str(tmp_path / name))
