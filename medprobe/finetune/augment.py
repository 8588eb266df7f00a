"""Random changes of training images, each a function of seed, epoch and image alone.

So neither the number of processes nor an interruption changes what a network sees.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

Augmentation = Callable[[torch.Tensor], torch.Tensor]


def augmentation_of(names: Sequence[str], size: tuple[int, int]) -> Augmentation | None:
    """Return the named changes in the order and strength of Pales Huix et al. (WACV 2024), or None for none.

    Args:
        names: Any of ``crop`` (0.8 to 1.2 of the area, back to ``size``; what is larger than the image is the image),
            ``flips`` (either way, each by half) and ``jitter`` (brightness and contrast by 0.2, saturation and hue by 0.1,
            of four images in five).
        size: Height and width of the images.

    """
    from torchvision.transforms import v2

    steps: list[torch.nn.Module] = []
    if "crop" in names:
        steps.append(v2.RandomResizedCrop(size, scale=(0.8, 1.2), antialias=True))
    if "flips" in names:
        steps += [v2.RandomVerticalFlip(), v2.RandomHorizontalFlip()]
    if "jitter" in names:
        steps.append(v2.RandomApply([v2.ColorJitter(0.2, 0.2, 0.1, 0.1)], p=0.8))
    return v2.Compose(steps) if steps else None


def augmented(image: torch.Tensor, change: Augmentation, *key: int) -> torch.Tensor:
    """Return an image, uint8 (3, H, W), changed in the way that the numbers of ``key`` draw."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived(*key))
        return change(image)


def derived(*key: int) -> int:
    """Return a seed that differs for every combination of numbers."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))
