"""Ridge: what-if answers from sums that are there, against scikit-learn's Ridge from the rows.

python benchmarks/ridge.py            100,000 x 768, 5 classes, 10 sites
python benchmarks/ridge.py --quick    10,000 x 256

A question is the removal of a site, or the merger of two classes, answered for 10,000 images to be predicted.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable

import numpy as np
import sklearn
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_info

from medprobe.probe.ridge import Moments, indicators, solve

ALPHA = 0.1
N_SITES, N_CLASSES = 10, 5


def median_seconds(work: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    n, width, n_test = (10_000, 256, 1_000) if quick else (100_000, 768, 10_000)
    rng = np.random.default_rng(0)
    y, site = rng.integers(0, N_CLASSES, n), rng.integers(0, N_SITES, n)
    X = rng.standard_normal((n, width), dtype=np.float32)
    X[:, :N_CLASSES] += np.eye(N_CLASSES, dtype=np.float32)[y]
    B, T = X[:n_test], indicators(y, N_CLASSES)
    threads = max((pool["num_threads"] for pool in threadpool_info()), default=1)
    print(
        f"{n} x {width}, {N_SITES} sites; {threads} threads, numpy {np.__version__}, scikit-learn {sklearn.__version__}"
    )
    print(f"python {platform.python_version()}; medians of interleaved repeats\n")

    by_site = [Moments.of(X[site == s], T[site == s]) for s in range(N_SITES)]
    whole = sum(by_site[1:], by_site[0])
    warm = solve(whole, ALPHA)

    def drop_a_site() -> np.ndarray:
        coef, intercept = solve(whole - by_site[3], ALPHA)
        return B @ coef.astype(np.float32) + intercept

    def merge_two_classes() -> np.ndarray:
        coef = np.column_stack([warm[0][:, 0] + warm[0][:, 1], warm[0][:, 2:]])
        return B @ coef.astype(np.float32) + np.r_[warm[1][0] + warm[1][1], warm[1][2:]]

    def from_the_rows(rows: np.ndarray, targets: np.ndarray) -> np.ndarray:
        scaler = StandardScaler().fit(X[rows])
        # Of standardised features the mean eigenvalue is one.
        fitted = Ridge(alpha=ALPHA * rows.sum()).fit(scaler.transform(X[rows]), targets[rows])
        return fitted.predict(scaler.transform(B))

    merged = np.column_stack([T[:, 0] + T[:, 1], T[:, 2:]])
    questions = {
        "drop a site": (drop_a_site, lambda: from_the_rows(site != 3, T)),
        "merge two classes": (merge_two_classes, lambda: from_the_rows(np.ones(n, dtype=bool), merged)),
    }
    for name, (ours, theirs) in questions.items():
        difference = float(np.abs(ours() - theirs()).max())
        fast, slow = median_seconds(ours, 9), median_seconds(theirs, 3)
        print(f"{name}: {slow / fast:.0f} times scikit-learn's, p50 {fast:.3f} s; largest difference {difference:.1e}")


if __name__ == "__main__":
    main()
