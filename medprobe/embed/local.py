"""A worker for each device of this machine, in a process of its own."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from typing import Any, cast

from medprobe.embed.block import Span
from medprobe.embed.distribute import Maker, Work
from medprobe.embed.pipeline import Failures, Progress
from medprobe.images.processes import follow_the_caller

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

    def make(self, spans: Sequence[Span]) -> tuple[Failures, Progress]:
        """Have blocks made, and wait for it."""
        self._is_there = True
        return cast("tuple[Failures, Progress]", self._pool.submit(_make, spans).result())

    def restart(self) -> None:
        """Begin another process."""
        # loky does not import the caller's main module, so that a plain script may call medprobe.embed.
        from joblib.externals.loky import ProcessPoolExecutor

        self._is_there = False
        arguments = (os.getpid(), self._work, self._device)
        self._pool: Any = ProcessPoolExecutor(max_workers=1, initializer=_begin, initargs=arguments)

    def close(self) -> None:
        """End the process, which does nothing at the moment, with its decoding processes.

        A process that is killed instead leaves semaphores, of which Python complains at the end.
        """
        if self._is_there:  # else this would begin one
            with suppress(*self.died):
                self._pool.submit(_end).result()
        self._pool.shutdown(wait=True)

    def kill(self) -> None:
        """End the process, whatever it does."""
        self._pool.shutdown(wait=False, kill_workers=True)


def _begin(caller: int, work: Work, device: str) -> None:
    global _maker
    follow_the_caller(caller)
    _maker = Maker(work, device)


def _end() -> None:
    _maker.close()


def _make(spans: Sequence[Span]) -> tuple[Failures, Progress]:
    return _maker.make(spans)
