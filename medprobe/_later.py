"""Modules that take long to load and are seldom used by those who import them."""

from __future__ import annotations

import importlib
import sys
from threading import RLock
from types import ModuleType
from typing import Any

_lock = RLock()


class _Later(ModuleType):
    """Stands in for a module until something of it is used, and is then as the module.

    importlib's own LazyLoader loads a module when it is imported for the second time.
    """

    def __getattr__(self, name: str) -> Any:  # of what is not there yet
        with _lock:
            if sys.modules.get(self.__name__) is self:
                del sys.modules[self.__name__]
                self.__dict__.update(importlib.import_module(self.__name__).__dict__)
        try:
            return self.__dict__[name]
        except KeyError:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}") from None


def load_later(name: str) -> None:
    """Have a module that is installed loaded when something of it is first used, whoever imports it.

    For the process of a command, not for a library's users. A module that is loaded already stays as it is.
    """
    sys.modules.setdefault(name, _Later(name))
