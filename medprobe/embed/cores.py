"""Forward passes side by side on a processor, each on one core."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import CancelledError
from queue import SimpleQueue
from typing import Any, TypeVar, cast

import torch
from torch.nn.modules.module import register_module_forward_pre_hook

R = TypeVar("R")

_NAME = "medprobe-core"
_AHEAD = 2  # passes for each core: one at work and one at hand


class Cores:
    """Threads that compute on one core each, as many of them as PyTorch would have compute one pass together.

    Cores that share a pass wait for the slowest of them at the end of every layer, all the longer if one of them is also
    decoding images. A pass a core waits for nothing, and its result does not depend on how many cores there are.

    An executor of Python's has locks that an interrupt may leave taken, if it comes while they are being taken; then its
    threads, and the end of the process, wait for ever. Simple queues have none.
    """

    def __init__(self) -> None:
        self.n = torch.get_num_threads()
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        # What was set last is what PyTorch gives to every thread that begins later: these begin now, and then it is set back.
        begun = threading.Barrier(self.n + 1)
        self._threads = [
            threading.Thread(target=self._run, args=(begun,), name=_NAME, daemon=True) for _ in range(self.n)
        ]
        for thread in self._threads:
            thread.start()
        begun.wait()
        torch.set_num_threads(self.n)

    def __enter__(self) -> Cores:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        for _thread in self._threads:
            self._work.put(None)
        # A pass may take many seconds: if nobody waits for it any more, it ends with its layer.
        hook = register_module_forward_pre_hook(_end_with_the_layer) if error else None
        try:
            for thread in self._threads:
                thread.join()
        finally:
            if hook is not None:
                hook.remove()

    @property
    def ahead(self) -> int:
        """Passes to begin before the result of the first is waited for."""
        return self.n * _AHEAD

    def begin(self, compute: Callable[..., R], *args: Any) -> Callable[[], R]:
        """Have a core compute something when its turn comes; return what waits for the result, once."""
        outcome: SimpleQueue[tuple[R, None] | tuple[None, BaseException]] = SimpleQueue()

        def work() -> None:
            try:
                outcome.put((compute(*args), None))
            except BaseException as error:
                outcome.put((None, error))

        def result() -> R:
            value, error = outcome.get()
            if error is not None:
                raise error
            return cast("R", value)

        self._work.put(work)
        return result

    def _run(self, begun: threading.Barrier) -> None:
        torch.set_num_threads(1)
        torch.get_num_threads()  # when a thread first asks, it is given what was set last in any: in this one, by now
        begun.wait()
        while (work := self._work.get()) is not None:
            work()


def _end_with_the_layer(*_: object) -> None:
    if threading.current_thread().name == _NAME:
        raise CancelledError
