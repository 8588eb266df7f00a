"""``study run``: every cell of the grid that is not there yet, one after the other; what fails is kept with its reason."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medprobe.embed.ranks import alone, share_of
from medprobe.errors import UsageError
from medprobe.manifest import Manifest
from medprobe.results import Results
from medprobe.store import FeatureStore
from medprobe.study.cache import Cache
from medprobe.study.schema import ASKING_KEYS, FINETUNE_KEYS, Cell, Data, Study
from medprobe.study.stores import Machine, make_stores, one_line, read_data, source_of, source_of_images, store_of
from medprobe.study.toml import read_study, with_paths

if TYPE_CHECKING:
    from medprobe.embed.pipeline import Progress

log = logging.getLogger("medprobe")

ENGINES = ("local", "ray")
COMPUTED, CACHED, FAILED, TO_DO = "computed", "cached", "failed", "to do"


@dataclass(frozen=True)
class CellReport:
    """What became of a cell: ``computed``, ``cached`` (it was there), ``failed``, or of a dry run ``to do``; with a reason."""

    cell: Cell
    state: str
    reason: str = ""


@dataclass(frozen=True)
class StudyReport:
    """What became of the cells that were asked for.

    Attributes:
        study: The study.
        out: Its folder.
        cells: A report for each cell of this rank, in the order of the grid.

    """

    study: Study
    out: Path
    cells: tuple[CellReport, ...]

    def count(self, state: str) -> int:
        """Return the number of cells in a state."""
        return sum(report.state == state for report in self.cells)


def run_study(
    path: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str] | None = None,
    data_root: str | os.PathLike[str] | None = None,
    only: Sequence[str] = (),
    dry_run: bool = False,
    engine: str = "local",
    rank: int | None = None,
    world_size: int | None = None,
    device: str = "auto",
    workers: int | None = None,
    batch_size: int | None = None,
    embedding: Callable[[Progress], None] | None = None,
    progress: Callable[[str], None] | None = None,
) -> StudyReport:
    """Run the cells of a study that are not there yet, and return what became of each.

    Run again after an interruption, it goes on where it was: stores by blocks, everything else by cells. A cell is run
    again when its arguments, the images or labels, or the version of medprobe have changed.

    Args:
        path: The study's file, or the name of one that comes with medprobe.
        out: Folder of its stores and cells; ``medprobe-NAME`` in the working directory unless given.
        data_root: What relative paths in the file start from.
        only: Filters such as ``data=isic2019``, ``encoder=dinov2/*`` or ``head=linear``.
        dry_run: Change nothing, say what is there.
        engine: ``local``, or ``ray`` for a Ray task for each data set and encoder.
        rank: Which of several processes this one is; of torchrun or srun unless given. Pairs of a data set and an
            encoder are shared out by their number.
        world_size: Number of processes that run the study together.
        device: As for ``embed``.
        workers: Decoding processes, None for one a processor.
        batch_size: Images a forward pass of an encoder, None to choose.
        embedding: Called after every batch that is embedded.
        progress: Called with a line on each cell.

    Raises:
        UsageError: The study, a filter or an argument cannot work.
        DataError: The study cannot be read, or its data are not there.

    """
    if engine not in ENGINES:
        raise UsageError(f"--engine {engine}: one of {', '.join(ENGINES)}")
    study = read_study(path, data_root=data_root)
    folder = Path(out) if out is not None else study.out
    cells = study.cells(only)
    cache = Cache(folder)
    if dry_run:
        return StudyReport(study, folder, tuple(_look(cache, cell) for cell in cells))
    study = with_paths(study, {cell.data.name for cell in cells}, optional=_embedded(folder, cells))
    cells = study.cells(only)
    pairs = list(dict.fromkeys(cell.pair for cell in cells))
    machine = Machine(device, workers, batch_size)
    if engine == "ray":
        if rank is not None or world_size is not None:
            raise UsageError("--engine ray: it shares out by itself: leave out --rank and --world-size")
        from medprobe.study.ray import run_with_ray

        of_pair = [[cell for cell in cells if cell.pair == pair] for pair in pairs]
        return StudyReport(study, folder, tuple(run_with_ray(of_pair, folder, machine, progress)))
    share = share_of(rank, world_size)
    if share.world_size > 1:
        pairs = [pair for number, pair in enumerate(pairs) if share.has(number)]
        log.info("rank %d of %d: %d pairs of a data set and an encoder", share.rank, share.world_size, len(pairs))
        if device == "auto":
            from medprobe.embed.precision import choose_devices

            machine = Machine(str(choose_devices("auto", share)[0]), workers, batch_size)
    mine = [cell for cell in cells if cell.pair in set(pairs)]
    with alone():  # a pair's blocks and trainings are not shared out once more
        return StudyReport(study, folder, tuple(run_cells(mine, folder, machine, embedding, progress)))


def run_cells(
    cells: Sequence[Cell],
    out: Path,
    machine: Machine,
    embedding: Callable[[Progress], None] | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[CellReport]:
    """Run those of some cells that are not there yet, data set by data set; return what became of each.

    Args:
        cells: With whole paths, those of a data set together.
        out: The study's folder.
        machine: What they are run on.
        embedding: Called after every batch that is embedded.
        progress: Called with a line on each cell.

    """
    cache = Cache(out)
    reports = []
    for data in dict.fromkeys(cell.data for cell in cells):
        of_data = [cell for cell in cells if cell.data == data]
        ground = _Ground(out, data, of_data, machine, embedding)
        for cell in of_data:
            report = _run_cell(cell, cache, ground)
            reports.append(report)
            if progress is not None:
                said = f": {report.reason}" if report.reason else ""
                progress(f"{len(reports)}/{len(cells)} {cell}: {report.state}{said}")
    return reports


class _Ground:
    """What the cells of one data set stand on; an error is kept, and raised for each cell that needs what it spoilt."""

    def __init__(
        self,
        out: Path,
        data: Data,
        cells: Sequence[Cell],
        machine: Machine,
        embedding: Callable[[Progress], None] | None,
    ) -> None:
        self.data = data
        self.machine = machine
        self._out, self._cells, self._embedding = out, cells, embedding

    @cached_property
    def manifest(self) -> Manifest | Exception | None:
        """Samples; None where the images are elsewhere."""
        try:
            return read_data(self.data) if self.data.path else None
        except Exception as error:
            log.debug("%s", self.data.name, exc_info=True)
            return error

    @cached_property
    def stores(self) -> tuple[Mapping[str, FeatureStore], Mapping[str, str]]:
        """Stores by encoder, and why there is none."""
        probed = [cell for cell in self._cells if cell.head.finetune is None]
        choices = list(dict.fromkeys(cell.encoder for cell in probed))
        if isinstance(self.manifest, Exception):
            return {}, {choice.name: one_line(self.manifest) for choice in choices}
        return make_stores(
            self._out, self.data, self.manifest, choices, probed[0].precision, self.machine, self._embedding
        )


def _run_cell(cell: Cell, cache: Cache, ground: _Ground) -> CellReport:
    try:
        run, source = _prepared(cell, cache, ground)
        if cache.holds(cell, source):
            return CellReport(cell, CACHED)
        cache.write(cell, source, run())
    except Exception as error:  # whatever it is, the other cells can do without
        log.debug("%s", cell, exc_info=True)
        reason = one_line(error)
        cache.fail(cell, reason)
        return CellReport(cell, FAILED, reason)
    return CellReport(cell, COMPUTED)


def _prepared(cell: Cell, cache: Cache, ground: _Ground) -> tuple[Callable[[], Results], dict[str, Any]]:
    """Return what computes a cell, and what it rests on."""
    if cell.head.finetune is None:
        stores, failed = ground.stores
        if cell.encoder.name in failed:
            raise UsageError(failed[cell.encoder.name])
        store = stores[cell.encoder.name]
        return lambda: _probe(cell, store), source_of(store)
    manifest = ground.manifest
    if isinstance(manifest, Exception):
        raise manifest
    if manifest is None:
        raise UsageError("fine-tuning needs the images, which are not there (--data-root)")
    source = source_of_images(manifest, cell.encoder)
    return lambda: _finetune(cell, manifest, source, cache, ground.machine), source


def _probe(cell: Cell, store: FeatureStore) -> Results:
    from medprobe.probe.run import probe

    head = cell.head
    return probe(
        store, cell.data.target, probes=() if head.probe is None else [head.probe], preset=head.preset,
        view=cell.view or None, pca=head.pca, **_asked(cell),
    )  # fmt: skip


def _finetune(cell: Cell, manifest: Manifest, source: Mapping[str, Any], cache: Cache, machine: Machine) -> Results:
    try:
        from medprobe.finetune.run import finetune
    except ModuleNotFoundError as error:
        raise UsageError(
            f"fine-tuning needs {error.name}, which is not installed: pip install 'medprobe[finetune]'"
        ) from None
    given = {key: getattr(cell.head, key) for key in FINETUNE_KEYS} | {"warmup_steps": cell.data.warmup_steps}
    found: Results = finetune(
        manifest, cell.encoder.name, cell.data.target, mode=str(cell.head.finetune), preset=cell.head.preset,
        weights=cell.encoder.weights, image_size=cell.encoder.image_size, window=cell.data.window,
        normalize=cell.data.normalize, precision=cell.precision, device=machine.device, workers=machine.workers,
        out=cache.checkpoints(cell, source), **_asked(cell),
        **{key: value for key, value in given.items() if value is not None},
    )  # fmt: skip
    return found


def _asked(cell: Cell) -> dict[str, Any]:
    """Return the arguments that a probe and a fine-tuning have in common."""
    return {
        **{key: getattr(cell.data, key) for key in ASKING_KEYS},
        "shots": [cell.shots] if cell.shots else (),
        "repeats": cell.head.repeats,
        "n_resamples": cell.resamples,
        # Few labels are drawn with this seed and those after it: no draw is to be in two cells.
        "seed": cell.seed * cell.head.repeats if cell.shots else cell.seed,
    }


def _look(cache: Cache, cell: Cell) -> CellReport:
    if cache.holds(cell):
        return CellReport(cell, CACHED)
    reason = cache.failure(cell)
    return CellReport(cell, TO_DO, f"failed before: {reason}" if reason else "")


def _embedded(out: Path, cells: Sequence[Cell]) -> set[str]:
    """Return the data sets of which all that is asked for is in stores that are there."""
    lacking = {
        cell.data.name
        for cell in cells
        if cell.head.finetune is not None or not store_of(out, cell.data, cell.encoder.name, cell.precision).exists()
    }
    return {cell.data.name for cell in cells} - lacking
