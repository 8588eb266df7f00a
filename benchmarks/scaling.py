"""Logistic regression as N, D and K grow: 7 values of C x 5 folds, with scikit-learn's 35 fits beside it.

python benchmarks/scaling.py                     a quarter of an hour
python benchmarks/scaling.py --quick             small sizes
python benchmarks/scaling.py --plot scaling.svg  draws it (needs altair and vl-convert-python)

scikit-learn's time is that of one fit at the middle C, times 35. Each point is a median of three runs.
"""

from __future__ import annotations

import argparse
import statistics
import warnings

import numpy as np
from logistic import CS, N_FOLDS, make_features, timed
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from medprobe.probe.solver import solve_path

FULL = {
    "images": [(n, 768, 5) for n in (5_000, 10_000, 20_000, 50_000, 100_000, 200_000)],
    "features": [(20_000, D, 5) for D in (384, 512, 768, 1024, 1536)],
    "classes": [(20_000, 768, K) for K in (2, 3, 5, 8, 14)],
}
QUICK = {
    "images": [(n, 128, 3) for n in (2_000, 4_000)],
    "features": [(2_000, D, 3) for D in (64, 128)],
    "classes": [(2_000, 128, K) for K in (2, 3)],
}


def measure(n: int, D: int, K: int) -> tuple[float, float]:
    """Seconds of all our fits, and of scikit-learn's."""
    X, y = make_features(n, D, K)
    masks = np.stack([np.random.default_rng(1).permutation(n) % N_FOLDS != f for f in range(N_FOLDS)])
    C = CS[len(CS) // 2]
    ours, theirs = [], []
    for _ in range(3):
        ours.append(timed(lambda: solve_path(X, y, CS, n_classes=K, sample_weight=masks))[1])
        theirs.append(timed(lambda: LogisticRegression(C=C).fit(X[masks[0]], y[masks[0]]))[1] * len(CS) * N_FOLDS)
    return statistics.median(ours), statistics.median(theirs)


def plot(points: list[dict[str, object]], path: str) -> None:
    import altair as alt

    panels = []
    for axis, title in (("images", "images"), ("features", "features"), ("classes", "classes")):
        some = alt.Data(values=[point for point in points if point["axis"] == axis])
        base = alt.Chart(some, width=190, height=200).encode(
            x=alt.X(
                "size:Q", title=title, scale=alt.Scale(type="log", nice=False), axis=alt.Axis(format="~s", tickCount=4)
            ),
            y=alt.Y("seconds:Q", title="seconds, 35 fits", scale=alt.Scale(type="log"), axis=alt.Axis(format="~g")),
            color=alt.Color("who:N", title=None, scale=alt.Scale(range=["#0072b2", "#e69f00"])),
            shape=alt.Shape("who:N", legend=None),
        )
        panels.append(base.mark_line() + base.mark_point(filled=True, size=60))
    alt.hconcat(*panels).configure_legend(orient="top").save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--plot")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    points: list[dict[str, object]] = []
    for axis, sizes in (QUICK if arguments.quick else FULL).items():
        before: tuple[float, float] | None = None
        for n, D, K in sizes:
            size = {"images": n, "features": D, "classes": K}[axis]
            ours, theirs = measure(n, D, K)
            slope = "" if before is None else f", exponent {np.log(ours / before[1]) / np.log(size / before[0]):.2f}"
            before = size, ours
            print(f"{axis:8} N={n:,} D={D} K={K}: ours {ours:.2f} s{slope}; ratio {theirs / ours:.0f}x", flush=True)
            for who, seconds in (("medprobe", ours), ("scikit-learn", theirs)):
                points.append({"axis": axis, "size": size, "who": who, "seconds": seconds})
    if arguments.plot:
        plot(points, arguments.plot)


if __name__ == "__main__":
    main()
