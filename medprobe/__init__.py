"""Ask whether a foundation model is any good on your medical images, and which one.

The public names are imported when they are first used, so that ``import medprobe`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medprobe.embed.run import embed
    from medprobe.finetune.run import finetune
    from medprobe.manifest import read_manifest
    from medprobe.probe.compare import compare
    from medprobe.probe.deploy import predict
    from medprobe.probe.run import probe
    from medprobe.probe.suspects import suspects
    from medprobe.results import read_results
    from medprobe.store import FeatureStore, open_store
    from medprobe.survey import check

__version__ = "0.1.0"
__all__ = [
    "FeatureStore",
    "check",
    "compare",
    "embed",
    "finetune",
    "open_store",
    "predict",
    "probe",
    "read_manifest",
    "read_results",
    "suspects",
]

_HOME = {
    "FeatureStore": "medprobe.store",
    "check": "medprobe.survey",
    "compare": "medprobe.probe.compare",
    "open_store": "medprobe.store",
    "predict": "medprobe.probe.deploy",
    "read_manifest": "medprobe.manifest",
    "read_results": "medprobe.results",
    "suspects": "medprobe.probe.suspects",
}


def __getattr__(name: str) -> Any:
    if name in {"embed", "finetune", "probe"}:
        return import_module(f"{__name__}.{name}")  # packages that are called like functions
    if name not in _HOME:
        raise AttributeError(f"module 'medprobe' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
