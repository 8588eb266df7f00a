"""What stores tell a report that rows do not: what was left out and why, what the columns hold, what the encoders are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pandas as pd

from medprobe.errors import UsageError
from medprobe.probe.atlas import Method
from medprobe.probe.controls import describing_columns
from medprobe.probe.task import missing
from medprobe.report.content import Block, Figure, Items, Section, Table, Text
from medprobe.report.words import counted, group_word, listed, short
from medprobe.results import Row
from medprobe.store import FeatureStore

_MOST_VALUES = 12


def described(stores: Sequence[FeatureStore]) -> list[Block]:
    """Return what went into stores and what did not, why, and what the columns of their samples hold."""
    if not stores:
        return []
    lost = Counter(
        (short(store.encoder), str(row.stage), short(row.reason))
        for store in stores
        for row in store.failures.itertuples()
    )
    blocks: list[Block] = [_table(stores)]
    if lost:
        cells = tuple((*key, f"{n:,}") for key, n in sorted(lost.items(), key=lambda item: (item[0][0], -item[1])))
        header = ("encoder", "stage", "reason", "images")
        blocks.append(Table("Images without features, and why", header, cells, frozenset({3})))
    tables = {tuple(store.manifest["id"]): store for store in reversed(stores)}  # of the same images, the first
    for store in reversed(tables.values()):
        if columns := _columns(store):
            data = f"{short(store.roles['data'], 40)}: " if store.roles.get("data") else ""
            blocks += [Text(f"{data}what the columns hold, by images:"), Items(tuple(columns))]
    return blocks


def encoders(stores: Sequence[FeatureStore]) -> Table:
    """Return what each encoder is: weights, training data, licence, what to cite."""
    cells = {
        store.plan.fingerprint: (
            short(store.encoder),
            short(store.card.get("training_data") or "unknown", 80),
            short(store.card.get("licence") or "unknown", 40),
            short(store.card.get("citation") or "", 200),
            store.plan.precision,
            short(store.plan.encoder.get("weights_sha256") or "", 16),
        )
        for store in stores
    }
    header = ("encoder", "training data", "licence", "reference", "precision", "weights (SHA-256)")
    return Table("Encoders", header, tuple(cells.values()))


def maps(stores: Sequence[FeatureStore], rows: Sequence[Row], method: Method, seed: int) -> Section | None:
    """Return a map of each store that answered one of these rows, coloured by its target; None where none did."""
    from medprobe.report.map_figure import embedding

    figures = []
    for store in stores:
        mine = [row for row in rows if (row.encoder, row.fingerprint) == (store.encoder, store.plan.fingerprint)]
        asked = {(row.target.partition(" (")[0], row.view if row.view in store.views else None) for row in mine}
        for target, view in sorted(asked, key=str):
            name = f"embedding map of {short(store.encoder, 48)} by {short(target, 30)}"
            try:
                chart = embedding(store, target, view, method=method, seed=seed)
            except UsageError as error:
                figures.append(Figure(name, _CAPTIONS[method], missing=str(error)))
            else:
                figures.append(Figure(name, _CAPTIONS[method], chart))
    return Section("Maps of the embeddings", tuple(figures)) if figures else None


_CAPTIONS: dict[Method, str] = {
    "pca": "Every image at its first two principal components. Classes that overlap here may be apart in other dimensions.",
    "umap": "Every image, placed by UMAP (McInnes, Healy, Melville 2018) of the first 50 principal components. Neighbours are "
    "close; distances between clusters, and their sizes, mean nothing.",
}


def _table(stores: Sequence[FeatureStore]) -> Table:
    cells = []
    for store in stores:
        group, samples = store.roles.get("group"), store.manifest
        groups = f"{samples[group].nunique():,}" if group in samples.columns else "not known"
        lost = len(store.failures)
        data, unit = short(store.roles.get("data") or "", 40), group_word(group) if group else ""
        cells.append(
            (short(store.encoder), data, f"{len(samples):,}", f"{lost:,}", groups, unit, f"{len(samples) - lost:,}")
        )
    header = ("encoder", "data", "images", "without features", "groups", "what groups are", "left")
    return Table("Stores: what went in", header, tuple(cells), frozenset({2, 3, 4, 6}))


def _columns(store: FeatureStore) -> list[str]:
    samples = store.manifest
    own = [name for name in store.roles["labels"] if name in samples.columns]
    names = [*own, *describing_columns(samples, [*own, store.roles.get("group") or "", store.roles.get("bag") or ""])]
    return [f"{short(name, 40)}: {_summary(samples[name])}." for name in names]


def _summary(column: pd.Series) -> str:
    absent = missing(column)
    present = column[~absent]
    if column.dtype.kind in "iuf" and present.nunique() > _MOST_VALUES:
        low, middle, high = present.quantile([0, 0.5, 1])
        said = f"median {middle:.4g} ({low:.4g} to {high:.4g})"
    else:
        counts = present.value_counts()
        said = listed([f"{short(value, 40)} {n:,}" for value, n in counts.items()], _MOST_VALUES)
    return said + (f"; {counted(int(absent.sum()), 'image')} without a value" if absent.any() else "")
