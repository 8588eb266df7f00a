"""What can be asked of stored features: views, stores side by side, few labels, wrong labels, subgroups."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import make_store
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import medprobe
from medprobe.errors import DataError, UsageError
from medprobe.leaderboard import curve_tables, print_leaderboard, subgroup_tables
from medprobe.probe.bootstrap import intervals
from medprobe.probe.metrics import Scorer
from medprobe.probe.splits import Part, Split, few_shots
from medprobe.probe.whatif import mislabelled, subgroup_names
from medprobe.results import Row, ranked, read_results, write_results

N = 300


@pytest.fixture(scope="module")
def samples() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    patient = np.arange(N) // 3
    return pd.DataFrame(
        {
            "label": (rng.random(N // 3) < 0.5).astype(int)[patient],
            "patient": [f"p{p:03d}" for p in patient],
            "sex": np.where(rng.random(N // 3) < 0.4, "F", "M")[patient],
            "age": rng.integers(20, 90, N // 3)[patient].astype(float),
            "split": np.where(patient < 50, "train", np.where(patient < 70, "val", "test")),
        }
    )


def signal(samples: pd.DataFrame, strength: float, width: int = 8, seed: int = 0) -> np.ndarray:
    X = np.random.default_rng(seed).normal(size=(N, width)).astype(np.float32)
    X[:, 0] += strength * samples["label"].to_numpy()
    return X


def store_of(path: Path, X: np.ndarray | dict[str, np.ndarray], samples: pd.DataFrame, **options: str):
    return make_store(path, X, samples, labels=("label",), group="patient", split="split", **options)


def primary(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row.primary and not row.subgroup]


def test_the_view_is_chosen_on_validation_like_a_setting(samples, tmp_path):
    views = {"cls": signal(samples, 0.2), "mean": signal(samples, 3.0, seed=1), "blocks": signal(samples, 0.1, seed=2)}
    store = store_of(tmp_path / "s.zarr", views, samples)
    (auto,) = primary(medprobe.probe(store, probes=["logreg"], view="auto"))
    (mean,) = primary(medprobe.probe(store, probes=["logreg"], view="mean"))
    (default,) = primary(medprobe.probe(store, probes=["logreg"]))
    assert (auto.view, auto.settings["view"]) == ("auto", "mean")
    assert auto.value == mean.value > default.value
    assert (default.view, mean.view) == ("cls", "mean")
    folds = primary(medprobe.probe(store, probes=["ridge"], view="auto", n_folds=3))[0]
    assert [chosen["view"] for chosen in folds.settings] == ["mean"] * 3


def test_stores_are_put_side_by_side_by_the_ids_of_their_samples(samples, tmp_path):
    """The second store has another order and lacks samples; neither store alone tells the classes apart as well."""
    half, other = signal(samples, 1.2), signal(samples, 1.2, width=5, seed=1)
    named = samples.assign(id=[f"s{i:05d}" for i in range(N)])
    order = np.random.default_rng(3).permutation(N)[:-20]
    first = store_of(tmp_path / "a.zarr", half, samples)
    second = make_store(
        tmp_path / "b.zarr", other[order], named.iloc[order].reset_index(drop=True)[["id", "label"]],
        encoder="fake/other", fingerprint="0" * 64,
    )  # fmt: skip
    rows = primary(medprobe.probe(first, probes=["logreg"], concat=[second], n_folds=4))
    (alone,) = primary(medprobe.probe(first, probes=["logreg"], n_folds=4))
    (both,) = rows
    assert (both.encoder, both.view) == ("fake/features + fake/other", "cls + cls")
    assert both.fingerprint == f"{'f' * 64} + {'0' * 64}"
    assert both.n_images == N - 20
    assert any("20 images are left out" in note for note in both.notes)
    assert both.value > alone.value + 0.02
    kept = np.sort(order)
    joined = make_store(
        tmp_path / "c.zarr", np.concatenate([half, other], axis=1)[kept], named.iloc[kept].reset_index(drop=True),
        labels=("label",), group="patient", split="split",
    )  # fmt: skip
    assert both.value == primary(medprobe.probe(joined, probes=["logreg"], n_folds=4))[0].value
    strangers = named.assign(id=[f"x{i}" for i in range(N)])
    third = make_store(tmp_path / "d.zarr", other, strangers[["id", "label"]])
    with pytest.raises(DataError, match="no sample in common"):
        medprobe.probe(first, probes=["ridge"], concat=[third])


def test_principal_components_are_those_of_the_fitted_rows(samples, tmp_path):
    X = signal(samples, 1.5, width=20) @ np.random.default_rng(1).normal(size=(20, 20)).astype(np.float32)
    store = store_of(tmp_path / "s.zarr", X, samples)
    (row,) = primary(medprobe.probe(store, probes=["logreg"], pca=6))
    sides = samples["split"].to_numpy()
    fitted, test = sides != "test", sides == "test"
    C = row.settings["C"]
    steps = (
        StandardScaler(),
        PCA(6, random_state=0),
        StandardScaler(),
        LogisticRegression(C=C, max_iter=10_000, tol=1e-8),
    )
    proba = make_pipeline(*steps).fit(X[fitted], samples["label"][fitted]).predict_proba(X[test])[:, 1]
    assert row.value == pytest.approx(roc_auc_score(samples["label"][test], proba), abs=2e-3)
    assert row.view == "cls, PCA 6"
    assert primary(medprobe.probe(store, probes=["ridge"], pca=0.9))[0].view == "cls, PCA 0.9"
    beside = {r.encoder: r for r in primary(medprobe.probe(store, probes=["ridge"], pca=6, controls=True))}
    assert (
        beside["control: size and brightness"].view == "height, width, mean, contrast"
    )  # four numbers stay what they are
    assert beside["control: shuffled labels"].view == "fake/features cls, PCA 6"
    for wrong in (0, 21, 2.5):
        with pytest.raises(UsageError, match="--pca"):
            medprobe.probe(store, probes=["ridge"], pca=wrong)


def test_few_shots_are_drawn_of_each_class_and_of_many_patients():
    y = np.repeat([0, 1, 2], [60, 30, 30])
    groups = np.arange(120) // 6
    split = Split("s", (Part(np.arange(100), np.arange(100, 105), np.arange(105, 120)),))
    for seed in range(5):
        (part,) = few_shots(split, y, groups, 3, seed, "3 shots").parts
        assert np.bincount(y[part.train]).tolist() == [3, 3, 3]
        assert [len(np.unique(groups[part.train[y[part.train] == k]])) for k in (0, 1, 2)] == [3, 3, 2]  # as there are
        assert part.val is None
        assert set(part.train.tolist()) <= set(range(100))
        assert part.test.tolist() == list(range(105, 120))
    (ten,) = few_shots(split, y, groups, 10, 0, "").parts
    assert [len(np.unique(groups[ten.train[y[ten.train] == k]])) for k in (0, 1, 2)] == [10, 5, 2]
    with pytest.raises(UsageError, match="--shots 31: a class has 10 rows only"):
        few_shots(split, y, groups, 31, 0, "")


def test_few_shots_of_several_labels_have_each_of_them_and_none():
    Y = np.zeros((40, 2))
    Y[:10, 0], Y[5:20, 1], Y[0, 1] = 1, 1, np.nan
    split = Split("s", (Part(np.arange(40), None, np.arange(0)),))
    (part,) = few_shots(split, Y, None, 4, 0, "").parts
    drawn = Y[part.train]
    assert (drawn == 1).sum(axis=0).min() >= 4
    assert (np.nansum(drawn, axis=1) == 0).sum() == 4


def test_a_learning_curve_rises_and_is_a_mean_over_draws(samples, tmp_path, capsys):
    store = store_of(tmp_path / "s.zarr", signal(samples, 2.0), samples)
    probes = ["logreg", "knn", "ridge", "prototype"]
    rows = medprobe.probe(store, probes=probes, shots=(1, 5, 40), repeats=4, n_resamples=200)
    for name in probes:
        by_shots = {row.shots: row for row in primary(rows) if row.probe == name}
        assert list(by_shots) == [1, 5, 40]
        assert by_shots[40].value > by_shots[1].value
        assert [row.n_train for row in by_shots.values()] == [2, 10, 80]
        row = by_shots[5]
        kept = rows.predictions[row.trial]
        assert kept.proba.shape == (4, 90, 2)
        each = [roc_auc_score(kept.y, draw[:, 1]) for draw in kept.proba]
        assert row.value == pytest.approx(np.mean(each), abs=1e-12)
        assert np.std(each) > 0
        assert by_shots[1].ci_high - by_shots[1].ci_low > by_shots[40].ci_high - by_shots[40].ci_low
        assert row.split == "split, 5 shots x 4"
        assert len(row.settings) == 4
    print_leaderboard(rows)
    said = capsys.readouterr().out
    assert "40 shots" in said
    assert len(curve_tables(rows)) == 1
    with pytest.raises(UsageError, match="at least 1"):
        medprobe.probe(store, shots=(0,))


def test_the_mlp_and_several_labels_learn_from_one_shot_too(samples, tmp_path):
    pytest.importorskip("torch")
    X = signal(samples, 3.0)
    two = samples.assign(label_a=samples["label"], label_b=(X[:, 1] > 0.5).astype(int)).drop(columns="label")
    store = make_store(tmp_path / "m.zarr", X, two, group="patient", split="split")
    rows = primary(medprobe.probe(store, "label", probes=["mlp", "logreg"], shots=(1, 2), repeats=2, n_resamples=50))
    assert [(row.probe, row.shots, row.task) for row in rows] == [
        ("mlp", 1, "multilabel"), ("logreg", 1, "multilabel"), ("mlp", 2, "multilabel"), ("logreg", 2, "multilabel"),
    ]  # fmt: skip
    assert all(np.isfinite(row.value) for row in rows)


def test_the_interval_of_a_mean_over_draws_knows_of_the_draws():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 400)
    quality = [0.2, 1.0, 2.0, 3.0]
    scorers = []
    for strength in quality:
        p = 1 / (1 + np.exp(-(strength * (y - 0.5) + rng.normal(size=400))))
        scorers.append(Scorer("binary", y, np.stack([1 - p, p], axis=1)))
    several = intervals(scorers, ["auroc"], None, 500)["auroc"]
    single = [intervals(scorer, ["auroc"], None, 500)["auroc"] for scorer in scorers]
    assert several.value == pytest.approx(np.mean([s.value for s in single]), abs=1e-12)
    assert several.high - several.low > 1.5 * max(s.high - s.low for s in single)
    alike = intervals([scorers[2]] * 3, ["auroc"], None, 500)["auroc"]
    assert (alike.low, alike.high) == pytest.approx((single[2].low, single[2].high), abs=1e-12)


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_wrong_labels_are_of_other_classes_and_as_many_as_asked(share):
    y = np.random.default_rng(0).integers(0, 4, 1000)
    wrong = mislabelled(y, share, 4, 0)
    assert (wrong != y).sum() == share * 1000
    assert set(wrong) == {0, 1, 2, 3}
    labels = np.where(np.random.default_rng(1).random((100, 3)) < 0.2, np.nan, 1.0)
    flipped = mislabelled(labels, share, 3, 0)
    assert np.isnan(flipped).sum() == np.isnan(labels).sum()
    assert (flipped == 0).sum() == round(share * np.isfinite(labels).sum())
    with pytest.raises(UsageError, match="--label-noise"):
        mislabelled(y, 1.0, 4, 0)


def test_wrong_labels_are_learned_from_and_never_tested_on(samples, tmp_path):
    store = store_of(tmp_path / "s.zarr", signal(samples, 3.0), samples)
    (clean,) = primary(medprobe.probe(store, probes=["knn"]))
    found = medprobe.probe(store, probes=["knn"], label_noise=0.45)
    (noisy,) = primary(found)
    assert noisy.value < clean.value
    assert noisy.split == "split, 45% wrong labels"
    tested = samples["label"][samples["split"] == "test"].to_numpy()
    np.testing.assert_array_equal(found.predictions[noisy.trial].y, tested)


def test_subgroups_are_reported_with_intervals_of_their_own(samples, tmp_path, capsys):
    store = store_of(tmp_path / "s.zarr", signal(samples, 1.0), samples)
    found = medprobe.probe(store, probes=["logreg"], subgroups=["sex", "age"], n_resamples=100)
    rows = [row for row in found if row.primary]
    by_name = {row.subgroup: row for row in rows}
    assert [name.partition(" = ")[0] for name in by_name] == ["", "sex", "sex", "age", "age", "age", "age"]
    test = (samples["split"] == "test").to_numpy()
    kept = found.predictions[by_name[""].trial]
    for sex in "FM":
        row, some = by_name[f"sex = {sex}"], samples["sex"][test].to_numpy() == sex
        assert row.value == pytest.approx(roc_auc_score(kept.y[some], kept.proba[0, some, 1]), abs=1e-12)
        assert (row.n_images, row.n_groups) == (some.sum(), samples["patient"][test][some].nunique())
    assert sum(row.n_images for name, row in by_name.items() if name.startswith("age")) == 90
    assert len(ranked(found)) == 1  # subgroups do not stand in the ranking
    assert len(next(iter(ranked(found).values()))) == 1
    print_leaderboard(found)
    assert "by subgroup" in capsys.readouterr().out
    assert len(subgroup_tables(found)) == 1
    again = read_results([write_results(found, tmp_path / "out").parent])
    assert again == list(found)
    with pytest.raises(UsageError, match="--subgroup weight"):
        medprobe.probe(store, subgroups=["weight"])


def test_subgroups_of_numbers_are_quarters_and_missing_values_none():
    names = subgroup_names(pd.Series([np.nan, *range(1, 101)]))
    assert names[0] == ""
    counts = dict(zip(*np.unique(names[1:], return_counts=True), strict=True))
    assert sorted(counts.values()) == [25, 25, 25, 25]
    assert "1 to 25.75" in counts
    assert subgroup_names(pd.Series(["a", None, ""])).tolist() == ["a", "", ""]
    assert subgroup_names(pd.Series([1.0, 2.0, np.nan])).tolist() == ["1", "2", ""]


def test_markup_in_names_is_shown_as_text(samples, tmp_path, capsys):
    hostile = samples.assign(sex=samples["sex"].map({"F": "[red]F[/]", "M": "[/nonsense]"}))
    store = store_of(tmp_path / "s.zarr", signal(samples, 1.0), hostile, data="[bold]set")
    print_leaderboard(medprobe.probe(store, probes=["ridge"], subgroups=["sex"], n_resamples=20))
    said = capsys.readouterr().out
    assert "[red]F[/]" in said
    assert "[bold]set" in said
