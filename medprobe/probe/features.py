"""What a probe is given: the vectors of one store, or of several stores side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from medprobe.errors import DataError
from medprobe.probe.bags import AnyRows, Bags, pooled_name, split_name
from medprobe.probe.targets import Floats

AUTO = "auto"
TOKENS = "tokens"


@dataclass(frozen=True)
class Features:
    """Vectors of the same rows, from which a probe chooses where there are several.

    Attributes:
        encoder: Name of the encoder, or the names of several.
        view: Name of the view, or ``auto``.
        fingerprint: Of the encoder, or of several.
        views: The candidates by name, each float32 (n, width), the encoder's own pooling first.
        parts: For each candidate, the view that each encoder contributes.
        rows: Which samples of the (first) store they belong to, (n,).
        notes: What has to be known about them.

    """

    encoder: str
    view: str
    fingerprint: str
    views: Mapping[str, Floats]
    parts: Mapping[str, tuple[str, ...]]
    rows: np.ndarray
    notes: tuple[str, ...] = ()

    @classmethod
    def of_known(cls, name: str, view: str, values: Floats) -> Features:
        """Return values that need no encoder, (n, D)."""
        return cls(name, view, "", {view: values}, {view: ()}, np.arange(len(values)))

    def of(self, rows: np.ndarray) -> Features:
        """Return the vectors of some of these rows."""
        if np.array_equal(rows, np.arange(len(self.rows))):
            return self  # all of them: a copy costs as much as many a probe
        return replace(self, views={name: X[rows] for name, X in self.views.items()}, rows=self.rows[rows])


def features_of(stores: Sequence[AnyRows], view: str | None) -> Features:
    """Return the vectors of a store, or of several joined by the ids of their samples.

    Args:
        stores: The first one leads: its samples that all others have features of are kept, in its order. Bags are pooled
            in every way that the first one names.
        view: Name of a view; None takes each encoder's own pooling, and so does a store that has no view of that name
            while the first one does; ``auto`` leaves the choice among all views (of the first store) to the probe.

    Raises:
        DataError: There is no such view, or the stores share no sample.

    """
    first, *others = stores
    default = first.plan.default_view
    names = (
        [default, *(n for n in first.plan.views if n not in {default, TOKENS})] if view == AUTO else [view or default]
    )
    if isinstance(first, Bags):
        names = [pooled_name(name, pool) for name in names for pool in first.pools]
    ids = first.samples["id"].to_numpy()
    rows = np.arange(len(ids))
    places = []
    for other in others:
        place = {name: i for i, name in enumerate(other.samples["id"])}
        rows = rows[[ids[row] in place for row in rows]]
        places.append(place)
    if not len(rows):
        raise DataError(f"--concat: {', '.join(str(store.path) for store in stores)} have no sample in common")
    parts = {name: (name, *(_part(other, view, name) for other in others)) for name in names}
    beside = [
        {name: other.features(name)[[place[ids[row]] for row in rows]] for name in {part[i] for part in parts.values()}}
        for i, (other, place) in enumerate(zip(others, places, strict=True), 1)
    ]
    views = {}
    for name, part in parts.items():
        own = first.features(name)
        others_of = [values[other] for values, other in zip(beside, part[1:], strict=True)]
        views[" + ".join(part)] = np.concatenate([own[rows], *others_of], axis=1) if others else own
    lost = len(ids) - len(rows)
    notes = first.notes if isinstance(first, Bags) else ()
    return Features(
        encoder=" + ".join(store.encoder for store in stores),
        view=AUTO if view == AUTO or len(views) > 1 else next(iter(views)),
        fingerprint=" + ".join(store.plan.fingerprint for store in stores),
        views=views,
        parts={" + ".join(part): part for part in parts.values()},
        rows=rows,
        notes=(*notes, f"{lost} images are left out: they are not in every store") if lost else notes,
    )


def _part(other: AnyRows, view: str | None, own: str) -> str:
    """Return what another store contributes beside a view of the first one."""
    name = view if view is not None and view in other.plan.views else other.plan.default_view
    return pooled_name(name, split_name(own)[1]) if isinstance(other, Bags) else name
