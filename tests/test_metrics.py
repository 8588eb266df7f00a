"""Metrics against scikit-learn, on the rows as they are and on resamples of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    brier_score_loss,
    cohen_kappa_score,
    f1_score,
    log_loss,
    recall_score,
    roc_auc_score,
)

from medprobe.errors import DataError, UsageError
from medprobe.probe.metrics import METRICS, TASKS, Scorer, check_metrics, default_metrics, primary_metric
from medprobe.probe.thresholds import (
    choose_threshold,
    npv,
    ppv,
    sensitivity_at_specificity,
    sensitivity_specificity,
    specificity_at_sensitivity,
)

NAMES = {task: [name for name, metric in METRICS.items() if task in metric.tasks] for task in TASKS}


def _ece(probability, outcome, n_bins=15):
    """Expected calibration error by its definition, bin by bin."""
    edges = np.linspace(0, 1, n_bins + 1)
    total = 0.0
    for i in range(n_bins):
        inside = (probability > edges[i]) & (probability <= edges[i + 1]) | ((i == 0) & (probability == 0))
        if inside.any():
            total += inside.sum() * abs(outcome[inside].mean() - probability[inside].mean())
    return total / len(probability)


def _reference_classes(task, y, proba):
    """scikit-learn's metrics of a task with one class a row; every class of the full data is present."""
    k = proba.shape[1]
    predicted = proba.argmax(axis=1)
    present = np.unique(y)
    result = {
        "accuracy": accuracy_score(y, predicted),
        "balanced_accuracy": recall_score(y, predicted, labels=present, average="macro"),
        "macro_recall": recall_score(y, predicted, labels=present, average="macro"),
        "macro_f1": f1_score(y, predicted, average="macro"),
        "log_loss": log_loss(y, proba, labels=np.arange(k)),
    }
    if task == "binary":
        result["auroc"] = roc_auc_score(y, proba[:, 1])
        result["average_precision"] = average_precision_score(y, proba[:, 1])
        result["brier"] = brier_score_loss(y, proba[:, 1])
        result["ece"] = _ece(proba[:, 1], y)
    else:
        result["auroc"] = np.mean([roc_auc_score(y == c, proba[:, c]) for c in present])
        result["average_precision"] = np.mean([average_precision_score(y == c, proba[:, c]) for c in present])
        result["brier"] = brier_score_loss(y, proba, labels=np.arange(k), scale_by_half=False)
        result["ece"] = _ece(proba.max(axis=1), predicted == y)
    if task == "ordinal":
        result["quadratic_kappa"] = cohen_kappa_score(y, predicted, weights="quadratic", labels=np.arange(k))
    return result


def _reference_labels(y, proba, counted):
    """scikit-learn's metrics of each label on the rows where it is known, averaged."""
    by_label = {name: [] for name in NAMES["multilabel"]}
    for label in range(y.shape[1]):
        known = ~np.isnan(y[:, label])
        truth, score = y[known, label].astype(int), proba[known, label]
        if not known.any():
            continue
        predicted = (score > 0.5).astype(int)
        by_label["accuracy"].append(accuracy_score(truth, predicted))
        by_label["log_loss"].append(log_loss(truth, np.c_[1 - score, score], labels=[0, 1]))
        by_label["brier"].append(brier_score_loss(truth, score, pos_label=1))
        by_label["ece"].append(_ece(score, truth))
        if label in counted:
            by_label["auroc"].append(roc_auc_score(truth, score))
            by_label["average_precision"].append(average_precision_score(truth, score))
            by_label["balanced_accuracy"].append(balanced_accuracy_score(truth, predicted))
            by_label["macro_recall"].append(recall_score(truth, predicted))
            by_label["macro_f1"].append(f1_score(truth, predicted))
    return {name: np.mean(values) for name, values in by_label.items()}


def _predictions(rng, n, k, decimals):
    """Random truth with every class present and probabilities that sum to one, with ties when rounded."""
    y = np.r_[np.arange(k), rng.integers(0, k, n - k)]
    proba = rng.dirichlet(np.ones(k), n)
    if decimals:
        steps = rng.multinomial(2**decimals, proba)
        proba = steps / 2**decimals
    return y, proba


def _check_classes(task, n, k, decimals, seed):
    rng = np.random.default_rng(seed)
    y, proba = _predictions(rng, n, k, decimals)
    scorer = Scorer(task, y, proba)
    weights = np.vstack([np.ones(n), rng.poisson(1.0, (2, n))])
    weights[:, 0] = np.maximum(weights[:, 0], 1)
    got = scorer.replicates_many(NAMES[task], weights)
    for b, weight in enumerate(weights):
        rows = np.repeat(np.arange(n), weight.astype(int))
        if len(np.unique(y[rows])) < k:
            for name in ("auroc", "average_precision", "balanced_accuracy", "macro_recall", "macro_f1"):
                assert np.isnan(got[name][b]), name
            continue
        for name, expected in _reference_classes(task, y[rows], proba[rows]).items():
            np.testing.assert_allclose(got[name][b], expected, rtol=1e-12, atol=1e-12, err_msg=name)
    for name in NAMES[task]:
        np.testing.assert_allclose(scorer.value(name), got[name][0], rtol=1e-13, err_msg=name)


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(5, 60),
    k=st.integers(2, 5),
    decimals=st.sampled_from([0, 1, 2, 4]),
    ordered=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_classes_equal_scikit_learn(n, k, decimals, ordered, seed):
    task = "ordinal" if ordered else "binary" if k == 2 else "multiclass"
    _check_classes(task, n, k, decimals, seed)


@pytest.mark.parametrize(("task", "k"), [("binary", 2), ("multiclass", 7), ("ordinal", 5)])
@pytest.mark.parametrize("decimals", [0, 3])
def test_many_rows_equal_scikit_learn(task, k, decimals):
    _check_classes(task, 3000, k, decimals, seed=1)


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(4, 50),
    labels=st.integers(1, 4),
    tied=st.booleans(),
    missing=st.sampled_from([0.0, 0.3]),
    seed=st.integers(0, 2**32 - 1),
)
def test_labels_equal_scikit_learn(n, labels, tied, missing, seed):
    rng = np.random.default_rng(seed)
    y = (rng.random((n, labels)) < rng.random(labels)).astype(float)
    y[rng.random(y.shape) < missing] = np.nan
    proba = rng.integers(0, 9, (n, labels)) / 8 if tied else rng.random((n, labels))
    scorer = Scorer("multilabel", y, proba)
    counted = [label for label in range(labels) if {0.0, 1.0} <= set(y[:, label])]
    assert scorer.left_out == tuple(set(range(labels)) - set(counted))
    weights = np.vstack([np.ones(n), rng.poisson(1.0, (2, n))])
    got = scorer.replicates_many(NAMES["multilabel"], weights)
    for b, weight in enumerate(weights):
        rows = np.repeat(np.arange(n), weight.astype(int))
        kept = [label for label in counted if {0.0, 1.0} <= set(y[rows, label])]
        if kept != counted or not counted:
            for name in ("auroc", "average_precision", "balanced_accuracy", "macro_recall", "macro_f1"):
                assert np.isnan(got[name][b]), name
        seen = ~np.isnan(y).all(axis=0)
        if kept != counted or (np.isnan(y[rows]).all(axis=0) & seen).any():
            continue
        for name, expected in _reference_labels(y[rows], proba[rows], counted).items():
            np.testing.assert_allclose(got[name][b], expected, rtol=1e-12, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("task", TASKS)
def test_blocks_of_resamples_change_nothing(task, monkeypatch):
    rng = np.random.default_rng(3)
    y, proba = _predictions(rng, 40, 2 if task == "binary" else 3, 3)
    if task == "multilabel":
        y = rng.integers(0, 2, proba.shape).astype(float)
    weights = rng.poisson(1.0, (23, 40))
    scorer = Scorer(task, y, proba)
    together = scorer.replicates_many(NAMES[task], weights)
    columns = scorer.replicates_many(NAMES[task], np.asfortranarray(weights))
    monkeypatch.setattr("medprobe.probe.metrics._BLOCK", 40 * 5)
    monkeypatch.setattr("medprobe.probe.metrics._MIN_STEP", 1)
    in_blocks = scorer.replicates_many(NAMES[task], weights)
    for name in NAMES[task]:
        np.testing.assert_allclose(in_blocks[name], together[name], rtol=1e-13, err_msg=name)
        np.testing.assert_array_equal(columns[name], together[name], err_msg=name)
        np.testing.assert_allclose(scorer.replicates(name, weights), together[name], rtol=1e-13, err_msg=name)


def test_perfect_and_reversed_scores():
    y = np.array([0, 0, 1, 1, 1])
    perfect = Scorer("binary", y, np.c_[1 - y, y])
    best = {"log_loss": 0, "brier": 0, "ece": 0}
    for name in NAMES["binary"]:
        assert perfect.value(name) == pytest.approx(best.get(name, 1), abs=1e-15), name
    reverse = Scorer("binary", y, np.c_[y, 1 - y])
    assert reverse.value("auroc") == 0
    assert reverse.value("brier") == reverse.value("ece") == 1
    assert reverse.value("log_loss") == pytest.approx(-np.log(np.finfo(float).eps))


def test_constant_scores():
    y = np.array([0, 0, 0, 1])
    scorer = Scorer("binary", y, np.full((4, 2), 0.5))
    assert scorer.value("auroc") == 0.5
    assert scorer.value("average_precision") == 0.25
    assert scorer.value("accuracy") == 0.75  # 0.5 against 0.5 is class 0
    assert scorer.value("balanced_accuracy") == 0.5
    assert scorer.value("ece") == pytest.approx(0.25)
    same = Scorer("ordinal", np.zeros(4, dtype=int), np.tile([1.0, 0, 0], (4, 1)))
    assert np.isnan(same.value("quadratic_kappa"))


def test_two_rows():
    scorer = Scorer("binary", [0, 1], [[0.8, 0.2], [0.4, 0.6]])
    assert scorer.value("auroc") == 1
    assert scorer.value("brier") == pytest.approx((0.04 + 0.16) / 2)
    draws = scorer.replicates_many(["auroc", "brier"], np.array([[1, 1], [2, 0], [0, 2]]))
    np.testing.assert_array_equal(draws["auroc"], [1, np.nan, np.nan])
    np.testing.assert_allclose(draws["brier"], [0.1, 0.04, 0.16])


def test_absent_class_is_left_out_and_named():
    rng = np.random.default_rng(0)
    y = rng.choice([0, 1, 3], 50)
    proba = rng.dirichlet(np.ones(4), 50)
    scorer = Scorer("multiclass", y, proba)
    assert scorer.left_out == (2,)
    for name, expected in _reference_classes("multiclass", y, proba).items():
        assert scorer.value(name) == pytest.approx(expected, abs=1e-12), name


def test_grades_keep_their_distance_when_one_is_absent():
    y = np.array([0, 0, 3, 3])
    proba = np.eye(4)[[0, 3, 3, 3]]
    expected = cohen_kappa_score(y, [0, 3, 3, 3], weights="quadratic", labels=[0, 1, 2, 3])
    assert Scorer("ordinal", y, proba).value("quadratic_kappa") == pytest.approx(expected)
    shifted = Scorer("ordinal", [0, 1, 3, 3], np.eye(4)[[1, 1, 3, 0]])
    assert shifted.value("quadratic_kappa") == pytest.approx(
        cohen_kappa_score([0, 1, 3, 3], [1, 1, 3, 0], weights="quadratic", labels=[0, 1, 2, 3])
    )


def test_one_class_alone_has_no_area():
    scorer = Scorer("binary", [1, 1, 1], [[0.2, 0.8]] * 3)
    assert scorer.left_out == (0,)
    assert np.isnan(scorer.value("auroc"))
    assert np.isnan(scorer.value("average_precision"))
    assert scorer.value("accuracy") == 1
    empty = Scorer("multilabel", np.full((3, 2), np.nan), np.full((3, 2), 0.5))
    assert empty.left_out == (0, 1)
    assert all(np.isnan(empty.value(name)) for name in NAMES["multilabel"])


def test_single_precision_probabilities_clip_as_scikit_learn_does():
    proba = np.array([[1, 0], [0.5, 0.5]], dtype=np.float32)
    expected = log_loss([1, 0], proba, labels=[0, 1])
    assert Scorer("binary", [1, 0], proba).value("log_loss") == pytest.approx(expected, rel=1e-6)


def test_bins_close_on_the_right():
    edge = 10 / 15
    p = np.array([0.0, 0.01, edge - 0.01, edge, edge + 0.01, 1.0])
    y = np.array([0, 1, 1, 0, 1, 1])
    proba = np.c_[1 - p, p]
    assert Scorer("binary", y, proba).value("ece") == pytest.approx(_ece(p, y))
    assert Scorer("multilabel", y[:, None], p[:, None]).value("ece") == pytest.approx(_ece(p, y))
    top = proba.max(axis=1)
    assert Scorer("ordinal", y, proba).value("ece") == pytest.approx(_ece(top, proba.argmax(axis=1) == y))


def test_same_rows():
    proba = np.full((3, 2), 0.5)
    first = Scorer("binary", [0, 1, 1], proba)
    assert first.same_rows(Scorer("binary", [0, 1, 1], proba))
    assert not first.same_rows(Scorer("binary", [0, 1, 0], proba))
    assert not first.same_rows(Scorer("ordinal", [0, 1, 1], proba))
    y = np.array([[0, np.nan], [1, 1]])
    assert Scorer("multilabel", y, proba[:2]).same_rows(Scorer("multilabel", y.copy(), proba[:2]))


@pytest.mark.parametrize("task", TASKS)
def test_defaults_are_defined_for_their_task(task):
    assert default_metrics(task)[0] == primary_metric(task)
    assert check_metrics(default_metrics(task), task) == default_metrics(task)
    assert all(METRICS[name].description for name in default_metrics(task))


def test_primary_metrics():
    assert [primary_metric(task) for task in TASKS] == ["auroc", "balanced_accuracy", "quadratic_kappa", "auroc"]


def test_unknown_names():
    with pytest.raises(UsageError, match=r"'auc' is unknown; --metric takes one of auroc, .*ece"):
        check_metrics(["auroc", "auc"], "binary")
    with pytest.raises(UsageError, match="not defined for the binary task"):
        Scorer("binary", [0, 1], np.full((2, 2), 0.5)).value("quadratic_kappa")
    with pytest.raises(UsageError, match="no task 'regression'"):
        Scorer("regression", [0, 1], np.full((2, 2), 0.5))


@pytest.mark.parametrize(
    ("task", "y", "proba", "message"),
    [
        ("binary", [0, 1], [[0.5, 0.5]], "has shape"),
        ("binary", [0, 2], [[0.5, 0.5]] * 2, "from 0 to 1"),
        ("binary", [0.0, 1.0], [[0.5, 0.5]] * 2, "whole numbers"),
        ("binary", [0, 1], [[0.2, 0.3, 0.5]] * 2, r"\(n, 2\)"),
        ("binary", [0, 1], [[0.9, 0.9]] * 2, "sum to one"),
        ("multiclass", [0, 1], [[np.nan, 1.0]] * 2, "finite"),
        ("multiclass", [0, 1], [[-0.5, 1.5]] * 2, "between 0 and 1"),
        ("multiclass", np.empty(0, dtype=int), np.empty((0, 3)), "at least one row"),
        ("multilabel", [[0, 2]], [[0.5, 0.5]], "0, 1 or NaN"),
        ("multilabel", [0, 1], [[0.5, 0.5]], "has shape"),
    ],
)
def test_bad_input(task, y, proba, message):
    with pytest.raises(DataError, match=message):
        Scorer(task, y, proba)


def test_weights_of_another_shape():
    with pytest.raises(DataError, match=r"\(B, 2\)"):
        Scorer("binary", [0, 1], np.full((2, 2), 0.5)).replicates("accuracy", np.ones((4, 3)))


def test_threshold_by_hand():
    y = [0, 0, 0, 0, 1, 1, 1, 1]
    score = [1, 2, 3, 6, 4, 5, 6, 7]
    assert choose_threshold(y, score, specificity=0.75) == 4
    assert choose_threshold(y, score, specificity=0.76) == 7
    assert choose_threshold(y, score, sensitivity=0.75) == 5
    assert choose_threshold(y, score, sensitivity=1.0) == 4
    assert choose_threshold([0, 1], [1.0, 0.0], specificity=1.0) == np.inf
    assert sensitivity_specificity(y, score, threshold=5) == (0.75, 0.75)
    test = {"y": [0, 0, 1, 1], "score": [1, 5, 3, 5], "y_val": y, "score_val": score}
    assert sensitivity_at_specificity(specificity=0.75, **test) == 0.5
    assert specificity_at_sensitivity(sensitivity=0.75, **test) == 0.5


@settings(max_examples=60, deadline=None)
@given(n=st.integers(2, 30), target=st.floats(0, 1), seed=st.integers(0, 2**32 - 1))
def test_threshold_is_the_best_one(n, target, seed):
    rng = np.random.default_rng(seed)
    y = np.r_[0, 1, rng.integers(0, 2, n - 2)]
    score = rng.integers(0, 8, n).astype(float)
    points = {t: sensitivity_specificity(y, score, threshold=t) for t in [*np.unique(score), np.inf]}
    assert choose_threshold(y, score, specificity=target) == min(t for t, (_, spec) in points.items() if spec >= target)
    assert choose_threshold(y, score, sensitivity=target) == max(t for t, (sens, _) in points.items() if sens >= target)


def test_predictive_values():
    y, score = [0] * 10 + [1] * 10, [0] * 9 + [1] + [0] * 2 + [1] * 8
    sensitivity, specificity, prevalence = 0.8, 0.9, 0.01
    right = sensitivity * prevalence
    assert ppv(y, score, threshold=1, prevalence=prevalence) == pytest.approx(right / (right + 0.1 * 0.99))
    right = specificity * (1 - prevalence)
    assert npv(y, score, threshold=1, prevalence=prevalence) == pytest.approx(right / (right + 0.2 * 0.01))
    # At the test set's own prevalence they are the plain fractions.
    assert ppv(y, score, threshold=1, prevalence=0.5) == pytest.approx(8 / 9)
    assert npv(y, score, threshold=1, prevalence=0.5) == pytest.approx(9 / 11)
    assert np.isnan(ppv(y, score, threshold=2, prevalence=0.5))


def test_bad_thresholds():
    with pytest.raises(UsageError, match="exactly one"):
        choose_threshold([0, 1], [0, 1])
    with pytest.raises(UsageError, match="exactly one"):
        choose_threshold([0, 1], [0, 1], specificity=0.5, sensitivity=0.5)
    with pytest.raises(UsageError, match="between 0 and 1"):
        choose_threshold([0, 1], [0, 1], specificity=90)
    with pytest.raises(UsageError, match="prevalence"):
        ppv([0, 1], [0, 1], threshold=1, prevalence=2)
    with pytest.raises(DataError, match="both classes"):
        sensitivity_specificity([1, 1], [0, 1], threshold=1)
    with pytest.raises(DataError, match="codes 0 and 1"):
        sensitivity_specificity([1, 2], [0, 1], threshold=1)
