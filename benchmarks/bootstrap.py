"""Patient bootstrap of several metrics: time against scikit-learn in a loop, and coverage in simulated studies.

python benchmarks/bootstrap.py              time; scikit-learn on 50 resamples, scaled to 1,000
python benchmarks/bootstrap.py --full       time; scikit-learn on all 1,000 resamples
python benchmarks/bootstrap.py --coverage   how often 95 % intervals contain the true value (some minutes)
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable, Sequence

import numpy as np
import scipy
import sklearn
from scipy import stats
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    brier_score_loss,
    cohen_kappa_score,
    f1_score,
    log_loss,
    roc_auc_score,
)
from threadpoolctl import threadpool_info, threadpool_limits

from medprobe.probe.bootstrap import group_weights, intervals, paired_difference
from medprobe.probe.metrics import Scorer

N_RESAMPLES = 1000
N_ROWS = 1000
N_PATIENTS = 300

SKLEARN: dict[str, dict[str, Callable[[np.ndarray, np.ndarray], float]]] = {
    "binary": {
        "auroc": lambda y, p: roc_auc_score(y, p[:, 1]),
        "average_precision": lambda y, p: average_precision_score(y, p[:, 1]),
        "balanced_accuracy": lambda y, p: balanced_accuracy_score(y, p.argmax(axis=1)),
        "macro_f1": lambda y, p: f1_score(y, p.argmax(axis=1), average="macro"),
        "brier": lambda y, p: brier_score_loss(y, p[:, 1]),
    },
    "ordinal": {
        "quadratic_kappa": lambda y, p: cohen_kappa_score(y, p.argmax(axis=1), weights="quadratic"),
        "balanced_accuracy": lambda y, p: balanced_accuracy_score(y, p.argmax(axis=1)),
        "macro_f1": lambda y, p: f1_score(y, p.argmax(axis=1), average="macro"),
        "auroc": lambda y, p: roc_auc_score(y, p, multi_class="ovr"),
        "log_loss": lambda y, p: log_loss(y, p),
    },
}


def sklearn_loop(task: str, y: np.ndarray, proba: np.ndarray, groups: np.ndarray, n_resamples: int) -> np.ndarray:
    """Return the metrics of resamples of patients, shape (n_resamples, metrics), one scikit-learn call each."""
    rng = np.random.default_rng(0)
    rows_of = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    values = []
    for _ in range(n_resamples):
        rows = np.concatenate([rows_of[i] for i in rng.integers(0, len(rows_of), len(rows_of))])
        values.append([metric(y[rows], proba[rows]) for metric in SKLEARN[task].values()])
    return np.array(values)


def speed(full: bool, repeats: int) -> None:
    """Print times and ratio: medians of interleaved repeats."""
    slow_resamples = N_RESAMPLES if full else 50
    for task, k in (("binary", 2), ("ordinal", 5)):
        rng = np.random.default_rng(0)
        groups = np.r_[np.arange(N_PATIENTS), rng.integers(0, N_PATIENTS, N_ROWS - N_PATIENTS)]
        y = rng.integers(0, k, N_ROWS)
        logits = 1.5 * np.eye(k)[y] + rng.normal(size=(N_PATIENTS, k))[groups] + rng.normal(size=(N_ROWS, k))
        proba = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        names = tuple(SKLEARN[task])
        ours, theirs = [], []
        for _ in range(repeats):
            start = time.perf_counter()
            result = intervals(Scorer(task, y, proba), names, groups, N_RESAMPLES)
            middle = time.perf_counter()
            sklearn_loop(task, y, proba, groups, slow_resamples)
            theirs.append((time.perf_counter() - middle) * N_RESAMPLES / slow_resamples)
            ours.append(middle - start)
        for name, metric in SKLEARN[task].items():
            assert abs(result[name].value - metric(y, proba)) < 1e-12, name
        ratio = np.median(theirs) / np.median(ours)
        scaled = "" if full else f", scaled from {slow_resamples} resamples"
        print(
            f"{task}: {N_RESAMPLES} resamples of {N_PATIENTS} patients, {N_ROWS} rows, {', '.join(names)}:\n"
            f"  medprobe {1e3 * np.median(ours):.1f} ms, scikit-learn {np.median(theirs):.2f} s{scaled}: {ratio:.0f}x "
            f"(bar 100x, stretch 300x)"
        )


def study(
    rng: np.random.Generator, n_patients: int, shares: Sequence[float], signal: float, by_patient: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return truth, probabilities and patients of one study: scores are shared in part by the images of a patient."""
    k = len(shares)
    sizes = rng.geometric(0.4, n_patients) + rng.integers(0, 2, n_patients)
    patient = np.repeat(np.arange(n_patients), sizes)
    n = len(patient)
    y = rng.choice(k, n_patients, p=shares)[patient]
    if not by_patient:
        # Half of a patient's images show another class.
        y = np.where(rng.random(n) < 0.5, y, rng.choice(k, n, p=shares))
    noise = np.sqrt(0.6) * rng.normal(size=(n_patients, k))[patient] + np.sqrt(0.4) * rng.normal(size=(n, k))
    logits = 1.2 * signal * (signal * np.eye(k)[y] + noise) + np.log(shares)
    proba = np.exp(logits - logits.max(axis=1, keepdims=True))
    return y, proba / proba.sum(axis=1, keepdims=True), patient


SCENARIOS = {
    "30 patients, 50 % positive": (30, (0.5, 0.5), 1.2, True),
    "60 patients, 20 % positive": (60, (0.8, 0.2), 1.2, True),
    "60 patients, 20 % positive, label by image": (60, (0.8, 0.2), 1.2, False),
    "200 patients, 20 % positive": (200, (0.8, 0.2), 1.2, True),
    "60 patients, 15 % positive, nearly perfect": (60, (0.85, 0.15), 2.2, True),
    "80 patients, 4 classes down to 5 %": (80, (0.5, 0.3, 0.15, 0.05), 1.5, True),
    "300 patients, 4 classes down to 5 %": (300, (0.5, 0.3, 0.15, 0.05), 1.5, True),
}


def coverage(n_studies: int) -> None:
    """Print how often 95 % intervals contain the metric of the population, the chosen ones and the alternatives."""
    methods = ("medprobe", "percentile", "percentile, strata", "images as if independent")
    error = (0.05 * 0.95 / n_studies) ** 0.5
    print(f"coverage of 95 % intervals in {n_studies} studies (standard error about {error:.3f})")
    print("".join(f"{text:>26s}" for text in ("", *methods)))
    for title, (n_patients, shares, signal, by_patient) in SCENARIOS.items():
        task = "binary" if len(shares) == 2 else "ordinal"
        names = ["auroc", "average_precision", "accuracy", "balanced_accuracy", "macro_f1", "log_loss", "brier", "ece"]
        names += ["quadratic_kappa"] if task == "ordinal" else []
        population = Scorer(task, *study(np.random.default_rng(1), 200_000, shares, signal, by_patient)[:2])
        truth = {name: population.value(name) for name in names}
        rng = np.random.default_rng(0)
        hits: dict[str, list[list[bool]]] = {name: [] for name in names}
        for seed in range(n_studies):
            y, proba, patient = study(rng, n_patients, shares, signal, by_patient)
            scorer = Scorer(task, y, proba)
            if scorer.left_out:
                continue
            majority = [np.bincount(y[patient == p]).argmax() for p in range(n_patients)]
            plain, strata = (
                scorer.replicates_many(names, group_weights(patient, len(y), N_RESAMPLES, rng, s))
                for s in (None, majority)
            )
            chosen = intervals(scorer, names, patient, N_RESAMPLES, seed=seed)
            naive = intervals(scorer, names, None, N_RESAMPLES, seed=seed)
            for name in names:
                ends = [
                    (chosen[name].low, chosen[name].high),
                    np.nanquantile(plain[name], (0.025, 0.975)),
                    np.nanquantile(strata[name], (0.025, 0.975)),
                    (naive[name].low, naive[name].high),
                ]
                hits[name].append([bool(low <= truth[name] <= high) for low, high in ends])
        print(f"{title}: {len(hits['auroc'])} studies with every class")
        for name in names:
            print(f"{name:>26s}" + "".join(f"{value:>26.3f}" for value in np.mean(hits[name], axis=0)), flush=True)


def false_alarms(n_studies: int) -> None:
    """Print how often the paired test rejects at 5 % when two models are equally good."""
    for n_patients in (30, 60, 200):
        rng = np.random.default_rng(0)
        rejected = []
        for seed in range(n_studies):
            y, proba, patient = study(rng, n_patients, (0.7, 0.3), 1.0, True)
            margin = np.log(proba[:, 1] / proba[:, 0])
            models = []
            for noise in rng.normal(size=(2, n_patients))[:, patient]:
                p = stats.logistic.cdf(margin + noise)
                models.append(Scorer("binary", y, np.c_[1 - p, p]))
            p_values = [
                paired_difference(*models, n, patient, N_RESAMPLES, seed=seed).p_value for n in ("auroc", "brier")
            ]
            rejected.append(np.array(p_values) <= 0.05)
        auroc, brier = np.mean(rejected, axis=0)
        print(
            f"paired test at 5 %, equal models, {n_patients} patients: rejects {auroc:.3f} (auroc), {brier:.3f} (brier)"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="run scikit-learn on all resamples")
    parser.add_argument("--coverage", action="store_true", help="simulate studies instead of taking times")
    parser.add_argument("--quick", action="store_true", help="one repeat, or 50 studies")
    parser.add_argument("--threads", type=int, default=1, help="threads of the numerical libraries, for both sides")
    args = parser.parse_args()
    with threadpool_limits(args.threads):
        pools = ", ".join(f"{pool['internal_api']} {pool['num_threads']}" for pool in threadpool_info())
        print(
            f"Python {platform.python_version()}, numpy {np.__version__}, scipy {scipy.__version__}, "
            f"scikit-learn {sklearn.__version__}; threads: {pools}"
        )
        if args.coverage:
            coverage(50 if args.quick else 1000)
            false_alarms(50 if args.quick else 1000)
        else:
            speed(args.full, 1 if args.quick else 5)


if __name__ == "__main__":
    main()
