"""What a result has to be held against: what can be reached without looking at the images, or without a true label."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np
import pandas as pd

from medprobe.manifest import SPLIT_NAMES
from medprobe.probe.metrics import METRICS
from medprobe.probe.targets import Floats
from medprobe.results import Row, ranked

COLUMNS = "control: columns alone"
APPEARANCE = "control: size and brightness"
SHUFFLED = "control: shuffled labels"

# A column of more different words than this names samples rather than describing them.
_MOST_WORDS = 50


def describing_columns(samples: pd.DataFrame, without: Collection[str]) -> list[str]:
    """Return the columns that describe a sample: numbers, or words that many samples share. A split describes none.

    Args:
        samples: Of a store.
        without: Columns that are the target, another label, the group or the split.

    """
    found = []
    for name in samples.columns.drop("id"):
        column = samples[name]
        if name in without or column.nunique(dropna=False) < 2 or _is_split(column):
            continue
        if column.dtype.kind in "biuf" or column.nunique() <= min(_MOST_WORDS, len(column) / 2):
            found.append(str(name))
    return found


def _is_split(column: pd.Series) -> bool:
    """Return whether a column says nothing but who is trained on and who is tested on."""
    words = set(column.dropna().astype(str).str.strip().str.lower().unique()) - {""}
    return bool(words) and words <= SPLIT_NAMES.keys()


def column_features(samples: pd.DataFrame, columns: Collection[str]) -> Floats:
    """Return columns as features, float32 (n, D): numbers with a mark where they are missing, words one by one."""
    parts: list[np.ndarray] = []
    for name in columns:
        column = samples[name]
        if column.dtype.kind in "biuf":
            values = column.to_numpy(dtype=np.float64)
            missing = np.isnan(values)
            middle = np.median(values[~missing]) if not missing.all() else 0.0
            parts.append(np.where(missing, middle, values))
            parts += [missing.astype(np.float64)] if missing.any() else []
        else:
            words = column.fillna("").astype(str).to_numpy()
            parts += [(words == word).astype(np.float64) for word in np.unique(words)]
    return np.stack(parts, axis=1).astype(np.float32)


def shuffled(y: np.ndarray, groups: np.ndarray | None, seed: int) -> np.ndarray:
    """Return targets that have lost their images: those of whole groups are dealt out anew, one group after another.

    The labels of a patient mostly stay side by side, so that a probe can still learn patients by heart, and gains by it only
    where one is on both sides of the split.
    """
    random = np.random.default_rng(seed)
    if groups is None:
        return y[random.permutation(len(y))]
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.r_[True, groups[order][1:] != groups[order][:-1]])
    blocks = np.split(order, starts[1:])
    changed = np.empty_like(y)
    changed[order] = y[np.concatenate([blocks[i] for i in random.permutation(len(blocks))])]
    return changed


def verdicts(rows: Iterable[Row]) -> list[str]:
    """Return in words what controls and baselines say about the best encoder of each question."""
    found = []
    for (_, target, metric, split), table in ranked(rows).items():
        better = METRICS[metric].higher_is_better
        encoders = [row for row in table if not row.is_control]
        if not encoders:
            continue
        best = encoders[0]
        bound = best.ci_low if better else best.ci_high
        seen = set()
        for row in table:
            if row.encoder in seen or not row.is_control:
                continue
            seen.add(row.encoder)  # the table is ranked: this is its best probe
            level = row.value >= bound if better else row.value <= bound
            what = f"{target} on {split}: {_reaches(row)}; the best encoder, {best.encoder}, {_interval(best)}"
            if row.encoder == SHUFFLED:
                found.append(f"{what}: {'SOMETHING LEAKS, it does as well' if level else 'no sign of a leak'}.")
            elif level and row.encoder == COLUMNS:
                found.append(
                    f"{what}: as good within the interval, so that the images may add nothing to what is known; or a "
                    "column gives the answer away (--control-col chooses others)."
                )
            elif level and row.encoder == APPEARANCE:
                found.append(
                    f"{what}: as good within the interval, so that the images' size or exposure may give the answer away."
                )
            elif level:
                found.append(f"{what}: as good within the interval, so that no gain from the encoder is shown.")
            else:
                found.append(f"{what}: better than that.")
    return found


def _reaches(row: Row) -> str:
    return f"{row.encoder} ({row.probe}) reaches {row.value:.3f}"


def _interval(row: Row) -> str:
    return f"{row.value:.3f} ({row.ci_low:.3f} to {row.ci_high:.3f})"
