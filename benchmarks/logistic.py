"""Logistic regression: all values of C and folds together against scikit-learn one by one, and one warm what-if.

python benchmarks/logistic.py           scikit-learn on one fold of each C, scaled to all folds
python benchmarks/logistic.py --full    scikit-learn on every fold of every C (an hour or so)
python benchmarks/logistic.py --quick   small sizes

Ratios of wall time, of CPU time beside them (a busy machine distorts the former), and objectives in float64.
"""

from __future__ import annotations

import argparse
import platform
import time
import warnings
from collections.abc import Callable

import numpy as np
import sklearn
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_info, threadpool_limits

from medprobe.probe.logistic import sweep_logistic
from medprobe.probe.solver import PathSolution, Spectrum, solve_path

CS = np.logspace(-5, 1, 7)
N_FOLDS = 5


def make_features(n: int, D: int, n_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Standardised float32 features with covariance eigenvalues ~ 1/i in a random basis, and labels of a softmax."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((D, D)))[0]
    scores = rng.standard_normal((n, D)) / np.sqrt(np.arange(1, D + 1))
    logits = scores @ rng.standard_normal((D, n_classes))
    y = np.argmax(3 * logits / logits.std() + rng.gumbel(size=logits.shape), axis=1)
    X = scores @ basis
    X = (X - X.mean(axis=0)) / X.std(axis=0)
    return np.ascontiguousarray(X, dtype=np.float32), y


def objective(X: np.ndarray, y: np.ndarray, coef: np.ndarray, intercept: np.ndarray, C: float) -> float:
    coef = coef.astype(np.float64)
    loss = 0.0
    for start in range(0, len(y), 8192):
        rows = slice(start, start + 8192)
        logits = X[rows].astype(np.float64) @ coef.T + intercept
        if logits.shape[1] == 1:
            logits = np.hstack([np.zeros_like(logits), logits])
        loss += (np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(logits)), y[rows]]).sum()
    return float(C * loss + 0.5 * (coef**2).sum())


def timed(work: Callable[[], object]) -> tuple[object, float, float]:
    """Result, wall seconds and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, time.perf_counter() - wall, time.process_time() - cpu


def fastest_sklearn(X: np.ndarray, y: np.ndarray) -> tuple[int, str]:
    """Number of BLAS threads and dtype with which scikit-learn takes least time for ten iterations."""
    all_threads = max(library["num_threads"] for library in threadpool_info())
    seconds = {}
    for threads in {1, all_threads}:
        for dtype in ("float32", "float64"):
            features = X.astype(dtype)
            with threadpool_limits(threads, user_api="blas"):
                model = LogisticRegression(C=1e-2, max_iter=10)
                seconds[threads, dtype] = min(timed(lambda m=model, F=features: m.fit(F, y))[1] for _ in range(2))
    return min(seconds, key=seconds.__getitem__)


def grid(n: int, D: int, n_classes: int, full: bool) -> None:
    X, y = make_features(n, D, n_classes)
    fold = np.random.default_rng(1).permutation(n) % N_FOLDS
    masks = np.stack([fold != f for f in range(N_FOLDS)])
    print(f"\nGrid: {len(CS)} values of C x {N_FOLDS} folds, N={n:,} D={D} K={n_classes}, float32")
    threads, dtype = fastest_sklearn(X[masks[0]], y[masks[0]])
    print(f"scikit-learn gets what suits it best here: {threads} BLAS thread(s), {dtype}")
    ours: list[tuple[float, float]] = []
    theirs = np.zeros(2)
    worst, lower = -np.inf, 0
    chosen = range(N_FOLDS) if full else range(1)

    def solve() -> PathSolution:
        found, wall, cpu = timed(lambda: solve_path(X, y, CS, n_classes=n_classes, sample_weight=masks))
        ours.append((wall, cpu))
        assert isinstance(found, PathSolution)
        return found

    solve()
    ours.clear()
    for i, C in enumerate(CS):
        path = solve()
        for f in chosen:
            Xf, yf = X[masks[f]].astype(dtype), y[masks[f]]
            with threadpool_limits(threads, user_api="blas"):
                model, wall, cpu = timed(lambda C=C, Xf=Xf, yf=yf: LogisticRegression(C=C).fit(Xf, yf))
            assert isinstance(model, LogisticRegression)
            theirs += np.array([wall, cpu]) * N_FOLDS / len(chosen)
            best = objective(Xf, yf, model.coef_, model.intercept_, C)
            excess = objective(Xf, yf, path.coef[f, i], path.intercept[f, i], C) / best - 1
            worst, lower = max(worst, excess), lower + (excess <= 0)
            print(
                f"  C={C:<8.3g} scikit-learn {wall:7.2f} s, {model.n_iter_[0]:3d} iterations;"
                f" ours {path.n_iter[f, i]:2d} passes, objective {excess:+.1e} relative to it",
                flush=True,
            )
    wall, cpu = np.median(ours, axis=0)
    print(f"ours: {wall:.2f} s wall, {cpu:.2f} s CPU, spectrum included (median of {len(ours)})")
    scaled = "" if full else f", from {len(chosen)} of {N_FOLDS} folds of each C"
    print(f"scikit-learn: {theirs[0]:.1f} s wall, {theirs[1]:.1f} s CPU for {len(CS) * N_FOLDS} fits{scaled}")
    print(f"ratio: {theirs[0] / wall:.0f}x wall, {theirs[1] / cpu:.0f}x CPU (bar 50x, stretch 100x)")
    print(f"objective: at most {worst:+.1e} relative to scikit-learn's (bar +1e-5), lower in {lower} fits")
    folds = [(np.flatnonzero(mask), np.flatnonzero(~mask)) for mask in masks]
    _, wall, _ = timed(lambda: sweep_logistic(X, y, folds, list(CS), n_classes=n_classes))
    print(f"sweep_logistic, validation probabilities included: {wall:.2f} s")


def what_if(n: int, D: int, repeats: int) -> None:
    X, y = make_features(n, D, 2)
    spectrum = Spectrum.of(X)
    rng = np.random.default_rng(2)
    site = rng.integers(0, 10, n)
    validation = np.flatnonzero(rng.random(n) < 0.2)
    training = np.setdiff1d(np.arange(n), validation)
    questions = {
        "all rows": lambda: solve_path(X, y, [1e-3], n_classes=2, spectrum=spectrum),
        "one of ten sites dropped": lambda: solve_path(
            X, y, [1e-3], n_classes=2, spectrum=spectrum, sample_weight=site != 3
        ),
        "80/20 split, with predictions": lambda: sweep_logistic(
            X, y, [(training, validation)], [1e-3], n_classes=2, spectrum=spectrum
        ),
    }
    print(f"\nWhat-if: N={n:,} D={D} K=2, one C, spectrum warm, p50 of {repeats} (bar 1 s)")
    seconds: dict[str, list[float]] = {name: [] for name in questions}
    for _ in range(repeats):
        for name, ask in questions.items():
            seconds[name].append(timed(ask)[1])
    for name, values in seconds.items():
        print(f"  {name}: {np.median(values):.3f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    threads = {library["internal_api"]: library["num_threads"] for library in threadpool_info()}
    print(f"python {platform.python_version()}, numpy {np.__version__}, scikit-learn {sklearn.__version__}")
    print(f"threads {threads}")
    if arguments.quick:
        grid(4000, 128, 5, arguments.full)
        what_if(10_000, 256, 5)
    else:
        what_if(100_000, 768, 7)
        grid(50_000, 768, 5, arguments.full)


if __name__ == "__main__":
    main()
