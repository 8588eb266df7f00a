"""DICOM files made for tests, and those that pydicom is tested with; needs pydicom and imagecodecs."""

from __future__ import annotations

import io
import struct
import traceback
import warnings
from pathlib import Path

import numpy as np
import pytest

from medprobe.images.dicom import read_dicom
from medprobe.images.raster import ImageError

pydicom = pytest.importorskip("pydicom", reason="needs pydicom: pip install 'medprobe[dicom]'")
imagecodecs = pytest.importorskip("imagecodecs", reason="needs imagecodecs: pip install 'medprobe[dicom]'")

from pydicom import uid  # noqa: E402
from pydicom.data import get_testdata_files  # noqa: E402
from pydicom.dataset import Dataset, FileMetaDataset  # noqa: E402
from pydicom.encaps import encapsulate  # noqa: E402
from pydicom.sequence import Sequence  # noqa: E402

CANARY = "CANARY^JANE"
SIGNED = {"u": 0, "i": 1}


def corpus() -> list[Path]:
    """Return pydicom's own test files, and those of the package pydicom-data where it is installed."""
    files = [Path(f) for f in get_testdata_files()]
    files = [f for f in files if f.is_file() and f.suffix not in {".txt", ".json", ".py", ".md"}]
    return sorted(files, key=lambda f: (f.name, str(f)))


CORPUS = corpus()


def encoded(ds: Dataset, syntax: str = uid.ExplicitVRLittleEndian) -> bytes:
    """Return a dataset as a file."""
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.file_meta.MediaStorageSOPClassUID = uid.SecondaryCaptureImageStorage
    ds.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pydicom.dcmwrite(buffer, ds, enforce_file_format=True)
    return buffer.getvalue()


def dataset(values: np.ndarray, *, bits: int | None = None, colours: str = "MONOCHROME2", **attributes) -> Dataset:
    """Return a dataset whose native pixel data are some values, (H, W) or (H, W, 3) or with frames before these."""
    ds = Dataset()
    ds.PatientName = CANARY
    ds.Modality = "OT"
    samples = 3 if values.shape[-1] == 3 and colours not in {"MONOCHROME1", "MONOCHROME2", "PALETTE COLOR"} else 1
    extent = values.shape[:-1] if samples == 3 else values.shape
    ds.Rows, ds.Columns = extent[-2:]
    if len(extent) == 3:
        ds.NumberOfFrames = extent[0]
    ds.SamplesPerPixel = samples
    if samples == 3:
        ds.PlanarConfiguration = 0
    ds.PhotometricInterpretation = colours
    ds.BitsAllocated = 8 * values.itemsize
    ds.BitsStored = bits or ds.BitsAllocated
    ds.HighBit = ds.BitsStored - 1
    ds.PixelRepresentation = SIGNED[values.dtype.kind]
    for name, value in attributes.items():
        setattr(ds, name, value)
    data = values.astype(values.dtype.newbyteorder("<")).tobytes()
    ds.PixelData = data + b"\0" * (len(data) % 2)
    ds["PixelData"].VR = "OW" if ds.BitsAllocated > 8 else "OB"
    return ds


def compressed(ds: Dataset, frames: list[bytes], syntax: str, table: bool = True) -> bytes:
    ds.PixelData = encapsulate(frames, has_bot=table)
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True
    return encoded(ds, syntax)


def ramp(bits: int, kind: str = "u", columns: int = 64) -> np.ndarray:
    """Return every value of so many bits (evenly chosen where they are more than 4096), rising."""
    lowest = -(1 << bits - 1) if kind == "i" else 0
    values = np.linspace(lowest, lowest + (1 << bits) - 1, min(1 << bits, 4096)).round()
    return values.astype(f"{kind}{1 if bits <= 8 else 2}").reshape(-1, columns)


def grey(data: bytes | Dataset, **options) -> np.ndarray:
    pixels = read_dicom(data if isinstance(data, bytes) else encoded(data), **options)
    assert pixels.dtype == np.uint8
    assert pixels.shape[2] == 3
    assert (pixels == pixels[:, :, :1]).all()
    return pixels[:, :, 0]


def reason(data: bytes | Dataset | str, **options) -> str:
    with pytest.raises(ImageError) as caught:
        read_dicom(encoded(data) if isinstance(data, Dataset) else data, **options)
    assert caught.value.__context__ is None
    return caught.value.reason


def outcome(read, *args, **options):
    """Return what a reader returns, or the ImageError that it raises."""
    try:
        return read(*args, **options)
    except ImageError as error:
        return error


def table(first: int, entries: list[int] | np.ndarray, bits: int) -> Sequence:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(entries) % 65536, first, bits])
    item.LUTData = np.asarray(entries, dtype="<u2").tobytes()
    item["LUTData"].VR = "OW"
    return Sequence([item])


def palette_dataset(values: np.ndarray, tables: list[np.ndarray], first: int = 0, segmented: bool = False) -> Dataset:
    ds = dataset(values, colours="PALETTE COLOR")
    for colour, entries in zip(("Red", "Green", "Blue"), tables, strict=True):
        n = 8 if segmented else len(entries)
        setattr(ds, f"{colour}PaletteColorLookupTableDescriptor", [n, first, 8 * entries.itemsize])
        prefix = "Segmented" if segmented else ""
        setattr(ds, f"{prefix}{colour}PaletteColorLookupTableData", entries.tobytes())
    return ds


NATIVE = [
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
    uid.DeflatedExplicitVRLittleEndian,
]


def encode(name: str, values: np.ndarray) -> bytes:
    if name == "rle":
        ds = dataset(values, colours="RGB" if values.ndim == 3 else "MONOCHROME2")
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
        ds.compress(uid.RLELossless, encoding_plugin="pydicom", generate_instance_uid=False)
        return next(pydicom.encaps.generate_frames(ds.PixelData, number_of_frames=1))
    unsigned = values.view(f"u{values.itemsize}")
    if name == "jpeg":
        return imagecodecs.jpeg8_encode(unsigned, lossless=True, bitspersample=8 * values.itemsize)
    if name == "jpegls":
        return imagecodecs.jpegls_encode(unsigned)
    if name == "htj2k":
        return imagecodecs.htj2k_encode(unsigned)
    return imagecodecs.jpeg2k_encode(values, codecformat="j2k", reversible=True, level=0)


LOSSLESS = {
    "rle": uid.RLELossless,
    "jpeg": uid.JPEGLosslessSV1,
    "jpegls": uid.JPEGLSLossless,
    "jpeg2000": uid.JPEG2000Lossless,
    **({"htj2k": uid.HTJ2KLossless} if hasattr(imagecodecs, "htj2k_encode") else {}),
}


def fragmented(ds: Dataset, parts: list[bytes], offsets: list[int] = ()) -> bytes:
    def item(data: bytes) -> bytes:
        data += b"\0" * (len(data) % 2)
        return b"\xfe\xff\x00\xe0" + struct.pack("<I", len(data)) + data

    ds.PixelData = item(struct.pack(f"<{len(offsets)}I", *offsets)) + b"".join(item(p) for p in parts)
    ds["PixelData"].is_undefined_length = True
    return encoded(ds, uid.JPEG2000Lossless)


def messages(error: BaseException) -> str:
    seen = "".join(traceback.format_exception(error)) + repr(error) + repr(error.args)
    chain = error.__context__ or error.__cause__
    return seen + (messages(chain) if chain else "")
