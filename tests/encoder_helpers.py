"""What the encoder tests share: networks with every number random, and the largest difference between two results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import parity
import torch
from safetensors.torch import save_file
from torch import nn

torch.set_num_threads(1)  # networks this small gain nothing from more, and test processes share the cores


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """Return the module in evaluation mode with every parameter and buffer random, at sizes that keep signals alive."""
    generator = torch.Generator().manual_seed(seed)

    def noise(tensor: torch.Tensor) -> torch.Tensor:
        return torch.randn(tensor.shape, generator=generator)

    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim > 1 and name.endswith("weight"):
                parameter.copy_(noise(parameter) / parameter[0].numel() ** 0.5)
            elif name.endswith(("weight", "gamma", "lambda1", "gamma_1", "gamma_2")):
                parameter.copy_(1 + 0.3 * noise(parameter))
            else:
                parameter.copy_(0.3 * noise(parameter))
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.3 * noise(buffer))
            elif name.endswith("running_var"):
                buffer.copy_(0.5 + noise(buffer).abs())
    return module.eval().requires_grad_(False)


def images(*size: int, n: int = 2, seed: int = 1) -> torch.Tensor:
    """Return normalised random pixels (n, 3, height, width)."""
    height, width = size if len(size) == 2 else (size[0], size[0])
    return torch.randn(n, 3, height, width, generator=torch.Generator().manual_seed(seed))


def difference(ours: torch.Tensor, reference: torch.Tensor) -> float:
    """Return the largest absolute difference between two tensors of one shape, which the table of parity lists."""
    assert ours.shape == reference.shape
    found = float((ours - reference).abs().max())
    parity.measured.append(found)
    return found


def saved(state: dict[str, Any], path: Path) -> str:
    """Write a checkpoint as safetensors or, by its suffix, as a PyTorch file, and return its path."""
    if path.suffix == ".safetensors":
        save_file({key: value.contiguous().clone() for key, value in state.items()}, path)
    else:
        torch.save(state, path)
    return str(path)
