"""Batches: how large, and what one stream of images over several blocks costs in memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medprobe.embed.forward import BatchSize, Forward
from medprobe.errors import DataError
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
    assert settle(BatchSize.of(None, torch.device("cpu"), 1), lambda n: 1 / n) == 32
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
