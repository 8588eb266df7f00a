"""Extending a store by more samples: a draft beside it is completed like any store, and then takes its place.

The draft takes over what stands whole in the store, by hard links. The store itself stays as it is, and can be read, until
every block of the draft is there (:mod:`medprobe.store_place` then exchanges them).
"""

from __future__ import annotations

import glob
from dataclasses import replace
from pathlib import Path

import pandas as pd

from medprobe.errors import DataError
from medprobe.storage import Place
from medprobe.store import FeatureStore
from medprobe.store_records import Plan
from medprobe.tables import ids_digest

_DRAFT = ".extension"


def draft_path(store: Path, plan: Plan) -> Path:
    """Return where the draft of a store's extension to a plan lies."""
    return store.with_name(f".{store.name}.{plan.digest[:12]}{_DRAFT}")


def extended_path(draft: Place) -> Path | None:
    """Return the store that is extended by a draft, None for a path that is none's."""
    if not isinstance(draft, Path):
        return None
    return draft.with_name(draft.name[1:].rsplit(".", 2)[0]) if draft.suffix == _DRAFT else None


def drafts_of(store: Place) -> list[Path]:
    """Return the drafts of a store's extensions, more than one where its manifest grew before one was complete."""
    if not isinstance(store, Path):
        return []
    return sorted(store.parent.glob(f".{glob.escape(store.name)}.*{_DRAFT}"))


def begins(ids: pd.Series, plan: Plan) -> bool:
    """Return whether sample ids begin with those of a plan, and go on."""
    return plan.rows < len(ids) and ids_digest(ids[: plan.rows]) == plan.manifest_sha256


def bases_of(store: Path, plan: Plan, ids: pd.Series) -> list[FeatureStore]:
    """Return the stores that a draft of a plan can take blocks over from: the one it extends, and drafts of fewer samples.

    Raises:
        DataError: One of them is there and cannot be read; without it, its rows would be embedded again.

    """
    found = []
    for path in (store, *drafts_of(store)):
        try:
            base = FeatureStore(path, partial=True)
        except DataError:
            if path.exists():
                raise
            continue  # a draft that has just been swept away
        same = replace(base.plan, rows=plan.rows, manifest_sha256=plan.manifest_sha256) == plan
        if same and begins(ids, base.plan):
            found.append(base)
    return found
