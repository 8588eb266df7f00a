"""Reading checkpoint files without running anything that they carry."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from medprobe.errors import DataError


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Return what a checkpoint file holds: a safetensors file, or a PyTorch file of tensors and plain containers.

    Raises:
        DataError: The file is missing, is neither format, or carries a pickled object or call. Nothing of it is run.

    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"--weights: {path} is not a file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise DataError(
            f"--weights: {path.name} holds more than tensors (a pickled object), which is never loaded. "
            "Save its state dict with safetensors, on a machine that trusts it, and pass that file."
        ) from error
    except Exception as error:
        raise DataError(
            f"--weights: {path.name} could not be read as safetensors or a PyTorch file: {error}"
        ) from error
    if not isinstance(loaded, Mapping):
        raise DataError(f"--weights: {path.name} holds a {type(loaded).__name__}, not a dictionary of tensors")
    return dict(loaded)


def state_dict_of(checkpoint: Mapping[str, Any], prefix: str = "") -> dict[str, torch.Tensor]:
    """Return the tensors of a checkpoint whose keys start with ``prefix``, which is cut off.

    The usual wrappers (``state_dict``, ``model``, ``teacher``, ``model_state_dict``) are opened, and ``module.`` is dropped.
    """
    for wrapper in ("state_dict", "model", "teacher", "model_state_dict"):
        if isinstance(checkpoint.get(wrapper), Mapping):
            checkpoint = checkpoint[wrapper]
    tensors = {str(key).removeprefix("module."): v for key, v in checkpoint.items() if isinstance(v, torch.Tensor)}
    return {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}


def load_strictly(module: torch.nn.Module, state: Mapping[str, torch.Tensor], what: str) -> None:
    """Load a state dict of which every key must fit, into a network.

    Raises:
        DataError: A key is missing or unexpected, or a shape differs; the first few are named.

    """
    own = module.state_dict()
    missing = sorted(own.keys() - state.keys())
    unexpected = sorted(state.keys() - own.keys())
    shapes = sorted(k for k in own.keys() & state.keys() if own[k].shape != state[k].shape)
    problems = []
    if missing:
        problems.append(f"{len(missing)} keys are missing (first: {', '.join(missing[:3])})")
    if unexpected:
        problems.append(f"{len(unexpected)} keys are not part of it (first: {', '.join(unexpected[:3])})")
    for key in shapes[:3]:
        problems.append(f"{key} is {tuple(state[key].shape)}, expected {tuple(own[key].shape)}")
    if problems:
        raise DataError(f"--weights: the file does not fit {what}: " + "; ".join(problems))
    module.load_state_dict(dict(state))
