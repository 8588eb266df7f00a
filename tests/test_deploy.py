"""Probes that leave the table: saved, applied, and never to another encoder's features."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import make_store
from PIL import Image
from typer.testing import CliRunner

import medprobe
from medprobe.cli import app
from medprobe.errors import DataError, UsageError
from medprobe.probe.saved import load_probe

N = 240


@pytest.fixture(scope="module")
def samples() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "grade": rng.choice(["mild", "none", "severe"], N),
            "label_a": rng.integers(0, 2, N),
            "label_b": rng.integers(0, 2, N),
            "patient": np.arange(N) // 2,
            "split": np.repeat(["train", "val", "test"], 80),
        }
    )


@pytest.fixture(scope="module")
def features(samples: pd.DataFrame) -> np.ndarray:
    X = np.random.default_rng(1).normal(size=(N, 6)).astype(np.float32)
    X[:, 0] += 2 * (samples["grade"] == "severe")
    X[:, 1] += 2 * samples["label_a"]
    return X


def store_of(path: Path, X: np.ndarray, samples: pd.DataFrame, **options: str) -> medprobe.FeatureStore:
    return make_store(path, X, samples, labels=("grade",), group="patient", split="split", **options)


@pytest.mark.parametrize("probe", ["logreg", "knn", "ridge", "prototype", "mlp"])
def test_the_saved_probe_is_the_one_that_was_tested(probe, features, samples, tmp_path):
    if probe == "mlp":
        pytest.importorskip("torch")
    store = store_of(tmp_path / "s.zarr", features, samples)
    results = medprobe.probe(store, probes=[probe], save_model=tmp_path / "probes", n_resamples=20)
    (path,) = (tmp_path / "probes").iterdir()
    assert path.name == f"fake-features--cls--{probe}--grade.probe"
    table = medprobe.predict(path, store)
    assert list(table.columns) == ["id", "predicted", "p(mild)", "p(none)", "p(severe)"]
    kept = results.predictions[results[0].trial]
    tested = table.set_index("id").loc[kept.ids]
    np.testing.assert_allclose(tested.iloc[:, 1:].to_numpy(dtype=float), kept.proba[0], atol=1e-6)
    assert (tested["predicted"].to_numpy() == kept.classes[kept.proba[0].argmax(axis=1)]).all()
    saved = load_probe(path)
    assert saved.notes["n_train"] == 160
    assert saved.notes["metrics"][results[0].metric][0] == results[0].value


def test_over_folds_the_saved_probe_knows_all_rows(features, samples, tmp_path):
    store = store_of(tmp_path / "s.zarr", features, samples)
    medprobe.probe(store, probes=["ridge"], n_folds=4, save_model=tmp_path, n_resamples=20, pca=4)
    (path,) = tmp_path.glob("*.probe")
    saved = load_probe(path)
    assert (saved.notes["n_train"], saved.notes["split"]) == (N, "4 folds")
    assert "PCA" in repr(saved.estimator)
    said: list[str] = []
    with pytest.raises(UsageError, match="not with --shots"):
        medprobe.probe(store, probes=["ridge"], shots=(2,), save_model=tmp_path, progress=said.append)
    assert not said  # nothing was computed


def test_several_labels_have_a_column_each(features, samples, tmp_path):
    store = store_of(tmp_path / "s.zarr", features, samples)
    medprobe.probe(store, "label", probes=["logreg"], save_model=tmp_path, n_resamples=20)
    table = medprobe.predict(next(tmp_path.glob("*.probe")), store)
    assert list(table.columns) == ["id", "label_a", "p(label_a)", "label_b", "p(label_b)"]
    assert ((table["p(label_a)"] > 0.5) == table["label_a"]).all()


def test_features_of_another_encoder_are_refused(features, samples, tmp_path):
    store = store_of(tmp_path / "s.zarr", features, samples)
    other = store_of(tmp_path / "o.zarr", features, samples, fingerprint="0" * 64)
    medprobe.probe(store, probes=["ridge"], save_model=tmp_path, n_resamples=20)
    (path,) = tmp_path.glob("*.probe")
    with pytest.raises(DataError, match=r"takes features of fake/features \(ffffffff\), and these are of .*00000000"):
        medprobe.predict(path, other)
    with pytest.raises(UsageError, match="2 stores were given"):
        medprobe.predict(path, [store, other])


def test_stores_side_by_side_are_matched_by_their_encoder(features, samples, tmp_path):
    first = store_of(tmp_path / "a.zarr", features[:, :3], samples)
    second = store_of(tmp_path / "b.zarr", features[:, 3:], samples, encoder="fake/b", fingerprint="b" * 64)
    results = medprobe.probe(first, probes=["ridge"], concat=[second], save_model=tmp_path, n_resamples=20)
    (path,) = tmp_path.glob("*.probe")
    table, turned = medprobe.predict(path, [first, second]), medprobe.predict(path, [second, first])
    pd.testing.assert_frame_equal(table, turned)
    kept = results.predictions[results[0].trial]
    np.testing.assert_allclose(
        table.set_index("id").loc[kept.ids].iloc[:, 1:].to_numpy(float), kept.proba[0], atol=1e-6
    )


def test_a_probe_that_is_not_refitted_tells_the_rows_that_it_learned_from(features, samples, tmp_path):
    pytest.importorskip("torch")
    store = store_of(tmp_path / "s.zarr", features, samples)
    rows = medprobe.probe(store, preset="medmnist-plus", save_model=tmp_path, n_resamples=20)
    assert {row.n_train for row in rows} == {80}
    assert {load_probe(path).notes["n_train"] for path in tmp_path.glob("*.probe")} == {80}


def test_an_image_without_features_is_listed_without_a_prediction(tmp_path, caplog):
    rng = np.random.default_rng(0)
    for name, level in (("dark", 60), ("light", 180)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(9):
            pixels = rng.normal(level, 30, (40, 40, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{i}.png")
    (tmp_path / "images" / "dark" / "4.png").write_bytes(b"no image")
    (report,) = medprobe.embed(tmp_path / "images", "baseline/pixels", tmp_path / "stores", workers=0)
    medprobe.probe(report.path, probes=["ridge"], n_folds=3, save_model=tmp_path, n_resamples=20)
    (path,) = tmp_path.glob("*.probe")
    table = medprobe.predict(path, report.path)
    assert len(table) == 18
    assert table.loc[table["predicted"].isna(), "id"].tolist() == ["dark/4.png"]
    assert "1 of 18 images have no features and get no prediction (first: dark/4.png)" in caplog.text
    said = CliRunner().invoke(app, ["predict", str(path), str(report.path), "--json"])
    assert said.exit_code == 3
    (lost,) = [row for row in json.loads(said.stdout) if row["id"] == "dark/4.png"]
    assert lost == {"id": "dark/4.png", "predicted": None, "p(dark)": None, "p(light)": None}


@pytest.mark.parametrize("normalize", ["encoder", "dataset"])
def test_new_images_are_embedded_as_the_training_images_were(tmp_path, normalize):
    pytest.importorskip("timm")
    rng = np.random.default_rng(0)
    for name, level in (("dark", 60), ("light", 180)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(12):
            pixels = rng.normal(level, 30, (40, 40, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{i}.png")
    options = {"image_size": 96, "exact_decode": True, "normalize": normalize, "workers": 0}
    (report,) = medprobe.embed(tmp_path / "images", "baseline/pixels", tmp_path / "stores", **options)
    medprobe.probe(report.path, probes=["ridge"], n_folds=3, save_model=tmp_path / "probes", n_resamples=20)
    (path,) = (tmp_path / "probes").iterdir()
    from_store, from_images = medprobe.predict(path, report.path), medprobe.predict(path, tmp_path / "images")
    pd.testing.assert_frame_equal(from_store, from_images)
    assert (from_store["predicted"] == [name.split("/")[0] for name in from_store["id"]]).mean() > 0.9
    runner = CliRunner()
    said = runner.invoke(app, ["predict", str(path), str(tmp_path / "images" / "dark"), "--json"])
    assert said.exit_code == 0, said.output
    assert [row["predicted"] for row in json.loads(said.stdout)] == ["dark"] * 12
    out = tmp_path / "predictions.csv"
    assert runner.invoke(app, ["predict", str(path), str(report.path), "-o", str(out)]).exit_code == 0
    assert len(pd.read_csv(out)) == 24
    missing = runner.invoke(app, ["predict", str(tmp_path / "none.probe"), str(report.path)])
    assert missing.exit_code == 1
    assert "no such probe" in missing.output
