"""What a store gives back: columns of every kind, and the same values in each format that it is exported to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import make_store

from medprobe.export import export
from medprobe.store import FeatureStore

N = 130  # two blocks of 64 rows and a tail


@pytest.fixture
def samples() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    age = rng.integers(20, 90, N).astype(float)
    age[[3, 70]] = np.nan
    return pd.DataFrame(
        {
            "label": rng.choice(["œdème", "normal", "気胸"], N),
            "grade": rng.integers(0, 5, N),
            "age": age,
            "smoker": rng.random(N) < 0.5,
            "site": pd.Series(["A", None, "", "Zürich"] * 32 + ["A", "B"], dtype=object),
        }
    )


@pytest.fixture
def store(tmp_path: Path, samples: pd.DataFrame) -> FeatureStore:
    X = np.random.default_rng(1).normal(size=(N, 6)).astype(np.float32)
    make_store(tmp_path / "s.zarr", X, samples, labels=("label",))
    return FeatureStore(tmp_path / "s.zarr")


def test_columns_come_back_as_they_went_in(store: FeatureStore, samples: pd.DataFrame) -> None:
    back = store.samples
    assert back["id"].tolist() == [f"s{i:05d}" for i in range(N)]
    assert back["label"].tolist() == samples["label"].tolist()
    assert back["grade"].dtype.kind == "i"
    assert back["grade"].tolist() == samples["grade"].tolist()
    np.testing.assert_array_equal(back["age"].to_numpy(), samples["age"].to_numpy())
    assert back["smoker"].tolist() == samples["smoker"].astype(int).tolist()  # yes and no are kept as 1 and 0
    assert back["site"].tolist() == samples["site"].fillna("").tolist()  # an absent word is an empty one


def read_npz(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    with np.load(path, allow_pickle=False) as file:
        columns = {name.removeprefix("column:"): file[name] for name in file if not name.startswith("view:")}
        return {"cls": file["view:cls"]}, columns


def read_parquet(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    pytest.importorskip("pyarrow")
    table = pd.read_parquet(path)
    return {"cls": np.stack(table.pop("view:cls").to_list())}, {name: table[name].to_numpy() for name in table}


def read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    from safetensors import safe_open

    with safe_open(path, "numpy") as file:
        metadata = file.metadata()
        assert metadata["encoder"] == "fake/features"
        assert metadata["fingerprint"] == "f" * 64
        columns = {
            name.removeprefix("column:"): json.loads(value)
            for name, value in metadata.items()
            if name.startswith("column:")
        }
        return {"cls": file.get_tensor("view:cls")}, columns


@pytest.mark.parametrize(
    ("file_format", "read"), [("npz", read_npz), ("parquet", read_parquet), ("safetensors", read_safetensors)]
)
def test_every_format_holds_the_same_values(store: FeatureStore, tmp_path: Path, file_format: str, read: Any) -> None:
    views, columns = read(export(store, tmp_path / f"x.{file_format}", file_format))
    np.testing.assert_array_equal(views["cls"], store.features("cls"))
    assert set(columns) == set(store.samples.columns)
    for name in ("id", "label", "grade", "smoker", "site"):
        assert list(columns[name]) == store.samples[name].tolist(), name
    ages = np.array([np.nan if value is None else value for value in columns["age"]], dtype=float)
    np.testing.assert_array_equal(ages, store.samples["age"].to_numpy())
