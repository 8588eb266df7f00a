"""Which part of the blocks a process makes, where several share one store, on one machine or on many.

Block ``i`` belongs to rank ``i % world_size``: nothing has to be agreed on between processes, and a later run may have another
number of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from medprobe.errors import UsageError

# Rank, number of ranks, rank on this machine: of torchrun (and whatever speaks its language), and of srun.
_LAUNCHERS = (("RANK", "WORLD_SIZE", "LOCAL_RANK"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"))


@dataclass(frozen=True)
class Share:
    """One of several processes.

    Attributes:
        rank: From 0.
        world_size: Number of processes.
        local_rank: Rank among those of this machine, which chooses the GPU.

    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    def has(self, block: int) -> bool:
        """Return whether a block is this process's to make."""
        return block % self.world_size == self.rank


def share_of(rank: int | None, world_size: int | None, environment: Mapping[str, str] = os.environ) -> Share:
    """Return the share that is named, or else that of torchrun or srun, or else everything.

    Raises:
        UsageError: One of the two is named without the other, a rank is none of so many, or an environment is incomplete.

    """
    if rank is not None or world_size is not None:
        if rank is None or world_size is None:
            raise UsageError("--rank and --world-size go together")
        return _checked(rank, world_size, int(environment.get("LOCAL_RANK", rank)), "--rank", "--world-size")
    for names in _LAUNCHERS:
        of_rank, of_size, of_local = names
        slurm = of_rank.startswith("SLURM")
        # Outside of a step (srun) a batch script has a rank as well, and is alone.
        if of_size not in environment and (slurm or of_rank not in environment):
            continue
        try:
            number, size = int(environment[of_rank]), int(environment[of_size])
        except KeyError as error:
            raise UsageError(
                f"the environment has {_first(names, environment)} and no {error.args[0]}: set both or none"
            ) from None
        except ValueError:
            raise UsageError(f"the environment's {of_rank} or {of_size} is no number") from None
        local = environment.get(of_local, "0")
        return _checked(number, size, int(local) if local.isdigit() else 0, of_rank, of_size)
    return Share()


@contextmanager
def alone() -> Iterator[None]:
    """Hide the launcher from all that runs in the context: what a rank does there, it does by itself."""
    hidden = {name: os.environ.pop(name) for names in _LAUNCHERS for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


def _first(names: tuple[str, ...], environment: Mapping[str, str]) -> str:
    return next(name for name in names if name in environment)


def _checked(rank: int, world_size: int, local_rank: int, of_rank: str, of_size: str) -> Share:
    if not 0 <= rank < world_size:
        raise UsageError(f"{of_rank} {rank}: from 0 to {of_size} - 1, which is {world_size - 1}")
    return Share(rank, world_size, local_rank)
