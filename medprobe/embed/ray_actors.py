"""A worker for each device of a Ray cluster: actors that read the images themselves, so that none travels through Ray."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, cast

from medprobe.embed.block import Span
from medprobe.embed.distribute import Maker, Work, Worker
from medprobe.embed.pipeline import Failures, Progress
from medprobe.errors import UsageError


class RayWorker:
    """An actor that makes blocks on one device.

    Args:
        work: What is to be done, as it is or put into Ray.
        device: Kind of device: Ray says which of them.
        cpus: Processors to reserve.

    """

    def __init__(self, work: Any, device: str, cpus: int) -> None:
        import ray

        self.died: tuple[type[BaseException], ...] = (ray.exceptions.RayActorError, ray.exceptions.ObjectLostError)
        self._work, self._device = work, device
        self._class = ray.remote(num_cpus=cpus, num_gpus=int(device == "cuda"))(Maker)
        self.restart()

    def make(self, spans: Sequence[Span]) -> tuple[Failures, Progress]:
        """Have blocks made, and wait for it."""
        import ray

        return cast("tuple[Failures, Progress]", ray.get(self._actor.make.remote(spans)))

    def restart(self) -> None:
        """Begin another actor, wherever there is room."""
        self._actor: Any = self._class.remote(self._work, self._device)

    def close(self) -> None:
        """End the actor, which does nothing at the moment, with its decoding processes."""
        import ray

        with suppress(*self.died):
            ray.get(self._actor.close.remote())
        self.kill()

    def kill(self) -> None:
        """End the actor, whatever it does."""
        import ray

        ray.kill(self._actor)


def ray_workers(work: Work, devices: Sequence[str]) -> list[Worker]:
    """Return a worker for each GPU of the cluster, or for each device that is named.

    Ray is joined where ``RAY_ADDRESS`` says, or begun on this machine.

    Raises:
        UsageError: Ray is not installed, or its cluster has no GPU although one is asked for.

    """
    try:
        import ray
    except ModuleNotFoundError:
        raise UsageError("--engine ray needs ray, which is not installed: pip install 'medprobe[ray]'") from None
    if not ray.is_initialized():
        ray.init(log_to_driver=False, include_dashboard=False)
    kind = devices[0].partition(":")[0]
    n = len(devices)
    if kind == "cuda":
        there: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        n = int(there.get("GPU", 0))
        if not n:
            raise UsageError("--engine ray --device cuda: the cluster has no GPU")
    shared = ray.put(work)
    return [RayWorker(shared, kind, max(1, work.decoders)) for _ in range(n)]
