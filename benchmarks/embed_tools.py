"""Tools that embed a list of files, each by its own public call on medprobe's network.

Each reads, resizes, batches and writes in its own way; all that it does once its package is imported counts. They live in
an environment of their own, which sees medprobe's by a ``.pth`` file:

    python -m venv peers
    echo $PWD/.venv/lib/python3.11/site-packages > peers/lib/python3.11/site-packages/medprobe.pth
    peers/bin/pip install -c constraints.txt kaiko-eva==0.4.5 lightly matplotlib opencv-python-headless
    peers/bin/pip install --no-deps lightly-train==0.18.0 albumentations==2.0.8 albucore==0.0.24 simsimd stringzilla \
        eval-type-backport nvidia-ml-py pycocotools lightly-utils monai einops h5py openslide-python gdown \
        thingsvision==2.7.3 torchtyping typeguard==2.13.3
    PYTHONPATH=. peers/bin/python benchmarks/embed.py

``--no-deps`` keeps torch and numpy as they are. thingsvision pins torchvision 0.15, numpy 1 and TensorFlow, of which its
extractor for PyTorch uses nothing but ``numpy.AxisError``: while it is imported, that name is back and TensorFlow an empty
stand-in.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
import logging
import os
import sys
import tempfile
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from medprobe.encoders.base import Encoder

Peer = Callable[[Encoder, Sequence[str], torch.device, int], float]  # to seconds an image
_TENSORFLOW = ("tensorflow", "tensorflow.keras", "tensorflow.keras.applications", "tensorflow.keras.layers")


class Network(torch.nn.Module):
    """An encoder as a module from pixels to its default view, with the methods that lightly-train wants of any model."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder, self.module = encoder, encoder.module

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.encoder.forward_views(pixels)[self.encoder.default_view]

    def get_model(self) -> torch.nn.Module:
        return self

    def feature_dim(self) -> int:
        return self.encoder.views[self.encoder.default_view]

    def forward_features(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"features": self(pixels)[:, :, None, None]}

    def forward_pool(self, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"pooled_features": features["features"]}


def eva(workers: int | None) -> Peer:
    """Return eva's ``predict`` with the parts that its configurations name: its reader, its resize, a file an image.

    Args:
        workers: Of its DataLoader; None, as it is by itself, is one for every core.

    """

    def run(encoder: Encoder, files: Sequence[str], device: torch.device, batch: int) -> float:
        from eva import core, vision
        from eva.core.callbacks import ClassificationEmbeddingsWriter
        from eva.vision.data.transforms.common import ResizeAndCrop
        from eva.vision.utils.io import read_image_as_tensor

        class Images(vision.datasets.VisionDataset):  # type: ignore[misc, name-defined]
            def __len__(self) -> int:
                return len(files)

            def filename(self, index: int) -> str:
                return Path(files[index]).name

            def load_data(self, index: int) -> torch.Tensor:
                return read_image_as_tensor(files[index])

            def load_target(self, index: int) -> torch.Tensor:
                return torch.tensor(0)

            def _apply_transforms(self, image: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
                return self._transforms(image), target

        preprocess = encoder.preprocess
        how: dict[str, Any] = {"batch_size": batch, "num_workers": workers}
        if workers == 0:
            how |= {"prefetch_factor": None, "persistent_workers": False}
        with tempfile.TemporaryDirectory() as out, _quiet():
            started = time.perf_counter()
            images = Images(ResizeAndCrop(preprocess.geometry.size, preprocess.mean, preprocess.std))
            writer = ClassificationEmbeddingsWriter(f"{out}/embeddings")
            core.Interface().predict(
                core.Trainer(default_root_dir=f"{out}/logs", accelerator=_accelerator(device), callbacks=[writer]),
                core.InferenceModule(Network(encoder)),
                core.DataModule(
                    core.DatasetsSchema(predict=images), core.DataloadersSchema(predict=core.DataLoader(**how))
                ),
            )
            seconds = time.perf_counter() - started
            _expect(len(list(Path(out).rglob("*.pt"))), files)
        encoder.to(device)  # Lightning leaves it on the CPU
        return seconds / len(files)

    return run


def lightly_train(workers: int | str) -> Peer:
    """Return lightly-train's ``embed`` with the encoder as a custom model in a checkpoint, loading that included.

    Args:
        workers: Of its DataLoader; "auto", as it is by itself, is one for every core but one.

    """

    def run(encoder: Encoder, files: Sequence[str], device: torch.device, batch: int) -> float:
        from lightly_train import embed

        trained = _lightly_run(encoder, tuple(files[:2]))
        with tempfile.TemporaryDirectory() as out, _quiet():
            started = time.perf_counter()
            embed(
                out=f"{out}/embeddings.pt",
                data=files,
                checkpoint=f"{trained.name}/run/checkpoints/last.ckpt",
                image_size=encoder.preprocess.geometry.size,
                batch_size=batch,
                num_workers=workers,
                accelerator=_accelerator(device),
            )
            seconds = time.perf_counter() - started
            _expect(len(torch.load(f"{out}/embeddings.pt", weights_only=True)["embeddings"]), files)
        return seconds / len(files)

    return run


@cache
def _lightly_run(encoder: Encoder, files: tuple[str, ...]) -> tempfile.TemporaryDirectory[str]:
    """Train for one step, which is not timed: ``embed`` takes no model but one from such a run's checkpoint."""
    from lightly_train import pretrain

    folder = tempfile.TemporaryDirectory()
    with _quiet():
        pretrain(
            out=f"{folder.name}/run",
            data=files,
            model=copy.deepcopy(Network(encoder)),
            method="simclr",
            epochs=1,
            batch_size=len(files),
            num_workers=0,
            devices=1,
            accelerator="cpu",
            loggers={"tensorboard": None},
        )
    return folder


def thingsvision(encoder: Encoder, files: Sequence[str], device: torch.device, batch: int) -> float:
    """Return seconds an image of thingsvision as its README has it: extractor, data set, batches, features, one file."""
    from thingsvision import get_extractor_from_model
    from thingsvision.utils.data import DataLoader, ImageDataset
    from thingsvision.utils.storing import save_features

    geometry = encoder.preprocess.geometry
    with tempfile.TemporaryDirectory() as out, _quiet():
        started = time.perf_counter()
        model = torch.nn.Sequential(OrderedDict(view=Network(encoder)))
        extractor = get_extractor_from_model(model=model, device=str(device), backend="pt")
        images = ImageDataset(
            root=str(Path(files[0]).parent),
            out_path=out,
            backend="pt",
            file_names=[Path(file).name for file in files],
            transforms=extractor.get_transformations(resize_dim=geometry.resize, crop_dim=geometry.size),
        )
        batches = DataLoader(dataset=images, batch_size=batch, backend="pt")
        features = extractor.extract_features(batches=batches, module_name="view", flatten_acts=True)
        save_features(features, out_path=out, file_format="npy")
        seconds = time.perf_counter() - started
        _expect(len(np.load(f"{out}/features.npy")), files)
    return seconds / len(files)


@cache
def obstacle(package: str) -> str:
    """Import a package with what it needs, and return why that fails; the empty string where it does not."""
    os.environ["LIGHTLY_TRAIN_EVENTS_DISABLED"] = "1"
    for name in ("lightning.pytorch", "pytorch_lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with _quiet(), _old_names() if package.startswith("thingsvision") else contextlib.nullcontext():
            importlib.import_module(package)
    except ImportError as error:
        return str(error).splitlines()[0]
    if package.startswith("eva"):
        importlib.import_module("loguru").logger.disable("eva")
    return ""


@contextlib.contextmanager
def _old_names() -> Iterator[None]:
    for name in ("torch._dynamo", "transformers"):  # they look for TensorFlow and would take the stand-in for it
        importlib.import_module(name)
    sys.modules.update({name: mock.MagicMock() for name in _TENSORFLOW})
    np.AxisError = np.exceptions.AxisError  # type: ignore[attr-defined]
    try:
        yield
    finally:
        del np.AxisError  # type: ignore[attr-defined]
        for name in _TENSORFLOW:
            del sys.modules[name]


def _accelerator(device: torch.device) -> str:
    return "gpu" if device.type == "cuda" else device.type


def _expect(written: int, files: Sequence[str]) -> None:
    if written != len(files):
        raise RuntimeError(f"{written} of {len(files)} images were embedded")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield
