"""How others embed a list of files, each as its own documentation or habit has it; what cannot be imported is left out."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence

import torch
from embed_tools import Peer, eva, lightly_train, obstacle, thingsvision
from PIL import Image
from torchvision import transforms

from medprobe.encoders.base import Encoder


def _transform(encoder: Encoder) -> transforms.Compose:
    preprocess = encoder.preprocess
    return transforms.Compose(
        [
            transforms.Resize(preprocess.geometry.resize, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(preprocess.geometry.size),
            transforms.ToTensor(),
            transforms.Normalize(preprocess.mean, preprocess.std),
        ]
    )


class Files(torch.utils.data.Dataset):  # type: ignore[type-arg]
    def __init__(self, files: Sequence[str], transform: transforms.Compose) -> None:
        self.files, self.transform = files, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.transform(Image.open(self.files[index]).convert("RGB"))


def data_loader(workers: int) -> Peer:
    """Return the loop that everybody writes: a Dataset, a DataLoader, ``no_grad``, a list of features, one file at the end."""

    def run(encoder: Encoder, files: Sequence[str], device: torch.device, batch: int) -> float:
        started = time.perf_counter()
        loader = torch.utils.data.DataLoader(Files(files, _transform(encoder)), batch_size=batch, num_workers=workers)
        with torch.no_grad(), tempfile.TemporaryFile() as file:
            features = [encoder.forward_views(pixels.to(device))[encoder.default_view].cpu() for pixels in loader]
            torch.save(torch.cat(features), file)
        return (time.perf_counter() - started) / len(files)

    return run


def plain(encoder: Encoder, files: Sequence[str], device: torch.device, batch: int) -> float:
    """Return seconds an image of the loop of open_clip's README: image by image, whatever the encoder."""
    transform = _transform(encoder)
    started = time.perf_counter()
    with torch.no_grad():
        for file in files:
            encoder.forward_views(transform(Image.open(file).convert("RGB")).unsqueeze(0).to(device))
    return (time.perf_counter() - started) / len(files)


_LOOPS: dict[str, Peer] = {
    "plain loop": plain,
    "DataLoader, 0 workers": data_loader(0),
    "DataLoader, 2 workers": data_loader(2),
}
_TOOLS: dict[str, dict[str, Peer]] = {
    "eva.vision": {"eva predict, its own workers": eva(None), "eva predict, 0 workers": eva(0)},
    "lightly_train": {
        "lightly-train embed, its own workers": lightly_train("auto"),
        "lightly-train embed, 0 workers": lightly_train(0),
    },
    "thingsvision.utils.data": {"thingsvision": thingsvision},
}


def present() -> dict[str, Peer]:
    """Return the peers that can be measured here, having imported what they need."""
    return _LOOPS | {
        name: run for package, peers in _TOOLS.items() if not obstacle(package) for name, run in peers.items()
    }


def absent() -> list[str]:
    """Return a sentence for each peer that is not measured here."""
    found = {package: obstacle(package) for package in _TOOLS}
    return [
        *(f"{package.split('.')[0]} ({why})" for package, why in found.items() if why),
        "clip_retrieval (2.45 pins numpy 1, and embeds with CLIP alone, which it loads by itself)",
    ]
