"""Which number format an encoder computes in, and whether that can be trusted for this encoder on these images."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from medprobe.embed.ranks import Share
from medprobe.encoders.base import Encoder
from medprobe.errors import UsageError

log = logging.getLogger("medprobe")

PRECISIONS = ("auto", "fp32", "tf32", "bf16", "fp16")
MIN_COSINE = 0.999
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
# Layers whose parameters autocast gives its dtype whenever they are used.
_CAST = (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)


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
    """Return ``fp32``, ``tf32``, ``bf16`` or ``fp16``; ``auto`` is bf16 where the processor computes in it, else fp32."""
    if precision not in PRECISIONS:
        raise UsageError(f"--precision {precision}: one of {', '.join(PRECISIONS)}")
    if precision == "tf32" and device.type != "cuda":
        raise UsageError(f"--precision tf32: products in TF32 are an NVIDIA GPU's; on {device.type}: fp32 or bf16")
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if device.type == "cpu" and _cpu_has_bf16() else "fp32"


@contextmanager
def autocast(precision: str, device: torch.device) -> Iterator[None]:
    """Compute in that precision within the context; an encoder's weights stay in float32.

    ``fp32`` is that on a GPU, too: PyTorch by itself leaves convolutions to TF32 there.
    """
    with ExitStack() as stack:
        if precision in _DTYPES:
            stack.enter_context(torch.autocast(device.type, dtype=_DTYPES[precision]))
        elif device.type == "cuda":
            stack.enter_context(_tf32(precision == "tf32"))
        yield


def with_weights_cast(encoder: Encoder, precision: str) -> Encoder:
    """Return an encoder that computes the same, bit for bit, from weights that are cast once instead of in every pass.

    For a pass of few images on a processor that is a twentieth of the time and more. The encoder itself is left as it is;
    the other shares with it whatever is not cast.

    Args:
        encoder: On its device, not compiled.
        precision: What it computes in, by :func:`autocast`.

    Returns:
        The encoder itself where nothing is cast, where it cannot be copied, where the memory has no room for a copy, or where
        the copy's features are others.

    """
    layers = [layer for layer in encoder.module.modules() if isinstance(layer, _CAST)]
    if precision not in _DTYPES or not layers:
        return encoder
    known: dict[int, Any] = {id(t): t for t in (*encoder.module.parameters(), *encoder.module.buffers())}
    # The same for every process, which then all decide alike, and without touching the caller's random numbers.
    pixels = torch.randn(1, 3, *encoder.preprocess.geometry.size, generator=torch.Generator().manual_seed(0))
    try:
        for layer in layers:
            for parameter in layer.parameters(recurse=False):
                cast = parameter.to(_DTYPES[precision])
                known[id(parameter)] = torch.nn.Parameter(cast, requires_grad=False)
        other = copy.deepcopy(encoder, known)
        with autocast(precision, encoder.device):
            expected, found = encoder.encode(pixels), other.encode(pixels)
    except (TypeError, RuntimeError):  # it holds a lock, or wants weights of its pixels' dtype; or the memory is full
        return encoder
    return other if all(torch.equal(values, found[view]) for view, values in expected.items()) else encoder


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    backends: tuple[Any, ...] = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = allowed
        yield
    finally:
        for backend, was in zip(backends, before, strict=True):
            backend.allow_tf32 = was


def lowest_cosine(encoder: Encoder, pixels: torch.Tensor, precision: str) -> tuple[float, Mapping[str, float]]:
    """Return the lowest cosine over images and views between a precision and fp32, and each view's largest value."""
    with autocast("fp32", encoder.device):
        exact = encoder.encode(pixels)
    with autocast(precision, encoder.device):
        fast = encoder.encode(pixels)
    largest = {view: float(values.abs().max()) for view, values in exact.items()}
    return _cosine(exact, fast), largest


def compile_in_place(encoder: Encoder, pixels: torch.Tensor, precision: str) -> None:
    """Compile an encoder's forward pass, unless that fails or some images' features then come out otherwise: that is said.

    Args:
        encoder: On its device.
        pixels: Normalised, (B, 3, H, W).
        precision: What it computes in.

    """
    with autocast(precision, encoder.device):
        plain = encoder.encode(pixels)
        encoder.compile()
        try:
            cosine = _cosine(plain, encoder.encode(pixels))
        except (
            Exception
        ) as error:  # a compiler that is not there, an operation that it does not know: its own kinds of error
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        else:
            reason = "" if cosine >= MIN_COSINE else f"features differ, cosine {cosine:.5f}"
    if reason:
        encoder.uncompile()
        log.warning("%s: --compile is left out: %s", encoder.name, reason)


def _cosine(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> float:
    """Return the lowest cosine over images and views; -1 where a value is not finite."""
    cosines = [torch.nn.functional.cosine_similarity(one[v], other[v], dim=1).nan_to_num(-1.0).min() for v in one]
    return float(torch.stack(cosines).min())


def _cpu_has_bf16() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags
