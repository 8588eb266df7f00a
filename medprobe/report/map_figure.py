"""The figure of a store's embedding map: a point an image, coloured by a column."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from medprobe.errors import UsageError
from medprobe.probe.atlas import Method, embedding_map
from medprobe.probe.bags import AnyRows, Bags
from medprobe.probe.whatif import subgroup_names
from medprobe.report.style import COLOURS, GREY, SHAPES, altair, finished, inline
from medprobe.report.words import counted, group_word, short, unlike

if TYPE_CHECKING:
    import altair as alt

MOST_POINTS = 3000
"""Points beyond which a sample is drawn: a drawing of all would be megabytes."""

_MOST_VALUES = 6
_SIDE = 420  # pixels
_OTHER, _MISSING = "other values", "no value"
_AXES = {
    "pca": ("First principal component", "Second principal component"),
    "umap": ("UMAP, first axis (no unit)", "UMAP, second axis (no unit)"),
}


def embedding(
    store: AnyRows, column: str, view: str | None = None, *, method: Method = "pca", seed: int = 0
) -> alt.Chart:
    """Return the map of a store's features, each image in the colour and shape of its value in a column.

    Args:
        store: Its map is found in it, or made and kept there; or its bags, each a point.
        column: Of the store's samples; numbers are shown in quarters, all but the most frequent values as others.
        view: The encoder's default one unless given.
        method: ``pca`` or ``umap``.
        seed: Of the map, and of the points that are drawn where there are many.

    Raises:
        UsageError: There is no such column, or a package is missing.
        DataError: There is no such view, or the store is incomplete or damaged.

    """
    alt = altair()
    samples = store.manifest
    if column not in samples.columns.drop("id"):
        raise UsageError(f"{store.path.name} has no column '{column}' to colour its map by")
    places = embedding_map(store, view, method=method, seed=seed)
    rows = np.flatnonzero(np.isfinite(places).all(axis=1))
    if not len(rows):
        raise UsageError(f"{store.path.name}: no image has features")
    noun = "sample" if isinstance(store, Bags) else "image"
    named, order = _values(subgroup_names(samples[column].iloc[rows]))
    drawn = np.arange(len(rows))
    if len(rows) > MOST_POINTS:
        drawn = np.sort(np.random.default_rng(seed).choice(len(rows), MOST_POINTS, replace=False))
    records = [
        {"x": float(places[rows[i], 0]), "y": float(places[rows[i], 1]), "value": named[i]} for i in drawn.tolist()
    ]
    looks = [(GREY, "cross") if name in {_OTHER, _MISSING} else (COLOURS[i], SHAPES[i]) for i, name in enumerate(order)]
    legend = alt.Legend(title=short(column, 40), orient="right", symbolOpacity=1)
    x_title, y_title = _AXES[method]
    scale = alt.Scale(zero=False, nice=True)
    chart = (
        alt.Chart(inline(records))
        .mark_point(filled=True, size=26, opacity=0.65)
        .encode(
            x=alt.X("x:Q", title=x_title, scale=scale),
            y=alt.Y("y:Q", title=y_title, scale=scale),
            color=alt.Color("value:N", scale=alt.Scale(domain=order, range=[c for c, _ in looks]), legend=legend),
            shape=alt.Shape("value:N", scale=alt.Scale(domain=order, range=[s for _, s in looks]), legend=legend),
        )
        .properties(width=_SIDE, height=_SIDE)
    )
    group = str(store.roles.get("group") or "")
    of = f" of {samples[group].iloc[rows].nunique():,} {group_word(group)}" if group in samples.columns else ""
    some = f"; {MOST_POINTS:,} of them drawn" if len(rows) > MOST_POINTS else ""
    lost = len(samples) - len(rows)
    without = f"; {counted(lost, noun)} without features" if lost else ""
    data = f"{short(store.roles['data'], 40)}, " if store.roles.get("data") else ""
    return finished(
        chart,
        f"{data}{short(store.encoder, 48)}: map of embeddings by {short(column, 30)}",
        [f"{counted(len(rows), noun)}{of}{some}{without}", f"view {short(store.view_name(view), 40)}"],
    )


def _values(names: np.ndarray) -> tuple[list[str], list[str]]:
    """Return what each row is shown as, and the order of the legend: values, then what stands for the rest."""
    values = [str(value) for value in dict.fromkeys(sorted(names)) if value]
    often = Counter(names.tolist())
    kept = values
    if len(values) > _MOST_VALUES:
        kept = sorted(sorted(values, key=lambda value: -often[value])[:_MOST_VALUES])
    titles = dict(zip(kept, unlike([_OTHER, _MISSING, *(short(value, 36) for value in kept)])[2:], strict=True))
    shown = [titles.get(name, _OTHER if name else _MISSING) for name in names.tolist()]
    return shown, [*titles.values(), *(rest for rest in (_OTHER, _MISSING) if rest in shown)]
