"""Forward passes side by side on a processor: who takes part, what they leave alone, how they end, and their numbers."""

from __future__ import annotations

import threading
import time
from concurrent.futures import CancelledError
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import medprobe
from medprobe import embed
from medprobe.embed.cores import Cores
from medprobe.embed.forward import Forward, cores_for
from medprobe.testing import FakeEncoder


class Reentrant(FakeEncoder):
    reentrant = True


def draw(folder: Path, n: int) -> Path:
    folder.mkdir()
    for i in range(n):
        pixels = np.random.default_rng(i).integers(0, 256, (16, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02d}.png")
    return folder


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_as_many_passes_run_at_once_as_there_are_threads_each_on_one(three_threads):
    together = threading.Barrier(3, timeout=60)

    def compute() -> int:
        together.wait()  # breaks unless three are there
        return torch.get_num_threads()

    with Cores() as cores:
        assert [result() for result in [cores.begin(compute) for _ in range(6)]] == [1] * 6


def test_other_threads_compute_as_they_did(three_threads):
    found = []
    with Cores():
        assert torch.get_num_threads() == 3
        later = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        later.start()
        later.join()
    assert found == [3]


class Slow(torch.nn.Module):
    def forward(self, began: threading.Event) -> None:
        began.set()
        time.sleep(0.05)


def test_after_an_error_passes_end_with_their_layer_and_other_threads_go_on(three_threads):
    began, elsewhere, ended, seen = threading.Event(), threading.Event(), threading.Event(), []

    def for_a_minute() -> None:
        for _ in range(1200):
            Slow()(began)

    def another() -> None:
        while not ended.is_set():
            Slow()(elsewhere)
        seen.append("unharmed")

    other = threading.Thread(target=another, daemon=True)
    other.start()
    passes = []

    def interrupted() -> None:
        with Cores() as cores:
            passes.extend(cores.begin(for_a_minute) for _ in range(9))
            assert began.wait(60)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    for result in passes:
        with pytest.raises(CancelledError):
            result()
    ended.set()
    other.join(60)
    assert seen == ["unharmed"]
    Slow()(elsewhere)  # nothing is left behind


@pytest.mark.parametrize(
    ("encoder", "compiled", "takes_part"),
    [
        (Reentrant(image_size=16), False, True),
        (FakeEncoder(image_size=16), False, False),  # it counts what it has encoded
        (Reentrant(image_size=16), True, False),  # compiled for all cores
        (Reentrant(image_size=1024), False, False),  # memory
    ],
)
def test_only_what_may_run_side_by_side_does(encoder, compiled, takes_part):
    with cores_for([Forward(Reentrant(image_size=16), "fp32"), Forward(encoder, "fp32", compile=compiled)]) as cores:
        assert (cores is not None) is takes_part


def test_an_error_in_a_pass_is_the_same_error(tmp_path):
    class Failing(Reentrant):
        def forward_views(self, pixels):
            if len(pixels) > 1:
                raise RuntimeError("not enough memory")
            return super().forward_views(pixels)

    with pytest.raises(RuntimeError, match="not enough memory"):
        embed(draw(tmp_path / "images", 8), Failing(image_size=16), tmp_path / "out", workers=0)


def test_features_do_not_depend_on_the_number_of_cores(tmp_path, three_threads):
    images = draw(tmp_path / "images", 23)
    found = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        out = tmp_path / str(threads)
        (report,) = embed(images, "imagenet/efficientnet-lite0", out, block_rows=8, device="cpu", dtype="float32")
        found.append(medprobe.open_store(report.path).features()[:])
    assert len(np.unique(found[0], axis=0)) == 23
    for others in found[1:]:
        np.testing.assert_array_equal(others, found[0])
