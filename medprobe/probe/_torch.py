"""torch for the probes that are trained step by step: imported when it is needed, with as many threads as a step can use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral
from typing import Any

from sklearn.utils import check_random_state

from medprobe.errors import UsageError

# Steps on data of fewer numbers than this are too short to share: threads wait for each other longer than they work, and
# many times longer on a processor that has something else to do.
_SMALL = 1 << 24


@contextmanager
def torch_for(probe: str, size: int) -> Iterator[Any]:
    """Yield the module, with one thread on data of few numbers, and put the number of threads back.

    Raises:
        UsageError: It is not installed; ``probe`` needs it.

    """
    try:
        import torch
    except ImportError as error:
        raise UsageError(f"{probe} needs PyTorch: pip install 'medprobe[torch]'") from error
    before = torch.get_num_threads()
    torch.set_num_threads(1 if size < _SMALL else before)
    try:
        yield torch
    finally:
        torch.set_num_threads(before)


def classification_loss(torch: Any, logits: Any, targets: Any) -> Any:
    """Return the mean cross-entropy of class codes (n,), or the binary one of labels (n, L) over those that are known."""
    if targets.ndim == 1:
        return torch.nn.functional.cross_entropy(logits, targets)
    known = ~torch.isnan(targets)
    losses = torch.nn.functional.binary_cross_entropy_with_logits(logits, torch.nan_to_num(targets), reduction="none")
    return (losses * known).sum() / known.sum().clamp(min=1)


def last_epoch(stop: int | None, epochs: int) -> int:
    """Return the epoch that ends a training of so many.

    Raises:
        ValueError: It is not among them.

    """
    if stop is not None and not 1 <= stop <= epochs:
        raise ValueError(f"stop_epoch must be from 1 to epochs ({epochs}), got {stop!r}")
    return epochs if stop is None else stop


def seed_of(random_state: object) -> int:
    """Return a seed for torch: a number as it is, or one drawn from a generator as scikit-learn understands it."""
    if isinstance(random_state, Integral):
        return int(random_state)
    return int(check_random_state(random_state).randint(2**31))
