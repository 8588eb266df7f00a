"""Logistic regression: all values of C and folds together against scikit-learn one by one, and one warm what-if.

python benchmarks/logistic.py           scikit-learn on one fold of each C, scaled to all folds
python benchmarks/logistic.py --full    scikit-learn on every fold of every C (an hour or so)
python benchmarks/logistic.py --quick   small sizes
python benchmarks/logistic.py --store STORE --target COLUMN   the grid on stored features (--part: one fold of each C)

scikit-learn's own stopping rule is far from the optimum where classes can be separated: on stored features, and with
--full, its time to an objective within 1e-5 of ours is given as well. With every fold, the C that the validation log loss
chooses and the test accuracy of the refit are compared, too. Ratios are of wall time, with CPU time beside them (a busy
machine distorts the former); objectives are taken in float64.
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
from medprobe.store import open_store

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


def log_loss(X: np.ndarray, y: np.ndarray, coef: np.ndarray, intercept: np.ndarray) -> float:
    """Sum over the rows."""
    coef = coef.astype(np.float64)
    loss = 0.0
    for start in range(0, len(y), 8192):
        rows = slice(start, start + 8192)
        logits = X[rows].astype(np.float64) @ coef.T + intercept
        if logits.shape[1] == 1:
            logits = np.hstack([np.zeros_like(logits), logits])
        loss += (np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(logits)), y[rows]]).sum()
    return float(loss)


def objective(X: np.ndarray, y: np.ndarray, coef: np.ndarray, intercept: np.ndarray, C: float) -> float:
    return C * log_loss(X, y, coef, intercept) + 0.5 * float((coef.astype(np.float64) ** 2).sum())


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


def grid(X: np.ndarray, y: np.ndarray, X_test: np.ndarray, y_test: np.ndarray, full: bool, equal: bool) -> None:
    (n, D), n_classes = X.shape, len(np.unique(y))
    fold = np.random.default_rng(1).permutation(n) % N_FOLDS
    masks = np.stack([fold != f for f in range(N_FOLDS)])
    print(f"\nGrid: {len(CS)} values of C x {N_FOLDS} folds, N={n:,} D={D} K={n_classes}, float32")
    threads, dtype = fastest_sklearn(X[masks[0]], y[masks[0]])
    print(f"scikit-learn gets what suits it best here: {threads} BLAS thread(s), {dtype}")
    ours: list[tuple[float, float]] = []
    theirs, to_the_end = np.zeros(2), 0.0
    worst, lower = -np.inf, 0
    losses = np.zeros((2, len(CS)))  # log loss of validation rows: scikit-learn's, and ours
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
            if equal:
                goal = objective(Xf, yf, path.coef[f, i], path.intercept[f, i], C) * (1 + 1e-5)
                seconds = seconds_to(goal, Xf, yf, C, wall if best <= goal else None)
                to_the_end += seconds * N_FOLDS / len(chosen)
            held_out = X[~masks[f]], y[~masks[f]]
            losses[0, i] += log_loss(*held_out, model.coef_, model.intercept_)
            losses[1, i] += log_loss(*held_out, path.coef[f, i], path.intercept[f, i])
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
    if equal:
        print(f"ratio to an objective within 1e-5 of ours: {to_the_end / wall:.0f}x wall ({to_the_end:.1f} s)")
    print(f"objective: at most {worst:+.1e} relative to scikit-learn's (bar +1e-5), lower in {lower} fits")
    if full:
        best = [float(CS[int(np.argmin(loss))]) for loss in losses]
        refit = LogisticRegression(C=best[0], max_iter=1000).fit(X, y)
        ours_refit = solve_path(X, y, [best[1]], n_classes=n_classes)
        tested = [
            (labels == y_test).mean()
            for labels in (
                refit.predict(X_test),
                predicted(X_test, ours_refit.coef[0, 0], ours_refit.intercept[0, 0]),
            )
        ]
        print(
            f"chosen C: scikit-learn {best[0]:.3g}, ours {best[1]:.3g}; test accuracy {tested[0]:.4f}, {tested[1]:.4f}"
        )
    folds = [(np.flatnonzero(mask), np.flatnonzero(~mask)) for mask in masks]
    _, wall, _ = timed(lambda: sweep_logistic(X, y, folds, list(CS), n_classes=n_classes))
    print(f"sweep_logistic, validation probabilities included: {wall:.2f} s")


def seconds_to(goal: float, X: np.ndarray, y: np.ndarray, C: float, known: float | None) -> float:
    """Seconds of scikit-learn's fit with the loosest tolerance that reaches an objective, in float64."""
    if known is not None:
        return known
    X = X.astype(np.float64)
    for tol in (1e-5, 1e-6, 1e-7, 1e-8):
        model, wall, _ = timed(lambda tol=tol: LogisticRegression(C=C, tol=tol, max_iter=100_000).fit(X, y))
        assert isinstance(model, LogisticRegression)
        if objective(X, y, model.coef_, model.intercept_, C) <= goal:
            break
    return wall


def predicted(X: np.ndarray, coef: np.ndarray, intercept: np.ndarray) -> np.ndarray:
    logits = X @ coef.T + intercept
    return (logits[:, 0] > 0).astype(int) if logits.shape[1] == 1 else logits.argmax(axis=1)


def drawn(n: int, D: int, n_classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    X, y = make_features(n + n // 5, D, n_classes)
    return X[:n], y[:n], X[n:], y[n:]


def stored(path: str, target: str, view: str | None) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Standardised features of a store by its split column, else a tenth of its groups for testing; those come last."""
    store = open_store(path)
    X, y = store.features(view), np.unique(store.samples[target], return_inverse=True)[1]
    if store.roles["split"]:
        test = store.samples[store.roles["split"]].to_numpy() == "test"
    else:
        group = np.unique(store.samples[store.roles["group"]], return_inverse=True)[1]
        test = np.random.default_rng(0).permutation(group.max() + 1)[group] % 10 == 0
    X = (X - X[~test].mean(axis=0)) / np.maximum(X[~test].std(axis=0), 1e-6)
    return X[~test], y[~test], X[test], y[test]


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
    parser.add_argument("--store")
    parser.add_argument("--target", default="label")
    parser.add_argument("--view")
    parser.add_argument("--part", action="store_true", help="with --store: one fold of each C")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    threads = {library["internal_api"]: library["num_threads"] for library in threadpool_info()}
    print(f"python {platform.python_version()}, numpy {np.__version__}, scikit-learn {sklearn.__version__}")
    print(f"threads {threads}")
    if arguments.store:
        grid(*stored(arguments.store, arguments.target, arguments.view), not arguments.part, equal=True)
    elif arguments.quick:
        grid(*drawn(4000, 128, 5), arguments.full, equal=arguments.full)
        what_if(10_000, 256, 5)
    else:
        what_if(100_000, 768, 7)
        grid(*drawn(50_000, 768, 5), arguments.full, equal=arguments.full)


if __name__ == "__main__":
    main()
