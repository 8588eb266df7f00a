"""One exact search with votes for every k, against the matrix product that no exact search can do without."""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import faiss
import numpy as np
from threadpoolctl import threadpool_info

from medprobe.probe.knn import neighbours, vote

KS = (1, 5, 10, 20, 50, 100, 200)


def seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the rows, three repeats")
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    n, m, d, n_classes, repeats = 20_000, 5_000, 768, 5, arguments.repeats
    if arguments.quick:
        n, m, repeats = n // 10, m // 10, 3
    rng = np.random.default_rng(0)
    A, B = rng.standard_normal((n, d), dtype=np.float32), rng.standard_normal((m, d), dtype=np.float32)
    y = rng.integers(0, n_classes, n)
    product = np.empty((m, n), np.float32)

    def all_k(temperatures: tuple[float | None, ...]) -> None:
        vote(*neighbours(A, B, max(KS)), y, n_classes=n_classes, ks=KS, temperatures=temperatures)

    cases: dict[str, Callable[[], Any]] = {
        "matrix product": lambda: np.matmul(B, A.T, out=product),
        "bare FAISS search": lambda: faiss.knn(B, A, max(KS), metric=faiss.METRIC_INNER_PRODUCT),
        "search, k = 20": lambda: neighbours(A, B, 20),
        f"search, k = {max(KS)}": lambda: neighbours(A, B, max(KS)),
        f"search, {len(KS)} k": lambda: all_k((0.07,)),
        f"search, {len(KS)} k x 5 temperatures": lambda: all_k((None, 0.04, 0.07, 0.1, 0.2)),
    }
    times: dict[str, list[float]] = {name: [] for name in cases}
    for repeat in range(repeats + 1):
        for name, function in cases.items():
            spent = seconds(function)
            if repeat:  # the first round warms up
                times[name].append(spent)

    threads = {pool["internal_api"] + " " + str(pool["num_threads"]) for pool in threadpool_info()}
    print(f"python {platform.python_version()}, numpy {np.__version__}, faiss {faiss.__version__}; threads: {threads}")
    print(f"{n:,} rows x {m:,} queries, D={d}, k={KS}, median of {repeats} interleaved repeats")
    limit = statistics.median(times["matrix product"])
    for name, spent in times.items():
        median = statistics.median(spent)
        print(f"{name:32s} {median:7.3f} s (best {min(spent):.3f})   rate / matrix product {limit / median:5.2f}")


if __name__ == "__main__":
    main()
