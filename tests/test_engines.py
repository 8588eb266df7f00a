"""Several workers that are handed blocks as they come free make the store that one process makes."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import engine_encoders
import numpy as np
import pytest
from engine_encoders import Deadly
from PIL import Image

import medprobe
from medprobe.embed import distribute
from medprobe.embed.block import Span
from medprobe.embed.distribute import _Pieces
from medprobe.embed.precision import choose_devices
from medprobe.embed.ranks import Share
from medprobe.errors import DataError, UsageError
from medprobe.testing import FakeEncoder

N, ROWS = 46, 4

ENGINES = [
    "local",
    pytest.param(
        "ray", marks=pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")
    ),
]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(N):
        Image.fromarray(rng.integers(0, 255, (12, 12, 3), dtype=np.uint8)).save(root / f"{i:03d}.png")
    (root / "007.png").write_bytes(b"no picture")
    return root


@pytest.fixture(scope="module")
def ray_of_tests():
    """A Ray of two processors that takes the tests' encoders by value: its workers do not find this folder."""
    ray = pytest.importorskip("ray")
    ray.cloudpickle.register_pickle_by_value(engine_encoders)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def engine(request: pytest.FixtureRequest) -> str:
    if request.param == "ray":
        request.getfixturevalue("ray_of_tests")
    return request.param


def embed(images: Path, out: Path, encoder=None, **options):
    encoder = encoder or FakeEncoder(width=8, views=("cls", "mean"), image_size=16)
    options = {"workers": 0, "block_rows": ROWS, "batch_size": 2, "precision": "fp32", "device": "cpu", **options}
    (report,) = medprobe.embed(images, [encoder], out, **options)
    return report


def contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


@pytest.mark.parametrize("engine", ENGINES, indirect=True)
def test_two_workers_make_the_same_store_though_one_dies(images, tmp_path, engine):
    (tmp_path / "deaths").mkdir()
    seen = []
    encoder = Deadly(tmp_path / "deaths", times=1)
    report = embed(
        images, tmp_path / "out", encoder, device="cpu,cpu", engine=engine, progress=lambda p: seen.append(p.done)
    )
    assert len(list((tmp_path / "deaths").iterdir())) == 1
    assert (report.embedded, report.missing, report.failures) == (N, 0, 1)
    assert contents(report.path) == contents(embed(images, tmp_path / "whole").path)
    assert seen == sorted(seen)


@pytest.mark.parametrize("engine", ENGINES, indirect=True)
def test_two_workers_extend_a_store_though_one_dies(images, tmp_path, engine):
    (tmp_path / "deaths").mkdir()
    embed(images, tmp_path / "out", limit=N // 2)
    encoder = Deadly(tmp_path / "deaths", times=1)
    report = embed(images, tmp_path / "out", encoder, device="cpu,cpu", engine=engine, extend=True)
    assert len(list((tmp_path / "deaths").iterdir())) == 1
    assert (report.embedded, report.missing, report.failures) == (N - N // 2, 0, 1)
    assert contents(report.path) == contents(embed(images, tmp_path / "whole").path)


@pytest.mark.parametrize("engine", ENGINES, indirect=True)
def test_errors_of_a_worker_are_the_callers(images, tmp_path, engine):
    with pytest.raises(DataError, match="more than the 0 that --max-failures allows: 1 not an image"):
        embed(images, tmp_path, device="cpu,cpu", engine=engine, max_failures=0)


def test_a_block_that_ends_every_process_is_given_up_and_named(images, tmp_path, monkeypatch):
    monkeypatch.setattr(distribute, "ATTEMPTS", 1)  # each takes seconds to begin
    (tmp_path / "deaths").mkdir()
    with pytest.raises(DataError, match=r"images \d+ to \d+ have ended 1 processes"):
        embed(images, tmp_path / "out", Deadly(tmp_path / "deaths", times=100), device="cpu,cpu")
    left = embed(images, tmp_path / "out")
    assert left.missing == 0
    assert contents(left.path) == contents(embed(images, tmp_path / "whole").path)


def test_pieces_shrink_so_that_no_worker_is_left_without():
    pieces = _Pieces(waiting=_spans(20), workers=2)
    assert len(pieces.take()) == 1  # nothing is known yet of how long one takes
    pieces.a_block = 0.1
    sizes = []
    while pieces.waiting:
        sizes.append(len(pieces.take()))
    assert sizes == sorted(sizes, reverse=True)
    assert sum(sizes) == 19
    assert sizes[0] == 4
    assert sizes[-1] == 1


def test_blocks_whose_worker_died_are_made_one_by_one():
    pieces = _Pieces(waiting=_spans(0), workers=1, a_block=0.1)
    lost = list(_spans(3))
    pieces.lost(lost)
    assert [pieces.take() for _ in range(3)] == [[span] for span in lost]
    pieces.lost(lost[:1])
    with pytest.raises(DataError, match="images 0 to 3"):
        pieces.lost(lost[:1])


def _spans(n: int):
    from collections import deque

    return deque(Span(4 * i, 4 * i + 4, (0,)) for i in range(n))


def test_engines_and_devices_that_cannot_be(images, tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="--engine spark: one of local, ray"):
        embed(images, tmp_path, engine="spark")
    with pytest.raises(UsageError, match="each of 2 ranks computes on one device"):
        choose_devices("cpu,cpu", Share(0, 2))
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(UsageError, match=r"pip install 'medprobe\[ray\]'"):
        embed(images, tmp_path, engine="ray")
