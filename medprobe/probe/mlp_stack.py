"""Training of stacked multi-layer perceptrons: many networks, one loop over the data."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, softmax

from medprobe.probe._torch import torch_for
from medprobe.probe.stopping import may_stop
from medprobe.probe.targets import Floats

if TYPE_CHECKING:
    import torch

Precision = Literal["fp32", "bf16", "auto"]

_ROWS = 1024  # held-out rows that go through all networks at once


@dataclass(frozen=True)
class Setting:
    """One network and how it is trained.

    Args:
        hidden: Widths of the hidden layers, one or two.
        lr: Learning rate of AdamW.
        weight_decay: Decoupled weight decay of AdamW: each step shrinks the weights by ``lr * weight_decay``.
        dropout: Chance that a hidden unit is left out of a step.
        seed: Seed of the initial weights.

    """

    hidden: tuple[int, ...] = (256,)
    lr: float = 1e-3
    weight_decay: float = 1e-4
    dropout: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Trained:
    """One network after training: weights (in, out) and biases (out,) of each layer, and the epoch they come from."""

    weights: list[NDArray[np.float32]]
    biases: list[NDArray[np.float32]]
    epochs: int


def train(
    X: Floats,
    Y: NDArray[Any],
    settings: Sequence[Setting],
    *,
    n_classes: int,
    validation: tuple[Floats, NDArray[Any]] | None = None,
    max_epochs: int = 100,
    patience: int = 10,
    batch_size: int = 256,
    seed: int = 0,
    class_weight: Floats | None = None,
    device: str = "cpu",
    precision: Precision = "fp32",
) -> list[Trained]:
    """Return the trained network of every setting, in their order.

    Networks of the same hidden widths are one stack: the first layers of all are one matrix product. They see the same
    batches and, scaled to their own rates, the same dropout noise, so that a network comes out as if trained alone.
    The loss is cross-entropy for classes and, for labels, binary cross-entropy over those that are known. AdamW
    (Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization") updates the weights and biases.

    Args:
        X: Features, (n, d), standardised by the caller.
        Y: Class codes (n,), or labels 0, 1 or NaN (n, n_classes).
        settings: Networks to train.
        n_classes: Classes of ``Y``, or its columns.
        validation: Features and targets of held-out rows: each network keeps the weights of the epoch at which its
            loss on these rows was lowest, and stops once ``patience`` epochs have passed without a lower one. ``None``
            keeps the last epoch.
        max_epochs: Passes over the rows, at most.
        patience: Epochs without improvement before a network stops.
        batch_size: Rows of one step.
        seed: Seed of the order of the rows and of the dropout noise.
        class_weight: Weight of each class in the training loss, (n_classes,); not for labels.
        device: A torch device.
        precision: ``"bf16"`` multiplies features, weights and hidden units in bfloat16, adding up in float32; the
            loss and the weights that AdamW updates are float32. ``"auto"`` is ``"bf16"`` where the processor has matrix
            instructions for it, and ``"fp32"`` elsewhere.

    Raises:
        UsageError: torch is not installed.

    """
    trained: dict[int, Trained] = {}
    with torch_for("the MLP probe", X.size) as torch:
        dtype = torch.bfloat16 if precision == "bf16" or (precision == "auto" and _fast_bf16(device)) else torch.float32
        data = _Data(X, Y, class_weight, device, dtype)
        held_out = None if validation is None else _Data(*validation, class_weight, device, dtype)
        for hidden in dict.fromkeys(setting.hidden for setting in settings):
            members = [i for i, setting in enumerate(settings) if setting.hidden == hidden]
            stack = _Stack([settings[i] for i in members], data.X.shape[1], n_classes, device)
            order, noise = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed + 1)
            for epoch in range(1, max_epochs + 1):
                shuffled = torch.randperm(len(data.X), generator=order).to(device)
                for start in range(0, len(shuffled), batch_size):
                    may_stop()
                    stack.step(data, shuffled[start : start + batch_size], noise)
                if held_out is not None:
                    stack.keep_best(epoch, stack.losses(held_out), patience)
                    if not len(stack.active):
                        break
            if held_out is None:
                stack.keep_last(max_epochs)
            trained.update(zip(members, stack.trained(), strict=True))
    return [trained[i] for i in range(len(settings))]


def _fast_bf16(device: str) -> bool:
    import torch

    if torch.device(device).type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # torch does not tell; without these instructions bfloat16 is slower than float32.
    cpu = Path("/proc/cpuinfo")
    return torch.device(device).type == "cpu" and cpu.exists() and "amx_bf16" in cpu.read_text()


class _Data:
    """Features and targets on the device, and the weight of each row or label in the loss: 0 for a missing label."""

    def __init__(
        self, X: Floats, Y: NDArray[Any], class_weight: Floats | None, device: str, dtype: torch.dtype
    ) -> None:
        import torch

        # torch warns of arrays that it could write to but should not.
        self.X = torch.as_tensor(np.require(X, np.float32, ["C", "W"]), dtype=dtype, device=device)
        if Y.ndim == 1:
            weight = np.ones(len(Y)) if class_weight is None else np.asarray(class_weight)[Y]
            self.Y = torch.as_tensor(Y, dtype=torch.int64, device=device)
        else:
            weight = ~np.isnan(Y)
            self.Y = torch.as_tensor(np.nan_to_num(Y), dtype=torch.float32, device=device)
        self.weight = torch.as_tensor(weight, dtype=torch.float32, device=device)

    def loss(self, logits: torch.Tensor, rows: torch.Tensor | slice) -> torch.Tensor:
        """Return the weighted sum of the losses of each network, (networks,), from (networks, rows, classes)."""
        from torch.nn import functional

        target, weight = self.Y[rows], self.weight[rows]
        if target.ndim == 1:
            place = target[None, :, None].expand(len(logits), -1, 1)
            return -(functional.log_softmax(logits, dim=2).gather(2, place)[..., 0] * weight).sum(dim=1)
        losses = functional.binary_cross_entropy_with_logits(
            logits, target.expand_as(logits), weight=weight, reduction="none"
        )
        return losses.sum(dim=(1, 2))


class _Stack:
    """Networks of the same widths: every parameter has the networks as its first axis.

    Weights are (networks, in, out), but for the first layer (networks, out, in), so that a view of them as one matrix
    serves all networks; biases are (networks, 1, out). ``active`` names the networks still in training, which are all
    that the parameters hold; the others are in ``best`` alone.
    """

    def __init__(self, settings: Sequence[Setting], width: int, n_classes: int, device: str) -> None:
        import torch

        self.active = np.arange(len(settings))
        widths = (width, *settings[0].hidden, n_classes)
        generators = [torch.Generator().manual_seed(setting.seed) for setting in settings]

        def uniform(*shape: int, fan_in: int) -> torch.Tensor:
            drawn = [(2 * torch.rand(shape, generator=generator) - 1) / fan_in**0.5 for generator in generators]
            return torch.stack(drawn).to(device)

        self.parameters: list[torch.Tensor] = []
        for layer, (n_in, n_out) in enumerate(itertools.pairwise(widths)):
            shape = (n_out, n_in) if layer == 0 else (n_in, n_out)
            self.parameters += [uniform(*shape, fan_in=n_in), uniform(1, n_out, fan_in=n_in)]
        self.optimizer = _AdamW(
            self.parameters, [setting.lr for setting in settings], [setting.weight_decay for setting in settings]
        )
        self.keep_rate = torch.tensor([1 - setting.dropout for setting in settings], device=device)
        self.best = [parameter.clone() for parameter in self.parameters]
        self.best_loss = np.full(len(settings), np.inf)
        self.best_epoch = np.zeros(len(settings), np.int64)

    def logits(self, X: torch.Tensor, noise: torch.Generator | None = None) -> torch.Tensor:
        """Return the outputs of every network, (networks, rows, classes); with noise, under dropout."""
        import torch
        from torch.nn import functional

        weight, bias = self.parameters[:2]
        with torch.autocast(X.device.type, torch.bfloat16, enabled=X.dtype == torch.bfloat16):
            flat = functional.linear(X, weight.flatten(0, 1), bias.flatten())
            hidden = flat.view(len(X), len(weight), -1).transpose(0, 1)
            for weight, bias in zip(self.parameters[2::2], self.parameters[3::2], strict=True):
                hidden = hidden.relu()
                if noise is not None and bool((self.keep_rate < 1).any()):
                    drawn = torch.rand(len(X), 1, hidden.shape[2], generator=noise).to(X.device)
                    keep = self.keep_rate[:, None]
                    hidden = hidden * ((drawn < keep) / keep).to(hidden.dtype).transpose(0, 1)
                hidden = torch.baddbmm(bias, hidden, weight)
        return hidden.float()

    def step(self, data: _Data, rows: torch.Tensor, noise: torch.Generator) -> None:
        """Take one step of every active network on these rows."""
        import torch

        for parameter in self.parameters:
            parameter.requires_grad_()
        loss = data.loss(self.logits(data.X[rows], noise), rows).sum() / data.weight[rows].sum().clamp(min=1e-12)
        gradients = torch.autograd.grad(loss, self.parameters)
        self.optimizer.step(self.parameters, gradients)

    def losses(self, data: _Data) -> NDArray[np.float64]:
        """Return the mean loss of every active network, (networks,)."""
        import torch

        with torch.no_grad():
            parts = [slice(start, start + _ROWS) for start in range(0, len(data.X), _ROWS)]
            losses = [data.loss(self.logits(data.X[part]), part).double() for part in parts]
            return np.asarray((torch.stack(losses).sum(dim=0) / data.weight.double().sum().clamp(min=1e-12)).cpu())

    def keep_best(self, epoch: int, losses: NDArray[np.float64], patience: int) -> None:
        """Keep the networks that improved, and end those that have not for ``patience`` epochs."""
        better = losses < self.best_loss[self.active]
        self._keep(epoch, better)
        self.best_loss[self.active[better]] = losses[better]
        going = epoch - self.best_epoch[self.active] < patience
        if not going.all():
            self.active = self.active[going]
            places = _indices(going, self.keep_rate)
            self.keep_rate = self.keep_rate[places]
            self.parameters = [parameter.detach()[places] for parameter in self.parameters]
            self.optimizer.select(places)

    def keep_last(self, epoch: int) -> None:
        """Keep every network as it is."""
        self._keep(epoch, np.ones(len(self.active), bool))

    def _keep(self, epoch: int, which: NDArray[np.bool_]) -> None:
        self.best_epoch[self.active[which]] = epoch
        source = _indices(which, self.keep_rate)
        target = source.new_tensor(self.active[which])
        for best, parameter in zip(self.best, self.parameters, strict=True):
            best[target] = parameter.detach()[source]

    def trained(self) -> list[Trained]:
        """Return the networks that were kept."""
        weights = [weight.cpu().numpy() for weight in self.best[::2]]
        weights[0] = weights[0].transpose(0, 2, 1)
        biases = [bias[:, 0].cpu().numpy() for bias in self.best[1::2]]
        return [
            Trained([weight[i].copy() for weight in weights], [bias[i].copy() for bias in biases], int(epoch))
            for i, epoch in enumerate(self.best_epoch)
        ]


def _indices(mask: NDArray[np.bool_], like: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.as_tensor(np.flatnonzero(mask), device=like.device)


class _AdamW:
    """AdamW over stacked parameters with a learning rate and a weight decay for each network."""

    def __init__(self, parameters: Sequence[torch.Tensor], lr: Sequence[float], weight_decay: Sequence[float]) -> None:
        import torch

        self.rates = list(zip(lr, weight_decay, strict=True))
        self.mean = [torch.zeros_like(parameter) for parameter in parameters]
        self.square = [torch.zeros_like(parameter) for parameter in parameters]
        self.steps = torch.zeros(len(self.rates), len(parameters), device=parameters[0].device)

    def step(self, parameters: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor]) -> None:
        """Update the parameters in place."""
        import torch
        from torch.optim.adamw import adamw

        # torch's fused kernel reads and writes each number once, but takes no strides, and one rate a call.
        stacks = parameters, [gradient.contiguous() for gradient in gradients], self.mean, self.square
        with torch.no_grad():
            for network, (lr, weight_decay) in enumerate(self.rates):
                own, gradient, mean, square = ([stack[network] for stack in tensors] for tensors in stacks)
                adamw(
                    own, gradient, mean, square, [], list(self.steps[network]), fused=True, amsgrad=False, maximize=False,
                    lr=lr, beta1=0.9, beta2=0.999, weight_decay=weight_decay, eps=1e-8,
                )  # fmt: skip

    def select(self, networks: torch.Tensor) -> None:
        """Keep the state of these networks alone."""
        self.rates = [self.rates[network] for network in networks.tolist()]
        self.mean = [mean[networks] for mean in self.mean]
        self.square = [square[networks] for square in self.square]
        self.steps = self.steps[networks]


def probabilities(network: Trained, X: Floats, *, multilabel: bool) -> Floats:
    """Return the probabilities of a trained network, (n, n_classes), computed by numpy in the precision of X."""
    hidden = X
    for layer, (weight, bias) in enumerate(zip(network.weights, network.biases, strict=True)):
        hidden = (hidden if layer == 0 else np.maximum(hidden, 0)) @ weight.astype(X.dtype) + bias.astype(X.dtype)
    out: Floats = expit(hidden) if multilabel else softmax(hidden, axis=1)
    return out
