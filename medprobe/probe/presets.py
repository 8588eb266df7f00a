"""Published protocols by name: what each source sweeps, chooses by and refits, on cached features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from medprobe.errors import UsageError
from medprobe.probe.families import Family, Swept, logistic_family
from medprobe.probe.metrics import check_metrics
from medprobe.probe.question import Question
from medprobe.probe.targets import Floats, Fold


@dataclass(frozen=True)
class Preset:
    """The protocol of a source.

    Attributes:
        name: Name on the command line.
        families: Its probes; their names end in ``@`` and the preset's.
        metrics: What settings are chosen by, for each task.
        note: What is done, and what the source does differently.

    """

    name: str
    families: tuple[Family, ...]
    metrics: Mapping[str, str]
    note: str

    def asked(self, question: Question, metric: str | None) -> Question:
        """Return the question with the source's metric, unless the user names one, and the note."""
        primary = metric or self.metrics[question.target.task]
        metrics = check_metrics((primary, *question.metrics), question.target.task)
        return replace(question, primary=primary, metrics=metrics, notes=(*question.notes, f"{self.name}: {self.note}"))


def preset_of(name: str) -> Preset:
    """Return the protocol of that name.

    Raises:
        UsageError: There is none.

    """
    if name not in PRESETS:
        raise UsageError(f"--preset {name}: one of {', '.join(PRESETS)}")
    return PRESETS[name]


def _knn_family(name: str, ks: Sequence[int], temperature: float, *, n_folds: int) -> Family:
    """Return nearest neighbours by the cosine of features as they are, voting with ``exp(cosine / temperature)``."""

    def sweep(X: Floats, Y: np.ndarray, folds: Sequence[Fold], n_classes: int, seed: int) -> Swept:
        from medprobe.probe.knn import sweep_knn

        return sweep_knn(X, Y, folds, n_classes=n_classes, ks=ks, temperatures=(temperature,))

    few = {"k": ks[0], "weights": "temperature", "temperature": temperature}
    return Family(
        name,
        sweep if len(ks) > 1 else None,
        _build_raw_knn,
        few=few,
        inner_folds=1,
        n_folds=n_folds,
        standardised=False,
    )


def _build_raw_knn(settings: Mapping[str, Any], seed: int) -> Any:
    from medprobe.probe.knn import KNNProbe

    return KNNProbe(**settings, standardize=False)


def _linear_family(name: str, *, by_loss: bool, **recipe: Any) -> Family:
    """Return a linear layer trained by AdamW on features as they are.

    The epoch is chosen on validation rows like any other setting: by the metric, or before that by the loss.
    """

    def sweep(X: Floats, Y: np.ndarray, folds: Sequence[Fold], n_classes: int, seed: int) -> Swept:
        from medprobe.probe.linear import Recipe, train_linear

        ((train, val),) = folds
        epochs = train_linear(X[train], Y[train], X[val], Y[val], Recipe(**recipe), n_classes=n_classes, seed=seed)
        swept: Swept = [({"stop_epoch": i}, [epoch.proba]) for i, epoch in enumerate(epochs, 1)]
        return [swept[int(np.argmin([epoch.loss for epoch in epochs]))]] if by_loss else swept

    def build(settings: Mapping[str, Any], seed: int) -> Any:
        from medprobe.probe.linear import LinearProbe

        trained = {key: value for key, value in recipe.items() if key != "patience"}
        return LinearProbe(**trained, **settings, random_state=seed)

    return Family(name, sweep, build, inner_folds=1, refit=False, standardised=False)


_ACCURACY = {"binary": "accuracy", "multiclass": "accuracy", "ordinal": "accuracy", "multilabel": "auroc"}

PRESETS: Mapping[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            "huix2024",
            (
                _linear_family(
                    "linear@huix2024", by_loss=False, lr=1e-4, weight_decay=1e-5, batch_size=64, epochs=100,
                    warmup_epochs=5, clip=1.0,
                ),
                _knn_family("knn@huix2024", (200,), 0.1, n_folds=5),
            ),
            {"binary": "auroc", "multiclass": "macro_recall", "ordinal": "quadratic_kappa", "multilabel": "auroc"},
            "a linear layer by AdamW (rate 1e-4, 100 epochs, best epoch on validation), k = 200 at temperature 0.1 (Pales "
            "Huix et al., WACV 2024). Here without their augmentation of the training images, and with each encoder's own "
            "mean and standard deviation unless the store was made with --normalize dataset.",
        ),
        Preset(
            "medmnist-plus",
            (
                _linear_family(
                    "linear@medmnist-plus", by_loss=True, lr=1e-4, weight_decay=1e-2, batch_size=64, epochs=100,
                    schedule="cosine-epochs", patience=5, decay_bias=True,
                ),
                Family(
                    "knn@medmnist-plus", None, _build_raw_knn, refit=False, standardised=False,
                    few={"k": 11, "weights": "uniform", "temperature": None, "metric": "euclidean"},
                ),
            ),
            _ACCURACY,
            "a linear layer by AdamW (rate 1e-4, cosine, patience 5 on the validation loss), k = 11 by Euclidean distance, "
            "training images alone (Doerrich et al., Scientific Reports 2025). They pad small images instead of resizing "
            "them, and let batch normalisation of convolutional encoders drift.",
        ),
        Preset(
            "dinov2",
            (
                logistic_family("logreg@dinov2", 10 ** np.linspace(-6, 5, 45), n_folds=10),
                _knn_family("knn@dinov2", (10, 20, 100, 200), 0.07, n_folds=10),
            ),
            _ACCURACY,
            "logistic regression over 45 penalties on features as they are, chosen on validation rows or a tenth of the "
            "training rows, k of 10, 20, 100, 200 at temperature 0.07 (Oquab et al., 2023). Their 52 linear layers by SGD "
            "see augmented images, which stored features cannot give; their k is reported for all, here chosen.",
        ),
        Preset(
            "clip",
            (logistic_family("logreg@clip", np.logspace(-6, 6, 97), n_folds=5),),
            _ACCURACY,
            "logistic regression over eight penalties a decade on features as they are, chosen on validation rows, then "
            "fitted to training and validation rows (Radford et al., 2021, appendix A.3). They search the same penalties "
            "by halving, and report each data set's own metric (--metric).",
        ),
    )
}  # fmt: skip
