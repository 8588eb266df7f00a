"""The built wheel in a bare environment, without any extra: opens a store and probes it while torch is not installed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import make_store

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bare")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(ROOT)], check=True, capture_output=True
    )
    (wheel,) = folder.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
    python = folder / "venv" / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "--quiet", "--constraint", str(ROOT / "constraints.txt"), str(wheel)]
    installed = subprocess.run(pip, capture_output=True, text=True)
    if installed.returncode and "No matching distribution" in installed.stderr:
        pytest.skip("needs a package index")
    assert installed.returncode == 0, installed.stderr
    return python


def test_a_bare_install_probes_without_torch(python, tmp_path):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 200)
    X = rng.normal(size=(200, 16)).astype(np.float32) + y[:, None]
    samples = pd.DataFrame({"label": y, "patient": [f"p{i // 2}" for i in range(200)]})
    store = make_store(tmp_path / "bare.zarr", X, samples, labels=("label",), group="patient")
    absent = subprocess.run([str(python), "-c", "import torch"], capture_output=True, text=True)
    assert absent.returncode != 0
    medprobe = [str(python.parent / "medprobe")]
    done = subprocess.run(
        [*medprobe, "probe", str(store.path), "-p", "logreg", "-p", "knn", "--folds", "4", "--json"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    rows = [row for row in json.loads(done.stdout) if row["primary"]]
    assert {row["probe"] for row in rows} == {"logreg", "knn"}
    assert [row["n_groups"] for row in rows] == [100, 100]
    assert min(row["value"] for row in rows) > 0.9
    listed = subprocess.run([*medprobe, "models", "sam/", "--json"], capture_output=True, text=True, check=True)
    assert {entry["name"] for entry in json.loads(listed.stdout)} == {"sam/vit_b", "sam/vit_l", "sam/vit_h"}
    mlp = subprocess.run([*medprobe, "probe", str(store.path), "-p", "mlp"], capture_output=True, text=True)
    assert mlp.returncode == 2
    assert "pip install 'medprobe[torch]'" in mlp.stderr
    embed = subprocess.run(
        [*medprobe, "embed", str(tmp_path), "-m", "timm/resnet18", "-o", "x"], capture_output=True, text=True
    )
    assert embed.returncode == 2
    assert "pip install 'medprobe[embed]'" in embed.stderr
    assert "Traceback" not in embed.stderr
