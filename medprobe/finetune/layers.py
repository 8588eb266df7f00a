"""Which parameters a network's output depends on, and how deep in it they lie."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

Parameters = Mapping[str, nn.Parameter]


def reached(output: Callable[[], torch.Tensor], parameters: Parameters) -> set[str]:
    """Return the names of the parameters that an output depends on.

    A network may have others: SAM's neck has no part in the mean of its tokens. They are not trained, not counted, and
    would stop processes that wait for their gradients.

    Args:
        output: Computes the output, with gradients.
        parameters: By name; those that need no gradient are reached by none.

    """
    wanted = {name: p for name, p in parameters.items() if p.requires_grad}
    found = output()
    if not wanted or not found.requires_grad:
        return set()
    gradients = torch.autograd.grad(found.float().sum(), list(wanted.values()), allow_unused=True)
    return {name for name, gradient in zip(wanted, gradients, strict=True) if gradient is not None}


def depths(output: Callable[[], torch.Tensor], module: nn.Module, blocks: Sequence[nn.Module]) -> dict[str, int]:
    """Return how deep each parameter of a network lies: 0 before the first of its blocks, then 1, ..., and after the last.

    What lies after the blocks is what the output still depends on when the blocks hand on values without a gradient.

    Args:
        output: Computes the network's output.
        module: The network, whose parameters all need gradients for this.
        blocks: Its blocks, in order.

    """
    of_block = {id(p): i for i, block in enumerate(blocks, 1) for p in block.parameters()}
    named = dict(module.named_parameters())
    hooks = [block.register_forward_hook(lambda _module, _inputs, out: _detached(out)) for block in blocks]
    try:
        after = reached(output, {name: p for name, p in named.items() if id(p) not in of_block})
    finally:
        for hook in hooks:
            hook.remove()
    return {name: of_block.get(id(p), len(blocks) + 1 if name in after else 0) for name, p in named.items()}


def groups_for(
    trained: Parameters, depth: Mapping[str, int], n_blocks: int, weight_decay: float, layer_decay: float
) -> list[dict[str, Any]]:
    """Return parameter groups for an optimiser: ``scale`` is what the learning rate of each is multiplied with.

    The rate falls with the distance from the last block (BEiT's layer decay, Bao et al., ICLR 2022); biases and other
    vectors have no weight decay.

    Args:
        trained: Parameters by name.
        depth: Of some of them, as :func:`depths` counts; the others are after all blocks.
        n_blocks: Number of blocks.
        weight_decay: Of matrices.
        layer_decay: 1 for one rate.

    """
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in trained.items():
        decayed = parameter.ndim > 1 and not name.endswith(".bias")
        groups.setdefault((depth.get(name, n_blocks + 1), decayed), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": weight_decay if decayed else 0.0,
            "scale": layer_decay ** (n_blocks + 1 - level),
        }
        for (level, decayed), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]


def _detached(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach()
    if isinstance(value, tuple | list):
        return type(value)(_detached(item) for item in value)
    return value
