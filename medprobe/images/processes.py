"""Processes beside the caller's: they leave interrupts to it, and end with it."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from multiprocessing import resource_tracker


@contextlib.contextmanager
def interrupts_blocked() -> Iterator[None]:
    """Hold interrupts back while processes are made, which inherit that: Ctrl-C in a terminal goes to all of them.

    An initializer comes too late for that: an interrupt while Python starts leaves the traceback of an import.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # else it is made together with the workers, and Python 3.11 then lets interrupts in
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())  # what is blocked already
    try:
        # This may itself raise an interrupt that came before: the signal would stay blocked for good.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def follow_the_caller(caller: int) -> None:
    """Leave interrupts to the process that made this one, and end with it, even when it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # for systems that cannot block it from the start
    threading.Thread(target=_end_with, args=(caller,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)
