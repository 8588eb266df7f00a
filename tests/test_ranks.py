"""Several processes that make one store together: each its own blocks, in any number, at once or after each other."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import medprobe
from medprobe.embed.precision import choose_devices
from medprobe.embed.ranks import Share, share_of
from medprobe.errors import UsageError

N, ROWS = 60, 4  # images, and of a block: fifteen blocks


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(N):
        Image.fromarray(rng.integers(0, 255, (12, 12, 3), dtype=np.uint8)).save(root / f"{i:03d}.png")
    return root


@pytest.fixture(scope="module")
def whole(images: Path, tmp_path_factory: pytest.TempPathFactory) -> medprobe.FeatureStore:
    return medprobe.open_store(embed(images, tmp_path_factory.mktemp("whole")).path)


def embed(images: Path, out: Path, **options):
    (report,) = medprobe.embed(
        images, "baseline/pixels", out, workers=0, block_rows=ROWS, image_size=8, precision="fp32", **options
    )
    return report


def contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def test_ranks_three_then_one_then_five(images, whole, tmp_path):
    reports = [embed(images, tmp_path, rank=rank, world_size=3) for rank in (0, 2)]
    assert [report.embedded for report in reports] == [20, 20]
    assert reports[-1].missing == 5
    path = reports[0].path
    assert medprobe.FeatureStore(path, partial=True).missing_blocks == [1, 4, 7, 10, 13]
    report = embed(images, tmp_path, rank=1, world_size=5)
    assert (report.embedded, report.missing) == (4, 4)  # of its blocks 1, 6 and 11, only the first is left
    assert embed(images, tmp_path).embedded == 16
    assert contents(path) == contents(whole.path)
    assert [embed(images, tmp_path, rank=rank, world_size=5).embedded for rank in range(5)] == [0] * 5


def test_ranks_at_once_make_the_same_store(images, whole, tmp_path):
    code = (
        "import sys, medprobe\n"
        "medprobe.embed(sys.argv[1], 'baseline/pixels', sys.argv[2], workers=0, block_rows=4, image_size=8, precision='fp32')"
    )
    runs = []
    for rank in range(3):
        environment = {"RANK": str(rank), "WORLD_SIZE": "3", "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", code, str(images), str(tmp_path)]
        runs.append(subprocess.Popen(command, env={**os.environ, **environment}))
    assert [run.wait() for run in runs] == [0, 0, 0]
    (path,) = tmp_path.glob("*.zarr")
    assert contents(path) == contents(whole.path)
    assert not [*tmp_path.glob(".*")]  # nor is a draft of it left


def test_a_damaged_block_is_mended_by_its_own_rank(images, whole, tmp_path):
    path = embed(images, tmp_path).path
    store = medprobe.open_store(path)
    store.chunk_path(f"features/{next(iter(store.views))}", 4).write_bytes(b"torn")
    assert embed(images, tmp_path, rank=0, world_size=3).embedded == 0
    assert embed(images, tmp_path, rank=1, world_size=3).embedded == ROWS
    assert contents(path) == contents(whole.path)


@pytest.mark.parametrize(
    ("environment", "share"),
    [
        ({}, Share(0, 1, 0)),
        ({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, Share(5, 8, 1)),
        ({"SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "2"}, Share(2, 4, 2)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, Share(0, 1, 0)),  # a batch script by itself
        ({"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2", "RANK": "3", "WORLD_SIZE": "4"}, Share(3, 4, 0)),
    ],
)
def test_the_environment_of_launchers(environment, share):
    assert share_of(None, None, environment) == share


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        ((1, None), {}, "--rank and --world-size go together"),
        ((3, 3), {}, r"--rank 3: from 0 to --world-size - 1, which is 2"),
        ((None, None), {"RANK": "1"}, "has RANK and no WORLD_SIZE"),
        ((None, None), {"WORLD_SIZE": "2"}, "has WORLD_SIZE and no RANK"),
        ((None, None), {"SLURM_STEP_NUM_TASKS": "2"}, "has SLURM_STEP_NUM_TASKS and no SLURM_PROCID"),
        ((None, None), {"RANK": "x", "WORLD_SIZE": "2"}, "is no number"),
    ],
)
def test_half_a_rank_is_refused(arguments, environment, message):
    with pytest.raises(UsageError, match=message):
        share_of(*arguments, environment)


def test_ranks_do_not_delete_each_others_work(images, tmp_path):
    with pytest.raises(UsageError, match="--overwrite: not with several ranks"):
        embed(images, tmp_path, rank=0, world_size=2, overwrite=True)


def test_processes_of_a_machine_take_its_devices_in_turn(monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    for name in ("auto", "cuda"):
        assert [[d.index for d in choose_devices(name, Share(r, 8, r))] for r in (0, 3, 5)] == [[0], [3], [1]]
        assert [d.index for d in choose_devices(name, Share())] == [0, 1, 2, 3]
