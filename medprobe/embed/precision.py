"""Which number format an encoder computes in, and whether that can be trusted for this encoder on these images."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch

from medprobe.embed.ranks import Share
from medprobe.encoders.base import Encoder
from medprobe.errors import UsageError

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
MIN_COSINE = 0.999
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(device: str = "auto") -> torch.device:
    """Return the device to compute on: ``auto`` is a CUDA device, Apple's, or the CPU.

    Raises:
        UsageError: The device is not one, or is not there.

    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.zeros(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {device}: not available here ({str(error).splitlines()[0]})") from error
    return chosen


def choose_devices(device: str, share: Share) -> list[torch.device]:
    """Return the devices to compute on, each in a process of its own: all CUDA devices of ``auto`` and ``cuda``.

    Args:
        device: As for :func:`choose_device`, or several separated by commas.
        share: Of several ranks each has one device.

    Raises:
        UsageError: A device is not one, or is not there, or a rank is given several.

    """
    names = [name.strip() for name in device.split(",")]
    if len(names) > 1 and share.world_size > 1:
        raise UsageError(f"--device {device}: each of {share.world_size} ranks computes on one device")
    if names in (["auto"], ["cuda"]) and torch.cuda.is_available():
        count = torch.cuda.device_count()
        here = range(count) if share.world_size == 1 else [share.local_rank % count]
        return [torch.device("cuda", index) for index in here]
    return [choose_device(name) for name in names]


def choose_precision(precision: str, device: torch.device) -> str:
    """Return ``fp32``, ``bf16`` or ``fp16``; ``auto`` is bf16 where the processor computes in it, else fp32."""
    if precision not in PRECISIONS:
        raise UsageError(f"--precision {precision}: one of {', '.join(PRECISIONS)}")
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if device.type == "cpu" and _cpu_has_bf16() else "fp32"


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Return the context in which an encoder computes in that precision; its weights stay in float32."""
    return nullcontext() if precision == "fp32" else torch.autocast(device.type, dtype=_DTYPES[precision])


def lowest_cosine(encoder: Encoder, pixels: torch.Tensor, precision: str) -> tuple[float, Mapping[str, float]]:
    """Return the lowest cosine over images and views between a precision and fp32, and each view's largest value."""
    exact = encoder.encode(pixels)
    with autocast(precision, encoder.device):
        fast = encoder.encode(pixels)
    cosines = [torch.nn.functional.cosine_similarity(exact[v], fast[v], dim=1).nan_to_num(-1.0).min() for v in exact]
    largest = {view: float(values.abs().max()) for view, values in exact.items()}
    return float(torch.stack(cosines).min()), largest


def _cpu_has_bf16() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags
