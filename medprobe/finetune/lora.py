"""Low-rank adapters (LoRA, Hu et al., ICLR 2022) in an encoder, through peft, and their way back into its weights."""

from __future__ import annotations

from typing import Any

from torch import nn

from medprobe.encoders.base import Encoder
from medprobe.errors import UsageError

_ATTENTION = ("attn", "attention")


def add_adapters(encoder: Encoder, rank: int) -> None:
    """Put adapters into the attention of an encoder's blocks, in place; all other parameters stay frozen.

    The linear layers of attention get them, convolutions of one pixel included. Where attention has none of its own
    (PyTorch's fused one of OpenCLIP, focal modulation), all linear layers of the blocks do.

    Raises:
        UsageError: peft is not installed, the rank is not positive, or no layer can have one.

    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ModuleNotFoundError as error:
        raise UsageError(
            f"--mode lora needs {error.name}, which is not installed: pip install 'medprobe[finetune]'"
        ) from None
    if rank < 1:
        raise UsageError(f"--lora-rank {rank}: at least 1")
    targets = adapted_layers(encoder)
    if not targets:
        raise UsageError(f"--mode lora: {encoder.name} has no linear layers in blocks; take another mode")
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets), encoder.module)


def adapted_layers(encoder: Encoder) -> list[str]:
    """Return the names of the layers that get adapters."""
    inside = {id(module) for block in encoder.blocks() for module in block.modules()}
    fused = tuple(
        f"{name}." for name, module in encoder.module.named_modules() if isinstance(module, nn.MultiheadAttention)
    )
    linear = [
        name
        for name, module in encoder.module.named_modules()
        if id(module) in inside and _is_linear(module) and not (fused and name.startswith(fused))
    ]
    attention = [name for name in linear if any(word in name for word in _ATTENTION)]
    return attention or linear


def merge_adapters(encoder: Encoder) -> None:
    """Add what the adapters have learned to the weights, in place, and take them out; without any, do nothing."""
    try:
        from peft.tuners.lora import LoraLayer
    except ModuleNotFoundError:
        return
    adapted: list[tuple[str, Any]] = [(n, m) for n, m in encoder.module.named_modules() if isinstance(m, LoraLayer)]
    for name, layer in adapted:
        layer.merge()
        parent, _, child = name.rpartition(".")
        setattr(encoder.module.get_submodule(parent), child, layer.get_base_layer())


def _is_linear(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv2d):
        return module.kernel_size == (1, 1) and module.groups == 1
    return isinstance(module, nn.Linear)
