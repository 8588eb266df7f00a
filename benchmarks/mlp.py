"""Twelve MLP settings trained together, against scikit-learn's MLPClassifier fitted to one after the other.

Both see as many rows, in batches as large, for as many epochs, and score held-out rows after each: scikit-learn by its
own early stopping, with a patience that does not end the training.
"""

from __future__ import annotations

import argparse
import itertools
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import sklearn
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import log_loss
from sklearn.neural_network import MLPClassifier

from medprobe.probe.mlp import default_batch_size, default_grid
from medprobe.probe.mlp_stack import Precision, Setting, probabilities, train


def seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def arithmetic(plain: Sequence[Setting], n: int, d: int, n_classes: int) -> float:
    """Return the floating-point operations of an epoch: forward, gradients of weights and hidden units, held-out rows."""
    total = 0
    for setting in plain:
        widths = (d, *setting.hidden, n_classes)
        layers = [2 * a * b for a, b in itertools.pairwise(widths)]
        total += n * (2 * layers[0] + 3 * sum(layers[1:])) + n // 5 * sum(layers)
    return float(total)


def rate(n: int, d: int) -> float:
    """Return the floating-point operations a second of a matrix product, the median of five."""
    a, b = torch.rand(n, d), torch.rand(d, d)
    return statistics.median(2 * n * d * d / seconds(lambda: a @ b) for _ in range(5))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[500, 2_000, 20_000], help="training rows")
    parser.add_argument("--quick", action="store_true", help="the fewest rows alone, one repeat")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    versions = f"python {platform.python_version()}, numpy {np.__version__}, scikit-learn {sklearn.__version__}"
    print(f"{versions}, torch {torch.__version__}; {torch.get_num_threads()} threads")
    for n in arguments.rows[:1] if arguments.quick else arguments.rows:
        compare(n, 1 if arguments.quick else arguments.repeats)


def compare(n: int, repeats: int, d: int = 768, n_classes: int = 5, epochs: int = 5) -> None:
    """Print the times of the grid on so many training rows."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((n_classes * 4, d)) / 5
    which = rng.integers(0, len(centres), n + 2 * (n // 5))
    X = (centres[which] + rng.standard_normal((len(which), d))).astype(np.float32)
    y = which % n_classes
    training, held_out, test = np.split(np.arange(len(which)), [n, n + n // 5])
    batch_size = default_batch_size(n)
    # scikit-learn has no dropout: the settings go without, over as many learning rates and decays.
    plain = [
        Setting(hidden, lr, weight_decay)
        for hidden in ((256,), (256, 256))
        for lr in (1e-4, 3e-4, 1e-3)
        for weight_decay in (1e-4, 1e-1)
    ]
    scores: dict[str, list[float]] = {}

    def ours(name: str, grid: Sequence[Setting], precision: Precision = "fp32") -> None:
        networks = train(
            X[training], y[training], grid, n_classes=n_classes, validation=(X[held_out], y[held_out]),
            max_epochs=epochs, patience=epochs, batch_size=batch_size, precision=precision,
        )  # fmt: skip
        scores[name] = [log_loss(y[test], probabilities(net, X[test], multilabel=False)) for net in networks]

    def theirs(name: str) -> None:
        # It draws the held-out rows by itself, as many of them.
        rows = np.concatenate([training, held_out])
        fits = [
            MLPClassifier(
                setting.hidden, learning_rate_init=setting.lr, alpha=setting.weight_decay,
                batch_size=batch_size, max_iter=epochs, early_stopping=True,
                validation_fraction=len(held_out) / len(rows), n_iter_no_change=epochs + 1, random_state=0,
            ).fit(X[rows], y[rows])
            for setting in plain
        ]  # fmt: skip
        assert all(fit.n_iter_ == epochs for fit in fits)
        scores[name] = [log_loss(y[test], fit.predict_proba(X[test])) for fit in fits]

    cases: dict[str, Callable[[], None]] = {
        "scikit-learn, one by one": lambda: theirs("scikit-learn, one by one"),
        "together": lambda: ours("together", plain),
        "together, bf16": lambda: ours("together, bf16", plain, "bf16"),
        "together, half with dropout": lambda: ours("together, half with dropout", default_grid()),
    }
    times: dict[str, list[float]] = {name: [] for name in cases}
    least = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for _ in range(repeats):
            least.append(epochs * arithmetic(plain, n, d, n_classes) / rate(n, d))
            for name, function in cases.items():
                times[name].append(seconds(function))

    print()
    print(f"{len(plain)} settings, N={n:,} D={d} K={n_classes}, batches of {batch_size}, {epochs} epochs")
    print(f"median of {repeats} interleaved repeats")
    reference = statistics.median(times["scikit-learn, one by one"])
    for name, spent in times.items():
        median = statistics.median(spent)
        loss = min(scores[name])
        print(f"{name:30s} {median:7.2f} s   {reference / median:5.1f}x   best test loss {loss:.3f}")
    floor = statistics.median(least)
    print(
        f"{'its arithmetic in float32 alone':30s} {floor:7.2f} s   {reference / floor:5.1f}x   (at a matrix product's rate)"
    )


if __name__ == "__main__":
    main()
