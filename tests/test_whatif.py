"""Questions about some of the samples, or about other classes, asked of features that are there."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import make_store
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

import medprobe
from medprobe.errors import DataError, UsageError
from medprobe.probe.conditions import Conditions
from medprobe.probe.splits import Part, Split
from medprobe.probe.task import target_of
from medprobe.probe.whatif import narrowed, relabelled

N = 300


@pytest.fixture(scope="module")
def samples() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    age = rng.integers(20, 90, N).astype(float)
    age[::10] = np.nan
    return pd.DataFrame(
        {
            "grade": rng.integers(0, 5, N),
            "age": age,
            "site": rng.choice(["A", "B", "C"], N),
            "split": np.where(np.arange(N) < 200, "train", "test"),
            "finding_a": rng.choice([0.0, 1.0, -1.0, np.nan], N),
            "finding_b": rng.choice([0, 1], N),
        }
    )


@pytest.fixture(scope="module")
def store(samples: pd.DataFrame, tmp_path_factory: Any) -> Any:
    X = np.random.default_rng(1).normal(size=(N, 10)).astype(np.float32)
    X[:, 0] += samples["grade"].to_numpy()
    return make_store(tmp_path_factory.mktemp("whatif") / "s.zarr", X, samples, labels=("grade",), split="split")


def ask(store: Any, target: str = "grade", **options: Any) -> Any:
    return medprobe.probe(store, target, probes=["logreg"], n_resamples=50, **options)[0]


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("age > 60", lambda s: s.age > 60),  # an unknown age is not
        ("NOT (age > 60)", lambda s: s.age <= 60),
        ("age IS NULL", lambda s: s.age.isna()),
        ("site IN ('A', 'C') AND grade >= 2", lambda s: s.site.isin(["A", "C"]) & (s.grade >= 2)),
        ("site <> 'B' OR age < 30", lambda s: (s.site != "B") | (s.age < 30)),
    ],
)
def test_conditions_are_those_of_pandas(samples: pd.DataFrame, condition: str, expected: Any) -> None:
    np.testing.assert_array_equal(Conditions(samples).where(condition), expected(samples).to_numpy())


def test_a_label_that_is_named_twice_is_one(samples: pd.DataFrame) -> None:
    twice, once = target_of(samples, "site,site"), target_of(samples, "site")
    assert (twice.task, twice.columns, twice.classes) == (once.task, once.columns, once.classes)


def test_conditions_that_cannot_be(samples: pd.DataFrame, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--where wight > 3.*columns: grade, age, site"):
        Conditions(samples).where("wight > 3")
    with pytest.raises(UsageError, match="--where age >>"):
        Conditions(samples).where("age >>")
    with pytest.raises(DataError, match="no sample is left"):
        Conditions(samples).where("age > 200")
    (tmp_path / "secret.csv").write_text("x\n1\n")
    with pytest.raises(UsageError, match=r"--where"):
        Conditions(samples).where(f"age > (SELECT max(x) FROM '{tmp_path}/secret.csv')")


@pytest.mark.parametrize(
    "statement",
    [
        "age > 50); CREATE OR REPLACE VIEW samples AS (SELECT 1 AS __row, 60 AS age",
        "age > 50; DROP VIEW samples",
        "age > 50 UNION ALL SELECT 99",
        "age > 50) UNION ALL SELECT 99 --",
        "age > 50 ORDER BY age",
        "age > 50, age < 90",
        "",
    ],
)
def test_a_condition_is_a_condition_and_no_more(samples: pd.DataFrame, statement: str) -> None:
    conditions = Conditions(samples)
    before = conditions.where("age > 50")
    with pytest.raises(UsageError, match=r"--where .*Parser Error"):
        conditions.where(statement)
    np.testing.assert_array_equal(conditions.where("age > 50 -- and a comment"), before)


def test_conditions_from_several_threads(samples: pd.DataFrame) -> None:
    conditions, ages = Conditions(samples), range(30, 80)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda age: conditions.where(f"age > {age}"), ages))
    for age, mask in zip(ages, found, strict=True):
        np.testing.assert_array_equal(mask, samples.age > age)


def test_some_samples_alone_are_a_store_of_those_alone(store: Any, samples: pd.DataFrame, tmp_path: Path) -> None:
    some = (samples.site != "B").to_numpy()
    alone = make_store(tmp_path / "t.zarr", store.features()[some], samples[some], split="split")
    filtered, expected = ask(store, where="site <> 'B'"), ask(alone)
    assert filtered.value == pytest.approx(expected.value, abs=1e-9)
    assert (filtered.n_images, filtered.n_train) == (expected.n_images, expected.n_train)
    assert filtered.split == "split, where site <> 'B'"


def test_learning_at_one_site_and_testing_at_another(store: Any, samples: pd.DataFrame) -> None:
    row = ask(store, relabel=["0,1=low", "2,3,4=high"], train_where="site = 'A'", test_where="site = 'B'")
    train = ((samples.split == "train") & (samples.site == "A")).to_numpy()
    test = ((samples.split == "test") & (samples.site == "B")).to_numpy()
    assert (row.n_train, row.n_images) == (train.sum(), test.sum())
    assert row.metric == "auroc"
    assert row.split == "split, train where site = 'A', test where site = 'B'"
    X, low = store.features(), (samples.grade < 2).to_numpy()
    scaler = StandardScaler().fit(X[train])
    C = row.settings["C"]
    reference = LogisticRegression(C=C, tol=1e-8, max_iter=5000).fit(scaler.transform(X[train]), low[train])
    assert row.value == pytest.approx(
        roc_auc_score(low[test], reference.decision_function(scaler.transform(X[test]))), abs=1e-3
    )


def test_a_side_that_is_left_empty() -> None:
    split = Split("s", (Part(np.array([0, 1]), np.array([2]), np.array([3])),))
    none = np.zeros(4, dtype=bool)
    with pytest.raises(DataError, match="--train-where"):
        narrowed(split, none, None, "")
    with pytest.raises(DataError, match="--test-where"):
        narrowed(split, None, none, "")
    clean = narrowed(split, np.array([True, False, False, True]), None, ", x")
    assert clean.name == "s, x"
    assert clean.parts[0].train.tolist() == [0]
    assert clean.parts[0].val is None


def test_folds_without_a_tested_sample_are_left_out() -> None:
    parts = tuple(Part(np.setdiff1d(np.arange(4), [i]), None, np.array([i])) for i in range(4))
    clean = narrowed(Split("4 folds", parts), None, np.array([True, False, True, False]), "")
    assert [part.test.tolist() for part in clean.parts] == [[0], [2]]
    with pytest.raises(DataError, match="--test-where"):
        narrowed(Split("4 folds", parts), None, np.zeros(4, dtype=bool), "")


def test_relabelling_merges_renames_and_drops() -> None:
    column = pd.Series([0, 1, 2, 3, 4, np.nan])
    assert relabelled(column, ["2,3,4=refer", "1="]).tolist() == ["0", "", "refer", "refer", "refer", ""]
    numbers = relabelled(column, ["3,4=3"])
    assert numbers.dropna().tolist() == [0, 1, 2, 3, 3]
    with pytest.raises(UsageError, match=r"no class '7'; there are: 0, 1, 2, 3, 4"):
        relabelled(column, ["7=1"])
    with pytest.raises(UsageError, match="expected old,old=new"):
        relabelled(column, ["2,3"])


def test_relabelled_targets_say_so_and_keep_their_order(store: Any) -> None:
    row = ask(store, relabel=["3,4=3"], metric="quadratic_kappa")
    assert row.target == "grade (3,4=3)"
    assert row.task == "ordinal"
    dropped = ask(store, relabel=["2="])
    assert dropped.n_images < ask(store).n_images
    with pytest.raises(UsageError, match="no single column"):
        ask(store, "finding_*", relabel=["1="], uncertain="zeros")


@pytest.mark.parametrize(("rule", "value"), [("zeros", 0.0), ("ones", 1.0), ("ignore", np.nan)])
def test_uncertain_labels(samples: pd.DataFrame, rule: str, value: float) -> None:
    target = target_of(samples, "finding_*", uncertain=rule)
    expected = samples["finding_a"].where(samples["finding_a"] != -1, value).to_numpy()
    np.testing.assert_array_equal(target.y[:, 0], expected[target.rows])
    np.testing.assert_array_equal(target.y[:, 1], samples["finding_b"].to_numpy()[target.rows])


@pytest.mark.parametrize("rule", ["zeros", "ones", "ignore"])
def test_uncertain_labels_of_one_column(samples: pd.DataFrame, rule: str) -> None:
    assert target_of(samples, "finding_a").classes == ("-1", "0", "1")
    target = target_of(samples, "finding_a", uncertain=rule)
    assert (target.task, target.classes) == ("binary", ("0", "1"))
    value = {"zeros": 0.0, "ones": 1.0, "ignore": np.nan}[rule]
    expected = samples["finding_a"].where(samples["finding_a"] != -1, value)
    np.testing.assert_array_equal(target.rows, np.flatnonzero(expected.notna()))
    np.testing.assert_array_equal(target.y, expected.dropna())
    words = target_of(
        samples.assign(finding_a=samples["finding_a"].map(str).replace("nan", "")), "finding_a", uncertain=rule
    )
    np.testing.assert_array_equal(words.rows, target.rows)


def test_uncertain_labels_need_a_rule(samples: pd.DataFrame) -> None:
    with pytest.raises(DataError, match="--uncertain"):
        target_of(samples, "finding_*")
    with pytest.raises(UsageError, match="--uncertain maybe: one of zeros, ones, ignore"):
        target_of(samples, "finding_*", uncertain="maybe")
    wrong = samples.assign(finding_a=samples["finding_a"].astype(object).where(samples.index > 0, "perhaps"))
    with pytest.raises(DataError, match="'perhaps'"):
        target_of(wrong, "finding_*", uncertain="ignore")
