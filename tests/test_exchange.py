"""Pixels come from decoding processes through memory, or through a pipe, and are the same."""

import gc
import os
from pathlib import Path

import numpy as np
import pytest

from medprobe.images import decode as decoding
from medprobe.images.decode import Decoder, Task, decode
from medprobe.images.exchange import LEAST_BYTES, Memory, leave, memory_for
from medprobe.images.geometry import Geometry

LARGE = Geometry((512, 512), (512, 512))  # two of them are more than a pipe is good enough for
needs_memory = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="memory without a name is Linux's")


def pictures(n, seed=0):
    return list(np.random.default_rng(seed).integers(0, 256, (n, 40, 50, 3), dtype=np.uint8))


@needs_memory
def test_arrays_are_seen_as_they_were_left():
    rng, memory = np.random.default_rng(0), Memory()
    for n in (2, 5, 0, 3):  # longer and shorter than what was there before
        arrays = [rng.integers(0, 256, (n, side, 7, 3), dtype=np.uint8) for side in (8, 5)]
        shapes = leave(memory.place, arrays)
        assert shapes == [array.shape for array in arrays]
        for seen, array in zip(memory.look(shapes), arrays, strict=True):
            np.testing.assert_array_equal(seen, array)


@needs_memory
def test_memory_ends_with_its_object():
    memory = memory_for(LEAST_BYTES, [])
    assert memory is not None
    place = memory.place
    assert leave(place, [np.ones((2, 2), np.uint8)]) == [(2, 2)]
    assert memory_for(LEAST_BYTES - 1, [Memory()]) is None
    del memory
    assert leave(place, [np.ones((2, 2), np.uint8)]) is None


class Elsewhere:
    place = "/proc/nowhere"


@pytest.mark.parametrize("way", ["memory", "no memory", "not opened"])
def test_decoded_pixels_are_the_same_whichever_way_they_come(monkeypatch, way):
    if way != "memory":
        monkeypatch.setattr(decoding, "memory_for", lambda *_: None if way == "no memory" else Elsewhere())
    tasks = [pictures(3, seed) for seed in range(6)]
    tasks[2][1] = np.zeros((0, 4, 3), np.uint8)  # one that cannot be read
    tasks[4] = [np.zeros((0, 4, 3), np.uint8)] * 3  # none that can
    expected = [decode(task, [LARGE, Geometry((16, 16), (16, 16))]) for task in tasks]
    with Decoder(2) as decoder:
        decoder.begin()
        found = list(decoder.run(tasks, [LARGE, Geometry((16, 16), (16, 16))]))
        assert bool(decoder._free) is (way == "not opened" or (way == "memory" and hasattr(os, "memfd_create")))
    for ours, theirs in zip(expected, found, strict=True):
        assert ours.readable.tolist() == theirs.readable.tolist()
        for one, other in zip(ours.pixels, theirs.pixels, strict=True):
            np.testing.assert_array_equal(one, other)


def opened():
    links = (link for link in Path("/proc/self/fd").iterdir() if link.is_symlink())
    return sum("medprobe-pixels" in str(link.readlink()) for link in links)


@needs_memory
@pytest.mark.parametrize("limit", ["_WAITING_BYTES", "_WAITING_BYTES_EACH"])
def test_no_more_memory_is_open_than_pixels_wait_and_none_at_the_end(monkeypatch, limit):
    monkeypatch.setattr(decoding, limit, 4 * LEAST_BYTES)
    gc.collect()
    before = opened()  # what arrays of other tests in this process still look at
    with Decoder(1) as decoder:
        for i, decoded in enumerate(decoder.stream(Task(pictures(2, i), [LARGE]) for i in range(12))):
            np.testing.assert_array_equal(decoded.pixels[0], decode(pictures(2, i), [LARGE]).pixels[0])
            assert before < opened() <= before + 2 * 4  # each once to hand out, once to look at
    del decoded
    gc.collect()
    assert opened() <= before
