"""The contract of an encoder: a frozen network together with the preprocessing that it was trained with."""

from __future__ import annotations

import abc
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import torch

from medprobe.errors import UsageError
from medprobe.images.dicom_values import DICOM_RULE
from medprobe.images.geometry import Geometry
from medprobe.images.raster import COLOUR_RULE

TOKENS = "tokens"

# Where networks keep the blocks that they are a sequence of; the first name that a network has is taken.
_BLOCKS = (
    "blocks",
    "transformer.resblocks",
    "trunk.blocks",
    "trunk.trunk.blocks",
    "trunk.stages",
    "layers",
    "stages",
    "vision.encoder.layer",
    "vision.encoder.layers",
    "vision.encoder.stages",
    "vision.layer",
    "vision.layers",
    "vision.model.layer",
)
_RESNET_BLOCKS = ("layer1", "layer2", "layer3", "layer4")


@dataclass(frozen=True)
class Preprocess:
    """How pixels reach a network: geometry in 8-bit RGB, then ``(pixels / 255 - mean) / std`` per channel.

    Grey images are repeated over the three channels. Nothing is left to a library's default.

    Attributes:
        geometry: Resize and crop.
        mean: Of red, green and blue in 0..1.
        std: Likewise.
        normalization: Whose mean and std these are: the encoder's own, the data set's, or given by the user.

    """

    geometry: Geometry
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    normalization: str = "encoder"

    def to_dict(self) -> dict[str, Any]:
        """Return every value, spelled out, as it is kept in a store."""
        return {
            **self.geometry.to_dict(),
            "mean": list(self.mean),
            "std": list(self.std),
            "normalization": self.normalization,
            "colour": COLOUR_RULE,
            "dicom": DICOM_RULE,
            "range": "0..1 before mean and std",
        }


@dataclass(frozen=True)
class Card:
    """What a reader of a paper needs to know about an encoder, besides its numbers."""

    licence: str = "unknown"
    citation: str = ""
    training_data: str = "unknown"
    url: str = ""

    def to_dict(self) -> dict[str, str]:
        """Return the card as plain strings."""
        return asdict(self)


class Encoder(abc.ABC):
    """A frozen network that turns normalised pixels into one or more vectors (views) an image.

    A subclass sets the attributes below and writes :meth:`forward_views`; everything else is shared. It may return more
    than ``views`` names: of a transformer, ``tokens`` (:func:`flat_tokens`), which is kept on request only. Gradients
    flow through :meth:`forward_views` and :meth:`forward_tokens` where they are switched on, as fine-tuning does.

    Attributes:
        name: The name that a user types, such as ``dinov2/vitb14``.
        preprocess: Size, crop, interpolation, mean and standard deviation.
        views: Name and width of each view; all of them come from one forward pass.
        default_view: The pooling that the network was trained with.
        module: The network, in evaluation mode and without gradients.
        card: Licence, citation, training data.
        architecture: What the weights are loaded into (part of the fingerprint).
        reentrant: Whether several threads may call :meth:`forward_views` at once: it leaves nothing on the encoder or its
            modules, not by a hook either. On a processor passes then run side by side, one a core.

    """

    name: str
    preprocess: Preprocess
    views: Mapping[str, int]
    default_view: str
    module: torch.nn.Module
    card: Card = Card()
    architecture: str = ""
    reentrant: bool = False

    @abc.abstractmethod
    def forward_views(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return each view, shape (B, width), for normalised pixels of shape (B, 3, H, W) in the network's dtype."""

    @torch.inference_mode()
    def encode(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return every view as float32 of shape (B, width) for normalised pixels of shape (B, 3, H, W)."""
        views = self.forward_views(pixels.to(self.device, self.dtype))
        return {view: views[view].float() for view in self.views}

    def normalize(self, images: torch.Tensor) -> torch.Tensor:
        """Return float32 pixels (B, 3, H, W), normalised, for 8-bit RGB images of shape (B, H, W, 3)."""
        mean, std = _rows_of(self.preprocess.mean, self.preprocess.std, images.shape[2], self.device)
        scaled = images.to(self.device, torch.float32).flatten(
            2
        )  # rows of pixels: three values are too few to add at once
        return scaled.sub_(mean).div_(std).view(images.shape).permute(0, 3, 1, 2)

    @torch.inference_mode()
    def with_tokens(self) -> Encoder:
        """Add the view ``tokens``, all patch tokens one after the other, in place and return the encoder.

        Raises:
            UsageError: The network has none.

        """
        pixels = torch.zeros(1, 3, *self.preprocess.geometry.size)
        found = self.forward_views(pixels.to(self.device, self.dtype)).get(TOKENS)
        if found is None:
            raise UsageError(f"--tokens: {self.name} has no patch tokens")
        self.views = {**self.views, TOKENS: int(found.shape[1])}
        return self

    def forward_tokens(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return patch tokens (B, patches, width) of normalised pixels, for a network that goes on from them.

        Raises:
            UsageError: The network has none.

        """
        views = self.forward_views(pixels)
        if TOKENS not in views:
            raise UsageError(f"{self.name} has no patch tokens")
        width = self.views["mean" if "mean" in self.views else self.default_view]
        return views[TOKENS].reshape(len(pixels), -1, width)

    def blocks(self) -> list[torch.nn.Module]:
        """Return the blocks that the network is a sequence of, the first one first; none where they are not known."""
        for path in _BLOCKS:
            try:
                found = self.module.get_submodule(path)
            except AttributeError:
                continue
            return list(found.children())
        children = dict(self.module.named_children())
        return [children[name] for name in _RESNET_BLOCKS if name in children]

    def released_state(self) -> dict[str, torch.Tensor]:
        """Return the network's weights with the keys of its family's released files, as ``--weights`` takes them."""
        return dict(self.module.state_dict())

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the network computes in (float32 for one without parameters)."""
        return next((p.dtype for p in self.module.parameters() if p.is_floating_point()), torch.float32)

    @property
    def device(self) -> torch.device:
        """The device that the network lies on (the CPU for one without parameters)."""
        return next((p.device for p in self.module.parameters()), torch.device("cpu"))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Encoder:
        """Move or cast the network in place and return the encoder."""
        self.module.to(device=device, dtype=dtype)
        return self

    def compile(self) -> None:
        """Have :meth:`forward_views` compiled when it is next called, for the shapes that it is called with."""
        self.__dict__["forward_views"] = torch.compile(self.forward_views)

    def uncompile(self) -> None:
        """Take :meth:`compile` back."""
        self.__dict__.pop("forward_views", None)

    @property
    def is_compiled(self) -> bool:
        """Whether :meth:`forward_views` is compiled."""
        return "forward_views" in self.__dict__

    def freeze(self) -> Encoder:
        """Put the network in evaluation mode, switch its gradients off and return the encoder."""
        self.module.eval().requires_grad_(False)
        return self

    @property
    def n_parameters(self) -> int:
        """Number of parameters of the network."""
        return sum(p.numel() for p in self.module.parameters())

    def provenance(self) -> dict[str, Any]:
        """Return everything that decides the values of the features, except precision and library versions.

        Call it before :meth:`to` changes the dtype: the weights' digest is that of the released numbers.
        """
        return {
            "name": self.name,
            "architecture": self.architecture or type(self.module).__name__,
            "weights_sha256": weights_digest(self.module),
            "views": dict(self.views),
            "default_view": self.default_view,
            "preprocess": self.preprocess.to_dict(),
        }


@lru_cache
def _rows_of(
    mean: tuple[float, float, float], std: tuple[float, float, float], width: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and standard deviation of 0..255, repeated for each pixel of a row: sent to a device once, not per batch."""
    one_pixel = (torch.tensor(values).mul_(255.0) for values in (mean, std))
    first, second = (values.repeat(width).to(device) for values in one_pixel)
    return first, second


def weights_digest(module: torch.nn.Module) -> str:
    """Return the SHA-256 of all names, shapes, dtypes and bytes of a network's state, in the order of their names.

    The digest is of the numbers, not of a file: the same weights from two file formats agree.
    """
    digest = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        array = value.detach().cpu().contiguous()
        digest.update(f"{key}|{tuple(array.shape)}|{array.dtype}\n".encode())
        digest.update(array.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def fingerprint(provenance: Mapping[str, Any], precision: str) -> str:
    """Return the SHA-256 that names an encoder with its weights, preprocessing and precision.

    Two stores whose features may be compared or joined as one encoder's have the same fingerprint.
    """
    canonical = json.dumps({**provenance, "precision": precision}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


@dataclass(frozen=True)
class LoadOptions:
    """What a user may change when an encoder is loaded."""

    weights: str | None = None
    image_size: int | None = None
    exact_decode: bool = False


def flat_tokens(patches: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the view ``tokens``, (B, patches * width), of patch tokens (B, patches, width) or a map (B, width, H, W)."""
    tokens = patches.flatten(2).transpose(1, 2) if patches.ndim == 4 else patches
    return {TOKENS: tokens.flatten(1)}


def pool_tokens(tokens: torch.Tensor, n_prefix: int, has_cls: bool) -> dict[str, torch.Tensor]:
    """Return the views ``cls``, ``mean`` and ``cls+mean`` of the tokens (B, n_prefix + patches, width) of a transformer.

    ``mean`` is over patch tokens only; class and register tokens are the first ``n_prefix``. Without a class token
    only ``mean`` comes back.
    """
    tokens = tokens.float()
    mean = tokens[:, n_prefix:].mean(dim=1)
    if not has_cls:
        return {"mean": mean}
    cls = tokens[:, 0]
    return {"cls": cls, "mean": mean, "cls+mean": torch.cat([cls, mean], dim=1)}
