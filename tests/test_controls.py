"""Controls: what columns alone, shuffled labels and untrained encoders say about a result."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import make_store

import medprobe
from medprobe.errors import UsageError
from medprobe.leaderboard import print_leaderboard
from medprobe.probe.controls import (
    APPEARANCE,
    COLUMNS,
    SHUFFLED,
    column_features,
    describing_columns,
    shuffled,
    verdicts,
)
from medprobe.results import Row

N = 400


@pytest.fixture
def samples() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    view = rng.choice(["ap", "pa"], N)
    age = rng.normal(60, 10, N)
    age[::9] = np.nan
    return pd.DataFrame(
        {
            "label": np.where(rng.random(N) < 0.85, view == "ap", view == "pa").astype(int),
            "other": rng.integers(0, 2, N),
            "patient": [f"p{i // 2}" for i in range(N)],
            "view": view,
            "age": age,
            "note": [f"text {i}" for i in range(N)],
            "constant": "x",
        }
    )


def store_of(path: Path, samples: pd.DataFrame, signal: float, encoder: str = "fake/features") -> Any:
    X = np.random.default_rng(1).normal(size=(N, 12)).astype(np.float32)
    X[:, 0] += signal * samples["label"].to_numpy()
    return make_store(path, X, samples, labels=("label", "other"), group="patient", encoder=encoder)


def primary(rows: list[Row]) -> dict[str, Row]:
    return {row.encoder: row for row in rows if row.primary}


def test_describing_columns_are_neither_labels_nor_names(samples: pd.DataFrame) -> None:
    samples.insert(0, "id", [str(i) for i in range(N)])
    assert describing_columns(samples, ["label", "other", "patient"]) == ["view", "age"]
    sides = np.array(["train", "Val", "test", ""])[np.arange(N) % 4]
    samples = samples.assign(split_study=sides, split_official=np.where(sides == "", "test", "train"), site=sides)
    samples.loc[0, "site"] = "Graz"
    assert describing_columns(samples, ["label", "other", "patient"]) == ["view", "age", "site"]


def test_columns_become_numbers(samples: pd.DataFrame) -> None:
    features = column_features(samples, ["view", "age"])
    assert features.shape == (N, 4)  # two words, age, whether it is missing
    np.testing.assert_array_equal(features[:, 0], samples.view == "ap")
    np.testing.assert_array_equal(features[:, 3], samples.age.isna())
    assert features[0, 2] == pytest.approx(samples.age.median(), rel=1e-6)
    np.testing.assert_allclose(features[1, 2], samples.age[1], rtol=1e-6)


def test_shuffling_keeps_the_labels_and_loses_the_images() -> None:
    groups = np.repeat(np.arange(100), np.random.default_rng(0).integers(1, 5, 100))
    y = (groups % 2).astype(np.int64)
    changed = shuffled(y, groups, seed=0)
    assert np.bincount(changed).tolist() == np.bincount(y).tolist()
    assert abs(np.corrcoef(changed, y)[0, 1]) < 0.3
    together = np.mean(changed[1:][groups[1:] == groups[:-1]] == changed[:-1][groups[1:] == groups[:-1]])
    assert together > 0.6  # patients mostly keep one label
    alone = shuffled(np.arange(50), None, seed=0)
    assert sorted(alone) == list(range(50))
    assert not np.array_equal(alone, np.arange(50))
    np.testing.assert_array_equal(shuffled(y, groups, seed=0), changed)


def test_one_patient_of_many_images_gives_its_labels_away() -> None:
    groups = np.r_[np.zeros(50), np.arange(1, 51)]
    y = np.r_[np.ones(50), np.zeros(50)].astype(np.int64)
    assert 0 < shuffled(y, groups, seed=1)[:50].sum() < 50


def test_controls_stand_in_the_leaderboard(samples: pd.DataFrame, tmp_path: Path) -> None:
    store = store_of(tmp_path / "a.zarr", samples, signal=6)
    other = store_of(tmp_path / "b.zarr", samples, signal=1, encoder="fake/other")
    rows = medprobe.probe([store, other], "label", probes=["knn"], controls=True, n_resamples=200)
    found = primary(rows)
    assert set(found) == {"fake/features", "fake/other", COLUMNS, SHUFFLED, APPEARANCE}
    assert found[COLUMNS].view == "view, age"
    assert found[COLUMNS].value > 0.75
    assert abs(found[SHUFFLED].value - 0.5) < 0.12
    assert found[COLUMNS].n_images == N
    assert found[COLUMNS].fingerprint == ""  # no encoder had a part in it
    assert found[SHUFFLED].fingerprint == found["fake/features"].fingerprint
    assert found[APPEARANCE].value < 0.6  # all of one size and brightness
    assert {name for name, row in found.items() if not row.is_control} == {"fake/features", "fake/other"}
    words = "\n".join(verdicts(rows))
    assert f"{COLUMNS} (logreg)" in words
    assert words.count("better than that") == 2
    assert words.count("no sign of a leak") == 1


def test_what_columns_reach_is_no_gain_of_the_encoder(samples: pd.DataFrame, tmp_path: Path) -> None:
    store = store_of(tmp_path / "a.zarr", samples, signal=1.2)
    rows = medprobe.probe(store, "label", probes=["logreg"], control_cols=["view"], n_resamples=200)
    assert primary(rows)[COLUMNS].view == "view"
    assert any("as good within the interval" in sentence for sentence in verdicts(rows))
    with pytest.raises(UsageError, match="--control-col weight: no such column"):
        medprobe.probe(store, "label", control_cols=["weight"])


def test_shuffled_labels_find_a_leak(samples: pd.DataFrame, tmp_path: Path) -> None:
    """With patients ignored, a probe that knows patients by heart does well on labels that mean nothing."""
    patients = np.arange(N) // 20
    leaking = samples.assign(patient=[f"p{i}" for i in patients], label=patients % 2)
    X = np.random.default_rng(0).normal(size=(N, 40)).astype(np.float32)
    X[np.arange(N), patients] += 9
    store = make_store(tmp_path / "s.zarr", X, leaking, labels=("label",), group="patient")
    honest = primary(medprobe.probe(store, probes=["logreg"], controls=True, n_resamples=50))
    assert honest[SHUFFLED].value < 0.7
    row = replace(honest[SHUFFLED], value=0.99)
    (said,) = verdicts([row, replace(honest["fake/features"], value=0.95, ci_low=0.9)])
    assert "SOMETHING LEAKS" in said


def test_untrained_encoders_are_judged_as_controls(samples: pd.DataFrame, tmp_path: Path, capsys: Any) -> None:
    trained = store_of(tmp_path / "a.zarr", samples, signal=1)
    untrained = store_of(tmp_path / "b.zarr", samples, signal=1, encoder="baseline/random-vits16")
    rows = medprobe.probe([trained, untrained], "label", probes=["logreg"], n_resamples=100)
    (said,) = verdicts(rows)
    assert "baseline/random-vits16 (logreg)" in said
    assert "no gain from the encoder is shown" in said
    print_leaderboard(rows)
    assert "no gain from the encoder is" in capsys.readouterr().out
    assert verdicts([row for row in rows if row.encoder.startswith("baseline/")]) == []
