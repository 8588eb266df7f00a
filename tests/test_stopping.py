"""Work that nobody waits for any more ends soon; threads are given back whatever ends it."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from medprobe.probe._threads import one_thread, worker_threads
from medprobe.probe.bootstrap import intervals
from medprobe.probe.logistic import LogisticProbeCV
from medprobe.probe.metrics import Scorer
from medprobe.probe.mlp import MLPProbe
from medprobe.probe.stopping import Stopped, may_stop, stopping
from medprobe.report.curves import roc


@pytest.fixture(scope="module")
def labelled() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 400)
    return (rng.standard_normal((400, 20)) + y[:, None]).astype(np.float32), y


def asked_twice() -> Callable[[], bool]:
    """Return what finds that nobody waits when it is asked for the second time."""
    asked = iter((False, True))
    return lambda: next(asked)


@pytest.mark.parametrize("kind", ["logreg", "mlp", "intervals", "band"])
def test_long_work_stops_on_its_way(labelled, kind):
    X, y = labelled
    if kind == "mlp":
        pytest.importorskip("torch")
    score = X.sum(axis=1).astype(np.float64)
    share = 1 / (1 + np.exp(-score))
    proba = np.stack([1 - share, share], axis=1)
    work = {
        "logreg": lambda: LogisticProbeCV(cv=3).fit(X, y),
        "mlp": lambda: MLPProbe(max_epochs=3).fit(X, y),
        "intervals": lambda: intervals(Scorer("binary", y, proba), ("auroc",), n_resamples=100_000),
        "band": lambda: roc(y, score, np.arange(400), n_resamples=100_000),
    }
    with pytest.raises(Stopped), stopping(asked_twice()):
        work[kind]()


def test_work_stops_only_within():
    with stopping(lambda: True), pytest.raises(Stopped):
        may_stop()
    may_stop()
    with stopping(lambda: True):
        found = []
        other = threading.Thread(target=lambda: found.append(may_stop()))
        other.start()
        other.join()
    assert found == [None]  # another thread's work is its own


def blas_threads() -> set[int]:
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


def test_threads_are_put_back_by_the_last_to_leave():
    with threadpool_limits(3, user_api="blas"):
        before = blas_threads()
        first, second = one_thread(), worker_threads()
        first.__enter__()
        pool = second.__enter__()  # while the first holds BLAS to one thread
        assert pool._max_workers == max(before)
        first.__exit__(None, None, None)
        assert blas_threads() == {1}
        second.__exit__(None, None, None)
        assert blas_threads() == before


def test_threads_are_put_back_after_a_stop(labelled):
    before = blas_threads()
    with pytest.raises(Stopped), stopping(lambda: True):
        LogisticProbeCV(cv=3).fit(*labelled)
    assert blas_threads() == before
