"""A package that is called like the verb that it is named after: ``medprobe.embed(...)``, ``medprobe.probe(...)``."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class VerbPackage(ModuleType):
    """A package whose call is the function of its own name in its module ``run``, imported at the first call."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        verb = self.__name__.rpartition(".")[2]
        return getattr(import_module(f"{self.__name__}.run"), verb)(*args, **kwargs)


def make_verb(package: str) -> None:
    """Make an imported package callable. Without it ``medprobe.embed`` would be a function or a package by chance."""
    sys.modules[package].__class__ = VerbPackage
