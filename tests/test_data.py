"""Reading manifests and images, good and bad."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import v2

from medprobe.demo_images import draw_blood_smears
from medprobe.errors import DataError, UsageError
from medprobe.images import raster
from medprobe.images.decode import Decoder, decode
from medprobe.images.geometry import Geometry
from medprobe.images.raster import ImageError, content_digest, load_rgb, read_source
from medprobe.manifest import read_manifest

RNG = np.random.default_rng(0)
WHOLE = Geometry(size=(12, 10), resize=None, crop="none")


def encoded(image: Image.Image, file_format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def noise(height: int, width: int) -> Image.Image:
    return Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a/1.png", "a/deep/2.jpg", "b/3.PNG", "b/.hidden.png", "notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(noise(8, 8)))
    return tmp_path


def table(folder: Path, text: str, name: str = "m.csv") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_a_folder_is_labelled_by_its_first_level(folder):
    manifest = read_manifest(folder)
    assert manifest.samples.to_dict("list") == {"id": ["a/1.png", "a/deep/2.jpg", "b/3.PNG"], "label": ["a", "a", "b"]}
    assert manifest.roles.labels == ("label",)
    assert any("1 .txt" in note for note in manifest.notes)


def test_train_val_and_test_come_first(tmp_path):
    for name in ("train/x/1.png", "valid/y/2.png", "test/x/3.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(b"")
    samples = read_manifest(tmp_path).samples
    assert dict(zip(samples["id"], samples["split"], strict=True)) == {
        "train/x/1.png": "train", "valid/y/2.png": "val", "test/x/3.png": "test",
    }  # fmt: skip
    assert sorted(samples["label"]) == ["x", "x", "y"]


def test_a_table_keeps_what_numbers_would_lose(folder):
    text = "file,grade,patient,score,mrn,note\na/1.png,0,007,1.5,123,\na/deep/2.jpg,2,7,,124,ü\n"
    manifest = read_manifest(table(folder, text))
    samples = manifest.samples
    assert list(samples.columns) == ["id", "grade", "patient", "score", "note"]
    assert list(samples["patient"]) == ["007", "7"]
    assert list(samples["grade"]) == [0, 2]
    assert np.isnan(samples["score"].iloc[1])
    assert list(samples["note"]) == ["", "ü"]
    assert manifest.roles.group == "patient"
    assert any("mrn" in note and "--keep-col" in note for note in manifest.notes)
    assert manifest.images.payload(0) == str(folder / "a/1.png")
    assert "mrn" in read_manifest(folder / "m.csv", keep_cols=["mrn"]).samples
    assert read_manifest(folder / "m.csv", group_col="none").roles.group is None
    tsv = table(folder, text.replace(",", "\t"), "m.tsv")
    assert read_manifest(tsv).samples.equals(samples)
    samples.assign(file=samples["id"]).drop(columns="id").to_parquet(folder / "m.parquet")
    assert list(read_manifest(folder / "m.parquet").samples["patient"]) == ["007", "7"]


@pytest.mark.parametrize(
    ("text", "kwargs", "error", "words"),
    [
        ("x,y\n1,2\n", {}, DataError, "no column of image paths .* --path-col"),
        ("x,y\n1,2\n", {"path_col": "z"}, UsageError, "--path-col z"),
        ("path,y\na,1\n,2\n", {}, DataError, r"'path' is empty in 1 rows \(first: data row 2\)"),
        ("path,y\na,1\na,2\n", {}, DataError, "names 1 samples twice"),
        ("path,y\na,1\n", {"group_col": "p"}, UsageError, "--group-col p: no such column; there are: y"),
        ("path,y\na,1\n", {"split_col": "s"}, UsageError, "--split-col s"),
        ("path,y\na,1\n", {"label_cols": ["l"]}, UsageError, "--label-col l"),
        ("path,y\n", {}, DataError, "no images"),
        ("path,a/b\nx,1\n", {}, DataError, "may not be called"),
        ('path,y\n"a,1\n', {}, DataError, "could not be read as a table"),
    ],
)
def test_a_table_that_cannot_be_used_says_why(tmp_path, text, kwargs, error, words):
    with pytest.raises(error, match=words):
        read_manifest(table(tmp_path, text), **kwargs)


def test_what_is_no_data_is_refused(tmp_path):
    with pytest.raises(DataError, match="no such file or folder"):
        read_manifest(tmp_path / "nothing")
    (tmp_path / "x.mat").touch()
    with pytest.raises(DataError, match="DATA is a folder"):
        read_manifest(tmp_path / "x.mat")
    (tmp_path / "x.npz").write_bytes(b"no zip")
    with pytest.raises(DataError, match=r"not a \.npz file"):
        read_manifest(tmp_path / "x.npz")


@pytest.mark.parametrize("shape", [(), (1,), (3,)])
@pytest.mark.parametrize("pixels", [(5, 4), (5, 4, 1), (5, 4, 3)])
def test_medmnist_files_are_read_as_a_stream(tmp_path, shape, pixels):
    counts = {"train": 7, "val": 3, "test": 4}
    arrays = {f"{s}_images": RNG.integers(0, 256, (n, *pixels), dtype=np.uint8) for s, n in counts.items()}
    labels = {f"{s}_labels": RNG.integers(0, 2, (n, *shape), dtype=np.uint8) for s, n in counts.items()}
    np.savez_compressed(tmp_path / "m.npz", **arrays, **labels)
    manifest = read_manifest(tmp_path / "m.npz")
    assert manifest.roles.split == "split"
    assert list(manifest.samples["split"]) == ["train"] * 7 + ["val"] * 3 + ["test"] * 4
    names = ["label"] if shape != (3,) else ["label_0", "label_1", "label_2"]
    expected = np.concatenate([labels[f"{s}_labels"].reshape(n, -1) for s, n in counts.items()])
    np.testing.assert_array_equal(manifest.samples[names].to_numpy(), expected)
    everything = np.concatenate([arrays[f"{s}_images"] for s in counts])
    for row in [*range(14), 13, 2, 9, 0]:
        np.testing.assert_array_equal(manifest.images.payload(row), everything[row])


def test_pickled_arrays_are_refused(tmp_path):
    np.savez(tmp_path / "p.npz", images=np.array([{"a": 1}], dtype=object))
    with pytest.raises(DataError, match="object"):
        read_manifest(tmp_path / "p.npz")
    with zipfile.ZipFile(tmp_path / "q.npz", "w") as archive:
        archive.writestr("images.npy", b"\x93NUMPY\x01\x00")
    with pytest.raises(DataError):
        read_manifest(tmp_path / "q.npz")


@pytest.mark.parametrize("size", [(200, 300), (333, 201), (224, 224), (50, 100), (801, 1000), (30, 31)])
@pytest.mark.parametrize(("resize", "crop"), [(256, 224), ((256, 256), 224), (224, 224), (37, 32), (30, 64)])
def test_pixels_are_torchvisions(size, resize, crop):
    image = noise(*size)
    transform = v2.Compose([v2.Resize(resize, interpolation=v2.InterpolationMode.BICUBIC), v2.CenterCrop(crop)])
    (ours,) = load_rgb(encoded(image), [Geometry((crop, crop), resize)])
    np.testing.assert_array_equal(ours, np.asarray(transform(image)))


def test_a_large_jpeg_is_read_reduced_and_hardly_differs():
    image = noise(60, 80).resize((4000, 3000), Image.Resampling.BICUBIC)
    data = encoded(image, "JPEG", quality=90)
    fast, exact = (load_rgb(data, [Geometry((224, 224), 256, exact_decode=exact)])[0] for exact in (False, True))
    assert 0 < np.abs(fast.astype(int) - exact).mean() < 1
    full = Geometry((224, 224), 256).apply(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(exact, np.asarray(full))


def test_colour_modes_become_rgb():
    rgb = noise(12, 10)
    grey = rgb.convert("L")

    def load(image: Image.Image, file_format: str = "PNG", **options) -> np.ndarray:
        return load_rgb(encoded(image, file_format, **options), [WHOLE])[0]

    np.testing.assert_array_equal(load(grey), np.asarray(grey.convert("RGB")))
    np.testing.assert_array_equal(load(rgb.convert("P")), np.asarray(rgb.convert("P").convert("RGB")))
    np.testing.assert_array_equal(load(rgb.convert("1")), np.asarray(rgb.convert("1").convert("RGB")))
    np.testing.assert_array_equal(load(rgb.convert("CMYK"), "TIFF"), np.asarray(rgb.convert("CMYK").convert("RGB")))
    clear = rgb.copy()
    clear.putalpha(0)
    assert load(clear).max() == 0
    turned = load(rgb.rotate(180))
    np.testing.assert_array_equal(turned[::-1, ::-1], np.asarray(rgb))


def test_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6
    image = noise(10, 12)
    (ours,) = load_rgb(encoded(image, "PNG", exif=exif), [WHOLE])
    np.testing.assert_array_equal(ours, np.rot90(np.asarray(image), -1))


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_sixteen_bits_stay_monotone_and_unsaturated(file_format):
    ramp = np.linspace(100, 40_000, 4096).astype(np.uint16).reshape(64, 64)
    whole = Geometry((64, 64), None, crop="none")
    (ours,) = load_rgb(encoded(Image.fromarray(ramp), file_format), [whole])
    values = ours[:, :, 0].ravel().astype(int)
    assert (np.diff(values) >= 0).all()
    assert (values == 255).mean() < 0.01
    np.testing.assert_array_equal(ours, load_rgb(ramp, [whole])[0])


def test_bad_files_have_reasons_without_their_names(tmp_path, monkeypatch):
    good = encoded(noise(64, 64), "JPEG")
    frames = encoded(noise(8, 8), "GIF", save_all=True, append_images=[noise(8, 8)])
    for data, reason in [
        (good[: len(good) // 2], "truncated"),
        (good[:-40], "truncated"),
        (b"<!DOCTYPE html>", "not an image"),
        (b"", "empty file"),
        (frames, "several frames (2)"),
    ]:
        with pytest.raises(ImageError) as caught:
            load_rgb(data, [WHOLE])
        assert caught.value.reason.startswith(reason)
    secret = tmp_path / "CANARY^JANE.png"
    for path, reason in [(secret, "missing"), (tmp_path, "a folder")]:
        with pytest.raises(ImageError) as caught:
            read_source(path)
        assert caught.value.reason.startswith(reason)
        assert "CANARY" not in str(caught.value)
    secret.write_bytes(b"x" * 100)
    monkeypatch.setattr(raster, "MAX_BYTES", 10)
    with pytest.raises(ImageError, match="too large"):
        read_source(secret)
    monkeypatch.setattr(raster, "MAX_PIXELS", 100)
    with pytest.raises(ImageError, match="too large"):
        load_rgb(good, [WHOLE])


def test_nothing_but_an_image_error_comes_out_of_damaged_files():
    image = noise(24, 24)
    formats = ("PNG", "JPEG", "TIFF", "GIF", "WEBP", "BMP", "PPM")
    rng = np.random.default_rng(1)
    refused = 0
    for file_format in formats:
        data = encoded(image, file_format)
        for _ in range(80):
            mutated = bytearray(data)
            for place in rng.integers(0, len(data), rng.integers(1, 6)):
                mutated[place] = rng.integers(0, 256)
            mutated = mutated[: rng.integers(1, len(data) + 1)] if rng.random() < 0.3 else mutated
            try:
                (pixels,) = load_rgb(bytes(mutated), [WHOLE])
                assert pixels.dtype == np.uint8
            except ImageError:
                refused += 1
    assert refused > 80


def test_workers_and_this_process_agree(folder):
    names = [str(folder / n) for n in ("a/1.png", "notes.txt", "absent.png", "b/3.PNG")]
    (folder / "notes.txt").write_text("words")
    geometries = [WHOLE, Geometry((4, 4), 4)]
    here = decode(names, geometries)
    assert here.readable.tolist() == [True, False, False, True]
    assert here.reasons == ["not an image", "missing"]
    np.testing.assert_array_equal(here.digests[0], content_digest((folder / "a/1.png").read_bytes()))
    with Decoder(2) as decoder:
        for there in decoder.run([names] * 5, geometries):
            assert there.reasons == here.reasons
            for ours, theirs in zip(here.pixels, there.pixels, strict=True):
                np.testing.assert_array_equal(ours, theirs)


def test_workers_end_with_the_process_that_made_them(folder):
    code = (
        "import sys, time\nfrom medprobe.images.decode import Decoder\nfrom medprobe.images.geometry import Geometry\n"
        "decoder = Decoder(2)\nnext(decoder.run([sys.argv[1:]] * 2, [Geometry((4, 4), 4)]))\n"
        "print('ready', flush=True)\ntime.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(folder / "a/1.png")], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.kill()
    process.communicate(timeout=60)  # returns once no worker holds the pipe any more


def test_the_demo_draws_the_same_images_twice(tmp_path):
    first, second = (draw_blood_smears(tmp_path / n, n_smears=3, cells_per_smear=5, damaged=2) for n in "ab")
    files = sorted(p.relative_to(first.parent) for p in first.parent.rglob("*.png"))
    assert len(files) == 15
    assert all((first.parent / f).read_bytes() == (second.parent / f).read_bytes() for f in files)
    manifest = read_manifest(first)
    assert set(manifest.samples["smear"]) == {"smear00", "smear01", "smear02"}
    payloads = [manifest.images.payload(i) for i in range(len(manifest))]
    assert int(decode(payloads, [WHOLE]).readable.sum()) == 13


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="interrupts cannot be blocked here")
def test_an_interrupt_while_workers_start_does_not_reach_them(folder):
    code = (
        "import signal, sys, threading, time, psutil\nfrom medprobe.images.decode import Decoder\n"
        "from medprobe.images.geometry import Geometry\n"
        "def interrupt():\n"
        "    for _ in range(400):\n"
        "        for child in psutil.Process().children():\n            child.send_signal(signal.SIGINT)\n"
        "        time.sleep(0.002)\n"
        "thread = threading.Thread(target=interrupt)\nthread.start()\n"
        "with Decoder(2) as decoder:\n"
        "    done = list(decoder.run([sys.argv[1:]] * 8, [Geometry((4, 4), 4)]))\n    thread.join()\n"
        "print(sum(d.readable.all() for d in done))"
    )
    command = [sys.executable, "-c", code, str(folder / "a/1.png")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("8\n", "")
