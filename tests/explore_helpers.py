"""Stores, a server and a browser for tests of the explorer."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import make_store
from PIL import Image

N = 240
SCRIPT = "<script>document.title='hacked'</script><img src=x onerror=\"document.title='hacked'\">"
FORMULA = '=HYPERLINK("http://evil.example/","{{7*7}} ${alert(1)}")'


def samples(folder: Path | None = None) -> pd.DataFrame:
    """Return a table of small images of 80 patients, written to a folder if one is given."""
    rng = np.random.default_rng(0)
    patient = np.arange(N) // 3
    grade = rng.integers(0, 4, N // 3)[patient]
    table = pd.DataFrame(
        {
            "id": [f"img/{i:03d}.png" for i in range(N)],
            "sick": (grade >= 2).astype(int),
            "grade": [f"g{g}" for g in grade],
            "patient": [f"p{p:02d}" for p in patient],
            "site": np.where(patient % 3 == 0, "A", "B"),
            "age": rng.integers(20, 90, N // 3)[patient].astype(float),
            "split": np.where(patient < 50, "train", "test"),
        }
    )
    if folder is not None:
        (folder / "img").mkdir(parents=True)
        for name, value in zip(table["id"], grade, strict=True):
            Image.fromarray(np.full((12, 16), 40 + 50 * value, np.uint8)).save(folder / name)
        table.rename(columns={"id": "path"}).to_csv(folder / "manifest.csv", index=False)
    return table


def stores(folder: Path, table: pd.DataFrame) -> list[Path]:
    """Return two stores of the samples, of which the first knows more."""
    rng = np.random.default_rng(1)
    grade = table["grade"].str[1:].astype(int).to_numpy()
    paths = []
    for name, strength in (("good", 1.0), ("poor", 0.3)):
        X = rng.normal(size=(N, 6)).astype(np.float32)
        X[:, 0] += strength * grade
        path = folder / f"{name}.zarr"
        options = {"labels": ("sick",), "group": "patient", "split": "split", "encoder": f"fake/{name}"}
        make_store(path, {"cls": X, "mean": X[:, ::-1].copy()}, table, fingerprint=name[0] * 64, **options)
        paths.append(path)
    return paths


def hostile(folder: Path) -> Path:
    """Return a store whose column names and values are what a page must show as text."""
    rng = np.random.default_rng(2)
    y = np.arange(120) % 2
    table = pd.DataFrame(
        {
            SCRIPT: np.where(y == 1, SCRIPT, FORMULA),
            FORMULA: rng.choice([SCRIPT, "b"], 120),
            "long" * 50: rng.choice(["x" * 10_000, "y"], 120),
            "patient": [f"{SCRIPT}{i // 2}" for i in range(120)],
        }
    )
    table.insert(0, "id", [f"{SCRIPT}{i}" for i in range(120)])
    X = rng.normal(size=(120, 5)).astype(np.float32) + y[:, None]
    return make_store(
        folder / "hostile.zarr", X, table, labels=(SCRIPT,), group="patient", encoder=f"fake/{SCRIPT}", data=SCRIPT
    ).path


def chromium() -> str:
    """Return Chromium's path, or skip the test."""
    pytest.importorskip("playwright", reason="needs the package playwright")
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("needs Chromium (apt-get install chromium)")
    return found


@contextmanager
def served(*arguments: object, first: str = "pass") -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Yield the address of ``medprobe explore`` with these arguments, in a process of its own, and the process.

    ``first`` is Python that is run there before.
    """
    program = f"from medprobe.cli import main; {first}; main()"
    command = [sys.executable, "-c", program, "explore", *map(str, arguments), "--no-browser", "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        said = ""
        for line in process.stderr:
            said += line
            if "http://" in line:
                break
        else:
            raise AssertionError(f"no server: {said}")
        yield next(word for word in line.split() if word.startswith("http://")), process
    finally:
        process.kill()
        process.wait()
