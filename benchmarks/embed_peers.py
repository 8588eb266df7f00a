"""How others embed a list of files, each as its own documentation or habit has it; what is not installed is left out."""

from __future__ import annotations

import importlib.util
import tempfile
import time
from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torchvision import transforms

from medprobe.encoders.base import Encoder

Peer = Callable[[Encoder, Sequence[str], torch.device, int], float]
_UNMEASURED = {
    "thingsvision": "2.7 pins torchvision 0.15 and numpy 1",
    "clip_retrieval": "2.45 pins numpy 1 and embeds with CLIP alone",
    "lightly_train": "embeds with checkpoints of its own",
    "eva": "wants its own data sets and configuration",
}


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


PEERS: dict[str, Peer] = {
    "plain loop": plain,
    "DataLoader, 0 workers": data_loader(0),
    "DataLoader, 2 workers": data_loader(2),
}


def absent() -> list[str]:
    """Return a sentence for each peer that is not measured here."""
    return [
        f"{name}: {'installed, not measured' if importlib.util.find_spec(name) else 'not installed'} ({why})"
        for name, why in _UNMEASURED.items()
    ]
