"""Values and relative gains of a study against direct loops, and how often their intervals hold the truth."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from medprobe.predictions import Predictions
from medprobe.probe.bootstrap import Sample, ends
from medprobe.study.gains import mean_gain, resampled

N, PATIENTS = 90, 30


def predictions(rng, ids, patient, y, strength, draws=1, task="binary") -> Predictions:
    score = 1 / (1 + np.exp(-(strength * (2 * y - 1) + rng.normal(size=(draws, len(y))))))
    proba = np.stack([1 - score, score], axis=2).astype(np.float32)
    order = rng.permutation(len(ids))  # as folds are in another order with each seed
    groups = np.unique(patient[order], return_inverse=True)[1]
    return Predictions(ids[order], groups, y[order], proba[:, order], task, np.array(["0", "1"]))


def toy(seed=0, seeds=(0, 1, 2), n=N, strengths=(1.0, 0.6), draws=1):
    rng = np.random.default_rng(seed)
    ids = np.array([f"i{i:03d}" for i in range(n)])
    patient = np.arange(n) // 3
    y = rng.integers(0, 2, n // 3).repeat(3)
    names = ("good", "base")
    return {
        name: {s: predictions(rng, ids, patient, y, strength, draws) for s in seeds}
        for name, strength in zip(names, strengths, strict=True)
    }


def test_values_and_gains_are_those_of_a_direct_loop():
    data = toy()
    found = resampled(data, "auroc", 200, 7)
    assert (found.n_images, found.n_groups, found.notes) == (N, PATIENTS, ())
    ids = sorted(data["good"][0].ids.tolist())

    def of(name, s):
        p = data[name][s]
        place = {i: k for k, i in enumerate(p.ids.tolist())}
        rows = [place[i] for i in ids]
        return p.y[rows], p.proba[0, rows, 1]

    value = {name: np.mean([roc_auc_score(*of(name, s)) for s in data[name]]) for name in data}
    assert found.value("good", 0.95).value == pytest.approx(value["good"], abs=1e-12)
    gain = found.gain("good", "base")
    assert gain.value == pytest.approx(100 * (value["good"] / value["base"] - 1), abs=1e-9)
    # The same draws of patients and of seeds, one by one, over repeated rows.
    rng = np.random.default_rng(7)
    patients = rng.random((200, PATIENTS))
    drawn_seeds = np.random.default_rng([7, 3]).integers(3, size=(3, 200))
    for b in range(200):
        rows = np.concatenate([[3 * p, 3 * p + 1, 3 * p + 2] for p in (patients[b] * PATIENTS).astype(int)])
        means = {}
        for name in data:
            each = np.array([roc_auc_score(*(array[rows] for array in of(name, s))) for s in range(3)])
            means[name] = each.mean() + np.sqrt(3 / 2) * (each[drawn_seeds[:, b]].mean() - each.mean())
        assert gain.replicates[b] == pytest.approx(100 * (means["good"] / means["base"] - 1), abs=1e-8)
    for p in range(PATIENTS):
        rows = [i for i in range(N) if i // 3 != p]
        a, b = (np.mean([roc_auc_score(*(x[rows] for x in of(name, s))) for s in range(3)]) for name in data)
        assert np.isclose(gain.left_out, 100 * (a / b - 1), atol=1e-9).any()


def test_draws_of_few_labels_are_runs_like_seeds():
    found = resampled(toy(draws=2), "auroc", 20, 0)
    assert sorted(found.runs["good"]) == [(s, d) for s in (0, 1, 2) for d in (0, 1)]


def test_a_hold_out_of_each_seed_resamples_the_patients_of_all():
    """With each seed other patients are tested: a patient who is drawn comes with the images of every seed."""
    rng = np.random.default_rng(0)
    ids, patient = np.array([f"i{i:03d}" for i in range(N)]), np.arange(N) // 3
    y = rng.integers(0, 2, PATIENTS).repeat(3)
    tests = {s: np.flatnonzero(np.isin(patient, rng.permutation(PATIENTS)[:15])) for s in (0, 1)}
    data = {
        name: {s: predictions(rng, ids[rows], patient[rows], y[rows], 1.0) for s, rows in tests.items()}
        for name in ("good", "base")
    }
    found = resampled(data, "auroc", 50, 3)
    everyone = sorted({*patient[tests[0]].tolist(), *patient[tests[1]].tolist()})
    assert (found.n_groups, found.n_images) == (len(everyone), 3 * len(everyone))
    assert len(everyone) > 15
    drawn = (np.random.default_rng(3).random((50, len(everyone))) * len(everyone)).astype(int)
    p = data["good"][1]
    of_image = {i: k for k, i in enumerate(p.ids.tolist())}
    for b in (0, 17, 49):
        rows = [of_image[i] for k in drawn[b] for i in ids[patient == everyone[k]].tolist() if i in of_image]
        if len(set(p.y[rows].tolist())) == 2:
            expected = roc_auc_score(p.y[rows], p.proba[0, rows, 1])
            assert found.runs["good"][1, 0].replicates[b] == pytest.approx(expected, abs=1e-8)


def test_methods_are_compared_on_what_all_were_tested_on():
    data = toy(seeds=(0,))
    p = data["good"][0]
    data["odd"] = {0: replace(p, classes=np.array(["no", "yes"]))}
    data["wrong"] = {0: replace(p, y=1 - p.y)}
    data["good"][0] = replace(p, ids=p.ids[3:], groups=p.groups[3:], y=p.y[3:], proba=p.proba[:, 3:])
    found = resampled(data, "auroc", 20, 0)
    assert found.n_images == N - 3
    assert set(found.runs) == {"good", "base"}
    assert any("3 images that not all" in note for note in found.notes)
    assert any("odd has other classes" in note for note in found.notes)
    assert any("wrong was tested on other labels" in note for note in found.notes)


def test_lower_is_better_and_a_baseline_without_a_ratio():
    data = toy()
    loss = resampled(data, "log_loss", 50, 0)
    assert loss.gain("good", "base").value == pytest.approx(
        -100 * (loss.value("good", 0.95).value / loss.value("base", 0.95).value - 1)
    )
    assert loss.gain("good", "base").value > 0
    contrary = toy(strengths=(1.0, -2.0))
    ordinal = {
        method: {s: replace(p, task="ordinal") for s, p in by_seed.items()} for method, by_seed in contrary.items()
    }
    kappa = resampled(ordinal, "quadratic_kappa", 50, 0)
    assert kappa.value("base", 0.95).value < 0
    assert np.isnan(kappa.gain("good", "base").value)


def test_the_mean_gain_over_data_sets_is_that_of_independent_samples():
    rng = np.random.default_rng(0)
    one = Sample(2.0, 2 + rng.normal(size=4000), rng.normal(0, 0.01, 50))
    two = Sample(4.0, 4 + 3 * rng.normal(size=4000), rng.normal(0, 0.03, 80))
    both = mean_gain([one, two], [50, 80], 0.95)
    assert both.value == 3.0
    # normal: the sum of two independent ones; Student's t of Welch's degrees of freedom widens it by some 2 %
    half = 1.96 * np.sqrt(1 + 9) / 2
    assert (both.high - both.low) / 2 == pytest.approx(half, rel=0.06)
    alone = mean_gain([one], [50], 0.95)
    low, high, _ = ends("", one, 50, 0.95)
    assert (alone.low, alone.high) == pytest.approx((low, high))


def test_intervals_of_gains_hold_no_gain_as_often_as_they_say():
    """Two methods that are alike: of 95 % intervals, 95 % hold 0, to within what 120 of them can tell."""
    held = 0
    for trial in range(120):
        gains = [
            resampled(toy(10 * trial + d, (0,), 120, (0.8, 0.8)), "auroc", 100, 1000 * trial + d).gain("good", "base")
            for d in range(2)
        ]
        found = mean_gain(gains, [40, 40], 0.95)
        held += found.low <= 0 <= found.high
    assert 0.89 <= held / 120 <= 0.99
