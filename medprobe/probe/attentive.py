"""A probe that learns where to look: queries that attend over an image's patch tokens, then a linear layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, softmax
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from medprobe.probe._estimator import Probe
from medprobe.probe._torch import classification_loss, last_epoch, seed_of, torch_for
from medprobe.probe.stopping import may_stop
from medprobe.probe.targets import Floats, Fold, encode_targets

_NAME = "the attentive probe"
_EPOCHS = 40
_STOPS = (5, 10, 20, 40)  # epochs after which a training may end
_GRID = ((1e-3, 1e-3), (1e-3, 1e-1), (3e-3, 1e-3), (3e-3, 1e-1))  # learning rate, weight decay
_HEADS = 4
_BATCH = 64
_ROWS = 256  # images that are predicted at once: tokens are many


@dataclass(frozen=True)
class _Layer:
    """Queries (heads, width), weights (K, heads * width) and biases (K,), for tokens less ``mean`` over ``scale``.

    A token that is NaN is none: nothing looks at it.
    """

    queries: NDArray[np.float32]
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    mean: NDArray[np.float32]
    scale: NDArray[np.float32]

    def attention(self, X: Floats) -> Floats:
        """Return how much each query looks at each token, (n, heads, tokens), adding up to one."""
        tokens, absent = self._standardised(X)
        scores = np.einsum("ntd,hd->nht", tokens, self.queries, optimize=True)
        scores[np.broadcast_to(absent[:, None], scores.shape)] = -np.inf
        found: Floats = softmax(scores / np.sqrt(len(self.mean)), axis=2)
        return found

    def logits(self, X: Floats) -> Floats:
        """Return (n, K)."""
        seen, _ = self._standardised(X)
        pooled = np.einsum("nht,ntd->nhd", self.attention(X), seen, optimize=True)
        found: Floats = pooled.reshape(len(X), -1) @ self.weight.T + self.bias
        return found

    def _standardised(self, X: Floats) -> tuple[Floats, NDArray[np.bool_]]:
        return _standardised(X, self.mean, self.scale)


class AttentiveProbe(Probe):
    """A classifier by attention over frozen tokens: softmax of learnt queries' products with the tokens, then a linear layer.

    The attentive probe of V-JEPA (Bardes et al., arXiv 2404.08471, 2024) and AIM (El-Nouby et al., arXiv 2401.08541, 2024)
    in the lean form of Psomas et al. (arXiv 2506.10178, 2025): tokens are their own keys and values. Queries start at
    zero, so that training begins at the mean of the tokens.

    Args:
        n_tokens: Tokens of an image: a row of features holds them one after the other.
        ragged: Whether some rows have fewer tokens: the rest of such a row is NaN. Rows to predict may then be longer, too.
        heads: Number of queries.
        lr: Learning rate of AdamW, which falls along a cosine to zero at the last epoch.
        weight_decay: Decoupled weight decay.
        epochs: Passes over the rows that the cosine is laid out for.
        stop_epoch: Epoch after which training ends; None trains all of them.
        batch_size: Rows of a step.
        device: A torch device.
        random_state: Seed of the weights and of the order of the rows.

    Attributes:
        classes_: The classes, or for multi-label targets the column numbers.

    """

    def __init__(
        self,
        n_tokens: int = 1,
        ragged: bool = False,
        heads: int = _HEADS,
        lr: float = 3e-3,
        weight_decay: float = 1e-3,
        epochs: int = _EPOCHS,
        stop_epoch: int | None = None,
        batch_size: int = _BATCH,
        device: str = "cpu",
        random_state: int | np.random.RandomState | None = 0,
    ) -> None:
        self.n_tokens = n_tokens
        self.ragged = ragged
        self.heads = heads
        self.lr = lr
        self.weight_decay = weight_decay
        self.epochs = epochs
        self.stop_epoch = stop_epoch
        self.batch_size = batch_size
        self.device = device
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike) -> AttentiveProbe:
        """Return the probe itself, after training.

        Args:
            X: Tokens, (n, n_tokens * width), float16 or float32: they are not copied as a whole.
            y: Classes (n,), or labels 0, 1 or NaN for missing, (n, L) with L of at least 2.

        Raises:
            ValueError: The width is no multiple of ``n_tokens``, a row has no token, or targets of another kind.
            UsageError: torch is not installed.

        """
        rows = self._checked(X, reset=True)
        if rows.shape[1] % self.n_tokens:
            raise ValueError(f"{rows.shape[1]} features are not those of {self.n_tokens} tokens")
        self.classes_, Y = encode_targets(y, len(rows))
        self._multilabel = Y.ndim == 2
        recipe = _Recipe(self.heads, self.lr, self.weight_decay, self.epochs, self.batch_size)
        stop, seed = last_epoch(self.stop_epoch, self.epochs), seed_of(self.random_state)
        with torch_for(_NAME, rows.size) as torch:
            (self._layer,) = _train(
                torch, rows, Y, self.n_tokens, len(self.classes_), recipe, seed, [stop], self.device
            )
        return self

    def attention(self, X: ArrayLike) -> Floats:
        """Return how much each query looks at each token, (m, heads, n_tokens): where the probe looks."""
        check_is_fitted(self)
        rows = self._checked(X)
        return np.concatenate([self._layer.attention(part) for part in _parts(rows)])

    def predict_proba(self, X: ArrayLike) -> Floats:
        """Return the probability of every class, rows adding up to one, or of every label, (m, K)."""
        check_is_fitted(self)
        rows = self._checked(X)
        logits = np.concatenate([self._layer.logits(part) for part in _parts(rows)]).astype(np.float64)
        found: Floats = expit(logits) if self._multilabel else softmax(logits, axis=1)
        return found

    def _checked(self, X: ArrayLike, *, reset: bool = False) -> Floats:
        kinds = [np.float16, np.float32, np.float64]
        if not self.ragged:
            found: Floats = validate_data(self, X, dtype=kinds, reset=reset)
            return found
        if reset:
            rows: Floats = validate_data(self, X, dtype=kinds, ensure_all_finite="allow-nan")
        else:
            rows = check_array(X, dtype=kinds, ensure_all_finite="allow-nan")
        width = self.n_features_in_ // self.n_tokens
        if rows.shape[1] % max(width, 1):
            raise ValueError(f"{rows.shape[1]} features are not those of tokens of {width}")
        if np.isnan(rows[:, :: max(width, 1)]).all(axis=1).any():
            raise ValueError("a row has no token")
        return rows


def sweep_attentive(
    X: Floats,
    Y: NDArray[Any],
    folds: Sequence[Fold],
    *,
    n_classes: int,
    n_tokens: int,
    ragged: bool = False,
    seed: int = 0,
) -> list[tuple[dict[str, Any], list[Floats]]]:
    """Return settings, arguments of :class:`AttentiveProbe`, and probabilities of the held-out rows of each fold.

    Args:
        X: Tokens, (n, n_tokens * width), as they are.
        Y: Class codes (n,), or labels 0, 1 or NaN (n, L).
        folds: Pairs of training and held-out rows.
        n_classes: Number of classes, or of labels.
        n_tokens: Tokens of an image, or of the longest row.
        ragged: Whether some rows have fewer tokens, and are NaN after them.
        seed: Of weights and the order of the rows.

    Raises:
        UsageError: torch is not installed.

    """
    found: list[tuple[dict[str, Any], list[Floats]]] = []
    for lr, weight_decay in _GRID:
        recipe = _Recipe(_HEADS, lr, weight_decay, _EPOCHS, _BATCH)
        by_stop: list[list[Floats]] = [[] for _ in _STOPS]
        for train, val in folds:
            with torch_for(_NAME, X.size) as torch:
                layers = _train(torch, X[train], Y[train], n_tokens, n_classes, recipe, seed, _STOPS, "cpu")
            for by_fold, layer in zip(by_stop, layers, strict=True):
                logits = np.concatenate([layer.logits(X[val[part]]) for part in _slices(len(val))])
                by_fold.append(expit(logits) if Y.ndim == 2 else softmax(logits, axis=1))
        for stop, by_fold in zip(_STOPS, by_stop, strict=True):
            settings = {"n_tokens": n_tokens, "lr": lr, "weight_decay": weight_decay, "stop_epoch": stop}
            found.append((settings | ({"ragged": True} if ragged else {}), by_fold))
    return found


@dataclass(frozen=True)
class _Recipe:
    heads: int
    lr: float
    weight_decay: float
    epochs: int
    batch_size: int


def _train(
    torch: Any,
    X: Floats,
    Y: NDArray[Any],
    n_tokens: int,
    n_classes: int,
    recipe: _Recipe,
    seed: int,
    stops: Sequence[int],
    device: str,
) -> list[_Layer]:
    """Return the layer as it is after each of some epochs, the last of which ends the training."""
    width = X.shape[1] // n_tokens
    mean, scale = _moments(X, width)
    generator = torch.Generator().manual_seed(seed)
    queries = torch.zeros(recipe.heads, width, device=device, requires_grad=True)
    # Heads begin alike and must come apart: their weights in the linear layer differ.
    weight = (torch.randn(n_classes, recipe.heads * width, generator=generator) * 0.01).to(device).requires_grad_()
    bias = torch.zeros(n_classes, device=device, requires_grad=True)
    groups = [
        {"params": [queries, weight], "weight_decay": recipe.weight_decay},
        {"params": [bias], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe.lr)
    steps = recipe.epochs * -(-len(X) // recipe.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    targets = torch.from_numpy(Y.astype(np.int64 if Y.ndim == 1 else np.float32))
    layers = []
    for epoch in range(1, max(stops) + 1):
        order = torch.randperm(len(X), generator=generator).numpy()
        for start in range(0, len(X), recipe.batch_size):
            may_stop()
            batch = np.sort(order[start : start + recipe.batch_size])
            tokens, absent = (torch.from_numpy(part).to(device) for part in _standardised(X[batch], mean, scale))
            scores = (tokens @ queries.T / np.sqrt(width)).masked_fill(absent[:, :, None], -torch.inf)
            looked = torch.softmax(scores, dim=1)  # (rows, tokens, heads)
            pooled = torch.einsum("nth,ntd->nhd", looked, tokens).flatten(1)
            loss = classification_loss(torch, pooled @ weight.T + bias, targets[batch].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        if epoch in stops:
            q, w, b = (parameter.detach().cpu().numpy().copy() for parameter in (queries, weight, bias))
            layers.append(_Layer(q, w, b, mean, scale))
    return layers


def _moments(X: Floats, width: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return mean and standard deviation of each feature over all tokens, (width,)."""
    total, squares, count = np.zeros(width), np.zeros(width), 0
    for part in _parts(X):
        tokens = part.reshape(-1, width).astype(np.float64)
        tokens = tokens[~np.isnan(tokens[:, 0])]
        total += tokens.sum(axis=0)
        squares += np.square(tokens).sum(axis=0)
        count += len(tokens)
    mean = total / count
    variance = squares / count - mean**2
    scale = np.sqrt(np.where(variance > 1e-12 * np.maximum(mean**2, 1e-12), variance, 1.0))
    return mean.astype(np.float32), scale.astype(np.float32)


def _standardised(
    X: Floats, mean: NDArray[np.float32], scale: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return tokens (n, tokens, width), zero where there is none, and where that is, (n, tokens)."""
    tokens = (X.reshape(len(X), -1, len(mean)).astype(np.float32) - mean) / scale
    absent = np.isnan(tokens[:, :, 0])
    tokens[absent] = 0
    return tokens, absent


def _slices(n: int) -> list[slice]:
    return [slice(start, start + _ROWS) for start in range(0, n, _ROWS)]


def _parts(X: Floats) -> list[Floats]:
    return [X[part] for part in _slices(len(X))]
