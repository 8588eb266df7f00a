"""All ways that a DICOM file can be wrong or hostile: a reason, little memory, and nothing of the file in any message."""

from __future__ import annotations

import io
import logging
import struct
import sys
import tracemalloc
import zlib

import numpy as np
import pytest
from dicom_helpers import (
    CANARY,
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
    palette_dataset,
    ramp,
    reason,
    table,
)
from PIL import Image

from medprobe.errors import MedprobeError, UsageError
from medprobe.images import dicom_header
from medprobe.images.dicom import (
    FILE,
    dicom_columns,
    n_frames,
    read_dicom,
    stored_values,
)
from medprobe.images.raster import MAX_PIXELS, ImageError
from medprobe.images.window import WINDOWS

pydicom = pytest.importorskip("pydicom", reason="needs pydicom: pip install 'medprobe[dicom]'")
imagecodecs = pytest.importorskip("imagecodecs", reason="needs imagecodecs: pip install 'medprobe[dicom]'")

from pydicom import uid  # noqa: E402
from pydicom.dataset import Dataset  # noqa: E402
from pydicom.sequence import Sequence  # noqa: E402


def test_reasons():
    ds = dataset(ramp(12), bits=12)
    data = encoded(ds)
    assert reason(b"") == reason(b"\xff\xd8\xff" + bytes(300)) == "not a DICOM file"
    assert reason(data[:-1]) == reason(data[: len(data) // 2]) == "truncated"
    video = "unsupported transfer syntax: MPEG2 Main Profile / Main Level"
    assert reason(compressed(dataset(ramp(12)), [b"ab"], uid.MPEG2MPML)) == video
    native = uid.ExplicitVRLittleEndian.encode()
    other = data.replace(native, b"1.2.840.99008.1.2.1", 1)
    assert reason(other) == "unsupported transfer syntax: not in the standard"
    assert reason(data.replace(native, uid.RLELossless.encode(), 1)) == "damaged"
    coded = compressed(dataset(ramp(12)), [encode("rle", ramp(12))], uid.RLELossless)
    assert reason(coded.replace(uid.RLELossless.encode(), native, 1)) in {"damaged", "truncated"}
    for name, value, why in (
        ("Rows", None, "incomplete header: Rows"),
        ("Rows", 0, "unusable header: Rows"),
        ("BitsStored", 17, "unusable header: BitsStored"),
        ("BitsAllocated", 12, "unusable header: BitsAllocated"),
        ("SamplesPerPixel", 3, "unusable header: SamplesPerPixel"),
        ("PhotometricInterpretation", "CMYK", "unsupported photometric interpretation"),
        ("RescaleSlope", 0, "unusable header: RescaleSlope"),
        ("VOILUTSequence", table(0, [1, 2, 3], 40), "damaged lookup table"),
    ):
        broken = dataset(ramp(12), bits=12, **{name: value})
        assert reason(broken) == why
    del ds.PixelData
    assert reason(ds) == "no pixel data"
    with pytest.raises(ImageError, match="no pixel data"):
        n_frames(encoded(ds))


def test_headers_that_lie_are_refused_before_anything_is_decoded():
    values = ramp(12)
    assert reason(dataset(values, bits=12, Rows=65535, Columns=65535)) == f"too large: over {MAX_PIXELS:,} pixels"
    assert reason(dataset(values, bits=12, Rows=9000, Columns=9000)) == "truncated"
    assert reason(dataset(values, bits=12, NumberOfFrames=100_001)) == "too large: over 100,000 frames"
    assert reason(dataset(values, bits=12, NumberOfFrames=3)) == "truncated"
    with pytest.raises(ImageError, match="truncated"):
        n_frames(encoded(dataset(values, bits=12, NumberOfFrames=3)))
    coded = encode("jpeg2000", values)
    assert reason(compressed(dataset(values, NumberOfFrames=5000), [coded], uid.JPEG2000Lossless)) == "truncated"
    for codec in ("jpeg", "jpegls", "jpeg2000"):
        coded = encode(codec, values)
        for attributes in ({"Rows": 32}, {"Columns": 63}, {"Rows": 65000}):
            why = reason(compressed(dataset(values, **attributes), [coded], LOSSLESS[codec]))
            assert why == "a compressed picture of another size than the header's"
        narrow = dataset(values.astype(np.uint8))
        assert reason(compressed(narrow, [coded], LOSSLESS[codec])).endswith("more bits than the header's")
    longer = compressed(dataset(values[:32]), [encode("rle", values)], uid.RLELossless)
    assert reason(longer) == "damaged"


@pytest.mark.parametrize("codec", LOSSLESS)
def test_truncated_pictures_are_refused(codec):
    values = np.random.default_rng(0).integers(0, 4000, (64, 64)).astype(np.uint16)
    coded = encode(codec, values)
    for cut in (4, len(coded) // 10, len(coded) // 2, len(coded) - 40):
        data = compressed(dataset(values), [coded[:-cut]], LOSSLESS[codec])
        assert reason(data) in {"truncated", "damaged"}
    whole = compressed(dataset(values), [coded], LOSSLESS[codec])
    assert reason(whole[: -len(coded) // 2]) == "truncated"


def test_a_truncated_jpeg_is_not_filled_up_with_grey():
    buffer = io.BytesIO()
    Image.effect_noise((256, 256), 60).save(buffer, "JPEG")
    coded = buffer.getvalue()
    ds = dataset(np.zeros((256, 256), np.uint8))
    assert grey(compressed(ds, [coded], uid.JPEGBaseline8Bit)).any()
    assert reason(compressed(ds, [coded[: len(coded) // 2]], uid.JPEGBaseline8Bit)) == "truncated"


def deflate_bomb(megabytes: int) -> bytes:
    ds = dataset(np.zeros((2, 2), np.uint8))
    ds.PixelData = b"\0\0\0\0"
    data = encoded(ds)
    ds.file_meta.TransferSyntaxUID = uid.DeflatedExplicitVRLittleEndian
    start = data.index(b"\x08\x00\x60\x00CS")  # Modality, the first attribute
    meta = encoded(ds, uid.DeflatedExplicitVRLittleEndian)
    meta = meta[: meta.index(uid.DeflatedExplicitVRLittleEndian.encode()) + 22]
    head = meta[:140] + struct.pack("<I", len(meta) - 144) + meta[144:]
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    body = deflater.compress(data[start:])
    for _ in range(megabytes):
        body += deflater.compress(bytes(1 << 20))
    return head + body + deflater.flush()


def test_a_deflated_bomb_is_stopped_at_the_cap(monkeypatch):
    assert not grey(deflate_bomb(0)).any()
    bomb = deflate_bomb(64)
    assert len(bomb) < 100_000
    monkeypatch.setattr(dicom_header, "MAX_INFLATED", 8 << 20)
    monkeypatch.setattr(dicom_header, "_CHUNK", 1 << 10)
    tracemalloc.start()
    try:
        assert reason(bomb) == "too large: over 8 MiB once inflated"
        assert tracemalloc.get_traced_memory()[1] < 24 << 20
    finally:
        tracemalloc.stop()
    assert reason(deflate_bomb(0)[:-4]) == "truncated"


@pytest.mark.filterwarnings("ignore:The value length")
def test_headers_are_read_up_to_a_limit(monkeypatch, tmp_path):
    ds = dataset(ramp(8), PatientComments="x" * 60_000)
    for i in range(50):
        ds.add_new((0x0009, 0x1000 + i), "OB", bytes(60_000))
    path = tmp_path / "long.dcm"
    path.write_bytes(encoded(ds))
    monkeypatch.setattr(dicom_header, "MAX_HEADER_BYTES", 10_000)
    assert grey(path.read_bytes()).any()  # what is not wanted is stepped over
    assert dicom_columns(str(path), ["PatientComments"])["PatientComments"] == ""
    nested = Dataset()
    nested.add_new((0x0009, 0x1000), "OB", bytes(20_000))
    ds.ReferencedImageSequence = Sequence([nested])
    ds["ReferencedImageSequence"].is_undefined_length = True
    ds["ReferencedImageSequence"].value[0].is_undefined_length_sequence_item = True
    assert reason(ds) == "header too large"
    ds = dataset(ramp(8))
    ds.VOILUTSequence = table(0, np.arange(20_000), 16)
    assert reason(ds) == "header too large"
    monkeypatch.setattr(dicom_header, "LONGEST_VALUE", 5_000)
    monkeypatch.setattr(dicom_header, "MAX_HEADER_BYTES", 1 << 30)
    assert reason(ds) == "header too large"
    monkeypatch.setattr(dicom_header, "LONGEST_VALUE", 1 << 30)
    monkeypatch.setattr(dicom_header, "MAX_HEADER_READS", 20)
    assert reason(ds) == "header too large"


def test_a_text_of_two_gigabytes_takes_no_memory(tmp_path):
    data = encoded(dataset(ramp(8)))
    at = data.index(b"\x10\x00\x10\x00PN")
    long_text = b"\x10\x00\x00\x40UT\0\0" + struct.pack("<I", 0x7FFFFFFE)
    path = tmp_path / "long.dcm"
    path.write_bytes(data[:at] + long_text + data[at:])
    tracemalloc.start()
    try:
        assert reason(path.read_bytes()) == "no pixel data"
        assert dicom_columns(str(path), ["0010,4000"])["0010,4000"] == ""
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_too_many_fragments_are_refused(monkeypatch):
    from medprobe.images import dicom_frames

    coded = encode("jpeg2000", ramp(8))
    data = fragmented(dataset(ramp(8)), [coded[i : i + 2] for i in range(0, len(coded), 2)])
    np.testing.assert_array_equal(stored_values(data), ramp(8))
    monkeypatch.setattr(dicom_frames, "_MAX_FRAGMENTS", 50)
    assert reason(data) == "damaged"


@pytest.mark.parametrize("module", ["pydicom.filereader", "pydicom.datadict", "imagecodecs"])
def test_what_is_missing_is_named(monkeypatch, tmp_path, module):
    data = compressed(dataset(ramp(8)), [encode("jpegls", ramp(8))], uid.JPEGLSLossless)
    (tmp_path / "a.dcm").write_bytes(data)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageError, match=r"pip install 'medprobe\[dicom\]'"):
        read_dicom(data)
    if module != "imagecodecs":
        with pytest.raises(UsageError, match=r"pip install 'medprobe\[dicom\]'"):
            dicom_columns(str(tmp_path / "a.dcm"))


# ---- nothing of a patient in any message


def test_no_message_carries_anything_of_the_file(tmp_path, capfd, caplog, recwarn):
    """A name in every attribute that can hold it, also where numbers belong, in files that are then broken."""
    numbers = {
        "RescaleSlope": "1.2345678901",
        "WindowCenter": "2.2345678901",
        "WindowWidth": "4.2345678901",
        "NumberOfFrames": "000000000001",
        "PixelSpacing": "3.234\\3.2345",
        "SpecificCharacterSet": "ISO_IR 6    ",
        "PatientComments": "12 of these.",
    }
    base = encoded(dataset(ramp(12), bits=12, **numbers))
    name = CANARY.encode()
    assert all(text.encode() in base for text in numbers.values())
    files = [base.replace(text.encode(), name + b" ") for text in numbers.values()]
    files += [
        base[:-100],
        base.replace(b"MONOCHROME2 ", name + b" "),
        base.replace(b"MONOCHROME2 ", b"CMYK" + name[:8]),
    ]
    for vr in (b"DS", b"IS", b"UI", b"SQ", b"OB", b"ZZ", b"PN"):
        files.append(base.replace(b"CS\x0c\x00MONOCHROME2 ", vr + b"\x0c\x00" + name + b" "))
        files.append(base.replace(b"\x10\x00PN", b"\x10\x00" + vr))
    path = tmp_path / f"{CANARY}.dcm"
    said = []
    with caplog.at_level(logging.DEBUG):
        for data in files:
            path.write_bytes(data)
            for read in (read_dicom, n_frames, lambda p: dicom_columns(p, ["PatientComments"])):
                try:
                    read(str(path))
                except MedprobeError as error:
                    said.append(messages(error))
    out, err = capfd.readouterr()
    assert len(said) > 10
    texts = [*said, out, err, caplog.text, *(str(warning.message) for warning in recwarn)]
    assert not [text for text in texts if "CANARY" in text or "JANE" in text]


def mutations(rng: np.random.Generator, data: bytes, n: int) -> list[bytes]:
    """Return variants: flipped bytes, mostly in the header, bytes taken out or put in, and cuts."""
    made = []
    for _ in range(n):
        changed = bytearray(data)
        head = min(len(changed), 2000)
        for _ in range(int(rng.integers(1, 6))):
            where = int(rng.integers(0, min(head, len(changed)) if rng.random() < 0.7 else len(changed)))
            kind = rng.random()
            if kind < 0.6:
                changed[where] = int(rng.choice([0, 1, 0x7F, 0x80, 0xFF, int(rng.integers(256))]))
            elif kind < 0.75:
                del changed[where : where + int(rng.integers(1, 9))]
            elif kind < 0.9:
                changed[where:where] = rng.bytes(int(rng.integers(1, 9)))
            else:
                del changed[where:]
            if not changed:
                break
        made.append(bytes(changed))
    return made


def small_files() -> list[bytes]:
    rng = np.random.default_rng(5)
    values = rng.integers(0, 4000, (20, 24)).astype(np.uint16)
    colour = rng.integers(0, 256, (20, 24, 3)).astype(np.uint8)
    full = dataset(values, bits=12, PixelPaddingValue=3, PixelSpacing=[1.0, 1.2], WindowCenter=5, WindowWidth=99)
    full.VOILUTSequence = table(0, np.arange(4096), 12)
    full.ModalityLUTSequence = table(0, np.arange(4096), 16)
    files = [encoded(full, syntax) for syntax in NATIVE]
    files += [compressed(dataset(values), [encode(c, values)], LOSSLESS[c]) for c in LOSSLESS]
    files += [compressed(dataset(colour, colours="RGB"), [encode(c, colour)], LOSSLESS[c]) for c in ("rle", "jpegls")]
    coded = imagecodecs.jpeg8_encode(colour, level=90)
    files.append(compressed(dataset(colour, colours="YBR_FULL_422"), [coded], uid.JPEGBaseline8Bit))
    tables = [np.array([0, 3, 1, 2, 4, 1, 3, 10, 2, 1, 0, 0], dtype=np.uint16)] * 3
    files.append(encoded(palette_dataset(rng.integers(0, 8, (9, 9)).astype(np.uint8), tables, segmented=True)))
    return files


def test_mutated_files_give_pixels_or_a_reason(tmp_path, capfd):
    rng = np.random.default_rng(11)
    outcomes = {"pixels": 0, "reason": 0}
    path = tmp_path / "mutated.dcm"
    for data in small_files():
        for mutated in mutations(rng, data, 40):
            path.write_bytes(mutated)
            for read in (n_frames, dicom_columns):
                outcome(read, str(path))
            pixels = outcome(read_dicom, mutated, window=FILE if rng.random() < 0.5 else WINDOWS["mammo"])
            if isinstance(pixels, ImageError):
                assert CANARY not in messages(pixels)
                outcomes["reason"] += 1
                continue
            assert pixels.dtype == np.uint8
            assert pixels.shape[2] == 3
            outcomes["pixels"] += 1
    assert min(outcomes.values()) > 50
    assert capfd.readouterr() == ("", "")
