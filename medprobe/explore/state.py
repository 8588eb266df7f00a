"""What the explorer shows, as a value: a link restores it, and :mod:`medprobe.explore.command` writes it as a command."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import MISSING, dataclass, fields
from typing import Any
from urllib.parse import parse_qsl, urlencode

from medprobe.errors import UsageError
from medprobe.probe.question import Wish
from medprobe.probe.whatif import WhatIf

FAST = "ridge"
PROBES = ("logreg", "ridge", "knn", "prototype", "mlp")
PROJECTIONS = ("pca", "umap")


@dataclass(frozen=True)
class State:
    """A question with all that was chosen to look at.

    The first fields are arguments of :func:`medprobe.probe` by their names there (one probe beside ridge, one number of
    shots, one column of subgroups).

    Attributes:
        stores: Names of the stores that are compared, none for all.
        target: Column to predict, None for the recorded label.
        probe: The probe that follows the ridge regression's answer.
        view: Which of an encoder's vectors.
        metric: Primary metric.
        group: Column of patients.
        split_col: Column with train, val and test.
        n_folds: Folds.
        test_size: Share of the images to test on.
        leave_out: Column each value of which is tested once.
        where: SQL condition over the columns; empty for all samples.
        relabel: Rules that merge or drop classes.
        uncertain: What a label of -1 counts as.
        shots: Labelled images of each class, 0 for all.
        subgroup: Column by whose values the tested images are reported.
        duplicates: What to do about a picture on two sides of a given split.
        seed: Of splits, probes and resamples.
        encoder: Name of the store that the figures of one encoder are of; empty for the best one.
        positive: The class that curves and operating point are about; empty for the last one.
        threshold: Probability from which on a sample counts as positive.
        prevalence: Of the positive class in practice; None for that of the tested images.
        projection: ``pca`` or ``umap``.
        colour: Column that colours the map.
        region: Ends of the selected part of the map: left, right, bottom, top; empty for none.

    """

    stores: tuple[str, ...] = ()
    target: str | None = None
    probe: str = "logreg"
    view: str | None = None
    metric: str | None = None
    group: str | None = None
    split_col: str | None = None
    n_folds: int | None = None
    test_size: float | None = None
    leave_out: str | None = None
    where: str = ""
    relabel: tuple[str, ...] = ()
    uncertain: str | None = None
    shots: int = 0
    subgroup: str | None = None
    duplicates: str = "error"
    seed: int = 0
    encoder: str = ""
    positive: str = ""
    threshold: float = 0.5
    prevalence: float | None = None
    projection: str = "pca"
    colour: str | None = None
    region: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.probe not in PROBES:
            raise UsageError(f"--probe {self.probe}: one of {', '.join(PROBES)}")
        if self.projection not in PROJECTIONS:
            raise UsageError(f"projection {self.projection}: one of {', '.join(PROJECTIONS)}")
        if not 0 <= self.threshold <= 1:
            raise UsageError(f"threshold {self.threshold}: a probability between 0 and 1")
        if self.prevalence is not None and not 0 < self.prevalence < 1:
            raise UsageError(f"prevalence {self.prevalence}: a share between 0 and 1")
        if len(self.region) not in {0, 4}:
            raise UsageError("region: four numbers, or none")

    @property
    def probes(self) -> tuple[str, ...]:
        """Probes in the order of their answers."""
        return tuple(dict.fromkeys((FAST, self.probe)))

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of :func:`medprobe.probe` beside the stores, those alone that differ from its defaults."""
        given: dict[str, Any] = {
            "target": self.target,
            "probes": list(self.probes),
            "view": self.view,
            "metric": self.metric,
            "group": self.group,
            "split_col": self.split_col,
            "n_folds": self.n_folds,
            "test_size": self.test_size,
            "leave_out": self.leave_out,
            "where": self.where or None,
            "relabel": list(self.relabel) or None,
            "uncertain": self.uncertain,
            "shots": [self.shots] if self.shots else None,
            "subgroups": [self.subgroup] if self.subgroup else None,
            "duplicates": None if self.duplicates == "error" else self.duplicates,
            "seed": self.seed or None,
        }
        return {name: value for name, value in given.items() if value is not None}

    def wish(self) -> Wish:
        """Return what is asked of every store, as :func:`medprobe.probe` makes it of the same arguments.

        Raises:
            UsageError: Arguments that do not go together.

        """
        return Wish(
            self.target,
            self.metric,
            self.group,
            self.split_col,
            self.n_folds,
            self.test_size,
            self.leave_out,
            WhatIf(self.where or None, relabel=self.relabel, uncertain=self.uncertain),
            (self.shots,) if self.shots else (),
            subgroups=(self.subgroup,) if self.subgroup else (),
            duplicates=self.duplicates,
            seed=self.seed,
        )

    def to_query(self) -> str:
        """Return the state as the query of a link; what is as always is left out."""
        pairs: list[tuple[str, str]] = []
        for field in fields(self):
            value = getattr(self, field.name)
            if value == field.default or value is None:
                continue
            pairs += [(field.name, str(each)) for each in (value if isinstance(value, tuple) else (value,))]
        return urlencode(pairs)

    @classmethod
    def from_query(cls, query: str | Iterable[tuple[str, str]]) -> State:
        """Return the state of a link.

        Raises:
            UsageError: It holds a name or a value that no state has.

        """
        pairs = parse_qsl(query, keep_blank_values=True) if isinstance(query, str) else list(query)
        known = {field.name: field for field in fields(cls)}
        given: dict[str, list[str]] = {}
        for name, value in pairs:
            if name not in known:
                raise UsageError(f"the link holds '{name[:40]}', which is nothing that can be chosen")
            given.setdefault(name, []).append(value)
        return cls(**{name: _parsed(name, str(known[name].type), texts) for name, texts in given.items()})


def _parsed(name: str, kind: str, texts: list[str]) -> Any:
    cast: Any = float if "float" in kind else int if "int" in kind else str
    try:
        values = tuple(cast(text) for text in texts)
    except ValueError:
        raise UsageError(f"the link holds {name}={texts[0][:40]}, which is no number") from None
    return values if kind.startswith("tuple") else values[-1]


assert all(field.default is not MISSING for field in fields(State))
