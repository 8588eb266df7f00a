"""The exchange of a store for a longer one: two renames, and what readers and the next run make of a kill between them."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from medprobe.errors import DataError
from medprobe.storage import Place

_WAITS, _SECONDS = 20, 0.05  # for the second rename


def set_aside(store: Path) -> Path:
    """Return where a store lies while a longer one takes its place."""
    return store.with_name(f".{store.name}.old")


def whereabouts(store: Place) -> Place:
    """Return a store's path, or where it was left by a process that was killed before the longer one was in place."""
    if not isinstance(store, Path):
        return store
    aside = set_aside(store)
    for _ in range(_WAITS):
        if store.exists() or not aside.exists():
            return store
        time.sleep(_SECONDS)  # it will be there in a moment, unless that process is no more
    return aside


def put_in_place(draft: Path, store: Path, obsolete: Iterable[Path] = ()) -> None:
    """Have a complete draft take a store's place; sweep away the store and what else is obsolete by that.

    Of several processes one does it; a draft that is no longer there is in place.
    """
    with alone(store.parent):
        _settle(store)
        if not draft.exists():
            return
        store.rename(set_aside(store))
        draft.rename(store)
        for path in (set_aside(store), *obsolete):
            shutil.rmtree(path, ignore_errors=True)


def settle(store: Place) -> None:
    """Put a store back, or sweep it away, that a killed :func:`put_in_place` has left under its other name."""
    if isinstance(store, Path) and set_aside(store).exists():
        with alone(store.parent):
            _settle(store)


def _settle(store: Path) -> None:
    aside = set_aside(store)
    if store.exists():
        shutil.rmtree(aside, ignore_errors=True)
    elif aside.exists():
        aside.rename(store)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep other processes from putting drafts in place in a folder whose file system has locks; a kill leaves none.

    Raises:
        DataError: The folder cannot be opened.

    """
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows
        yield
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise DataError(f"{folder} could not be opened: {error.strerror or error}") from error
    try:
        with suppress(OSError):  # of a network's file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
