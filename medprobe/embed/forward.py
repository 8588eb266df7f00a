"""Forward passes over batches of images, launched ahead of their results where the device works by itself."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

from medprobe.embed.cores import Cores
from medprobe.embed.precision import autocast, compile_in_place, with_weights_cast
from medprobe.encoders.base import Encoder
from medprobe.errors import DataError

log = logging.getLogger("medprobe")

# On a processor as many images as have the pixels of four at 224 x 224: a pass whose maps stay in the caches is up to 1.4
# times as fast as one of 32 such images, and one of SAM's takes gigabytes.
_CPU_BATCH, _CPU_BYTES = 32, 4 * 3 * 224**2
# A pass of a larger image has work for all cores, and takes too much memory for one a core.
_SIDE_BY_SIDE_BYTES = 3 * 640**2
_FIRST_BATCH, _LARGEST_BATCH = 64, 1024
_STAGED_BYTES = 1 << 29  # of one batch as 8-bit pixels
_TRIES = 3  # batches of a size that are timed; the first of them finds its kernels and counts for nothing
_WORTH = 1.03


class BatchSize:
    """How many images a forward pass takes; grows while that makes it faster, and shrinks when the memory is full.

    Args:
        size: What to begin with.
        largest: How far it may grow; no further than ``size`` unless given.

    """

    def __init__(self, size: int, largest: int | None = None) -> None:
        self.size = size
        self._largest = largest or size
        self._settled = self._largest == size
        self._seconds: list[float] = []
        self._best = float("inf")

    @classmethod
    def of(cls, chosen: int | None, device: torch.device, image_bytes: int) -> BatchSize:
        """Return what the user chose, or where to begin on a device with 8-bit images of so many bytes."""
        if chosen is not None:
            return cls(chosen)
        if device.type != "cuda":
            return cls(max(1, min(_CPU_BATCH, _CPU_BYTES // image_bytes)))  # equal batches give equal bytes
        largest = max(1, min(_LARGEST_BATCH, _STAGED_BYTES // image_bytes))
        return cls(min(_FIRST_BATCH, largest), largest)

    def took(self, images: int, seconds: float) -> None:
        """Take note of what a batch took, and double the size while an image becomes cheaper by it."""
        if self._settled or images != self.size:
            return
        self._seconds.append(seconds / images)
        if len(self._seconds) < _TRIES:
            return
        an_image, self._seconds = min(self._seconds[1:]), []
        if an_image * _WORTH >= self._best:
            self.halve()
            return
        self._best = an_image
        self._settled = self.size * 2 > self._largest
        if not self._settled:
            self.size *= 2

    def halve(self) -> None:
        """Take half, and never again more."""
        self.size = max(1, self.size // 2)
        self._settled = True


@dataclass
class Batch:
    """A forward pass under way.

    Attributes:
        images: 8-bit pixels (B, H, W, 3).
        views: Float32 (B, width); complete once ``ready``. Of a pass that a core has begun, what waits for them.
        ready: Recorded behind the copies to the host, None where nothing is left to wait for.
        began: Recorded ahead of the copy to the device.
        seconds: What the pass took, known with ``views`` where the device works by itself.

    """

    images: torch.Tensor
    views: dict[str, torch.Tensor] | Callable[[], dict[str, torch.Tensor]]
    seconds: float = 0.0
    began: torch.cuda.Event | None = None
    ready: torch.cuda.Event | None = None

    def wait(self) -> dict[str, np.ndarray]:
        """Return every view, float32 (B, width), once they are there."""
        if self.ready is not None and self.began is not None:
            self.ready.synchronize()
            self.seconds = self.began.elapsed_time(self.ready) / 1000
        views = self.views() if callable(self.views) else self.views
        return {view: values.cpu().numpy() for view, values in views.items()}


@dataclass
class Forward:
    """An encoder at work in one precision, in batches that fit its device.

    Attributes:
        encoder: On its device.
        precision: What it computes in.
        batch: Size of a batch.
        compile: Compile the encoder with the first batch.

    """

    encoder: Encoder
    precision: str
    batch: BatchSize = field(default_factory=lambda: BatchSize(_CPU_BATCH))
    compile: bool = False

    @property
    def ahead(self) -> int:
        """Batches to launch before the result of the first is waited for."""
        return 0 if self.encoder.device.type == "cpu" else 1

    @property
    def side_by_side(self) -> bool:
        """Whether passes may run side by side, each on one core."""
        compiled = self.compile or self.encoder.is_compiled  # for all cores
        fits = self.encoder.preprocess.geometry.image_bytes <= _SIDE_BY_SIDE_BYTES
        return self.encoder.device.type == "cpu" and self.encoder.reentrant and fits and not compiled

    @cached_property
    def _fast(self) -> Encoder:
        """What computes the same as the encoder; made by the first batch, so that trying one costs no memory."""
        compiled = self.compile or self.encoder.is_compiled
        return self.encoder if compiled else with_weights_cast(self.encoder, self.precision)

    def staging(self, images: int) -> torch.Tensor:
        """Return memory for 8-bit pixels (images, H, W, 3); page-locked for a CUDA device, so that copies need no waiting.

        It is used once: PyTorch's allocator gives it out again when the copy that was launched from it is done.
        """
        size = (images, *self.encoder.preprocess.geometry.size, 3)
        return torch.empty(size, dtype=torch.uint8, pin_memory=self.encoder.device.type == "cuda")

    def launch(self, images: torch.Tensor, cores: Cores | None = None) -> list[Batch]:
        """Begin the forward passes over 8-bit images (B, H, W, 3), in as many parts as the memory wants.

        Args:
            images: From :meth:`staging`.
            cores: Have one of these compute, if passes may run side by side.

        Raises:
            DataError: One image alone does not fit.

        """
        parts: list[Batch] = []
        start = 0
        while start < len(images):
            part = images[start : start + self.batch.size]
            out_of_memory = False
            try:
                parts.append(self._launch(part, cores))
            except torch.OutOfMemoryError:
                if self.batch.size == 1:
                    raise DataError(
                        f"{self.encoder.name}: one image does not fit the memory of {self.encoder.device}"
                    ) from None
                out_of_memory = True
            if out_of_memory:  # outside the except block, whose error would keep the tensors alive
                self.batch.halve()
                torch.cuda.empty_cache()
                log.warning("%s: out of memory, going on with batches of %d", self.encoder.name, self.batch.size)
            else:
                start += len(part)
        return parts

    def finish(self, parts: list[Batch]) -> dict[str, np.ndarray]:
        """Return every view of launched parts as float32 (B, width).

        A row that is not finite is computed once more in fp32, and stays as it is if that does not help.
        """
        found = []
        for part in parts:
            views = part.wait()
            self.batch.took(len(part.images), part.seconds)
            if self.precision != "fp32":
                bad = ~np.logical_and.reduce([np.isfinite(values).all(axis=1) for values in views.values()])
                if bad.any():
                    with autocast("fp32", self.encoder.device):
                        again = self.encoder.encode(to_pixels(self.encoder, part.images[torch.from_numpy(bad)]))
                    for view, values in again.items():
                        views[view][bad] = values.cpu().numpy()
            found.append(views)
        return {view: np.concatenate([views[view] for views in found]) for view in self.encoder.views}

    def encode(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Return every view as float32 (B, width) for 8-bit images (B, H, W, 3)."""
        staged = self.staging(len(images))
        staged.numpy()[:] = images
        return self.finish(self.launch(staged))

    def _launch(self, images: torch.Tensor, cores: Cores | None) -> Batch:
        if cores is not None:
            return Batch(images, cores.begin(self._views, self._fast, images))
        if self.encoder.device.type != "cuda":
            started = time.perf_counter()
            return Batch(images, self._views(self._fast, images), time.perf_counter() - started)
        began, ready = (torch.cuda.Event(enable_timing=True, blocking=True) for _ in range(2))  # type: ignore[no-untyped-call]
        stream = torch.cuda.current_stream(self.encoder.device)
        began.record(stream)
        views = {view: values.to("cpu", non_blocking=True) for view, values in self._views(self._fast, images).items()}
        ready.record(stream)
        return Batch(images, views, began=began, ready=ready)

    def _views(self, encoder: Encoder, images: torch.Tensor) -> dict[str, torch.Tensor]:
        pixels = to_pixels(encoder, images)
        if self.compile:
            self.compile = False
            compile_in_place(encoder, pixels, self.precision)
        with autocast(self.precision, encoder.device):
            return encoder.encode(pixels)


def cores_for(forwards: Iterable[Forward]) -> AbstractContextManager[Cores | None]:
    """Return cores for passes side by side, or None where one of these encoders is to have the whole processor."""
    return Cores() if all(forward.side_by_side for forward in forwards) else nullcontext()


def to_pixels(encoder: Encoder, images: torch.Tensor) -> torch.Tensor:
    """Return normalised pixels on the encoder's device, in the memory order that convolutions are fastest in."""
    if encoder.device.type == "cuda":
        images = images.to(encoder.device, non_blocking=True)
    return encoder.normalize(images).contiguous(memory_format=torch.channels_last)
