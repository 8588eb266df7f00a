"""Long work that stops when nobody waits for it any more: it asks in between."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_stale: ContextVar[Callable[[], bool] | None] = ContextVar("stale", default=None)


class Stopped(Exception):  # noqa: N818 - no error: nobody waits for the answer any more
    """Work was stopped."""


@contextmanager
def stopping(stale: Callable[[], bool]) -> Iterator[None]:
    """Stop all work within, by :class:`Stopped`, once a function says that nobody waits for it any more."""
    token = _stale.set(stale)
    try:
        yield
    finally:
        _stale.reset(token)


def may_stop() -> None:
    """Stop here if nobody waits for the work any more; to be called some times a second.

    Raises:
        Stopped: Nobody does.

    """
    stale = _stale.get()
    if stale is not None and stale():
        raise Stopped
