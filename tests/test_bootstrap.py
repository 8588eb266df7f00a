"""Intervals and paired tests against explicit resampling and direct formulas, and their coverage in simulations."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

from medprobe.errors import DataError, UsageError
from medprobe.probe.bootstrap import delong, group_weights, holm, intervals, paired_difference
from medprobe.probe.metrics import Scorer


def _scorer(y, score):
    p = 1 / (1 + np.exp(-np.asarray(score, dtype=float)))
    return Scorer("binary", y, np.c_[1 - p, p])


def _study(rng, n_patients, signal=1.5, within=0.8):
    """Images of patients who have a disease or not, with scores that patients share in part."""
    sizes = 1 + rng.geometric(0.3, n_patients)
    patient = np.repeat(np.arange(n_patients), sizes)
    y = (rng.random(n_patients) < 0.4).astype(int)[patient]
    shared, own = rng.normal(size=n_patients)[patient], rng.normal(size=len(patient))
    return y, signal * y + np.sqrt(within) * shared + np.sqrt(1 - within) * own, patient


@settings(max_examples=60, deadline=None)
@given(
    n_rows=st.integers(1, 40),
    n_groups=st.integers(1, 12),
    n_resamples=st.integers(1, 20),
    n_strata=st.integers(1, 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_weights_are_draws_of_whole_groups(n_rows, n_groups, n_resamples, n_strata, seed):
    rng = np.random.default_rng(seed)
    groups = rng.choice([f"p{i}" for i in range(n_groups)], n_rows)
    names, codes = np.unique(groups, return_inverse=True)
    strata = rng.integers(0, n_strata, len(names))
    weights = group_weights(groups, n_rows, n_resamples, rng, strata)
    assert weights.shape == (n_resamples, n_rows)
    assert (weights == np.round(weights)).all()
    assert weights.min() >= 0
    draws = np.stack([weights[:, np.flatnonzero(codes == g)[0]] for g in range(len(names))], axis=1)
    np.testing.assert_array_equal(draws[:, codes], weights)
    for stratum in range(n_strata):
        np.testing.assert_array_equal(draws[:, strata == stratum].sum(axis=1), np.sum(strata == stratum))


def test_weights_without_groups_draw_rows():
    weights = group_weights(None, 50, 4000, np.random.default_rng(0))
    np.testing.assert_array_equal(weights.sum(axis=1), 50)
    np.testing.assert_allclose(weights.mean(axis=0), 1, atol=0.1)
    np.testing.assert_allclose(weights.var(axis=0), 1 - 1 / 50, atol=0.15)


def test_every_member_of_a_stratum_is_drawn_alike():
    strata = np.array(["b", "a", "b", "b", "a", "c"])
    weights = group_weights(None, 6, 4000, np.random.default_rng(0), strata)
    np.testing.assert_allclose(weights.mean(axis=0), 1, atol=0.1)
    np.testing.assert_array_equal(weights[:, 5], 1)


def test_the_draws_do_not_depend_on_how_they_are_split():
    groups = np.repeat(np.arange(9), 3)
    rng = np.random.default_rng(5)
    parts = [group_weights(groups, 27, size, rng) for size in (1, 4, 7)]
    whole = group_weights(groups, 27, 12, np.random.default_rng(5))
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_equals_explicit_resampling_of_patients():
    rng = np.random.default_rng(1)
    y, score, patient = _study(rng, 25)
    weights = group_weights(patient, len(y), 50, np.random.default_rng(2))
    got = _scorer(y, score).replicates("auroc", weights)
    for weight, value in zip(weights, got, strict=True):
        drawn = [p for p in range(25) for _ in range(int(weight[patient == p][0]))]
        rows = np.concatenate([np.flatnonzero(patient == p) for p in drawn])
        assert value == pytest.approx(roc_auc_score(y[rows], score[rows]), abs=1e-12)


def test_blocks_of_resamples_change_nothing(monkeypatch):
    y, score, patient = _study(np.random.default_rng(1), 20)
    scorer = _scorer(y, score)
    whole = intervals(scorer, ["auroc", "ece"], patient, n_resamples=60)
    monkeypatch.setattr("medprobe.probe.bootstrap._BLOCK", 7 * len(y))
    monkeypatch.setattr("medprobe.probe.bootstrap._MIN_STEP", 1)
    parts = intervals(scorer, ["auroc", "ece"], patient, n_resamples=60)
    for name in whole:
        assert parts[name].low == pytest.approx(whole[name].low, abs=1e-12)
        assert parts[name].high == pytest.approx(whole[name].high, abs=1e-12)


def test_patients_make_the_interval_wider():
    y, score, patient = _study(np.random.default_rng(0), 60)
    scorer = _scorer(y, score)
    by_patient = intervals(scorer, ["auroc"], patient)["auroc"]
    by_image = intervals(scorer, ["auroc"])["auroc"]
    assert by_patient.value == by_image.value == pytest.approx(roc_auc_score(y, score), abs=1e-12)
    assert by_patient.low < by_patient.value < by_patient.high
    assert by_patient.high - by_patient.low > 1.4 * (by_image.high - by_image.low)


def test_the_seed_decides_and_the_level_widens():
    y, score, patient = _study(np.random.default_rng(0), 30)
    scorer = _scorer(y, score)
    first = intervals(scorer, ["brier"], patient, seed=1)
    assert first == intervals(scorer, ["brier"], patient, seed=1)
    assert first != intervals(scorer, ["brier"], patient, seed=2)
    wider = intervals(scorer, ["brier"], patient, seed=1, level=0.99)["brier"]
    assert wider.low < first["brier"].low < first["brier"].high < wider.high


def test_resamples_without_a_class_are_dropped_and_counted():
    y = np.array([1, 0, 0, 0, 0, 0])
    interval = intervals(_scorer(y, [3, 1, 2, 4, 0, -1]), ["auroc", "accuracy"], n_resamples=2000)
    assert interval["accuracy"].n_degenerate == 0
    lost = interval["auroc"].n_degenerate / 2000
    assert lost == pytest.approx((5 / 6) ** 6 + (1 / 6) ** 6, abs=0.04)
    assert 0 <= interval["auroc"].low <= interval["auroc"].high <= 1


def test_one_patient_has_no_interval():
    result = intervals(_scorer([0, 1, 1], [1, 2, 3]), ["auroc"], ["p"] * 3)["auroc"]
    assert result.value == 1
    assert np.isnan([result.low, result.high]).all()
    difference = paired_difference(_scorer([0, 1], [1, 2]), _scorer([0, 1], [2, 1]), "auroc", ["p", "p"])
    assert difference.difference == 1
    assert np.isnan([difference.low, difference.high, difference.p_value]).all()


def test_two_rows():
    result = intervals(_scorer([0, 1], [0, 1]), ["auroc"], n_resamples=100)["auroc"]
    assert (result.value, result.low, result.high) == (1, 1, 1)
    assert 30 < result.n_degenerate < 70


def test_perfect_and_constant_scores():
    y = np.repeat([0, 1], 10)
    perfect = intervals(_scorer(y, y), ["auroc"])["auroc"]
    assert (perfect.low, perfect.high) == (1, 1)
    constant = intervals(_scorer(y, 0 * y), ["auroc"])["auroc"]
    assert (constant.value, constant.low, constant.high) == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(("name", "n"), [("average_precision", 60), ("log_loss", 60), ("log_loss", 300)])
def test_interval_equals_scipys_at_the_wider_level(name, n):
    rng = np.random.default_rng(3)
    y = np.r_[np.ones(n // 5, dtype=int), np.zeros(n - n // 5, dtype=int)]
    scorer = _scorer(y, 3 * (y + rng.normal(size=n)))

    def statistic(rows, axis):
        flat = rows.reshape(-1, rows.shape[-1])
        weights = np.stack([np.bincount(drawn, minlength=n) for drawn in flat])
        return scorer.replicates(name, weights).reshape(rows.shape[:-1])

    got = intervals(scorer, [name], n_resamples=20_000)[name]
    tail = stats.norm.cdf(-stats.t.ppf(0.975, n - 1) * np.sqrt(n / (n - 1)))
    expected = stats.bootstrap(
        (np.arange(n),), statistic, confidence_level=1 - 2 * tail, n_resamples=20_000, batch=2000, method="BCa", rng=1
    ).confidence_interval
    tolerance = 0.02 * (got.high - got.low)
    assert got.low == pytest.approx(expected.low, abs=tolerance)
    assert got.high == pytest.approx(expected.high, abs=tolerance)


def test_many_groups_agree_with_delong():
    rng = np.random.default_rng(6)
    y = rng.integers(0, 2, 3000)
    score = y + 2 * rng.normal(size=3000)
    got = intervals(_scorer(y, score), ["auroc"], rng.permutation(3000))["auroc"]
    error = np.sqrt(delong(y, score).covariance[0, 0])
    assert (got.high - got.low) / (2 * 1.96 * error) == pytest.approx(1, abs=0.1)


def test_calibration_interval_reaches_down_where_resamples_go_up():
    rng = np.random.default_rng(4)
    p = rng.random(150)
    scorer = Scorer("binary", (rng.random(150) < p).astype(int), np.c_[1 - p, p])
    result = intervals(scorer, ["ece"])["ece"]
    resampled = np.quantile(scorer.replicates("ece", group_weights(None, 150, 1000, rng)), 0.5)
    assert resampled > result.value > 0.05
    assert 0 <= result.low < 0.05
    assert result.low < result.value <= result.high < resampled + 0.05


def test_missing_or_misfit_groups():
    scorer = _scorer([0, 1, 1], [1, 2, 3])
    with pytest.raises(DataError, match="one entry for each of the 3 rows"):
        intervals(scorer, ["auroc"], [1, 2])
    for groups in (np.array(["a", None, "b"], dtype=object), [1.0, np.nan, 2.0]):
        with pytest.raises(DataError, match="first of row 1"):
            intervals(scorer, ["auroc"], groups)
    with pytest.raises(DataError, match="each of the 2 groups"):
        group_weights(["a", "b", "b"], 3, 5, np.random.default_rng(0), strata=[0, 0, 1])
    with pytest.raises(UsageError, match="--bootstrap"):
        intervals(scorer, ["auroc"], n_resamples=0)
    with pytest.raises(UsageError, match="level"):
        intervals(scorer, ["auroc"], level=95)
    with pytest.raises(UsageError, match="--metric"):
        intervals(scorer, ["auc"])


def _coverage(n_studies, by_patient):
    """Fraction of studies whose interval has the true AUROC in it."""
    rng = np.random.default_rng(11)
    y, score, _ = _study(rng, 100_000)
    truth = roc_auc_score(y, score)
    covered = 0
    for study in range(n_studies):
        y, score, patient = _study(rng, 50)
        interval = intervals(_scorer(y, score), ["auroc"], patient if by_patient else None, 400, seed=study)["auroc"]
        covered += interval.low <= truth <= interval.high
    return covered / n_studies


def test_coverage_of_the_true_value():
    with_patients = _coverage(400, by_patient=True)
    without = _coverage(400, by_patient=False)
    assert 0.90 <= with_patients <= 0.985
    assert without < with_patients - 0.1


def test_paired_difference_of_equal_and_of_different_models():
    rng = np.random.default_rng(3)
    y, score, patient = _study(rng, 80)
    first, noisy = _scorer(y, score), _scorer(y, score + 3 * rng.normal(size=len(y)))
    same = paired_difference(first, first, "auroc", patient)
    assert (same.difference, same.low, same.high, same.p_value) == (0, 0, 0, 1)
    better = paired_difference(first, noisy, "auroc", patient)
    assert better.difference == pytest.approx(first.value("auroc") - noisy.value("auroc"))
    assert 0 < better.low < better.difference < better.high
    assert better.p_value == 1 / 1001
    worse = paired_difference(noisy, first, "auroc", patient)
    assert worse.difference == -better.difference
    assert worse.p_value == better.p_value


def test_pairing_pays():
    rng = np.random.default_rng(3)
    y, score, patient = _study(rng, 80)
    first, second = _scorer(y, score), _scorer(y, score + 0.2 * rng.normal(size=len(y)))
    paired = paired_difference(first, second, "auroc", patient)
    alone = intervals(first, ["auroc"], patient)["auroc"]
    assert paired.high - paired.low < 0.5 * (alone.high - alone.low)


def test_paired_p_values_keep_their_level():
    rng = np.random.default_rng(7)
    rejected = 0
    for study in range(300):
        y, score, patient = _study(rng, 50)
        shared = rng.normal(size=(2, 50))[:, patient]
        first, second = (_scorer(y, score + noise) for noise in shared)
        rejected += paired_difference(first, second, "auroc", patient, 200, seed=study).p_value <= 0.05
    assert 0.015 <= rejected / 300 <= 0.1


def test_paired_difference_needs_the_same_rows():
    with pytest.raises(DataError, match="same rows"):
        paired_difference(_scorer([0, 1, 1], [1, 2, 3]), _scorer([0, 1, 0], [1, 2, 3]), "auroc")


def _delong_directly(y, scores):
    """Areas and covariance from all pairs of rows."""
    placements = []
    for score in scores:
        positive, negative = score[y == 1][:, None], score[y == 0][None, :]
        placements.append((positive > negative) + 0.5 * (positive == negative))
    areas = [p.mean() for p in placements]
    above = np.cov([p.mean(axis=1) for p in placements])
    below = np.cov([p.mean(axis=0) for p in placements])
    return areas, above / np.sum(y == 1) + below / np.sum(y == 0)


@settings(max_examples=60, deadline=None)
@given(n=st.integers(4, 40), tied=st.booleans(), seed=st.integers(0, 2**32 - 1))
def test_delong_equals_all_pairs(n, tied, seed):
    rng = np.random.default_rng(seed)
    y = np.r_[0, 0, 1, 1, rng.integers(0, 2, n - 4)]
    scores = rng.integers(0, 5, (2, n)).astype(float) if tied else rng.normal(size=(2, n))
    areas, covariance = _delong_directly(y, scores)
    result = delong(y, *scores)
    np.testing.assert_allclose(result.auroc, areas, atol=1e-12)
    np.testing.assert_allclose(result.covariance, covariance, atol=1e-12)
    alone = delong(y, scores[0])
    np.testing.assert_allclose(alone.covariance, covariance[:1, :1], atol=1e-12)
    assert np.isnan(alone.p_value)


def test_delong_agrees_with_the_bootstrap_of_rows():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 400)
    first, second = y + rng.normal(size=400), 0.7 * y + rng.normal(size=400)
    result = delong(y, first, second)
    weights = group_weights(None, 400, 4000, rng)
    a, b = (_scorer(y, s).replicates("auroc", weights) for s in (first, second))
    np.testing.assert_allclose(np.cov([a, b]), result.covariance, rtol=0.15, atol=1e-5)
    assert result.difference == pytest.approx(result.auroc[0] - result.auroc[1])
    paired = paired_difference(_scorer(y, first), _scorer(y, second), "auroc", n_resamples=4000)
    assert paired.p_value == pytest.approx(result.p_value, abs=0.02)


def test_delong_without_variance_and_bad_input():
    assert delong([0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 1, 1]).p_value == 1
    assert delong([0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 0, 0]).p_value == 0
    with pytest.raises(DataError, match="two rows of each class"):
        delong([0, 0, 1], [1, 2, 3])
    with pytest.raises(DataError, match="finite"):
        delong([0, 0, 1, 1], [1, 2, 3, np.nan])


def test_holm_by_hand():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.9, 0.8]), [1, 1])
    np.testing.assert_allclose(holm([0.02, np.nan, 0.5]), [0.04, np.nan, 0.5])
    assert holm([]).shape == (0,)
