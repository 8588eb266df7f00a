"""Threads: either BLAS shares its products among them, or our own do and each calls BLAS for itself."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property

from threadpoolctl import ThreadpoolController


class _Blas:
    """The BLAS of the whole process, held to one thread while anybody needs it: the last to leave puts back what was."""

    def __init__(self) -> None:
        self._lock, self._users, self._count = threading.Lock(), 0, 1

    @cached_property
    def _controller(self) -> ThreadpoolController:
        """What governs numpy's and scipy's, both loaded by now: to look for it takes milliseconds."""
        return ThreadpoolController().select(user_api="blas")

    @contextmanager
    def held(self) -> Iterator[int]:
        """Hold it to one thread, and yield the number that it had."""
        with self._lock:
            if not self._users:
                self._count = max([library["num_threads"] for library in self._controller.info()], default=1)
                self._limit = self._controller.limit(limits=1)
            self._users += 1
        try:
            yield self._count
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    self._limit.restore_original_limits()


_blas = _Blas()


@contextmanager
def worker_threads() -> Iterator[ThreadPoolExecutor]:
    """A pool of as many threads as BLAS may use, with BLAS itself held to one thread while it is open."""
    with _blas.held() as count, ThreadPoolExecutor(count) as pool:
        yield pool


@contextmanager
def one_thread() -> Iterator[None]:
    """BLAS held to one thread: its own wait for each other at every step of a decomposition, for long on a busy machine."""
    with _blas.held():
        yield
