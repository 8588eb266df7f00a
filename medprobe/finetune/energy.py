"""What a training took in electrical energy, where a machine tells it: of a GPU (NVML), and of processors (RAPL)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

_RAPL = Path("/sys/class/powercap")
_JOULES_AN_HOUR = 3600.0

# A counter in joules that may start again from 0, and at how many joules it does (0: never).
Counter = tuple[Callable[[], float], float]


class Meter:
    """Adds up counters; it has to be read more often than any of them starts again from 0, which takes half an hour.

    Args:
        device: On which is computed.
        rapl: Folder of the processors' counters.

    """

    def __init__(self, device: torch.device, rapl: Path = _RAPL) -> None:
        gpu = _of_gpu(device)
        self._counters: dict[str, list[Counter]] = {
            "energy_gpu_wh": [gpu] if gpu else [],
            "energy_cpu_wh": _of_cpus(rapl),
        }
        self._last = {name: [read() for read, _ in found] for name, found in self._counters.items()}
        self._joules = dict.fromkeys(self._counters, 0.0)

    def used(self) -> dict[str, float]:
        """Return the watt-hours since the meter was made, by source; a source that cannot be read is left out."""
        for name, counters in self._counters.items():
            now = [read() for read, _ in counters]
            for (_, limit), before, after in zip(counters, self._last[name], now, strict=True):
                self._joules[name] += after - before if after >= before else after - before + limit
            self._last[name] = now
        return {name: self._joules[name] / _JOULES_AN_HOUR for name, found in self._counters.items() if found}


def _of_cpus(rapl: Path) -> list[Counter]:
    """Return the counters of the processor packages; their parts have two colons in their names."""
    found: list[Counter] = []
    for folder in sorted(rapl.glob("intel-rapl:*")):
        if folder.name.count(":") != 1:
            continue
        try:
            limit = int((folder / "max_energy_range_uj").read_text()) / 1e6
            file = folder / "energy_uj"
            file.read_text()
        except (OSError, ValueError):  # root alone may read it on many machines
            continue
        found.append((partial(_joules, file), limit))
    return found


def _joules(file: Path) -> float:
    return int(file.read_text()) / 1e6


def _of_gpu(device: torch.device) -> Counter | None:
    if device.type != "cuda":
        return None
    try:
        import pynvml

        pynvml.nvmlInit()
        handle: Any = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except Exception:  # not installed, an older driver, or a GPU without a counter: it is left out
        return None
    return lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3, 0.0
