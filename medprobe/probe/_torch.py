"""torch for the probes that are trained step by step: imported when it is needed, with as many threads as a step can use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from medprobe.errors import UsageError

# Steps on data of fewer numbers than this are too short to share: threads wait for each other longer than they work, and
# many times longer on a processor that has something else to do.
_SMALL = 1 << 24


def import_torch(probe: str) -> Any:
    """Return the module.

    Raises:
        UsageError: It is not installed; ``probe`` needs it.

    """
    try:
        import torch
    except ImportError as error:
        raise UsageError(f"{probe} needs PyTorch: pip install 'medprobe[torch]'") from error
    return torch


@contextmanager
def threads_for(size: int) -> Iterator[None]:
    """Compute with one thread on data of few numbers, and put the number of threads back."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1 if size < _SMALL else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
