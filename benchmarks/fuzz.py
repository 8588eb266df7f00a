"""Mutated files through ``medprobe check`` and ``embed``: every one is accounted for, within bounded memory and time.

python benchmarks/fuzz.py            10,000 images and 2,500 volumes
python benchmarks/fuzz.py --quick    400 and 100

Good files of every kind (PNG, JPEG, TIFF, WebP, JPEG 2000, DICOM where pydicom is installed, and NIfTI where nibabel is) are
changed by flipped bits, overwritten numbers, cut and repeated parts, from a seed; of compressed NIfTI files the compressed
bytes, or what was compressed. A crash of a decoding process shows as the reason "killed the process that read it"; none is
expected.
"""

from __future__ import annotations

import argparse
import gzip
import io
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

import medprobe

KILLED = "killed the process that read it"


def originals(random: np.random.Generator) -> Iterator[tuple[str, bytes]]:
    """Yield suffix and bytes of good files."""
    grey = random.integers(0, 255, (48, 40), dtype=np.uint8)
    colour = random.integers(0, 255, (48, 40, 3), dtype=np.uint8)
    deep = random.integers(0, 1 << 16, (48, 40)).astype(np.uint16)
    pictures = [(".png", "PNG"), (".jpg", "JPEG"), (".tif", "TIFF"), (".webp", "WEBP"), (".jp2", "JPEG2000")]
    for suffix, kind in pictures:
        for pixels in (grey, colour, deep):
            if pixels is deep and kind in {"JPEG", "WEBP"}:
                continue
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, kind)
            yield suffix, buffer.getvalue()
    try:
        import pydicom
    except ImportError:
        return
    for path in sorted((Path(pydicom.__file__).parent / "data" / "test_files").glob("*.dcm")):
        if path.stat().st_size < 200_000:
            yield ".dcm", path.read_bytes()


def volumes(random: np.random.Generator) -> Iterator[tuple[str, bytes]]:
    """Yield suffix and bytes of good NIfTI files; compressed ones are compressed after they have been changed, or before."""
    try:
        import nibabel
    except ImportError:
        return
    for dtype in ("uint8", "int16", "float32", ">i2", "float64"):
        for shape in ((9, 8, 7), (9, 8, 7, 3)):
            affine = np.diag([*random.uniform(0.5, 5, 3), 1])
            affine[:3, :3] = np.roll(affine[:3, :3], random.integers(3), axis=1)
            for kind in (nibabel.Nifti1Image, nibabel.Nifti2Image):
                voxels = random.integers(0, 100, shape).astype(dtype)
                data = kind(voxels, affine, dtype=voxels.dtype).to_bytes()
                yield ".nii", data
                yield ".nii.gz", gzip.compress(data)
                yield ".raw.nii.gz", data


def mutated(data: bytes, random: np.random.Generator) -> bytes:
    """Return a file with one to eight changes, most of them near its head, where the structure is."""
    found = bytearray(data)
    for _ in range(random.integers(1, 9)):
        if not found:
            break
        at = min(
            int(random.exponential(400)) if random.random() < 0.7 else int(random.integers(len(found))), len(found) - 1
        )
        match random.integers(6):
            case 0:
                found[at] ^= 1 << int(random.integers(8))
            case 1:
                found[at : at + 4] = int(random.choice([0, 1, 255, 65535, 2**31 - 1, 2**32 - 1])).to_bytes(4, "little")
            case 2:
                found[at : at + 4] = int(random.choice([0, 1, 65535, 2**31 - 1, 2**32 - 1])).to_bytes(4, "big")
            case 3:
                del found[at : at + int(random.integers(1, 64))]
            case 4:
                found[at:at] = found[at : at + int(random.integers(1, 64))]
            case _:
                found = found[: int(random.integers(len(found) + 1))]
    return bytes(found)


def fuzz(what: str, good: list[tuple[str, bytes]], n: int, random: np.random.Generator) -> None:
    """Change n files, check and embed them, print what became of them and fail if one is not accounted for."""
    print(f"{n:,} {what} from {len(good)} good ones")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "in"
        root.mkdir()
        for i in range(n):
            suffix, data = good[int(random.integers(len(good)))]
            changed = mutated(data, random)
            (root / f"{i:05d}{suffix}").write_bytes(gzip.compress(changed) if suffix.startswith(".raw") else changed)
        started = time.perf_counter()
        survey = medprobe.check(root, keep_ids=True)
        seconds = time.perf_counter() - started
        limit = max(survey.images, 1)
        (report,) = medprobe.embed(root, "baseline/pixels", Path(folder) / "out", keep_ids=True, max_failures=limit)
        store = medprobe.open_store(report.path)
        kept, failures = len(store.samples), store.failures  # read before the folder goes
        files = {name.split("#")[0] for name in store.manifest["id"]}
    left_out = [note for note in survey.notes if "left out" in note]
    print(
        f"check: {survey.images:,} images, {len(survey.unreadable):,} refused; {'; '.join(left_out) or 'none left out'}"
    )
    print(f"embed: {kept:,} with features, {len(failures):,} failures")
    for reason, count in Counter(failures["reason"]).most_common(12):
        print(f"  {count:6,} {reason}")
    assert kept + len(failures) == survey.images
    assert set(failures["id"]) == set(survey.unreadable)
    assert left_out or len(files) == n
    killed = sum(reason == KILLED for reason in survey.unreadable.values())
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 1024
    print(
        f"decoding processes that died: {killed}; peak memory of a process {peak:,.0f} MB; {n / seconds:,.0f} files/s in check"
    )


def main(n: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    print(f"seed {seed}")
    fuzz("images", list(originals(random)), n, random)
    if good := list(volumes(random)):
        fuzz("volumes", good, n // 4, random)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    main(400 if options.quick else 10_000, options.seed)
