"""What a training leaves in its folder: weights, the course of its loss, and the figure of that."""

from __future__ import annotations

import csv
import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from medprobe.encoders.base import Encoder
from medprobe.errors import UsageError
from medprobe.finetune.checkpoint import FILE, whole
from medprobe.finetune.curves import write_curves
from medprobe.finetune.heads import Network
from medprobe.finetune.lora import merge_adapters

log = logging.getLogger("medprobe")

ENCODER, HEAD, HISTORY, RATES = "finetuned.safetensors", "head.safetensors", "history.csv", "rates.json"
LEFT_BEHIND = (ENCODER, HEAD, HISTORY, RATES, FILE, "curves.svg", "curves.png", "failures.csv")


def write_weights(encoder: Encoder, network: Network, folder: Path, facts: Mapping[str, str]) -> None:
    """Write the encoder as ``medprobe embed --weights`` takes it, and the head; adapters are merged into the encoder.

    Args:
        encoder: Of the network.
        network: Trained.
        folder: Where to.
        facts: Go into the files' metadata.

    """
    merge_adapters(encoder)
    _write(encoder.released_state(), folder / ENCODER, facts)
    _write(network.head.state_dict(), folder / HEAD, facts)


def _write(state: Mapping[str, torch.Tensor], path: Path, facts: Mapping[str, str]) -> None:
    with whole(path) as draft:
        save_file(
            {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}, draft, dict(facts)
        )


def write_history(history: Sequence[Mapping[str, float]], folder: Path) -> None:
    """Write a table of the epochs, and a figure of it where Altair is installed (``medprobe[report]``)."""
    if not history:
        return
    with whole(folder / HISTORY) as draft, draft.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(history[0]))
        writer.writeheader()
        writer.writerows(history)
    try:
        write_curves(history, folder)
    except UsageError as error:
        log.info("no figure of the loss: %s", error)


def write_tensorboard(history: Sequence[Mapping[str, float]], folder: Path) -> None:
    """Write the epochs for TensorBoard, into a folder of that name.

    Raises:
        UsageError: TensorBoard is not installed.

    """
    writer = tensorboard_writer()(str(folder / "tensorboard"))
    for row in history:
        for name, value in row.items():
            if name not in {"epoch", "step"}:
                writer.add_scalar(name, value, int(row["step"]))
    writer.close()


def tensorboard_writer() -> Any:
    """Return the class that writes for TensorBoard.

    Raises:
        UsageError: TensorBoard is not installed.

    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UsageError(
            "--tensorboard needs the package tensorboard, which is not installed: pip install tensorboard"
        ) from error
    return SummaryWriter


def read_rates(folder: Path | None, training: str) -> dict[float, float]:
    """Return learning rates and their scores that an earlier run of the same training has found."""
    path = None if folder is None else folder / RATES
    if path is None or not path.exists():
        return {}
    kept = json.loads(path.read_text(encoding="utf-8"))
    if kept["training"] != training:
        return {}
    return {float(lr): -math.inf if score is None else float(score) for lr, score in kept["scores"].items()}


def write_rates(folder: Path | None, training: str, scores: Mapping[float, float]) -> None:
    """Keep the scores of learning rates, for a run that is stopped among them."""
    if folder is None:
        return
    kept = {repr(lr): score if math.isfinite(score) else None for lr, score in scores.items()}
    with whole(folder / RATES) as draft:
        draft.write_text(json.dumps({"training": training, "scores": kept}, indent=1), encoding="utf-8")
