"""Batches: how large, and what one stream of images over several blocks costs in memory."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from medprobe.embed.forward import BatchSize, Forward
from medprobe.embed.precision import autocast, choose_precision
from medprobe.errors import DataError, UsageError
from medprobe.images.decode import CHUNK, Decoder, chunks
from medprobe.images.geometry import Geometry
from medprobe.images.sources import FileImages
from medprobe.testing import FakeEncoder


def settle(batch: BatchSize, an_image) -> int:
    """Feed a size with batches that take ``an_image(size)`` seconds an image until it stays."""
    for _ in range(100):
        batch.took(batch.size, batch.size * an_image(batch.size))
    return batch.size


@pytest.mark.parametrize(
    ("an_image", "size"),
    [
        (lambda n: 1 / min(n, 300), 512),  # a device that is full at 300
        (lambda n: 1.0, 64),
        (lambda n: 1 / n, 1024),
        (lambda n: abs(n - 128) + 1, 128),
    ],
)
def test_a_batch_grows_while_an_image_becomes_cheaper(an_image, size):
    assert settle(BatchSize(64, 1024), an_image) == size


def test_a_batch_that_was_too_large_is_not_tried_again():
    batch = BatchSize(64, 1024)
    while batch.size < 512:
        batch.took(batch.size, 1.0)
    batch.halve()
    assert batch.size == 256
    assert settle(batch, lambda n: 1 / n) == 256


def test_what_is_chosen_stays_and_partial_batches_say_nothing():
    cuda = torch.device("cuda")
    assert settle(BatchSize.of(10, cuda, 1), lambda n: 1 / n) == 10
    for side, size in ((28, 32), (224, 4), (336, 1), (1024, 1)):
        assert settle(BatchSize.of(None, torch.device("cpu"), 3 * side**2), lambda n: 1 / n) == size
    assert settle(BatchSize.of(None, cuda, 3 * 1024**2), lambda n: 1 / n) == 128  # what is staged is bounded
    batch = BatchSize.of(None, cuda, 1)
    for _ in range(10):
        batch.took(batch.size - 1, 1e-9)
    assert batch.size == 64


def test_one_image_that_does_not_fit_is_an_error():
    forward = Forward(FakeEncoder(image_size=8, oom_above=0), "fp32")
    with pytest.raises(DataError, match="one image does not fit the memory of cpu"):
        forward.encode(np.zeros((3, 8, 8, 3), np.uint8))


@pytest.mark.parametrize(("nan_rows", "heals"), [((1,), True), ((1, 3), False)])  # image 3 is image 1 once more
def test_rows_that_are_not_finite_are_computed_again_in_fp32(nan_rows, heals):
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    found = Forward(FakeEncoder(image_size=8, nan_rows=nan_rows), "bf16").encode(images)
    expected = Forward(FakeEncoder(image_size=8), "fp32").encode(images)
    for view, values in found.items():
        assert np.isfinite(values).all(axis=1).tolist() == [True, heals, True]
        if heals:
            np.testing.assert_array_equal(values[1], expected[view][1])


def scaled(by):
    """A compiler whose networks multiply their first view's first value."""

    def compiled(forward):
        def run(pixels):
            views = {view: values.clone() for view, values in forward(pixels).items()}
            next(iter(views.values()))[:, 0] *= by
            return views

        return run

    return compiled


def no_compiler(forward):
    def run(pixels):
        raise RuntimeError("no working C++ compiler\nand much more")

    return run


@pytest.mark.parametrize(
    ("compiler", "warning"),
    [
        (scaled(1.0), None),
        (scaled(100.0), "features differ, cosine"),
        (scaled(np.nan), "features differ, cosine -1.0"),
        (no_compiler, "--compile is left out: no working C++ compiler"),
    ],
)
def test_a_compiled_encoder_is_used_only_if_it_gives_the_same(compiler, warning, monkeypatch, caplog):
    monkeypatch.setattr(torch, "compile", compiler)
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    encoder = FakeEncoder(image_size=8)
    plain = Forward(encoder, "fp32").encode(images)
    found = Forward(encoder, "fp32", compile=True).encode(images)
    for view, values in found.items():
        np.testing.assert_array_equal(values, plain[view])
    assert encoder.is_compiled is (warning is None)
    assert [warning in message for message in caplog.messages] == ([] if warning is None else [True])


class Pooling(FakeEncoder):
    def forward_views(self, pixels):
        return {view: torch.tanh(pixels.flatten(1)[:, :width]) for view, width in self.views.items()}


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_the_real_compiler_gives_the_same_features():
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    encoder = Pooling(image_size=8)
    plain = Forward(encoder, "fp32").encode(images)
    found = Forward(encoder, "fp32", compile=True).encode(images)
    assert encoder.is_compiled
    for view, values in found.items():
        np.testing.assert_allclose(values, plain[view], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("precision", "allowed"), [("fp32", False), ("tf32", True)])
def test_products_in_tf32_are_allowed_only_where_they_are_asked_for(precision, allowed):
    flags = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [flag.allow_tf32 for flag in flags]
    with autocast(precision, torch.device("cuda")):
        assert [flag.allow_tf32 for flag in flags] == [allowed, allowed]
    assert [flag.allow_tf32 for flag in flags] == before
    if precision == "tf32":
        with pytest.raises(UsageError, match="on cpu: fp32 or bf16"):
            choose_precision(precision, torch.device("cpu"))


@pytest.mark.parametrize(("side", "together"), [(224, CHUNK), (1024, 5), (8192, 1)])
def test_large_images_travel_in_smaller_chunks(side, together):
    images = FileImages([str(i) for i in range(60)])
    lengths = [len(rows) for rows in chunks(images, range(60), [Geometry((side, side), side)])]
    assert (max(lengths), sum(lengths)) == (together, 60)


def test_how_far_decoding_runs_ahead_is_bounded_in_bytes(monkeypatch):
    import medprobe.images.decode as decoding

    geometry = Geometry((8, 8), 8)
    monkeypatch.setattr(decoding, "_WAITING_BYTES", 4 * 3 * 64)  # four images
    asked = []

    def tasks():
        for i in range(20):
            asked.append(i)
            yield [np.full((8, 8), i, np.uint8)], [geometry]

    with Decoder(4) as decoder:
        for i, decoded in enumerate(decoder.stream(tasks())):
            assert decoded.pixels[0][0, 0, 0, 0] == i
            assert len(asked) <= i + 4
