"""What a study is made of: the tables of its TOML file. Every field is a key of that file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from medprobe.errors import UsageError

# What `medprobe.finetune` is told beside data, model and target; the modes are those of its --mode.
FINETUNE_MODES = ("full", "partial", "linear", "lora", "deit-head")
FINETUNE_KEYS = ("unfreeze_from", "freeze", "lora_rank", "lr", "weight_decay", "epochs", "patience", "batch_size")
# Of a data set: how its images are read, and what is asked of them.
READING_KEYS = ("dataset", "labels", "labels_key", "path_col", "box_cols", "mask_col", "frames")
ASKING_KEYS = (
    "metric", "group", "split_col", "n_folds", "test_size", "leave_out", "where", "train_where", "test_where", "relabel",
    "uncertain", "duplicates",
)  # fmt: skip


@dataclass(frozen=True)
class Data:
    """One data set: ``[[data]]``. Where a key has the name of an argument of embed or probe, it is that argument.

    Attributes:
        name: What it is called in tables, and the folder of its stores.
        path: Folder, table or ``.npz``, relative to the data root; ``${NAME}`` is an environment variable.
        target: What is predicted.
        warmup_steps: Of a fine-tuning: how long the rate rises is a matter of the size of the data set.

    """

    name: str
    path: str
    target: str
    metric: str | None = None
    group: str | None = None
    split_col: str | None = None
    n_folds: int | None = None
    test_size: float | None = None
    leave_out: str | None = None
    where: str | None = None
    train_where: str | None = None
    test_where: str | None = None
    relabel: tuple[str, ...] = ()
    uncertain: str | None = None
    duplicates: str = "error"
    warmup_steps: int | None = None
    normalize: str = "encoder"
    window: str = "file"
    dataset: str | None = None
    labels: str | None = None
    labels_key: str | None = None
    path_col: str | None = None
    box_cols: tuple[str, ...] = ()
    mask_col: str | None = None
    frames: str | None = None


@dataclass(frozen=True)
class EncoderChoice:
    """One encoder: ``[[encoder]]``.

    Attributes:
        name: Its name, as after ``--model``.
        views: Which of its vectors are probed; the default one where none is named.
        weights: A checkpoint file, relative to the data root.
        image_size: Another input size than its own.
        tokens: Whether all patch tokens are kept, too, for the attentive probe.

    """

    name: str
    views: tuple[str, ...] = ()
    weights: str | None = None
    image_size: int | None = None
    tokens: bool = False


@dataclass(frozen=True)
class Head:
    """One way to an answer: ``[[head]]``, a probe, a published protocol on stored features, or a fine-tuning.

    Attributes:
        name: What it is called in tables; the probe or mode unless given.
        probe: A probe of stored features.
        preset: A published protocol: on stored features, or of a fine-tuning.
        finetune: A mode of fine-tuning.
        shots: Labelled images of each class to learn from, a row for each number.
        repeats: Draws of so few labels.
        pca: Principal components, or share of the variance, that are kept.
        seeds: Other seeds than the study's.
        encoders: Only these encoders have it; all unless given.
        against: Head of the baseline encoder that gains are relative to; the same head unless given.
        unfreeze_from: Of a fine-tuning, as are the others below.

    """

    name: str | None = None
    probe: str | None = None
    preset: str | None = None
    finetune: str | None = None
    shots: tuple[int, ...] = ()
    repeats: int = 5
    pca: float | None = None
    seeds: tuple[int, ...] = ()
    encoders: tuple[str, ...] = ()
    against: str | None = None
    unfreeze_from: int | None = None
    freeze: bool | None = None
    lora_rank: int | None = None
    lr: float | None = None
    weight_decay: float | None = None
    epochs: int | None = None
    patience: int | None = None
    batch_size: int | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        """What its rows are called in tables: a preset on stored features may have several probes."""
        if self.preset is not None and self.finetune is None:
            from medprobe.probe.presets import preset_of

            names = [family.name for family in preset_of(self.preset).families]
        else:
            names = [self.name or self.finetune or self.probe or ""]
        return tuple(self.label(name, shots) for name in names for shots in self.shots or (0,))

    def label(self, probe: str, shots: int) -> str:
        """Return what a row of a probe and a number of shots is called in tables."""
        name = probe if self.preset is not None and self.finetune is None else self.name or self.finetune or probe
        return name if not shots else f"{name}, {shots} shot{'s' * (shots > 1)}"


@dataclass(frozen=True)
class Study:
    """A study, as :func:`~medprobe.study.toml.read_study` gives it; name and baseline stand in ``[study]``.

    Attributes:
        name: What it is called.
        baseline: The encoder that gains are relative to.
        data: Its data sets.
        encoders: Its encoders.
        heads: Its heads.
        seeds: Each cell is run with each: a seed draws folds and hold-outs anew, and whatever a head leaves to chance.
        resamples: Bootstrap resamples of the intervals.
        precision: What encoders compute in, as for ``embed``.
        path: The file.
        root: What relative paths of data and weights start from.

    """

    name: str
    baseline: str
    data: tuple[Data, ...]
    encoders: tuple[EncoderChoice, ...]
    heads: tuple[Head, ...]
    seeds: tuple[int, ...] = (0,)
    resamples: int = 1000
    precision: str = "auto"
    path: Path = field(default=Path())
    root: Path = field(default=Path())

    @property
    def out(self) -> Path:
        """Where its stores and cells go unless another folder is named."""
        return Path(f"medprobe-{folder_name(self.name)}")

    def cells(self, only: Sequence[str] = ()) -> list[Cell]:
        """Return the cells of the grid, or those that every kind of filter lets through.

        Args:
            only: Filters such as ``data=isic*``, ``encoder=dinov2/vitb14`` or ``head=linear``; several of a kind are
                alternatives.

        Raises:
            UsageError: A filter is of no kind, or nothing is left.

        """
        wanted: dict[str, list[str]] = {}
        for text in only:
            kind, equals, pattern = text.partition("=")
            if kind not in {"data", "encoder", "head"} or not equals:
                raise UsageError(f"--only {text}: data=NAME, encoder=NAME or head=NAME; * stands for any letters")
            wanted.setdefault(kind, []).append(pattern)

        def let(kind: str, *names: str) -> bool:
            return kind not in wanted or any(fnmatch(name, pattern) for name in names for pattern in wanted[kind])

        found = [
            cell
            for cell in self._grid()
            if let("data", cell.data.name)
            and let("encoder", cell.encoder.name)
            and let("head", *cell.head.labels, cell.head.name or "")
        ]
        if not found:
            raise UsageError(f"--only {' '.join(only)}: no cell of {self.path} is so")
        return found

    def _grid(self) -> Iterator[Cell]:
        for data in self.data:
            for encoder in self.encoders:
                for head in self.heads:
                    if head.encoders and encoder.name not in head.encoders:
                        continue
                    views: Sequence[str] = encoder.views if head.finetune is None else ()
                    for view in views or ("",):
                        for shots in head.shots or (0,):
                            for seed in head.seeds or self.seeds:
                                yield Cell(data, encoder, head, view, shots, seed, self.resamples, self.precision)


@dataclass(frozen=True)
class Cell:
    """One place of the grid: everything that decides its numbers but the images themselves.

    Attributes:
        data: Its data set.
        encoder: Its encoder.
        head: Its head.
        view: Which of the encoder's vectors; empty for the default one, and for a fine-tuning.
        shots: Labelled images of each class, 0 for all.
        seed: Its seed.
        resamples: Bootstrap resamples.
        precision: What the encoder computes in.

    """

    data: Data
    encoder: EncoderChoice
    head: Head
    view: str
    shots: int
    seed: int
    resamples: int
    precision: str

    @property
    def pair(self) -> tuple[str, str]:
        """Data set and encoder: cells of one pair need one store."""
        return self.data.name, self.encoder.name

    @property
    def arguments(self) -> dict[str, Any]:
        """Its arguments as JSON types, but for names and paths that decide no number; defaults are left out."""
        head = {"encoders", "against", "seeds", "name", "shots"}
        return {
            "data": _given(self.data, without={"path", "labels"}),
            "encoder": _given(self.encoder, without={"views", "weights"}),
            "head": _given(self.head, without=head if self.shots else {*head, "repeats"}),
            "view": self.view,
            "shots": self.shots,
            "seed": self.seed,
            "resamples": self.resamples,
            "precision": self.precision,
        }

    def __str__(self) -> str:
        head = self.head.name or self.head.finetune or self.head.probe or self.head.preset or ""
        view = f" {self.view}" if self.view else ""
        return f"{self.data.name}, {self.encoder.name}{view}, {self.head.label(head, self.shots)}, seed {self.seed}"


def folder_name(name: str) -> str:
    """Return a name that is safe as a folder's."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "data"


def defaults(table: type) -> dict[str, Any]:
    """Return the default of each key that has one."""
    return {f.name: f.default for f in fields(table) if f.default is not MISSING}


def _given(table: Any, without: set[str]) -> dict[str, Any]:
    known = defaults(type(table))
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in asdict(table).items()
        if key not in without and (key not in known or value != known[key])
    }
