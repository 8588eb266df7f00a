"""A methods paragraph for a paper: what was done, from the rows themselves, and what it rests on."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

from medprobe.probe.compare import Comparison, Difference
from medprobe.probe.metrics import METRICS
from medprobe.report.words import (
    counted,
    encoder_name,
    group_word,
    listed,
    metric_name,
    people,
    plain,
    short,
)
from medprobe.results import Row

_REFERENCES = {
    "tripod": "Collins et al. TRIPOD+AI statement. BMJ 2024;385:e078378.",
    "claim": "Tejani et al. Checklist for Artificial Intelligence in Medical Imaging (CLAIM): 2024 update. "
    "Radiology: Artificial Intelligence 2024;6(4):e240300.",
    "bca": "Efron. Better bootstrap confidence intervals. Journal of the American Statistical Association 1987;82:171-185.",
    "few": "Hesterberg. What teachers should know about the bootstrap. The American Statistician 2015;69:371-386.",
    "p": "Davison, Hinkley. Bootstrap methods and their application. Cambridge University Press 1997, section 4.4.",
    "holm": "Holm. A simple sequentially rejective multiple test procedure. Scandinavian Journal of Statistics 1979;6:65-70.",
    "delong": "DeLong, DeLong, Clarke-Pearson. Comparing the areas under two or more correlated receiver operating "
    "characteristic curves. Biometrics 1988;44:837-845.",
    "demsar": "Demšar. Statistical comparisons of classifiers over multiple data sets. Journal of Machine Learning Research "
    "2006;7:1-30.",
    "ece": "Naeini, Cooper, Hauskrecht. Obtaining well calibrated probabilities using Bayesian binning. AAAI 2015; for more "
    "than two classes Guo et al. On calibration of modern neural networks. ICML 2017.",
    "wilson": "Dean, Pagano. Evaluating confidence interval methods for binomial proportions in clustered surveys. Journal of "
    "Survey Statistics and Methodology 2015;3:484-503.",
    "lbfgs": "Nocedal, Wright. Numerical optimization. Springer 2006, algorithm 7.4 (L-BFGS).",
    "knn": "Caron et al. Emerging properties in self-supervised vision transformers. ICCV 2021.",
    "ridge": "Hoerl, Kennard. Ridge regression. Technometrics 1970;12:55-67.",
    "adamw": "Loshchilov, Hutter. Decoupled weight decay regularization. ICLR 2019.",
    "prototype": "Wang et al. SimpleShot: revisiting nearest-neighbor classification for few-shot learning. arXiv:1911.04623.",
    "attentive": "Bardes et al. Revisiting feature prediction for learning visual representations from video. "
    "arXiv:2404.08471.",
}

_PROBES = {
    "logreg": (
        "logistic regression (multinomial for several classes) with an L2 penalty of inverse strength C, by L-BFGS",
        "lbfgs",
    ),
    "knn": ("k nearest neighbours by cosine, votes uniform or weighted by a temperature", "knn"),
    "mlp": ("a network of one hidden layer trained by AdamW", "adamw"),
    "ridge": ("ridge regression on class indicators", "ridge"),
    "prototype": ("the nearest class mean of centred, normalised features", "prototype"),
    "attentive": ("a learned query that attends over patch tokens, and a linear layer", "attentive"),
}

AUTHORS_ADD = (
    "Setting, dates and centres of data collection; eligibility; consent or ethics approval.",
    "How the reference standard was made: by whom, from what, blinded to what, with what agreement.",
    "Imaging devices and acquisition; how images were chosen, exported and anonymised.",
    "Why the sample is of this size, and how the tested patients differ from those the model is meant for.",
    "What the foundation models were pretrained on, and whether the tested images may be among it.",
    "Intended use, the decision that a prediction would inform, and what an error would cost.",
)
"""What a report of results cannot know and TRIPOD+AI and CLAIM ask for."""


def paragraphs(found: Comparison, n_resamples: int) -> list[str]:
    """Return the methods in paragraphs; ``[key]`` in them stands for a reference.

    Args:
        found: Rows and their differences.
        n_resamples: Bootstrap resamples of the differences and of the bands in figures.

    """
    rows = [row for row in found.rows if row.primary and not row.subgroup]
    said = [_data(rows), _models(rows), _measures(found.rows), _statistics(rows, found, n_resamples)]
    return [text for text in said if text]


def numbered(texts: Iterable[str]) -> tuple[list[str], list[str]]:
    """Return texts whose ``[key]`` are numbers, and the references in that order."""
    order: list[str] = []

    def place(mark: re.Match[str]) -> str:
        order.extend([] if mark[1] in order else [mark[1]])
        return f"[{order.index(mark[1]) + 1}]"

    found = [re.sub(rf"\[({'|'.join(_REFERENCES)})\]", place, text) for text in texts]
    return found, [f"[{number}] {_REFERENCES[key]}" for number, key in enumerate(order, 1)]


def _data(rows: Sequence[Row]) -> str:
    targets = list(dict.fromkeys(_own(row.target) for row in rows))
    text = f"We predicted {listed(targets)} from {people(rows)}"
    splits = list(dict.fromkeys(_own(row.split) for row in rows))
    text += f"; the tested images came from {listed(splits)}. "
    group = next((row.group for row in rows if row.group), "")
    if group:
        unit = _own(group_word(group))
        text += f"All images of one group ({unit}) stayed on one side of every split. "
    if any(not row.group for row in rows):
        text += "Where no column of patients was known, every image counted as independent. "
    failed = {row.encoder: row.n_failed for row in rows if row.n_failed}
    if failed:
        text += (
            f"Images that could not be read or gave no finite features took no part ({max(failed.values())} at most). "
        )
    if any(row.shots for row in rows):
        shots = listed(sorted({str(row.shots) for row in rows if row.shots}, key=int))
        text += f"For learning curves, {shots} labelled images of each class were drawn several times from the training side."
    return text.strip()


def _models(rows: Sequence[Row]) -> str:
    encoders = list(dict.fromkeys(_own(encoder_name(row)) for row in rows if not row.is_control))
    controls = list(dict.fromkeys(_own(encoder_name(row)) for row in rows if row.is_control))
    text = ""
    if encoders:
        text = f"Images went once through {counted(len(encoders), 'frozen encoder')}: {listed(encoders)}. "
    probes = []
    for name in dict.fromkeys(row.probe for row in rows):
        what, key = _PROBES.get(name, (_own(name), ""))
        probes.append(f"{what} [{key}]" if key else what)
    text += f"On the stored features we fitted {'; '.join(probes)}. "
    text += (
        "Settings were chosen by the primary metric on validation rows, or on inner folds of the training groups; the "
        "chosen ones were fitted anew and the test rows predicted once. Over folds, predictions were pooled before a metric "
        "was computed. "
    )
    if controls:
        text += f"To be beaten: {listed(controls)}."
    return text.strip()


def _measures(rows: Sequence[Row]) -> str:
    primary = list(dict.fromkeys(row.metric for row in rows if row.primary))
    others = [name for name in dict.fromkeys(row.metric for row in rows) if name not in primary]
    text = (
        f"The primary metric was {listed([f'{metric_name(name)} ({METRICS[name].description})' for name in primary])}. "
    )
    if others:
        text += f"Secondary: {listed([metric_name(name) for name in others])}. "
    if any(row.metric == "ece" for row in rows):
        text += "Calibration was judged in 15 bins of equal width [ece]; bins carry Wilson intervals of the effective number "
        text += "of images [wilson]. "
    if any(row.subgroup for row in rows):
        columns = dict.fromkeys(_own(row.subgroup.partition(" = ")[0]) for row in rows if row.subgroup)
        text += f"Each value is also reported by {listed(list(columns))}."
    return text.strip()


def _statistics(rows: Sequence[Row], found: Comparison, n_resamples: int) -> str:
    unit = next((group_word(row.group) for row in rows if row.group), "images")
    level = listed(sorted({f"{row.ci_level:.0%}" for row in rows}))
    text = f"Intervals ({level}) are bias-corrected and accelerated bootstrap intervals [bca] with Student's t for few groups "
    text += f"[few], resampling {_own(unit)}, not images. "
    if found.differences:
        text += (
            f"Differences were taken in pairs on the same images and the same {n_resamples:,} resamples; p-values are "
        )
        text += "two-sided, of resampled differences centred on zero [p], and corrected for all comparisons of a question by "
        text += "Holm's procedure [holm]. "
        if _delong(found.differences):
            text += "DeLong's test [delong], which takes images as independent, stands beside them. "
    if found.ranks is not None:
        text += (
            "Over tasks, average ranks were compared by Friedman's test and Nemenyi's critical difference [demsar]. "
        )
    text += "Reporting follows the spirit of TRIPOD+AI [tripod] and CLAIM [claim]. "
    versions = listed(sorted({_own(row.medprobe) for row in rows}))
    seeds = listed(sorted({str(row.seed) for row in rows}))
    return text + f"Computed with medprobe {versions}, seed {seeds}."


def _delong(differences: Iterable[Difference]) -> bool:
    return any(math.isfinite(d.p_delong) for d in differences)


def _own(text: str) -> str:
    """Return a name of the user's for a text in which square brackets are references."""
    return short(plain(text).replace("[", "(").replace("]", ")"))
