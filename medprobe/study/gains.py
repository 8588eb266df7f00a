"""How sure a study's numbers are: values and relative gains, resampled over patients and seeds, in pairs with the baseline.

A method is tested once with each seed (and with each draw of few labels): together, its runs. Its value on a data set
is the mean of a metric over the runs. A resample draws the data set's patients with replacement, the same for all
methods and runs, and as many runs as there are. The gain on a data set is that of the value over the baseline's in the
same resample; the mean gain adds up resamples of data sets that were drawn independently of each other.

Runs are few: their bootstrap alone would understate the spread between them by the factor (R - 1) / R in variance, so
that deviations from the mean over all runs are scaled by sqrt(R / (R - 1)) (Davison and Hinkley, Bootstrap Methods and
their Application, 1997, section 3.8, of clusters of few). What differs from patient to patient in another way with each
seed is in both draws, so that intervals over patients and seeds are rather too wide than too narrow (Owen, The pigeonhole
bootstrap, Annals of Applied Statistics 2007). The intervals are those of :mod:`medprobe.probe.bootstrap`; the
acceleration of a mean over data sets comes from the jackknife of each of them, as for several samples (the same,
section 5.3), its degrees of freedom from Welch and Satterthwaite's formula.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from medprobe.predictions import Predictions
from medprobe.probe.bootstrap import Floats, Sample, ends, group_weights, jackknife_weights, p_of_zero
from medprobe.probe.metrics import METRICS, Scorer

# Doubles of one block of weights.
_BLOCK = 2**22

Run = tuple[int, int]
"""A seed, and the number of a draw of few labels."""

Method = TypeVar("Method", bound=Hashable)


@dataclass(frozen=True)
class Estimate:
    """A number with its interval.

    Attributes:
        value: The number; NaN where it is not defined.
        low: Lower end; NaN where there is no interval.
        high: Upper end, likewise.
        p_value: Of its being zero, two-sided; NaN for values that are no differences.

    """

    value: float
    low: float
    high: float
    p_value: float = float("nan")


@dataclass(frozen=True)
class DataSamples(Generic[Method]):
    """The runs of all methods on one data set, resampled alike.

    Attributes:
        metric: Name of the metric.
        n_images: Tested images, of all seeds.
        n_groups: Patients among them.
        runs: By method, a sample of each run.
        notes: What has been left out.
        seed: Seed of the resamples.

    """

    metric: str
    n_images: int
    n_groups: int
    runs: Mapping[Method, Mapping[Run, Sample]]
    notes: tuple[str, ...] = field(default=())
    seed: int = 0

    def value(self, method: Method, level: float) -> Estimate:
        """Return the mean of the metric over a method's runs."""
        sample = self._mean(method, list(self.runs[method]))
        low, high, _ = ends(self.metric, sample, self.n_groups, level)
        return Estimate(sample.value, low, high)

    def gain(self, method: Method, baseline: Method) -> Sample:
        """Return by how many per cent the value is better than the baseline's, over the runs that both have.

        NaN where the baseline's value is not above zero, as a kappa may be, and where they have no run in common.
        """
        runs = [run for run in self.runs[method] if run in self.runs[baseline]]
        if not runs:
            return Sample(np.nan, np.full(1, np.nan), np.full(1, np.nan))
        own, base = self._mean(method, runs), self._mean(baseline, runs)
        sign = 1 if METRICS[self.metric].higher_is_better else -1

        def relative(a: Floats, b: Floats) -> Floats:
            found: Floats = sign * 100 * (a / np.where(b > 0, b, np.nan) - 1)
            return found

        return Sample(
            float(relative(np.array([own.value]), np.array([base.value]))[0]),
            relative(own.replicates, base.replicates),
            relative(own.left_out, base.left_out),
        )

    def _mean(self, method: Method, runs: Sequence[Run]) -> Sample:
        samples = [self.runs[method][run] for run in runs]
        replicates = np.stack([sample.replicates for sample in samples])
        mean = replicates.mean(axis=0)
        n = len(runs)
        if n > 1:
            drawn = np.random.default_rng([self.seed, n]).integers(n, size=replicates.shape)
            of_drawn = np.take_along_axis(replicates, drawn, axis=0).mean(axis=0)
            mean = mean + np.sqrt(n / (n - 1)) * (of_drawn - mean)
        value = float(np.mean([sample.value for sample in samples]))
        return Sample(value, mean, np.mean([sample.left_out for sample in samples], axis=0))


def resampled(
    predictions: Mapping[Method, Mapping[int, Predictions]], metric: str, n_resamples: int, seed: int
) -> DataSamples[Method]:
    """Return the runs of all methods on one data set, resampled alike.

    With each seed, the methods are compared on the images that all of them were tested on. A method that knows of other
    classes, or of other labels for these images, is left out.

    Args:
        predictions: Of each method, by seed. At least one.
        metric: Name of the metric.
        n_resamples: Number of resamples.
        seed: Seed of the resamples: another one for each data set.

    """
    first = next(iter(next(iter(predictions.values())).values()))
    alike = {
        method: by_seed
        for method, by_seed in predictions.items()
        if all(p.task == first.task and np.array_equal(p.classes, first.classes) for p in by_seed.values())
    }
    notes = [f"{_said(method)} has other classes than the rest" for method in predictions if method not in alike]
    tests = {
        s: _common([by[s] for by in alike.values() if s in by])
        for s in sorted({s for by in alike.values() for s in by})
    }
    lost = max((most - len(ids) for ids, _, most in tests.values()), default=0)
    if lost:
        notes.append(f"up to {lost} images that not all methods were tested on take no part")
    names = sorted({name for _, groups, _ in tests.values() for name in groups.tolist()})
    number = {name: i for i, name in enumerate(names)}
    codes = {
        s: np.array([number[name] for name in groups.tolist()], dtype=np.intp) for s, (_, groups, _) in tests.items()
    }
    truth: dict[int, NDArray[np.float64]] = {}
    scorers: dict[Method, dict[Run, Scorer]] = {}
    for method, by_seed in alike.items():
        found: dict[Run, Scorer] = {}
        for s, p in by_seed.items():
            rows = _rows(p, tests[s][0])
            if not np.array_equal(truth.setdefault(s, p.y[rows]), p.y[rows], equal_nan=p.y.dtype.kind == "f"):
                notes.append(f"{_said(method)} was tested on other labels than the rest (seed {s})")
                continue
            found |= {(s, draw): Scorer(p.task, p.y[rows], proba[rows]) for draw, proba in enumerate(p.proba)}
        scorers[method] = found
    blocks = [_replicates(scorers, codes, metric, weights) for weights in _draws(len(names), codes, n_resamples, seed)]
    left_out = _replicates(scorers, codes, metric, jackknife_weights(np.arange(len(names)), len(names), seed))
    runs = {
        method: {
            run: Sample(
                scorer.value(metric), np.concatenate([block[method, run] for block in blocks]), left_out[method, run]
            )
            for run, scorer in by_run.items()
        }
        for method, by_run in scorers.items()
        if by_run
    }
    images = {name for ids, _, _ in tests.values() for name in ids.tolist()}
    return DataSamples(metric, len(images), len(names), runs, tuple(notes), seed)


def estimate(sample: Sample, n_groups: float, level: float) -> Estimate:
    """Return a difference with its interval and p-value."""
    low, high, _ = ends("", sample, n_groups, level)
    return Estimate(sample.value, low, high, p_of_zero(sample) if np.isfinite(low) else float("nan"))


def mean_gain(gains: Sequence[Sample], n_groups: Sequence[int], level: float) -> Estimate:
    """Return the mean of the gains on several data sets with its interval and p-value.

    Args:
        gains: One for each data set.
        n_groups: Patients of each.
        level: Coverage of the interval.

    """
    n = len(gains)
    # Each data set's influence, centred: `ends` takes one mean off all of them.
    left_out = np.concatenate([(g.left_out - np.nanmean(g.left_out)) / n if _some(g.left_out) else [] for g in gains])
    value = float(np.mean([g.value for g in gains]))
    sample = Sample(value, np.mean([g.replicates for g in gains], axis=0), left_out)
    variances = np.array([np.nanvar(g.replicates) if _some(g.replicates) else 0.0 for g in gains])
    freedom = np.maximum(np.array(n_groups) - 1, 1)
    spread = np.sum(variances**2 / freedom)
    return estimate(sample, 1 + (variances.sum() ** 2 / spread if spread > 0 else freedom.sum()), level)


def _some(values: Floats) -> bool:
    return bool(np.isfinite(values).any())


def _common(predictions: Sequence[Predictions]) -> tuple[np.ndarray, np.ndarray, int]:
    """Return the ids that all were tested on, sorted, the group of each by its first id, and how many ids there were."""
    ids = sorted(set.intersection(*(set(p.ids.tolist()) for p in predictions)))
    everything = len(set().union(*(p.ids.tolist() for p in predictions)))
    held = np.array(ids, dtype=str)
    groups = predictions[0].groups[_rows(predictions[0], held)]
    # A group's number is its own only within one file; its images are on one side with every seed.
    _, first, inverse = np.unique(groups, return_index=True, return_inverse=True)
    return held, held[first][inverse], everything


def _rows(predictions: Predictions, ids: np.ndarray) -> np.ndarray:
    place = {name: i for i, name in enumerate(predictions.ids.tolist())}
    return np.array([place[name] for name in ids.tolist()], dtype=np.intp)


def _draws(n_groups: int, codes: Mapping[int, np.ndarray], n_resamples: int, seed: int) -> Iterator[Floats]:
    """Yield how many times each group is in each resample, (some, n_groups), a block at a time."""
    rng = np.random.default_rng(seed)
    step = max(32, _BLOCK // max(1, *(len(of_seed) for of_seed in codes.values())))
    for start in range(0, n_resamples, step):
        yield group_weights(None, n_groups, min(step, n_resamples - start), rng)


def _replicates(
    scorers: Mapping[Method, Mapping[Run, Scorer]],
    codes: Mapping[int, np.ndarray],
    metric: str,
    weights: NDArray[np.generic],
) -> dict[tuple[Method, Run], Floats]:
    found: dict[tuple[Method, Run], Floats] = {}
    for s, of_rows in codes.items():
        of_seed = np.asfortranarray(weights[:, of_rows])
        for method, by_run in scorers.items():
            found |= {
                (method, run): scorer.replicates(metric, of_seed) for run, scorer in by_run.items() if run[0] == s
            }
    return found


def _said(method: Hashable) -> str:
    return " ".join(filter(None, map(str, method))) if isinstance(method, tuple) else str(method)
