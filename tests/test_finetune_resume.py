"""A training that was killed ends with the same numbers; what it reads back is never run."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from finetune_helpers import TinyEncoder, changed, draw, state_of

from medprobe.encoders.weights import read_checkpoint
from medprobe.errors import DataError
from medprobe.finetune import checkpoint
from medprobe.finetune.run import Progress, finetune

pytest.importorskip("accelerate")

HOW: dict[str, Any] = {
    "epochs": 5, "patience": 0, "batch_size": 12, "accumulate": 2, "lr": 1e-2, "ema": 0.9, "schedule": "plateau",
    "layer_decay": 0.7, "balance": True, "workers": 0, "n_resamples": 20, "device": "cpu",
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("images"))


class StoppedError(Exception):
    pass


def stop_at(epoch: int, step: int) -> Any:
    def progress(now: Progress) -> None:
        if now.course.epoch == epoch and now.step == step:
            raise StoppedError

    return progress


@pytest.mark.parametrize("how", [{}, {"checkpoint_every": 2}, {"lr": [1e-3, 1e-2], "lr_epochs": 1}])
def test_stopped_anywhere_the_end_is_the_same(how: dict[str, Any], data: Path, tmp_path: Path) -> None:
    """Optimiser, schedule, drop-out, augmentation, order, average and batch statistics go on where they were."""
    given = {**HOW, **how}
    whole, resumed = TinyEncoder(), TinyEncoder()
    expected = finetune(data, whole, "label", out=tmp_path / "whole", **given)
    for epoch, step in ((0, 2), (2, 1), (3, 0), (4, 3)):
        with pytest.raises(StoppedError):
            finetune(data, TinyEncoder(), "label", out=tmp_path / "out", progress=stop_at(epoch, step), **given)
    found = finetune(data, resumed, "label", out=tmp_path / "out", **given)
    assert changed(state_of(whole.module), resumed.module) == set()
    for name in ("finetuned.safetensors", "head.safetensors"):
        ours, theirs = read_checkpoint(tmp_path / "out" / name), read_checkpoint(tmp_path / "whole" / name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
    trial = expected[0].trial
    assert np.array_equal(found.predictions[trial].proba, expected.predictions[trial].proba)
    assert found[0].settings == expected[0].settings
    # And a call after that trains nothing.
    again = finetune(data, TinyEncoder(), "label", out=tmp_path / "out", progress=stop_at(0, 1), **given)
    assert np.array_equal(again.predictions[trial].proba, expected.predictions[trial].proba)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL")
def test_a_killed_process_goes_on(data: Path, tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "medprobe", "finetune", data, "-m", "baseline/random-test_vit", "-t", "label", "--epochs", "4",
        "--patience", "0", "--image-size", "32", "--workers", "0", "--bootstrap", "20", "--device", "cpu", "-o",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    torch.set_num_threads(1)
    out = tmp_path / "killed"
    process = subprocess.Popen([*map(str, command), str(out)], stderr=subprocess.PIPE, env=environment)
    deadline = time.monotonic() + 300
    while not (out / checkpoint.FILE).exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (out / "finetuned.safetensors").exists()
    how = {"epochs": 4, "patience": 0, "image_size": 32, "workers": 0, "n_resamples": 20, "device": "cpu"}
    for folder in (out, tmp_path / "whole"):
        finetune(data, "baseline/random-test_vit", "label", out=folder, **how)
    ours, theirs = (read_checkpoint(folder / "finetuned.safetensors") for folder in (out, tmp_path / "whole"))
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


def test_no_pickle_is_run(data: Path, tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "was run",))

    out = tmp_path / "out"
    for content in (pickle.dumps(Attack()), b"", b"no checkpoint"):
        out.mkdir(exist_ok=True)
        (out / checkpoint.FILE).write_bytes(content)
        with pytest.raises(DataError, match="is damaged, or no checkpoint"):
            finetune(data, TinyEncoder(), "label", out=out, **HOW)
    torch.save({"training": Attack()}, out / checkpoint.FILE)
    with pytest.raises(DataError, match="is damaged, or no checkpoint"):
        finetune(data, TinyEncoder(), "label", out=out, **HOW)
    assert not (tmp_path / "was run").exists()


def test_a_checkpoint_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, {"training": "a", "value": torch.ones(3)})
    with pytest.raises(TypeError), checkpoint.whole(tmp_path / checkpoint.FILE) as draft:
        draft.write_bytes(b"half of it" + "and no bytes")  # type: ignore[operator]
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.FILE]
    saved = checkpoint.load(tmp_path, "a")
    assert saved is not None
    assert torch.equal(saved["value"], torch.ones(3))


@pytest.mark.slow
def test_two_processes_share_each_step(data: Path, tmp_path: Path) -> None:
    """Gradients of both halves of a batch are those of the batch; one process writes."""
    how = [
        "--epochs",
        "2",
        "--patience",
        "0",
        "--image-size",
        "32",
        "--workers",
        "0",
        "--bootstrap",
        "20",
        "--device",
        "cpu",
    ]
    command = ["-m", "medprobe", "finetune", data, "-m", "baseline/random-test_vit", "-t", "label", *how, "-o"]
    two = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*two, *map(str, command), str(tmp_path / "two")], capture_output=True, text=True, env=environment, timeout=400
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("finetune-full") == 2  # in the leaderboard and in the table of costs, of one process
    alone = {"epochs": 2, "patience": 0, "image_size": 32, "workers": 0, "n_resamples": 20, "device": "cpu"}
    finetune(data, "baseline/random-test_vit", "label", out=tmp_path / "one", **alone)
    ours, theirs = (read_checkpoint(tmp_path / name / "finetuned.safetensors") for name in ("two", "one"))
    start = read_checkpoint_of_start()
    moved = max(float((value - start[key]).abs().max()) for key, value in theirs.items())
    apart = max(float((value - theirs[key]).abs().max()) for key, value in ours.items())
    assert apart < 0.05 * moved


def read_checkpoint_of_start() -> dict[str, torch.Tensor]:
    from medprobe.encoders.base import LoadOptions
    from medprobe.encoders.registry import load_encoder

    return load_encoder("baseline/random-test_vit", LoadOptions(image_size=32)).released_state()
