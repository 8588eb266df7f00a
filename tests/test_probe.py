from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import make_store
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.preprocessing import StandardScaler

import medprobe
from medprobe.errors import DataError, UsageError
from medprobe.probe.splits import (
    check_leaks,
    fold_split,
    given_split,
    hold_out_split,
    inner_folds,
    leave_out_split,
    texts,
)
from medprobe.probe.task import target_of
from medprobe.results import Row, ranked, read_results, to_json, write_results

JSON_KEYS = {
    "encoder", "view", "probe", "target", "metric", "value", "ci_low", "ci_high", "split", "n_images", "n_groups",
    "settings", "seconds", "primary",
}  # fmt: skip


@pytest.fixture(scope="module")
def patients() -> tuple[np.ndarray, pd.DataFrame]:
    """Three classes that the features tell apart, four images a patient, a split by patient."""
    rng = np.random.default_rng(0)
    n_patients, each = 60, 4
    patient = np.repeat(np.arange(n_patients), each)
    grade = np.repeat(rng.integers(0, 3, n_patients), each)
    X = rng.normal(size=(len(patient), 12)).astype(np.float32)
    X[:, 0] += 1.2 * grade
    X[:, 1] += np.repeat(rng.normal(size=n_patients), each)
    split = np.where(patient < 30, "train", np.where(patient < 42, "val", "test"))
    samples = pd.DataFrame(
        {
            "grade": grade,
            "sick": np.where(grade > 0, "yes", "no"),
            "patient": [f"p{p:03d}" for p in patient],
            "split": split,
            "finding_a": (X[:, 0] > 1).astype(float),
            "finding_b": np.where(rng.random(len(patient)) < 0.2, np.nan, X[:, 2] > 0),
        }
    )
    return X, samples


@pytest.fixture(scope="module")
def store(patients: tuple[np.ndarray, pd.DataFrame], tmp_path_factory: pytest.TempPathFactory) -> medprobe.FeatureStore:
    X, samples = patients
    folder = tmp_path_factory.mktemp("stores")
    return make_store(folder / "fake.zarr", X, samples, labels=("sick",), group="patient", split="split")


def primary(rows: list[Row]) -> Row:
    return next(row for row in rows if row.primary)


def test_logistic_regression_with_a_given_split_equals_scikit_learn(store, patients):
    X, samples = patients
    row = primary(medprobe.probe(store, "sick", probes=["logreg"]))
    y = (samples["sick"] == "yes").to_numpy()
    train, val, test = (samples["split"].to_numpy() == side for side in ("train", "val", "test"))

    def fit(rows, C):
        scaler = StandardScaler().fit(X[rows])
        model = LogisticRegression(C=C, max_iter=10_000, tol=1e-10).fit(scaler.transform(X[rows]), y[rows])
        return lambda other: model.predict_proba(scaler.transform(X[other]))[:, 1]

    grid = np.logspace(-6, 2, 17)
    by_C = [roc_auc_score(y[val], fit(train, C)(val)) for C in grid]
    chosen = int(np.argmin(np.abs(np.log(grid / row.settings["C"]))))
    assert by_C[chosen] >= max(by_C) - 0.002  # the weakest ones differ by less than single precision tells apart
    expected = roc_auc_score(y[test], fit(train | val, row.settings["C"])(test))
    assert row.value == pytest.approx(expected, abs=1e-3)
    assert (row.task, row.metric, row.n_images, row.n_groups, row.n_train) == ("binary", "auroc", 72, 18, 168)
    assert row.ci_low < row.value < row.ci_high


def test_every_probe_reports_every_metric_with_one_primary(store):
    rows = medprobe.probe(store, "grade", n_resamples=50)
    assert {row.probe for row in rows} == {"logreg", "knn", "mlp"}
    for name in ("logreg", "knn", "mlp"):
        mine = [row for row in rows if row.probe == name]
        assert sum(row.primary for row in mine) == 1
        assert primary(mine).metric == "balanced_accuracy"
        assert {row.metric for row in mine} >= {"auroc", "accuracy", "macro_f1", "brier", "ece", "average_precision"}
        assert primary(mine).value > 0.42  # chance is a third
    assert json.loads(to_json(rows))[0].keys() >= JSON_KEYS


def test_quadratic_kappa_makes_the_target_ordinal(store):
    row = primary(medprobe.probe(store, "grade", probes=["logreg"], metric="quadratic_kappa"))
    assert (row.task, row.metric) == ("ordinal", "quadratic_kappa")
    with pytest.raises(UsageError, match="numbers"):
        medprobe.probe(store, "sick", metric="quadratic_kappa")
    with pytest.raises(UsageError, match="--metric"):
        medprobe.probe(store, "sick", metric="auc")


@pytest.mark.parametrize("name", ["finding_a,finding_b", "finding_*", "finding"])
def test_multi_label_targets_have_three_spellings(store, name):
    row = primary(medprobe.probe(store, name, probes=["logreg", "knn"], n_folds=3, n_resamples=50))
    assert (row.task, row.metric, row.n_images) == ("multilabel", "auroc", 240)
    assert row.value > 0.8


def test_folds_test_every_image_once_and_keep_patients_together(store, patients):
    _, samples = patients
    row = primary(medprobe.probe(store, "grade", probes=["logreg"], n_folds=5))
    assert (row.split, row.n_images, row.n_groups, row.n_train) == ("5 folds", 240, 60, 192)
    assert len(row.settings) == 5
    y, groups = samples["grade"].to_numpy(), samples["patient"].to_numpy().astype(str)
    split = fold_split(y, groups, 5, seed=0)
    assert sorted(split.test.tolist()) == list(range(240))
    for part in split.parts:
        assert not set(groups[part.train]) & set(groups[part.test])
        for train, val in inner_folds(y[part.train], groups[part.train], 0):
            assert not set(groups[part.train][train]) & set(groups[part.train][val])


@pytest.mark.parametrize("size", [0.1, 0.25, 0.4])
def test_hold_out_is_of_whole_patients_and_about_the_asked_size(patients, size):
    _, samples = patients
    y, groups = samples["grade"].to_numpy(), samples["patient"].to_numpy().astype(str)
    part = hold_out_split(y, groups, size, seed=1).parts[0]
    assert abs(len(part.test) / len(y) - size) < 0.06
    assert not set(groups[part.train]) & set(groups[part.test])
    assert len(part.train) + len(part.test) == len(y)


def test_a_patient_on_both_sides_is_an_error_that_names_them(patients, tmp_path):
    X, samples = patients
    leaking = samples.assign(split=np.where(np.arange(len(samples)) % 4 == 0, "test", "train"))
    leaking.loc[leaking["patient"] != "p007", "split"] = "train"
    leaking.loc[leaking["patient"] == "p011", "split"] = "test"
    store = make_store(tmp_path / "leak.zarr", X, leaking, group="patient", split="split")
    with pytest.raises(DataError, match=r"1 groups are in both train and test \(p007\)"):
        medprobe.probe(store, "sick")
    assert medprobe.probe(store, "grade", probes=["knn"], group="none")  # asked for, so allowed; and said
    with pytest.raises(DataError, match="both val and test"):
        check_leaks({"val": np.array([0]), "test": np.array([1])}, np.array(["a", "a"]))


def test_the_test_rows_change_neither_settings_nor_predictions(patients, tmp_path):
    X, samples = patients
    spoilt = X.copy()
    test = (samples["split"] == "test").to_numpy()
    spoilt[test] = 1000 * np.random.default_rng(1).normal(size=spoilt[test].shape)
    rows = [
        medprobe.probe(make_store(tmp_path / f"{i}.zarr", x, samples, group="patient", split="split"), "grade")
        for i, x in enumerate((X, spoilt))
    ]
    assert [r.settings for r in rows[0]] == [r.settings for r in rows[1]]


def test_shuffled_labels_give_chance(patients, tmp_path):
    X, samples = patients
    shuffled = samples.assign(sick=np.random.default_rng(5).permutation(samples["sick"]))
    store = make_store(tmp_path / "s.zarr", X, shuffled, group="patient")
    row = primary(medprobe.probe(store, "sick", probes=["logreg"], n_folds=5))
    assert row.ci_low < 0.5 < row.ci_high


def test_a_class_missing_from_a_training_part_keeps_its_column(patients, tmp_path):
    X, samples = patients
    rare = samples.assign(grade=np.where(samples["patient"] == "p000", 3, samples["grade"]))
    store = make_store(tmp_path / "r.zarr", X, rare, group="patient")
    rows = medprobe.probe(store, "grade", probes=["logreg", "knn"], n_folds=4, n_resamples=50)
    assert primary(rows).n_images == 240


def test_rows_without_label_or_side_take_no_part(patients, tmp_path):
    X, samples = patients
    holes = samples.assign(sick=samples["sick"].where(np.arange(240) % 5 > 0, ""))
    holes["split"] = holes["split"].where(holes["patient"] != "p059", "")
    store = make_store(tmp_path / "h.zarr", X, holes, group="patient", split="split")
    row = primary(medprobe.probe(store, "sick", probes=["knn"]))
    assert row.n_images == int(((holes["split"] == "test") & (holes["sick"] != "")).sum())


def test_rows_without_a_group_stand_alone(patients, tmp_path):
    X, samples = patients
    holes = samples.assign(patient=samples["patient"].where(np.arange(240) > 3, ""))
    store = make_store(tmp_path / "g.zarr", X, holes, group="patient")
    assert primary(medprobe.probe(store, "sick", probes=["knn"], n_folds=3)).n_groups == 63


def test_without_a_group_column_that_is_said(patients, tmp_path):
    X, samples = patients
    store = make_store(tmp_path / "n.zarr", X, samples)
    row = primary(medprobe.probe(store, "sick", probes=["knn"], n_folds=3))
    assert row.n_groups == row.n_images == 240
    assert any("every image counts as a patient" in note for note in row.notes)


def test_no_resamples_leave_the_value_without_an_interval(store):
    options = {"probes": ["ridge"], "n_folds": 3}
    bare, sure = (primary(medprobe.probe(store, "sick", **options, n_resamples=n)) for n in (0, 50))
    assert bare.value == sure.value
    assert np.isnan([bare.ci_low, bare.ci_high]).all()
    assert sure.ci_low < sure.value < sure.ci_high


def test_usage_errors_name_the_flag(store):
    for kwargs, words in [
        ({"target": "grad"}, "--target grad: no such column; there are: grade, sick"),
        ({"target": "sick", "group": "mrn"}, "--group mrn"),
        ({"target": "sick", "split_col": "fold"}, "--split-col fold"),
        ({"target": "sick", "n_folds": 1}, "--folds"),
        ({"target": "sick", "n_folds": 61}, "61 folds of 60 groups"),
        ({"target": "sick", "test_size": 1.5}, "--test-size"),
        ({"target": "sick", "n_folds": 3, "test_size": 0.2}, "give one of them"),
        ({"target": "sick", "probes": ["svm"]}, "--probe svm"),
        ({"target": "sick", "n_resamples": -1}, "--bootstrap"),
    ]:
        with pytest.raises(UsageError, match=words.replace("(", r"\(")):
            medprobe.probe(store, **kwargs)
    with pytest.raises(DataError, match="no view"):
        medprobe.probe(store, "sick", view="mean")


def test_targets_that_are_none():
    table = pd.DataFrame({"id": list("abc"), "one": ["x", "x", ""], "age": [1.5, 2.5, 3.5], "f_a": [0, 1, 2], "f_b": 0})
    with pytest.raises(DataError, match="only one class"):
        target_of(table, "one")
    with pytest.raises(DataError, match="column 'f_a' holds"):
        target_of(table, "f_*")
    many = pd.DataFrame({"id": range(300), "age": np.linspace(0, 1, 300)})
    with pytest.raises(DataError, match="not classes"):
        target_of(many, "age")
    assert target_of(table.assign(g=[10.0, 9.0, np.nan]), "g").classes == ("9", "10")


def test_a_given_split_needs_known_words_and_both_sides():
    with pytest.raises(DataError, match="'holdout' is none of"):
        given_split(texts(["train", "holdout"]), "s", None)
    with pytest.raises(DataError, match="in 'test'"):
        given_split(texts(["train", "val"]), "s", None)
    part = given_split(texts(["Training", "validation", "TEST", ""]), "s", None).parts[0]
    assert (part.train.tolist(), part.val.tolist(), part.test.tolist()) == ([0], [1], [2])


def test_results_are_kept_merged_and_ranked(store, tmp_path):
    first = medprobe.probe(store, "grade", probes=["knn"], n_resamples=50)
    write_results(first, tmp_path)
    second = medprobe.probe(store, "grade", probes=["logreg", "knn"], n_resamples=50)
    path = write_results(second, tmp_path)
    found = read_results([tmp_path])
    assert len(found) == len(second)
    assert {r.key: r for r in found} == {r.key: r for r in second}
    (table,) = ranked(found).values()
    assert [r.value for r in table] == sorted((r.value for r in table), reverse=True)
    json_file = tmp_path / "rows.json"
    json_file.write_text(to_json(second))
    assert read_results([json_file]) == second
    with pytest.raises(DataError, match="no such results"):
        read_results([tmp_path / "absent"])
    path.write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="not a table of results"):
        read_results([path])


def test_the_recorded_label_is_the_default_target(store):
    assert medprobe.probe(store, probes=["knn"], n_resamples=50)[0].target == "sick"


def test_balanced_accuracy_is_scikit_learns(store, patients):
    X, samples = patients
    rows = medprobe.probe(store, "grade", probes=["knn"], n_resamples=50)
    from medprobe.probe.knn import KNNProbe

    settings = {k: v for k, v in primary(rows).settings.items() if v is not None}
    test = (samples["split"] == "test").to_numpy()
    y = samples["grade"].to_numpy()
    predicted = KNNProbe(**settings).fit(X[~test], y[~test]).predict(X[test])
    assert primary(rows).value == pytest.approx(balanced_accuracy_score(y[test], predicted), abs=1e-9)


def test_paths_and_stores_are_both_accepted(store):
    by_path = medprobe.probe(str(store.path), "sick", probes=["knn"], n_resamples=50)
    by_store = medprobe.probe([medprobe.open_store(Path(store.path))], "sick", probes=["knn"], n_resamples=50)
    assert [r.value for r in by_path] == [r.value for r in by_store]


def test_on_folds_the_simplest_setting_within_one_standard_error_is_taken(patients, tmp_path):
    X, samples = patients
    everything = samples.assign(split=samples["split"].replace("val", "train"))
    folds = make_store(tmp_path / "f.zarr", X, everything, group="patient", split="split")
    by_folds = primary(medprobe.probe(folds, "sick", probes=["logreg"])).settings["C"]

    y, groups = (samples["sick"] == "yes").to_numpy().astype(int), samples["patient"].to_numpy().astype(str)
    rows = np.flatnonzero(everything["split"] == "train")
    pairs = inner_folds(y[rows], groups[rows], 0)
    scaled = StandardScaler().fit_transform(X[rows])
    grid = np.logspace(-6, 2, 17)
    scores = np.array(
        [
            [
                roc_auc_score(
                    y[rows][val],
                    LogisticRegression(C=C, max_iter=10_000, tol=1e-10)
                    .fit(scaled[train], y[rows][train])
                    .decision_function(scaled[val]),
                )
                for train, val in pairs
            ]
            for C in grid
        ]
    )
    best = scores.mean(axis=1).argmax()
    within = scores.mean(axis=1) >= scores.mean(axis=1)[best] - scores[best].std(ddof=1) / np.sqrt(5) - 1e-3
    assert within[np.argmin(np.abs(np.log(grid / by_folds)))]
    assert by_folds <= grid[best] * 1.0001


def test_each_site_is_tested_by_what_the_others_teach():
    sites = ["b", "a", "a", "", "c", "b", "c", "nan"]
    groups = np.array([0, 1, 2, 3, 4, 5, 1, 6])  # patient 1 was seen at a and at c
    split = leave_out_split(texts(sites), "site", groups)
    assert split.name == "leave one of 3 site out"
    assert [part.test.tolist() for part in split.parts] == [[1, 2], [0, 5], [4, 6]]
    assert [part.train.tolist() for part in split.parts] == [[0, 4, 5], [1, 2, 4, 6], [0, 2, 5]]
    assert leave_out_split(texts(sites), "site", None).parts[0].train.tolist() == [0, 4, 5, 6]
    with pytest.raises(DataError, match=r"--leave-out site: the column has 1 values"):
        leave_out_split(texts(["a", "a", ""]), "site", None)
    with pytest.raises(DataError, match="every group outside of 'a'"):
        leave_out_split(texts(["a", "b"]), "site", np.array([1, 1]))


def test_leaving_sites_out_finds_a_shortcut(tmp_path):
    """Where the site gives the class away, folds look perfect and unseen sites do not."""
    rng = np.random.default_rng(0)
    n = 400
    site = rng.integers(0, 4, n)
    y = np.where(rng.random(n) < 0.9, site % 2, 1 - site % 2)
    X = rng.normal(size=(n, 16)).astype(np.float32)
    X[np.arange(n), site] += 8
    samples = pd.DataFrame({"label": y, "site": [f"s{i}" for i in site]})
    store = make_store(tmp_path / "s.zarr", X, samples, labels=("label",))
    within = medprobe.probe(store, probes=["logreg"], n_folds=4, n_resamples=50)[0]
    across = medprobe.probe(store, probes=["logreg"], leave_out="site", n_resamples=50)[0]
    assert within.value > 0.85
    assert across.value < 0.6
    assert across.n_images == n
    with pytest.raises(UsageError, match="--leave-out scanner: no such column"):
        medprobe.probe(store, leave_out="scanner")
    with pytest.raises(UsageError, match="--folds and --leave-out"):
        medprobe.probe(store, leave_out="site", n_folds=3)
