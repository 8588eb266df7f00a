"""A worker for each device of this machine, in a process of its own."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from typing import Any, cast

from medprobe.embed.block import Span
from medprobe.embed.distribute import Maker, Work
from medprobe.embed.pipeline import Failures, Progress
from medprobe.images.decode import follow_the_caller, interrupts_blocked

_maker: Maker  # of a worker's process


class LocalWorker:
    """A process that makes blocks on one device.

    Args:
        work: What is to be done.
        device: Where to compute.

    """

    died: tuple[type[BaseException], ...] = (BrokenProcessPool,)

    def __init__(self, work: Work, device: str) -> None:
        self._work, self._device = work, device
        self.restart()

    def give(self, spans: Sequence[Span]) -> Future[tuple[Failures, Progress]]:
        """Have blocks made."""
        with interrupts_blocked():
            return cast("Future[tuple[Failures, Progress]]", self._pool.submit(_make, spans))

    def restart(self) -> None:
        """Begin another process."""
        # loky does not import the caller's main module, so that a plain script may call medprobe.embed.
        from joblib.externals.loky import ProcessPoolExecutor

        arguments = (os.getpid(), self._work, self._device)
        self._pool: Any = ProcessPoolExecutor(max_workers=1, initializer=_begin, initargs=arguments)

    def close(self) -> None:
        """End the process."""
        self._pool.shutdown(wait=False, kill_workers=True)


def _begin(caller: int, work: Work, device: str) -> None:
    global _maker
    follow_the_caller(caller)
    _maker = Maker(work, device)


def _make(spans: Sequence[Span]) -> tuple[Failures, Progress]:
    return _maker.make(spans)
