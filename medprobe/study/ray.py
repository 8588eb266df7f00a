"""A study on a Ray cluster: a task for each pair of a data set and an encoder. All machines see one folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from medprobe.errors import UsageError
from medprobe.study.run import CellReport, run_cells
from medprobe.study.schema import Cell
from medprobe.study.stores import Machine


def run_with_ray(
    pairs: Sequence[Sequence[Cell]], out: Path, machine: Machine, progress: Callable[[str], None] | None = None
) -> list[CellReport]:
    """Run the cells of each pair in a task of its own and return what became of them, pair by pair.

    A task takes a GPU where the cluster has any, and as many processors as it decodes with. The cluster is that of the
    environment (``RAY_ADDRESS``), or this machine.

    Args:
        pairs: The cells of each data set and encoder.
        out: The study's folder, which all machines of the cluster see.
        machine: What each task runs on.
        progress: Called with a line on each pair that is done.

    Raises:
        UsageError: Ray is not installed.

    """
    try:
        ray: Any = import_module("ray")
    except ModuleNotFoundError:
        raise UsageError("--engine ray: needs Ray, which is not installed: pip install 'medprobe[ray]'") from None
    started = not ray.is_initialized()
    if started:
        ray.init(log_to_driver=False)
    try:
        gpus = 1 if ray.cluster_resources().get("GPU") else 0
        task = ray.remote(num_cpus=max(1, machine.workers or 1), num_gpus=gpus, max_retries=1)(run_cells)
        place = {task.remote(list(cells), out.resolve(), machine): i for i, cells in enumerate(pairs)}
        found: dict[int, list[CellReport]] = {}
        waiting = list(place)
        while waiting:
            (done, *_), waiting = ray.wait(waiting, num_returns=1)
            i = place[done]
            found[i] = ray.get(done)
            if progress is not None:
                data, encoder = pairs[i][0].pair
                progress(f"{len(found)}/{len(pairs)} {data}, {encoder}: {len(found[i])} cells")
    finally:
        if started:
            ray.shutdown()
    return [report for i in range(len(pairs)) for report in found[i]]
