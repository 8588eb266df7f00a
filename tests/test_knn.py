from __future__ import annotations

import sys

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors
from sklearn.preprocessing import StandardScaler, normalize
from sklearn.utils.estimator_checks import check_estimator

from medprobe.errors import UsageError
from medprobe.probe import knn, search
from medprobe.probe.knn import KNNProbe, neighbours, sweep_knn, vote


@pytest.fixture(params=["faiss", "numpy"])
def backend(request, monkeypatch):
    if request.param == "faiss":
        pytest.importorskip("faiss")
    monkeypatch.setattr(search, "_faiss_is_usable", lambda: request.param == "faiss")
    return request.param


def data(n=300, m=70, d=24, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, d)).astype(dtype), rng.standard_normal((m, d)).astype(dtype)


def brute_force(A, B, k, metric, groups=None, query_groups=None):
    """Search in float64, ties by row number, one query at a time."""
    A, B = A.astype(np.float64), B.astype(np.float64)
    score, index = np.full((len(B), k), -np.inf), np.full((len(B), k), -1)
    for i, b in enumerate(B):
        if metric == "cosine":
            s = (A * b).sum(axis=1) / (np.linalg.norm(A, axis=1) * np.linalg.norm(b))
        else:
            s = -np.sqrt(((A - b) ** 2).sum(axis=1))
        rows = np.arange(len(A)) if groups is None else np.flatnonzero(groups != query_groups[i])
        best = rows[np.lexsort((rows, -s[rows]))][:k]
        score[i, : len(best)], index[i, : len(best)] = s[best], best
    return (score if metric == "cosine" else -score), index


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("k", [1, 17, 120, 300])
def test_neighbours_are_those_of_scikit_learn(backend, metric, dtype, k):
    A, B = data(dtype=dtype)
    score, index = neighbours(A, B, k, metric=metric)
    distance, expected = (
        NearestNeighbors(n_neighbors=k, metric=metric, algorithm="brute").fit(A.astype(float)).kneighbors(B)
    )
    np.testing.assert_array_equal(index, expected)
    np.testing.assert_allclose(1 - score if metric == "cosine" else score, distance, rtol=1e-4, atol=1e-6)
    assert score.dtype == dtype


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_far_from_the_origin(backend, metric):
    A, B = data()
    A, B = A + 100, B + 100
    _, index = neighbours(A, B, 20, metric=metric)
    np.testing.assert_array_equal(index, brute_force(A, B, 20, metric)[1])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_ties_come_in_the_order_of_the_rows(backend, metric, dtype):
    rng = np.random.default_rng(1)
    distinct = rng.standard_normal((12, 33)).astype(dtype)
    which = rng.integers(0, 12, 400)
    B = distinct[:5]
    for k in (3, 40, 100):
        _, index = neighbours(distinct[which], B, k, metric=metric)
        np.testing.assert_array_equal(index, brute_force(distinct[which], B, k, metric)[1])
    # One query alone takes another code path of the matrix product.
    _, alone = neighbours(distinct[which], B[2:3], 100, metric=metric)
    np.testing.assert_array_equal(alone[0], index[2])


def test_integers_on_a_grid_tie_exactly(backend):
    A = np.stack(np.meshgrid(*[np.arange(5.0)] * 3), axis=-1).reshape(-1, 3).astype(np.float32)
    _, index = neighbours(A, A, 9, metric="euclidean")
    np.testing.assert_array_equal(index, brute_force(A, A, 9, "euclidean")[1])


def test_rows_of_zeros_have_similarity_zero(backend):
    A, B = data(n=10, m=2)
    A[3], B[1] = 0, 0
    score, index = neighbours(A, B, 10)
    assert score[0, list(index[0]).index(3)] == 0
    np.testing.assert_array_equal(index[1], np.arange(10))
    np.testing.assert_array_equal(score[1], 0)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("sizes", [1, 7, 150])
def test_leave_group_out(backend, metric, sizes):
    A, _ = data(n=301)
    groups = np.random.default_rng(2).permutation(301) // sizes
    score, index = neighbours(A, A, 15, metric=metric, exclude=(groups, groups))
    expected = brute_force(A, A, 15, metric, groups, groups)
    np.testing.assert_array_equal(index, expected[1])
    np.testing.assert_allclose(score, expected[0], rtol=1e-4, atol=1e-6)
    assert not (groups[index] == groups[:, None]).any()


def test_leave_group_out_with_clustered_groups_has_to_look_further(backend):
    rng = np.random.default_rng(3)
    groups = np.repeat(np.arange(3), 100)
    A = (10 * rng.standard_normal((3, 16))[groups] + rng.standard_normal((300, 16))).astype(np.float32)
    _, index = neighbours(A, A, 5, exclude=(groups, groups))
    np.testing.assert_array_equal(index, brute_force(A, A, 5, "cosine", groups, groups)[1])


def test_leave_group_out_with_too_few_rows_left(backend):
    A, B = data(n=6, m=2)
    groups = np.array(["a", "a", "a", "a", "b", "b"])
    score, index = neighbours(A, B, 4, exclude=(groups, np.array(["a", "c"])))
    np.testing.assert_array_equal(np.sort(index[0]), [-1, -1, 4, 5])
    assert np.isneginf(score[0, 2:]).all()
    assert (index[1] >= 0).all()


def test_backends_agree_to_the_last_index(monkeypatch):
    pytest.importorskip("faiss")
    A, B = data(n=2000, m=50, d=8)
    A = np.round(A, 1)
    found = []
    for usable in (True, False):
        monkeypatch.setattr(search, "_faiss_is_usable", lambda usable=usable: usable)
        found.append(neighbours(A, B, 200)[1])
    np.testing.assert_array_equal(*found)


def test_searches_in_blocks(backend, monkeypatch):
    A, B = data()
    expected = neighbours(A, B, 9)
    monkeypatch.setattr(search, "_BLOCK", 500)
    monkeypatch.setattr(search, "_CACHED", 50)
    monkeypatch.setattr(search, "_FEWEST", 8)
    for got, want in zip(neighbours(A, B, 9), expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6)


def test_no_faiss_falls_back_to_numpy(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    A, B = data()
    np.testing.assert_array_equal(neighbours(A, B, 3)[1], brute_force(A, B, 3, "cosine")[1])


def test_macos_with_torch_uses_numpy(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setitem(sys.modules, "torch", object())
    assert not search._faiss_is_usable()


def test_neighbours_refuses_what_it_cannot_search():
    A, B = data()
    with pytest.raises(ValueError, match="k must be"):
        neighbours(A, B, 0)
    with pytest.raises(ValueError, match="metric"):
        neighbours(A, B, 1, metric="manhattan")
    with pytest.raises(ValueError, match="width"):
        neighbours(A, B[:, :3], 1)
    with pytest.raises(ValueError, match="exclude"):
        neighbours(A, B, 1, exclude=(np.arange(3), np.arange(len(B))))


def dino_vote(A, B, y, k, temperature, n_classes):
    """The weighted vote of DINO's evaluation, for one k at a time."""
    similarity = normalize(B.astype(float)) @ normalize(A.astype(float)).T
    out = np.zeros((len(B), n_classes))
    for i, row in enumerate(similarity):
        top = np.argsort(-row, kind="stable")[:k]
        weight = np.exp(row[top] / temperature)
        for j, w in zip(top, weight / weight.sum(), strict=True):
            out[i, y[j]] += w
    return out


def test_vote_for_every_k_is_that_of_each_k_alone():
    A, B = data()
    y = np.random.default_rng(4).integers(0, 4, len(A))
    ks, temperatures = (5, 1, 20, 200), (None, 0.04, 0.07)
    votes = vote(*neighbours(A, B, 200), y, n_classes=4, ks=ks, temperatures=temperatures)
    assert len(votes) == 12
    for k in ks:
        for temperature in (0.04, 0.07):
            np.testing.assert_allclose(votes[k, temperature], dino_vote(A, B, y, k, temperature, 4), atol=1e-4)
        expected = KNeighborsClassifier(n_neighbors=k, metric="cosine", algorithm="brute").fit(A, y).predict_proba(B)
        np.testing.assert_allclose(votes[k, None], expected, atol=1e-12)


def test_multilabel_vote_leaves_missing_labels_out():
    A, B = data(n=60, m=9)
    rng = np.random.default_rng(5)
    Y = rng.integers(0, 2, (60, 4)).astype(float)
    Y[rng.random(Y.shape) < 0.6] = np.nan
    Y[:, 3] = np.nan
    score, index = neighbours(A, B, 6)
    votes = vote(score, index, Y, n_classes=4, ks=[2, 6], temperatures=[None, 0.1])
    for k in (2, 6):
        for temperature in (None, 0.1):
            for i in range(len(B)):
                for label in range(3):
                    values = Y[index[i, :k], label]
                    weight = np.ones(k) if temperature is None else np.exp(score[i, :k].astype(float) / temperature)
                    known = ~np.isnan(values)
                    expected = (
                        (values * weight)[known].sum() / weight[known].sum() if known.any() else np.nanmean(Y[:, label])
                    )
                    assert votes[k, temperature][i, label] == pytest.approx(expected, abs=1e-6)
            np.testing.assert_array_equal(votes[k, temperature][:, 3], 0.5)
    assert (np.isnan(Y[index[:, :2]]).all(axis=1)).any(), "no label without a vote: the test shows nothing"


def test_no_neighbour_gives_the_prior():
    y = np.array([0, 0, 0, 1])
    score, index = np.full((1, 2), -np.inf), np.full((1, 2), -1)
    for temperature in (None, 0.1):
        (got,) = vote(score, index, y, n_classes=2, ks=[2], temperatures=[temperature]).values()
        np.testing.assert_allclose(got, [[0.75, 0.25]])


def test_low_temperature_is_the_nearest_neighbour():
    A, B = data()
    y = np.random.default_rng(6).integers(0, 3, len(A))
    votes = vote(*neighbours(A, B, 50), y, n_classes=3, ks=[1, 50], temperatures=[1e-5])
    np.testing.assert_allclose(votes[50, 1e-5], votes[1, 1e-5], atol=1e-6)


@pytest.mark.parametrize("multilabel", [False, True])
def test_sweep_is_the_probe_fitted_on_each_fold(multilabel):
    X, _ = data(n=90)
    rng = np.random.default_rng(7)
    Y = rng.integers(0, 2, (90, 3)).astype(float) if multilabel else np.arange(90) % 3
    rows = rng.permutation(90)
    folds = [(rows[30:], rows[:30]), (rows[:60], rows[60:])]
    swept = sweep_knn(X, Y, folds, n_classes=3, ks=(1, 7, 60, 61), temperatures=(None, 0.1))
    assert [settings["k"] for settings, _ in swept] == [1, 7, 60] * 2
    for settings, probabilities in swept:
        for (train, validation), got in zip(folds, probabilities, strict=True):
            probe = KNNProbe(**settings, standardize=False).fit(X[train], Y[train])
            np.testing.assert_allclose(got, probe.predict_proba(X[validation]), atol=1e-6)


def test_sweep_searches_once_a_fold(monkeypatch):
    calls = []
    monkeypatch.setattr(knn, "neighbours", lambda *args, **kwargs: calls.append(args) or neighbours(*args, **kwargs))
    X, _ = data(n=40)
    folds = [(np.arange(20), np.arange(20, 40)), (np.arange(20, 40), np.arange(20))]
    sweep_knn(X, np.arange(40) % 2, folds, n_classes=2)
    assert len(calls) == 2


def test_sweep_keeps_one_k_for_tiny_folds():
    X, _ = data(n=8)
    swept = sweep_knn(
        X, np.arange(8) % 2, [(np.arange(3), np.arange(3, 8))], n_classes=2, ks=(5, 10), temperatures=(None,)
    )
    assert [settings["k"] for settings, _ in swept] == [3]


@pytest.mark.parametrize("weights", ["temperature", "uniform"])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_probe_against_scikit_learn(metric, weights):
    A, B = data(dtype=np.float64)
    A[:, 3] *= 50
    y = np.array(["benign", "malignant", "normal"])[np.random.default_rng(8).integers(0, 3, len(A))]
    scaler = StandardScaler().fit(A)
    temperature = 0.07 if metric == "cosine" else 10.0

    def weigh(distance):
        if weights == "uniform":
            return np.ones_like(distance)
        return np.exp(-distance / temperature if metric == "cosine" else -(distance**2) / 2 / temperature)

    reference = KNeighborsClassifier(n_neighbors=20, metric=metric, algorithm="brute", weights=weigh)
    reference.fit(scaler.transform(A), y)
    probe = KNNProbe(metric=metric, weights=weights, temperature=temperature).fit(A, y)
    np.testing.assert_allclose(probe.predict_proba(B), reference.predict_proba(scaler.transform(B)), atol=1e-9)
    np.testing.assert_array_equal(probe.predict(B), reference.predict(scaler.transform(B)))
    for got, expected in zip(probe.kneighbors(B, 4), reference.kneighbors(scaler.transform(B), 4), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-9)


def test_probe_takes_more_neighbours_than_rows():
    A, B = data(n=5, m=3)
    probe = KNNProbe(k=50, weights="uniform").fit(A, [0, 0, 1, 1, 1])
    np.testing.assert_allclose(probe.predict_proba(B), np.tile([0.4, 0.6], (3, 1)))
    assert probe.kneighbors(B)[1].shape == (3, 5)


def test_probe_on_labels_with_missing_values():
    A, B = data()
    Y = (A[:, :3] > 0).astype(float)
    Y[::4, 1] = np.nan
    probe = KNNProbe().fit(A, Y)
    assert probe.predict_proba(B).shape == (70, 3)
    assert ((probe.predict(B) == (B[:, :3] > 0)).mean(axis=0) > 0.6).all()


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"k": 0}, "k must be"),
        ({"weights": "distance"}, "weights"),
        ({"temperature": 0}, "temperature"),
        ({"metric": "l1"}, "metric"),
    ],
)
def test_probe_refuses_settings(settings, match):
    A, B = data(n=20)
    with pytest.raises(ValueError, match=match):
        KNNProbe(**settings).fit(A, np.arange(20) % 2).predict(B)


def test_probe_refuses_targets():
    A, _ = data(n=20)
    with pytest.raises(ValueError, match="0, 1 or NaN"):
        KNNProbe().fit(A, np.full((20, 2), 2.0))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("probe", [KNNProbe(), KNNProbe(metric="euclidean", standardize=False)], ids=str)
def test_scikit_learn_checks(probe):
    check_estimator(probe, on_skip=None)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_a_gpu_is_asked_by_its_number(metric, monkeypatch):
    """A machine without one: FAISS's own search on the processor answers in its place."""
    import faiss

    calls = []

    def knn_gpu(resources, queries, rows, k, metric, device):
        calls.append((resources, device))
        return faiss.knn(queries, rows, k, metric=metric)

    monkeypatch.setattr(faiss, "StandardGpuResources", lambda: "resources", raising=False)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 2, raising=False)
    monkeypatch.setattr(faiss, "knn_gpu", knn_gpu, raising=False)
    rng = np.random.default_rng(0)
    A, B = rng.normal(size=(300, 8)).astype(np.float32), rng.normal(size=(40, 8)).astype(np.float32)
    for there, here in zip(
        neighbours(A, B, 7, metric=metric, device="cuda:1"), neighbours(A, B, 7, metric=metric), strict=True
    ):
        np.testing.assert_allclose(there, here, rtol=1e-5)
    assert set(calls) == {("resources", 1)}
    with pytest.raises(UsageError, match="device cuda:2: FAISS sees 2 GPUs"):
        neighbours(A, B, 7, device="cuda:2")


def test_a_gpu_that_is_not_there_is_an_error_that_says_so():
    X = np.eye(4, dtype=np.float32)
    with pytest.raises(UsageError, match="device cuda: FAISS sees 0 GPUs"):
        KNNProbe(k=1, device="cuda").fit(X, [0, 0, 1, 1]).predict(X)
    with pytest.raises(UsageError, match="device tpu: cpu, cuda"):
        KNNProbe(k=1, device="tpu").fit(X, [0, 0, 1, 1]).predict(X)


def test_the_settings_of_faiss_stay_as_they_are():
    faiss = pytest.importorskip("faiss")
    sizes = faiss.cvar
    before = sizes.distance_compute_blas_query_bs, sizes.distance_compute_blas_database_bs
    neighbours(*data(), 3)
    assert (sizes.distance_compute_blas_query_bs, sizes.distance_compute_blas_database_bs) == before
